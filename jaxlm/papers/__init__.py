"""Published results, each reproduced by one module: `jaxlm reproduce NAME`.

A module holds TITLE, ROWS (of the index of papers), NEEDS (data), Settings, BUDGETS, `run(settings, lab) -> Result` and
`draw(figure, series)`; HEADLINE, if it is there, names the claim to show where there is room for one (by default the
first that is judged). What it is made of lives on the floors below. An experiment of `jaxlm.theory` is such a module,
too, and also holds QUESTION, one sentence.
"""

import importlib
from pathlib import Path
from types import ModuleType

from jaxlm.errors import ConfigError
from jaxlm.papers.result import Claim, Lab, Result

__all__ = ["GROUPS", "Claim", "ConfigError", "Lab", "Result", "names", "result"]

GROUPS = ("papers", "theory")
NOT_RESULTS = ("__init__", "index", "record", "report", "result")


def names(group: str | None = None) -> list[str]:
    """Names of the results that can be reproduced: of one of GROUPS, or of all."""
    here = Path(__file__).parents[1]
    files = sorted(p.stem for g in GROUPS if group in (g, None) for p in (here / g).glob("*.py"))
    return [f.replace("_", "-") for f in files if f not in NOT_RESULTS and not f.startswith("_")]


def result(name: str) -> ModuleType:
    """The module of a result by its name, e.g. 'lem-fhn'."""
    for group in GROUPS:
        if name in names(group):
            return importlib.import_module(f"jaxlm.{group}.{name.replace('-', '_')}")
    raise ConfigError(f"name = {name!r}: unknown; expected one of {', '.join(names())}")
