"""jaxlm train [CONFIG] [--knobs]"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxlm.cli import say
from jaxlm.cli.cluster import joined
from jaxlm.cli.knobs import parse
from jaxlm.cli.progress import Progress
from jaxlm.data import Tokenizer, baselines
from jaxlm.errors import ConfigError
from jaxlm.files import save
from jaxlm.generate import Sampling, generate
from jaxlm.sharding import replicated
from jaxlm.train.config import build, find_config, known_configs, load_config
from jaxlm.train.experiment import Experiment
from jaxlm.train.loop import Result, Run
from jaxlm.train.processes import first, once, shared, whole
from jaxlm.train.report import JsonLines, TensorBoard, loss_curve, read_metrics
from jaxlm.train.rundir import RunDirectory, new_run, newest_run

RUNS = Path("runs")


def options(
    run_dir: Path | None = None, resume: bool = False, coordinator: str = "", processes: int = 1, process: int = 0
) -> None:
    """Where the run goes, and which processes it has.

    Args:
        run_dir: Directory of the run. If it holds a run already, that run goes on. Default: runs/NAME-date-time.
        resume: Go on with the newest run of this config under runs/.
        coordinator: HOST:PORT of process 0. TPU pods, SLURM and Open MPI are found without these three flags.
        processes: How many processes make the run, each with the devices that it sees.
        process: Which of them this is, from 0.
    """


def main(args: list[str]) -> None:
    """Train a config, or go on with a run, alone or as one of several processes."""
    with joined(args):
        command(args)


def command(args: list[str]) -> None:
    """Find the run that the arguments mean, and train it."""
    named = args[0] if args and not args[0].startswith("-") else None
    args = args[1:] if named is not None else args
    place, progress = existing(named, args), Progress()
    progress.console.quiet = not first()
    if place is None:
        config = find_config(named or "quickstart")
        function = load_config(config)
        knobs, opts = parse_train(config.stem, function, args)
        exp = build(function, knobs)
        path = opts["run_dir"] or new_run(RUNS, exp.name).path
        place = RunDirectory(Path(shared(str(path))))  # and no process is still looking for a run when it begins
        begin = partial(place.create, config, knobs, exp)
    else:
        exp, knobs = resumed(place, named, args, progress.note)
        begin = partial(place.record, {**place.about, "arguments": knobs})
    train(exp, place, begin, progress)


def train(exp: Experiment, place: RunDirectory, begin: Callable[[], None], progress: Progress) -> None:
    """Run it in its directory. `begin` writes there first, once everything else was found usable."""
    with ExitStack() as held:

        def create() -> None:
            new = not place.exists
            if new:
                begin()
            held.enter_context(place.alone())
            if not new:
                begin()

        run = Run(exp, place.path, [], partial(once, create))
        run.listeners = [progress, JsonLines(place.path / "metrics.jsonl"), TensorBoard(place.path / "tensorboard")]
        progress.note(f"{place.path}  {exp.name}: {summary(exp)}")
        for tensor in replicated(run.target):
            progress.note(f"whole on every device: {tensor.path}, {tensor.bytes / 2**20:.0f} MiB")
        with progress:
            result = run()
        result = dataclasses.replace(result, params=whole(result.params))
        once(partial(finish, exp, place, result, run, progress))


def existing(named: str | None, args: list[str]) -> RunDirectory | None:
    """The run that the arguments ask to go on with, if they do. Looked at before the config's own flags are known."""
    if "--help" in args or "-h" in args:
        return None
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag in ("--run-dir", "--run_dir"):
            value = value or (args[i + 1] if i + 1 < len(args) else "")
            if value and RunDirectory(Path(value)).exists:
                return RunDirectory(Path(value))
            if "--resume" in args:
                raise ConfigError(f"--run-dir = {value!r}: expected a run to go on with (it has no run.json)")
            return None
    return newest_run(RUNS, find_config(named or "quickstart")) if "--resume" in args else None


def parse_train(
    name: str, function: Callable[..., Experiment], args: list[str], defaults: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    about = f"Train {name}. Other configs: {', '.join(known_configs())}, or a path."
    return parse(f"jaxlm train {name}", about, function, options, args, defaults)


def resumed(
    place: RunDirectory, named: str | None, args: list[str], note: Callable[[str], None]
) -> tuple[Experiment, dict[str, Any]]:
    """(experiment, arguments) of a run that goes on: its own config and arguments, but for those given anew."""
    about = place.about
    if named is not None and find_config(named).resolve() != Path(about["config"]):
        raise ConfigError(
            f"--run-dir = {str(place.path)!r}: holds a run of {about['config']}; expected that config, or none"
        )
    function = load_config(place.path / "config.py")
    knobs, _ = parse_train(about["name"], function, args, about["arguments"])
    changed = {k: v for k, v in knobs.items() if about["arguments"].get(k) != v}
    exp = place.experiment(changed)
    place.differs_from(note)
    if changed:
        note("changed in this run: " + ", ".join(f"{k} {about['arguments'].get(k)} -> {v}" for k, v in changed.items()))
    return exp, knobs


def summary(exp: Experiment) -> str:
    from jaxlm.module import count

    devices = exp.mesh or "one device"
    return f"{count(exp.model):,} weights, {exp.steps} steps of {exp.batch} x {exp.data.length} tokens on {devices}"


def finish(exp: Experiment, place: RunDirectory, result: Result, run: Run, progress: Progress) -> None:
    """Compare, draw, export, and show a sample."""
    rows = {"this run": result.bits_per_byte}
    if exp.baselines:
        rows |= baselines(exp.data.corpus.documents("train"), exp.data.corpus.documents("held_out"))
    metrics = place.path / "metrics.jsonl"
    updates = [e for e in read_metrics(metrics) if e["kind"] == "update"]
    report = {
        "name": exp.name,
        "steps": result.step,
        "loss": updates[-1]["loss"] if updates else None,
        "skipped": result.skipped,
        "bits_per_byte": rows,
        "held_out_bytes": run.held_out.stream.bytes,
        "seconds_of_last_call": round(result.seconds, 1),
        **{k: place.about[k] for k in ("arguments", "versions")},
    }
    (place.path / "result.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    loss_curve(metrics, place.path / "loss.png", {k: v for k, v in rows.items() if k != "this run"})
    save(place.path, exp.model, result.params)
    run.emit("end")
    progress.table("held-out bits per byte", rows)
    if exp.sample:
        text = sample(exp, result.params, exp.prompt, exp.sample, Sampling(temperature=0.8), exp.seed)
        (place.path / "sample.txt").write_text(text, encoding="utf-8")
        progress.text("a sample at temperature 0.8", text)
    say(f"{place.path}: loss.png, metrics.jsonl, model.json; go on with: jaxlm sample {place.path} --prompt TEXT")


def sample(exp: Experiment, params: Any, prompt: str, tokens: int, how: Sampling, seed: int) -> str:
    """The prompt and `tokens` tokens after it, as text."""
    return write(exp.model, params, exp.data.tokenizer, prompt, tokens, how, seed)


def write(
    model: Any, params: Any, tokenizer: Tokenizer, prompt: str, tokens: int, how: Sampling, seed: int,
    stop: Sequence[int] | None = None,
) -> str:  # fmt: skip
    """The prompt and up to `tokens` tokens after it, as text; it ends before a token of `stop`."""
    import numpy as np

    begin = [tokenizer.bos] if tokenizer.bos < model.vocab else []
    ids = np.concatenate([begin, tokenizer.encode(prompt.encode())]).astype(np.int32)
    out, _ = generate(model, params, jax.numpy.asarray(ids)[None], tokens, jax.random.key(seed), how, stop=stop)
    out = np.asarray(out[0])
    ends = np.flatnonzero(np.isin(out, stop or ()))
    return tokenizer.decode(np.concatenate([ids, out[: ends[0]] if ends.size else out]))
