"""What a placed graph moves: bytes between a device and its memory, and between devices."""

import math
from collections import Counter

from jaxlm.plan.graph import Graph
from jaxlm.plan.manual import sent
from jaxlm.plan.memory import Written
from jaxlm.plan.placing import Placed, axes_of, exchanged
from jaxlm.plan.sums import Sums


def to_memory(p: Placed) -> int:
    """Bytes that a device reads and writes: each value that is written down, once to write it and once a reader."""
    written = Written(p)
    total = 0
    for i, op in enumerate(p.graph.operations):
        times = op.params["length"] if op.name == "scan" else 1
        if p.bodies.get(i):
            total += times * max(to_memory(b) for b in p.bodies[i])
            continue
        if all(written.joined(v) for v in op.outs):
            continue
        total += sum(p.bytes(v) for v in op.outs) + sum(p.bytes(v) for v in written.sources(op))
    return total


def between_devices(p: Placed) -> Counter[str]:
    """Bytes that a device sends, by kind: what is gathered to be read whole, sums over devices, and what they scatter.

    Rings are assumed: of n devices each sends s (n - 1) / n to gather or scatter s bytes, twice that to sum them.
    A compiler may send more: for some pods XLA sums where it could scatter or gather, which is twice the bytes.
    """
    return within(Sums(p))


def within(sums: Sums) -> Counter[str]:
    """The same of a graph, without the sums that wait until the loop around it has ended."""
    p, total = sums.p, Counter[str]()
    gathered: set[tuple[int, int]] = set()
    for i, op in enumerate(p.graph.operations):
        if i in sums.bodies:
            times = op.params["length"] if op.name == "scan" else 1
            for kind, n in within(sums.bodies[i]).items():
                total[kind] += times * n
        elif op.name == "dot_general":
            # What two products of one turn read whole is gathered once: with remat the product that is computed again
            # and the one that goes back. From turn to turn nothing is kept: a whole weight would stay.
            found = set(exchanged(p, op)[0].items()) - gathered
            gathered |= found
            total["all-gather"] += sum(p.bytes(v) * (ways - 1) for v, ways in found)
        else:
            total += sent(p, op)
        for v in op.outs:
            total += summed(p, v, sums.parts.get(v, set()), v in sums.waiting)
    return +total


def turns(graph: Graph) -> int:
    """Trips of a graph's innermost loops, one after the other."""
    total = 0
    for op in graph.operations:
        inner = max(map(turns, op.bodies), default=0)
        total += op.params["length"] * max(1, inner) if op.name == "scan" else inner
    return total


def summed(p: Placed, out: int, axes: set[str], waits: bool) -> Counter[str]:
    """A sum over devices; where the result is split over them too, each keeps its part, and that does not wait."""
    kept = axes_of(p, out) & axes
    n, m = (1 if waits else math.prod(p.mesh[a] for a in axes - kept)), math.prod(p.mesh[a] for a in kept)
    return Counter({"all-reduce": 2 * p.bytes(out) * (n - 1) // n, "reduce-scatter": p.bytes(out) * (m - 1)})
