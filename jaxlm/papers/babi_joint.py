"""MemN2N on the 20 bAbI tasks, one model for all (Sukhbaatar et al. 2015, table 1: joint, PE LS RN, 3 hops, 1k).

The recipe of the paper and its code; 4 restarts (the paper: 10). A batch is sorted by the lengths of its stories and
cut into three parts of 50, 20 and 10 sentences; what does not fit (in one batch of 2,600) is left out of it.
"""

from dataclasses import replace

from jaxlm.papers._babi import Settings
from jaxlm.papers._babi_report import draw, report
from jaxlm.papers._babi_tables import EN
from jaxlm.papers.result import Lab, Result

__all__ = ["BUDGETS", "NEEDS", "ROWS", "TITLE", "Settings", "draw", "run"]

TITLE = "MemN2N on bAbI, one model for all tasks, 1k"
ROWS = (64,)
NEEDS = ("babi/en",)
CPU = Settings(joint=True, restarts=4, epochs=60, linear=30, halve=15, width=50, every=10)
SMOKE = replace(CPU, tasks=(1, 2), restarts=2, epochs=1, linear=1, every=1, questions=64, width=4)
BUDGETS = {"smoke": SMOKE, "cpu": CPU, "gpu": replace(CPU, restarts=10)}


def run(s: Settings, lab: Lab) -> Result:
    """Train every restart; the one with the lowest training error over all tasks counts."""
    return report(s, lab, EN, "joint", high=13.8)
