"""Which mesh axes split which axis of every value of a graph: carried on from the arguments, as a partitioner would.

A split is a tuple with, for each axis of the value, a tuple of mesh axes. The rules are those of GSPMD in outline: a
product keeps the splits of its free axes, sums over contracted ones, and gathers an operand whose mesh axis the other
one uses for its rows. What it cannot follow it takes as not split, so that estimates err towards too much.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.plan.graph import Graph, Operation

Split = tuple[tuple[str, ...], ...]


@dataclass
class Placed:
    """A graph with its splits.   bodies: of its loops, by the operation's place; fixed: values that lie as they lie"""

    graph: Graph
    mesh: Mapping[str, int]
    splits: list[Split]
    bodies: dict[int, list["Placed"]] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)

    def ways(self, value: int) -> int:
        return math.prod(self.mesh[a] for axes in self.splits[value] for a in axes)

    def bytes(self, value: int) -> int:
        """Of a value, on one device."""
        return self.graph.bytes(value) // self.ways(value)

    def give(self, value: int, split: Sequence[tuple[str, ...]]) -> None:
        """Add to a value's splits what fits: a mesh axis once, sizes that divide."""
        if value in self.fixed:
            return
        own, shape = list(self.splits[value]), self.graph.shapes[value]
        used = {a for axes in own for a in axes}
        for i, axes in enumerate(split[: len(own)]):
            if own[i] or not axes or used & set(axes) or shape[i] % math.prod(self.mesh[a] for a in axes):
                continue
            own[i] = axes
            used |= set(axes)
        self.splits[value] = tuple(own)


def place(
    graph: Graph, mesh: Mapping[str, int], ins: Sequence[Split], outs: Sequence[Split], arguments: bool = True
) -> Placed:
    """Splits of all values from those of the arguments and the results.

    arguments    they lie as `ins` says and not otherwise; False: more splits may turn out
    """
    placed = Placed(graph, mesh, [((),) * len(s) for s in graph.shapes])
    for value, split in zip(graph.ins, ins, strict=True):
        placed.give(value, split)
    for value, split in zip(graph.outs, outs, strict=True):
        placed.give(value, split)
    placed.fixed.update(graph.ins if arguments else ())
    for _ in range(2):
        for i, op in enumerate(graph.operations):
            forward(placed, i, op)
        for i in reversed(range(len(graph.operations))):
            backward(placed, i, graph.operations[i])
    return placed


def forward(p: Placed, i: int, op: Operation) -> None:
    """Splits of what an operation gives, from those of what it reads."""
    name, params = op.name, op.params
    shapes, splits = p.graph.shapes, p.splits
    if name == "sharding_constraint":
        spec = [*params["sharding"].spec]
        axes = [(a,) if isinstance(a, str) else tuple(a or ()) for a in spec]
        p.give(op.outs[0], axes)
    elif name in ("local", "whole"):
        p.give(op.outs[0], crossing(splits[op.ins[0]], op.params["spec"], name == "whole"))
    elif name == "dot_general":
        p.give(op.outs[0], product(p, op))
    elif name == "scan":
        loop(p, i, op)
    elif name == "cond":
        for body in branches(p, i, op, [splits[v] for v in op.ins[1:]]):
            for out, value in zip(op.outs, body.graph.outs, strict=True):
                p.give(out, body.splits[value])
    elif op.outs:
        first = op.ins[:1] + op.ins[2:] if name.startswith("scatter") else op.ins[:1]  # the table, and what goes there
        for value in op.ins if same(name) else first:
            for out in op.outs:
                p.give(out, carried(name, params, splits[value], shapes[value], shapes[out]))
        if name == "gather":
            p.give(op.outs[0], looked_up(params, splits[op.ins[1]], len(shapes[op.outs[0]])))


def same(name: str) -> bool:
    """Do all operands of this primitive line up with its result?"""
    return name not in (
        "gather",
        "dynamic_slice",
        "dynamic_update_slice",
        "scatter",
        "scatter-add",
        "scatter_add",
        "pad",
    )


def carried(name: str, params: dict, split: Split, shape: tuple, out: tuple) -> list[tuple[str, ...]]:
    """One operand's splits, moved to where its axes are in the result."""
    if name == "transpose":
        return [split[a] for a in params["permutation"]]
    if name == "broadcast_in_dim":
        new: list[tuple[str, ...]] = [()] * len(out)
        for axis, at in enumerate(params["broadcast_dimensions"]):
            new[at] = split[axis] if shape[axis] == out[at] else ()
        return new
    if name == "squeeze":
        return [s for a, s in enumerate(split) if a not in params["dimensions"]]
    if name in ("reshape", "expand_dims"):
        return reshaped(split, shape, out)
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return [s for a, s in enumerate(split) if a not in params["axes"]]
    if name == "gather":  # rows of a table: the axes that are taken whole keep their splits, as last ones of the result
        whole = [s if n == m else () for s, n, m in zip(split, params["slice_sizes"], shape, strict=True)]
        kept = [whole[a] for a in range(len(shape)) if a not in params["dimension_numbers"].collapsed_slice_dims]
        new = [()] * len(out)
        for at, s in zip(params["dimension_numbers"].offset_dims, kept, strict=False):
            new[at] = s
        return new
    if len(shape) == len(out):
        return [s if a == b else () for s, a, b in zip(split, shape, out, strict=True)]
    return [()] * len(out)


def crossing(split: Split, spec: Any, outward: bool) -> list[tuple[str, ...]]:
    """Splits on the other side of a region's edge: the axes that it cuts by itself are there outside only."""
    own = [(a,) if isinstance(a, str) else tuple(a or ()) for a in [*spec, *[None] * (len(split) - len(spec))]]
    if outward:
        return [cut + axes for cut, axes in zip(own, split, strict=True)]
    return [tuple(a for a in axes if a not in cut) for cut, axes in zip(own, split, strict=True)]


def looked_up(params: dict, split: Split, rank: int) -> list[tuple[str, ...]]:
    """Splits of a gather's indices, moved to where their axes are in its result."""
    new: list[tuple[str, ...]] = [()] * rank
    rows = [a for a in range(rank) if a not in params["dimension_numbers"].offset_dims]
    for at, s in zip(rows, split, strict=False):
        new[at] = s
    return new


def reshaped(split: Split, shape: tuple, out: tuple) -> list[tuple[str, ...]]:
    """Axes that stay, or that lead a group which is joined or cut, keep their splits."""
    new: list[tuple[str, ...]] = [()] * len(out)
    i = j = 0
    while i < len(shape) and j < len(out):
        first, to, a, b = i, j, shape[i], out[j]
        while a != b:
            if a < b and i + 1 < len(shape):
                i += 1
                a *= shape[i]
            elif b < a and j + 1 < len(out):
                j += 1
                b *= out[j]
            else:
                return new
        sized = [k for k in range(to, j + 1) if out[k] > 1] or [to]
        led = [k for k in range(first, i + 1) if shape[k] > 1] or [first]
        new[sized[0]] = split[led[0]]
        i, j = i + 1, j + 1
    return new


def product(p: Placed, op: Operation) -> list[tuple[str, ...]]:
    """Splits of dot_general's result: batch axes, then the free ones of both sides."""
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    left, right = (p.splits[v] for v in op.ins[:2])
    both = [left[a] or right[b] for a, b in zip(lb, rb, strict=True)]
    free = [s for a, s in enumerate(left) if a not in (*lc, *lb)]
    return [*both, *free, *(s for a, s in enumerate(right) if a not in (*rc, *rb))]


def exchanged(p: Placed, op: Operation) -> tuple[dict[int, int], set[str]]:
    """What a product needs of other devices: operands gathered, each over so many, and axes that its sum goes over."""
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    left, right = op.ins[:2]
    rows, columns = axes_of(p, left, (*lc, *lb)), axes_of(p, right, (*rc, *rb))
    gathered: dict[int, int] = {}
    partial: set[str] = set()

    def gather(value: int, axis: str) -> None:
        gathered[value] = gathered.get(value, 1) * p.mesh[axis]

    for a, b in zip(lc, rc, strict=True):
        mine, other = set(p.splits[left][a]), set(p.splits[right][b])
        for axis in mine | other:
            if axis in mine & other or axis not in (columns if axis in mine else rows):
                partial.add(axis)  # the other side is split alike, or can be cut without sending anything
            else:
                gather(right if axis in other else left, axis)
    for axis in rows & columns:  # one device axis cannot hold rows of both
        gather(min(left, right, key=p.bytes), axis)
    return gathered, partial


def axes_of(p: Placed, value: int, without: tuple[int, ...] = ()) -> set[str]:
    """Mesh axes that split a value, but for some of its axes."""
    return {a for d, axes in enumerate(p.splits[value]) if d not in without for a in axes}


def loop(p: Placed, i: int, op: Operation) -> None:
    """A scan: its body placed by the slices that it reads; carried values agree at both ends."""
    consts, carries = op.params["num_consts"], op.params["num_carry"]
    splits = [p.splits[v] for v in op.ins]
    ins = [*splits[: consts + carries], *(s[1:] for s in splits[consts + carries :])]
    outs = [p.splits[v] for v in op.outs]
    ends = [*outs[:carries], *(s[1:] for s in outs[carries:])]
    for k in range(carries):  # what goes in and what comes out lie alike
        ins[consts + k] = joined(ins[consts + k], ends[k])
    body = place(op.bodies[0], p.mesh, ins, ends, False)
    for k in range(carries):
        ins[consts + k] = joined(ins[consts + k], body.splits[body.graph.outs[k]])
    body = p.bodies.setdefault(i, [body])[0] = place(op.bodies[0], p.mesh, ins, ends, False)
    for k, (out, value) in enumerate(zip(op.outs, body.graph.outs, strict=True)):
        p.give(out, body.splits[value] if k < carries else [(), *body.splits[value]])


def branches(p: Placed, i: int, op: Operation, ins: list[Split]) -> list[Placed]:
    p.bodies[i] = [place(b, p.mesh, ins, [p.splits[v] for v in op.outs], False) for b in op.bodies]
    return p.bodies[i]


def joined(a: Split, b: Split) -> Split:
    used = {x for axes in a for x in axes}
    return tuple(s or (t if not used & set(t) else ()) for s, t in zip(a, b, strict=True))


def backward(p: Placed, i: int, op: Operation) -> None:
    """What a result's splits say of the operands: elementwise ones, products' free axes, and what a loop hands on."""
    shapes = p.graph.shapes
    if op.name in ("transpose",):
        order, split = op.params["permutation"], p.splits[op.outs[0]]
        back: list[tuple[str, ...]] = [()] * len(order)
        for at, a in enumerate(order):
            back[a] = split[at]
        p.give(op.ins[0], back)
    elif op.name in ("reshape",):
        p.give(op.ins[0], reshaped(p.splits[op.outs[0]], shapes[op.outs[0]], shapes[op.ins[0]]))
    elif op.name == "scan":
        consts, carries = op.params["num_consts"], op.params["num_carry"]
        for k in range(carries):
            p.give(op.ins[consts + k], p.splits[op.outs[k]])
        body = p.bodies[i][0]
        for k, value in enumerate(body.graph.ins):
            split = body.splits[value]
            p.give(op.ins[k], split if k < consts + carries else [(), *split])
    elif op.name in ("local", "whole"):
        p.give(op.ins[0], crossing(p.splits[op.outs[0]], op.params["spec"], op.name == "local"))
    elif op.name not in ("dot_general", "cond", "gather", "sharding_constraint"):
        for out in op.outs:
            for value in op.ins:
                if shapes[value] == shapes[out]:
                    p.give(value, p.splits[out])
