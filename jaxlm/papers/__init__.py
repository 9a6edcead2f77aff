"""Published results, each reproduced by one module: `jaxlm reproduce NAME`.

A module holds TITLE, ROWS (of the index of papers), NEEDS (data), Settings, BUDGETS, `run(settings, lab) -> Result` and
`draw(figure, series)`; HEADLINE, if it is there, names the claim to show where there is room for one (by default the
first that is judged). What it is made of lives on the floors below.
"""

import importlib
from pathlib import Path
from types import ModuleType

from jaxlm.errors import ConfigError
from jaxlm.papers.result import Claim, Lab, Result

__all__ = ["Claim", "ConfigError", "Lab", "Result", "names", "result"]

NOT_RESULTS = ("__init__", "index", "record", "result")


def names() -> list[str]:
    """Names of the results that can be reproduced."""
    files = sorted(p.stem for p in Path(__file__).parent.glob("*.py"))
    return [f.replace("_", "-") for f in files if f not in NOT_RESULTS and not f.startswith("_")]


def result(name: str) -> ModuleType:
    """The module of a result by its name, e.g. 'lem-fhn'."""
    if name not in names():
        raise ConfigError(f"name = {name!r}: unknown; expected one of {', '.join(names())}")
    return importlib.import_module(f"jaxlm.papers.{name.replace('-', '_')}")
