"""Bytes that a placed graph needs at its fullest moment beside its arguments.

What lives, from its making to its last use, once everything is taken out that a compiler joins into the loop of its
reader. Agrees with XLA's own account for CPU within some 15 % (tests/test_plan.py).
"""

import math
from collections.abc import Container

from jaxlm.plan.graph import Operation
from jaxlm.plan.placing import Placed, axes_of, exchanged

# What is computed again wherever it is read, or while it is read, rather than kept.
JOINED = frozenset(
    """
    add add_any and atan2 bitcast_convert_type broadcast_in_dim cbrt ceil clamp complex concatenate conj
    convert_element_type copy cos div eq erf erf_inv exp exp2 expand_dims expm1 floor ge gt imag integer_pow iota
    is_finite le log log1p logistic lt max min mul name ne neg nextafter not optimization_barrier or pad pow
    random_unwrap random_wrap real reduce_precision rem reshape rev round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin slice sqrt square squeeze stop_gradient sub tan tanh transpose
    xor
    """.split()  # noqa: SIM905
)
PARTS = ("local", "whole")  # other names for what is there already
SUMS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "argmax", "argmin")
READERS = JOINED.union(SUMS, PARTS)


class Written:
    """Which values of a graph are written down, and until when they are read."""

    def __init__(self, p: Placed):
        self.graph, self.results = p.graph, set(p.graph.outs)
        self.made = {v: op for op in self.graph.operations for v in op.outs}
        self.users: dict[int, list[int]] = {}
        for i, op in enumerate(self.graph.operations):
            for v in op.ins:
                self.users.setdefault(v, []).append(i)
        self.free = self.weightless()
        self.ends = {v: max(self.users.get(v, [-1])) for v in range(len(self.graph.shapes))}
        for v in reversed(range(len(self.graph.shapes))):  # instead of a joined value its sources are read
            if v in self.made and self.joined(v):
                for source in self.made[v].ins:
                    self.ends[source] = max(self.ends[source], self.ends[v])

    def weightless(self) -> set[int]:
        """Values that are one number repeated, or a count: made wherever they are read."""
        free = {v for v in self.graph.constants if self.graph.bytes(v) <= 64}
        for op in self.graph.operations:
            if op.name == "iota" or (op.name in JOINED and all(v in free for v in op.ins)):
                free.update(op.outs)
        return free

    def joined(self, value: int) -> bool:
        """Is it never written down? Only if whoever reads it makes it on the way."""
        if value not in self.made:
            return False
        readers = [self.graph.operations[i] for i in self.users.get(value, [])]
        if value in self.free:  # a loop reads only what lies there
            return not any(op.name == "scan" and reads(op, value) for op in readers)
        if self.made[value].name in PARTS:
            return value not in self.results
        if self.made[value].name not in JOINED or value in self.results:
            return False
        return all(op.name in READERS for op in readers)

    def unmade(self, value: int, op: Operation) -> bool:
        """Is it what a loop gives and nothing reads? Then XLA takes it out: so no cache of keys while training."""
        return op.name == "scan" and value not in self.users and value not in self.results

    def sources(self, op: Operation) -> set[int]:
        """What an operation reads from memory: its operands, or what the joined ones of them are made of."""
        found, left = set(), list(op.ins)
        while left:
            v = left.pop()
            if self.joined(v):
                left += self.made[v].ins
            elif v not in self.free:
                found.add(v)
        return found


def peak(p: Placed, kept: Container[int] | None = None) -> int:
    """Bytes beside the arguments at the fullest moment.

    kept    results that stay until the end; None: none, they are not counted at all (they have a place already)
    """
    written = Written(p)
    dying: dict[int, list[int]] = {}
    most = now = 0
    for i, op in enumerate(p.graph.operations):
        within = max((inner(b, op) for b in p.bodies.get(i, ())), default=0)
        if op.name == "dot_general":
            within = turned(p, op) + unsplit(p, op)
        for v in op.outs:
            if written.joined(v) or written.unmade(v, op) or (v in written.results and kept is None):
                continue
            now += p.bytes(v)
            if kept is None or v not in kept:
                dying.setdefault(max(written.ends[v], i), []).append(v)
        most = max(most, now + within)
        now -= sum(p.bytes(v) for v in dying.pop(i, ()))
    return most


def inner(body: Placed, op: Operation) -> int:
    """Of a loop's body: what it carries stays to its end, what it stacks is written where it stays and then let go."""
    carries = op.params["num_carry"] if op.name == "scan" else len(op.outs)
    return peak(body, set(body.graph.outs[:carries]))


def reads(loop: Operation, value: int) -> bool:
    """Does the body of a loop read this value of those that it is given?"""
    body = loop.bodies[0]
    read = {v for op in body.operations for v in op.ins}.union(body.outs)
    return any(own in read for own, given in zip(body.ins, loop.ins, strict=True) if given == value)


def turned(p: Placed, op: Operation) -> int:
    """Bytes of a product's operands that do not lie as (batch, rows, contracted) x (batch, contracted, columns)."""
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    left, right = op.ins[:2]
    n = len(p.graph.shapes[left])
    straight = tuple(lc) == tuple(range(n - len(lc), n)) and tuple(lb) == tuple(range(len(lb)))
    across = tuple(rb) == tuple(range(len(rb))) and tuple(rc) == tuple(range(len(rb), len(rb) + len(rc)))
    return (0 if straight else p.bytes(left)) + (0 if across else p.bytes(right))


def unsplit(p: Placed, op: Operation) -> int:
    """Bytes of a product's gathered operands, and of its sum before that is scattered."""
    gathered, partial = exchanged(p, op)
    scattered = math.prod(p.mesh[a] for a in partial & axes_of(p, op.outs[0]))
    return sum(p.bytes(v) * ways for v, ways in gathered.items()) + p.bytes(op.outs[0]) * (scattered - 1)
