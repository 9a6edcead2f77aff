"""Configs: Python files with one typed function `experiment(**knobs) -> Experiment`. Found, loaded, called."""

import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.errors import ConfigError
from jaxlm.train.experiment import Experiment

REQUIRED = ("steps", "seed", "lr", "batch", "mesh")


def config_folders() -> list[Path]:
    """Where names are looked up: ./configs, then those of the library (beside the package, or inside the wheel)."""
    package = Path(__file__).resolve().parents[1]
    return [p for p in (Path("configs"), package / "configs", package.parent / "configs") if p.is_dir()]


def known_configs() -> dict[str, Path]:
    """Configs by name; an earlier folder hides a later one."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return found


def find_config(name: str) -> Path:
    """The file of a config given by name or path."""
    if name.endswith(".py") or "/" in name:
        if not Path(name).is_file():
            raise ConfigError(
                f"config = {name!r}: no such file; expected a path, or one of {', '.join(known_configs())}"
            )
        return Path(name)
    known = known_configs()
    if name not in known:
        raise ConfigError(f"config = {name!r}: unknown; expected a path, or one of {', '.join(known)}")
    return known[name]


def load_config(path: Path) -> Callable[..., Experiment]:
    """The function `experiment` of a config file, its signature checked."""
    spec = importlib.util.spec_from_file_location(f"jaxlm_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config = {str(path)!r}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ConfigError(f"config = {str(path)!r}: cannot be loaded: {type(e).__name__}: {e}") from e
    function = getattr(module, "experiment", None)
    if not inspect.isfunction(function):
        raise ConfigError(f"{path}: expected a function experiment(...) -> Experiment")
    hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters
    lacking = [k for k in REQUIRED if k not in parameters]
    if lacking:
        raise ConfigError(f"{path}: experiment(...) lacks {', '.join(lacking)}; every config has {', '.join(REQUIRED)}")
    bare = [k for k, p in parameters.items() if k not in hints or p.default is inspect.Parameter.empty]
    if bare:
        raise ConfigError(f"{path}: experiment(...): expected a type and a default for {', '.join(bare)}")
    return function


def build(function: Callable[..., Experiment], knobs: dict[str, Any]) -> Experiment:
    """Call a config's function, and check what it gives."""
    exp = function(**knobs)
    if not isinstance(exp, Experiment):
        raise ConfigError(f"experiment(...) gave {type(exp).__name__}: expected a jaxlm.train.Experiment")
    return exp
