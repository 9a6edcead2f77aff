"""A run directory: the config's copy, its arguments, metrics, pictures, checkpoints. It can be gone on with."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from jaxlm.codec import encode
from jaxlm.errors import ConfigError
from jaxlm.train.config import build, load_config
from jaxlm.train.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    config.py       the config as it was
    run.json        its number, name, origin, arguments, model and versions
    metrics.jsonl   losses and evaluations
    tensorboard/    the same for TensorBoard
    loss.png        the same as a picture
    lock            held by the process that trains here
    skipped/        batches whose updates were skipped, as step-000123.npz
    checkpoints/    everything that the run carries, by step;  damaged/ what could not be read
    model.json, params.safetensors, sample.txt, result.json      at the end
    """

    path: Path

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    @property
    def about(self) -> dict[str, Any]:
        """run.json."""
        if not self.exists:
            raise ConfigError(f"run = {str(self.path)!r}: expected a run directory (it has no run.json)")
        try:
            about = json.loads((self.path / "run.json").read_text())
            return {**about, "arguments": {k: immutable(v) for k, v in about["arguments"].items()}}
        except json.JSONDecodeError as e:
            raise ConfigError(f"{self.path / 'run.json'}: not readable as JSON: {e}") from e

    def create(self, config: Path, knobs: dict[str, Any], exp: Experiment) -> None:
        """Write what the run is, before it begins."""
        try:
            if self.path.is_dir() and any(p.name not in ("config.py", "run.json.new") for p in self.path.iterdir()):
                raise ConfigError(f"run directory = {str(self.path)!r}: expected a new or empty directory, or a run")
            copy = self.path / "config.py"
            if copy.exists() and copy.read_bytes() != config.read_bytes():
                raise ConfigError(f"run directory = {str(self.path)!r}: expected no other config.py in it")
            self.path.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(config.read_bytes())
            number = 1 + max((r.get("number", 0) for r in runs_in(self.path.parent).values()), default=0)
            about = {"number": number, "name": exp.name, "config": str(config.resolve()), "model": encode(exp.model)}
            self.record({**about, "versions": versions(), "arguments": knobs})  # last: then the directory is a run
        except OSError as e:
            raise ConfigError(f"run directory = {str(self.path)!r}: cannot be written: {e.strerror or e}") from e

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the directory, which exists, for this process: two writers would spoil each other's files."""
        import fcntl

        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except BlockingIOError:
                raise ConfigError(
                    f"run directory = {str(self.path)!r}: expected one that no other process trains in"
                ) from None
            yield

    def record(self, about: dict[str, Any]) -> None:
        """Write run.json, at once."""
        new = self.path / "run.json.new"
        new.write_text(json.dumps(about, indent=1, default=os.fspath))
        new.replace(self.path / "run.json")

    def experiment(self, changes: dict[str, Any] | None = None) -> Experiment:
        """The run's experiment from its own copy of the config, with some arguments changed."""
        about = self.about
        function = load_config(self.path / "config.py")
        exp = build(function, {**about["arguments"], **(changes or {})})
        if encode(exp.model) != about["model"]:
            expected = first_difference(about["model"], encode(exp.model))
            raise ConfigError(f"run directory = {str(self.path)!r}: holds a run of another model; expected {expected}")
        return exp

    def differs_from(self, note: Callable[[str], None]) -> None:
        """Say so if the config that was copied has changed since."""
        original = Path(self.about["config"])
        if original.is_file() and original.read_bytes() != (self.path / "config.py").read_bytes():
            note(f"{original} has changed since this run began; going on with the run's own copy")


def immutable(value: Any) -> Any:
    """JSON has no tuples: its lists were tuples."""
    return tuple(immutable(v) for v in value) if isinstance(value, list) else value


def first_difference(old: Any, new: Any, path: str = "model") -> str:
    """'model.body.width = 128 (not 64)': where two encoded models differ first."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{path}.{key}")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return first_difference(a, b, f"{path}.{i}")
    return f"{path} = {old!r} (not {new!r})"


def new_run(folder: Path, name: str) -> RunDirectory:
    """A directory that does not exist yet: FOLDER/NAME-date-time."""
    stem = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = stem, 1
    while path.exists():
        n += 1
        path = stem.with_name(f"{stem.name}-{n}")
    return RunDirectory(path)


def runs_in(folder: Path) -> dict[RunDirectory, dict[str, Any]]:
    """run.json of each run under a folder, where it can be read."""
    runs = {}
    for path in folder.glob("*/run.json"):
        with suppress(ConfigError, OSError, KeyError, TypeError, ValueError):  # a broken one does not hide the others
            runs[RunDirectory(path.parent)] = RunDirectory(path.parent).about
    return runs


def newest_run(folder: Path, config: Path) -> RunDirectory:
    """The run of that config that began last; raises if there is none. Runs are counted: a clock can go backwards."""
    runs = {r: about for r, about in runs_in(folder).items() if about.get("config") == str(config.resolve())}
    if not runs:
        raise ConfigError(f"--resume: expected a run of {str(config)!r} under {str(folder)!r}, found none")
    return max(runs, key=lambda r: runs[r].get("number", 0))


def versions() -> dict[str, str]:
    """What a result depends on besides the config."""
    packages = {p: importlib.metadata.version(p) for p in ("jaxlm", "jax", "jaxlib", "optax", "orbax-checkpoint")}
    return {"python": platform.python_version(), **packages, "device": jax.devices()[0].device_kind}
