"""A reproduction as files: NAME.json with everything that was found, NAME.png drawn from that JSON alone."""

import dataclasses
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.papers.result import Claim, Lab
from jaxlm.train.rundir import versions

Record = dict[str, Any]
WENT_ON = "went on from kept progress: the seconds are those of the last call alone"


def reproduce(module: ModuleType, budget: str, lab: Lab, changes: Mapping[str, Any] | None = None) -> Record:
    """Run a result with a budget's settings, some of them changed, and say everything about it in one dict.

    budget   'smoke' (every path, no band is judged), 'cpu' or 'gpu'
    Raises ConfigError for an unknown budget, DataError before the run when data is missing.
    """
    if budget not in module.BUDGETS:
        raise ConfigError(f"budget = {budget!r}: expected one of {', '.join(module.BUDGETS)}")
    for name in module.NEEDS:
        lab.data.file(name)
    settings = dataclasses.replace(module.BUDGETS[budget], **(changes or {}))
    went_on = lab.folder is not None and lab.folder.exists()
    began = time.perf_counter()
    result = module.run(settings, lab)
    seconds = time.perf_counter() - began
    return {
        "title": module.TITLE,
        "rows": list(module.ROWS),
        "budget": budget,
        "settings": dataclasses.asdict(settings),
        "claims": [_claim(c, judge=budget != "smoke") for c in result.claims],
        "notes": [*result.notes, *([WENT_ON] if went_on else [])],
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": versions(),
        "series": plain(result.series),
    }


def passed(record: Record) -> bool | None:
    """Whether every judged claim passed; None when none was judged."""
    judged = [c["passed"] for c in record["claims"] if c["passed"] is not None]
    return all(judged) if judged else None


def write(record: Record, module: ModuleType, folder: Path, name: str) -> Path:
    """NAME.json and NAME.png in a folder, which is made if need be; the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    new = file.with_suffix(".new")
    new.write_text(json.dumps(record, allow_nan=False, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    new.replace(file)
    picture(read(file), module, file.with_suffix(".png"))
    return file


def read(file: Path) -> Record:
    """A record that `write` wrote."""
    try:
        record = json.loads(file.read_text())
        return {**record, "claims": list(record["claims"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: expected a result written by jaxlm reproduce: {error}") from error


def picture(record: Record, module: ModuleType, file: Path) -> None:
    """Draw a record's figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    module.draw(figure, record["series"])
    figure.savefig(file, dpi=110)


def plain(tree: Any) -> Any:
    """Arrays as nested lists with seven digits; what JSON cannot say (nan, infinity) as null."""
    if isinstance(tree, Mapping):
        return {str(k): plain(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(v) for v in tree]
    if isinstance(tree, str | bool | int | None):
        return tree
    if isinstance(tree, float):
        return float(f"{tree:.7g}") if math.isfinite(tree) else None
    return plain(np.asarray(tree).tolist())


def digest(about: Any) -> str:
    """Eight letters that tell settings apart."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:8]


def commit() -> str:
    """The commit of the checkout that the library runs from, '+' when files differ from it; '' outside of one."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--", ".."], cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return "" if head.returncode else head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _claim(claim: Claim, judge: bool) -> Record:
    out = {"name": claim.name, "ours": claim.ours, "low": claim.low, "high": claim.high, "paper": claim.paper}
    return {**plain(out), "passed": bool(claim.passed) if judge and claim.judged else None}
