"""What a run needs, before it runs: bytes, operations, seconds at best, from the declarations and the jaxpr alone."""

from jaxlm.plan.chips import CHIPS, Chip, chip
from jaxlm.plan.plan import Plan, plan

__all__ = ["CHIPS", "Chip", "Plan", "chip", "plan"]
