"""MemN2N on the 20 bAbI tasks, one model a task (Sukhbaatar et al. 2015, table 1: PE LS RN, 3 hops, 1k).

The recipe of the paper and its code: see Settings. All restarts of a task see the same batches and noise in the same
order, and differ by their initial weights; all 1,000 test questions count (the code drops the last 8).
"""

from jaxlm.papers._babi import Settings
from jaxlm.papers._babi_report import draw, report
from jaxlm.papers._babi_tables import EN
from jaxlm.papers.result import Lab, Result

__all__ = ["BUDGETS", "NEEDS", "ROWS", "TITLE", "Settings", "draw", "run"]

TITLE = "MemN2N on bAbI, one model a task, 1k"
ROWS = (64,)
NEEDS = ("babi/en",)
SMOKE = Settings(tasks=(2,), restarts=2, epochs=1, linear=1, every=1, questions=64, width=4, rounds=1)
BUDGETS = {"smoke": SMOKE, "cpu": Settings(rounds=2), "gpu": Settings(rounds=2)}


def run(s: Settings, lab: Lab) -> Result:
    """Train every task and restart; of a task the restart with the lowest training error counts."""
    return report(s, lab, EN, "PE LS RN", high=15.0)
