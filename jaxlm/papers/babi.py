"""MemN2N on the 20 bAbI tasks, one model a task (Sukhbaatar et al. 2015, table 1: PE LS RN, 3 hops, 1k).

The recipe of the paper and its code: see Settings. All restarts of a task see the same batches and noise in the same
order, and differ by their initial weights; all 1,000 test questions count (the code drops the last 8).
"""

from jaxlm.papers._babi import Settings, groups, load, train
from jaxlm.papers._babi_report import attention, draw, faster, table
from jaxlm.papers._babi_tables import EN
from jaxlm.papers.result import Claim, Lab, Result

__all__ = ["BUDGETS", "NEEDS", "ROWS", "TITLE", "Settings", "draw", "run"]

TITLE = "MemN2N on bAbI, one model a task, 1k"
ROWS = (64,)
NEEDS = ("babi/en",)
SMOKE = Settings(tasks=(2,), restarts=2, epochs=1, linear=1, every=1, questions=64, width=4)
BUDGETS = {"smoke": SMOKE, "cpu": Settings(), "gpu": Settings()}


def run(s: Settings, lab: Lab) -> Result:
    """Train every task and restart in one program; the restart with the lowest training error counts."""
    sets = load(lab.data, s)
    parts = groups(sets, s)
    fit = train(s, parts, lab)
    claims, series = table(s, fit.watched, EN["PE LS RN"], high=15.0)
    pace = faster(s, parts, sets, lab)
    claims.append(Claim("one by one / one program, seconds of an epoch", pace["ratio"]))
    columns = {f"paper, {name}": [column[task - 1] for task in s.tasks] for name, column in EN.items()}
    return Result(tuple(claims), {**series, **columns, **attention(s, parts, sets, fit), "pace": pace})
