"""What a placed graph moves: bytes between a device and its memory, and between devices."""

import math
from collections import Counter

from jaxlm.plan.graph import Graph, Operation
from jaxlm.plan.manual import sent
from jaxlm.plan.memory import Written
from jaxlm.plan.placing import Placed, exchanged


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
    """
    total: Counter[str] = Counter()
    for i, op in enumerate(p.graph.operations):
        if p.bodies.get(i):
            times = op.params["length"] if op.name == "scan" else 1
            for kind, n in between_devices(p.bodies[i][0]).items():
                total[kind] += times * n
        elif op.name == "dot_general":
            total += product(p, op)
        elif op.name == "gather":
            collapsed = op.params["dimension_numbers"].collapsed_slice_dims
            total += summed(p, op.outs[0], {a for d in collapsed for a in p.splits[op.ins[0]][d]})
        elif op.name == "reduce_sum":
            gone = {a for d in op.params["axes"] for a in p.splits[op.ins[0]][d]}
            total += summed(p, op.outs[0], gone)
        else:
            total += sent(p, op)
    return total


def turns(graph: Graph) -> int:
    """Trips of a graph's innermost loops, one after the other."""
    total = 0
    for op in graph.operations:
        inner = max(map(turns, op.bodies), default=0)
        total += op.params["length"] * max(1, inner) if op.name == "scan" else inner
    return total


def product(p: Placed, op: Operation) -> Counter[str]:
    """What a product gathers of its operands, and sums of its result."""
    gathered, partial = exchanged(p, op)
    total = Counter({"all-gather": sum(p.bytes(v) * (ways - 1) for v, ways in gathered.items())})
    return +total + summed(p, op.outs[0], partial)


def summed(p: Placed, out: int, axes: set[str]) -> Counter[str]:
    """A sum over devices; where the result is split over them too, each keeps its part."""
    kept = {a for own in p.splits[out] for a in own} & axes
    n, m = (math.prod(p.mesh[a] for a in group) for group in (axes - kept, kept))
    whole = p.bytes(out) * m
    found = Counter({"all-reduce": 2 * whole // m * (n - 1) // n, "reduce-scatter": whole * (m - 1) // m})
    return +found
