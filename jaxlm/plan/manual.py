"""Regions of a program that say themselves which device does what (shard_map), and what they send within.

In a graph each operand of a region passes `local`, from the whole array to a device's part, and each result `whole`,
back again. Neither moves anything: the parts lie where the whole does.
"""

import math
from collections import Counter

from jaxlm.plan.graph import Operation
from jaxlm.plan.placing import Placed

SENDING = ("ppermute", "all_gather", "reduce_scatter", "psum", "psum_invariant")


def sent(p: Placed, op: Operation) -> Counter[str]:
    """Bytes that a device sends for a collective that the program names; nothing for any other operation."""
    if op.name not in SENDING:
        return Counter()
    names = op.params.get("axis_name") or op.params["axes"]
    n = math.prod(p.mesh[a] for a in ((names,) if isinstance(names, str) else names))
    given, made = sum(map(p.bytes, op.ins)), sum(map(p.bytes, op.outs))
    if op.name == "ppermute":
        return Counter({"collective-permute": given})
    if op.name == "all_gather":
        return Counter({"all-gather": made * (n - 1) // n})
    if op.name == "reduce_scatter":
        return Counter({"reduce-scatter": given * (n - 1) // n})
    return Counter({"all-reduce": 2 * made * (n - 1) // n})
