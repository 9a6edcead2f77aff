"""Sums over devices: which values of a graph are made of parts, and which of these sums wait until a loop has ended.

XLA takes an all-reduce out of a loop (WhileLoopAllReduceCodeMotion) where its result is only added to what the loop
carries: the parts are added up instead, and the devices' sums once after the last turn. That is the gradient of a
recurrent weight, added up over tokens. A sum that is widened before it is added stays where it is, for it is the
narrow one that is sent: so do gradients in bfloat16 over the parts of a batch. (To narrow and widen again is nothing to
XLA, which may keep excess precision.) What a loop stacks, such as each layer's own gradient, is another sum each turn.
Of loops in loops only the innermost is left: the pass runs once, and does not follow what it has just moved.
"""

import math
from collections import Counter

from jaxlm.plan.graph import Operation
from jaxlm.plan.placing import Placed, axes_of, exchanged

MOVES = (
    "transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "name", "copy", "convert_element_type",
    "reduce_sum",
)  # fmt: skip
ADDS = ("add", "add_any")


class Sums:
    """The sums over devices of a placed graph and of its loops' bodies.

    parts     mesh axes over which a value is a sum
    waiting   of these values, those that are summed only after the loop whose body this is
    bodies    of loops, by the operation's place
    """

    def __init__(self, p: Placed, loop: Operation | None = None):
        self.p, self.made = p, {v: op for op in p.graph.operations for v in op.outs}
        self.reads = Counter(v for op in p.graph.operations for v in op.ins) + Counter(p.graph.outs)
        self.parts: dict[int, set[str]] = {}
        self.bodies: dict[int, Sums] = {}
        for i, op in enumerate(p.graph.operations):
            if p.bodies.get(i):
                scan = op.name == "scan"
                body = self.bodies[i] = Sums(p.bodies[i][0], op if scan else None)
                self.parts |= {op.outs[k]: axes for k, axes in body.ends.items()}
            else:
                self.parts |= dict.fromkeys(op.outs, partial(p, op))
        self.waiting: set[int] = set()
        self.ends: dict[int, set[str]] = {}  # axes by the carried value's place
        first, carries = (loop.params["num_consts"], loop.params["num_carry"]) if loop else (0, 0)
        for k in range(carries):
            self.carried(k, p.graph.ins[first + k])

    def carried(self, k: int, before: int) -> None:
        """Do the sums wait that are added to a carried value? Only if all that is added to it is such a sum."""
        graph = self.p.graph
        found = self.addends(graph.outs[k])
        if before not in found or self.reads[before] > 1:
            return
        found.remove(before)
        axes = [self.parts.get(v, set()) - axes_of(self.p, v) for v in found]
        if any(graph.widths[v] != graph.widths[before] or self.made[v].name == "scan" for v in found if v in self.made):
            return
        if axes and axes[0] and all(own == axes[0] for own in axes):
            self.waiting.update(found)
            self.ends[k] = axes[0]

    def addends(self, value: int) -> list[int]:
        """What a value is the sum of, as far as nothing else reads the sums on the way."""
        op = self.made.get(value)
        if op is None or self.reads[value] > 1 or not (op.name in ADDS or self.moved(op)):
            return [value]
        return [v for own in op.ins for v in self.addends(own)]

    def moved(self, op: Operation) -> bool:
        """Are the results the operand's numbers? So is a sum over axes of length 1."""
        size = lambda v: math.prod(self.p.graph.shapes[v])  # noqa: E731
        return op.name in MOVES and size(op.ins[0]) == size(op.outs[0])


def partial(p: Placed, op: Operation) -> set[str]:
    """Mesh axes over which an operation's result is a sum."""
    if op.name == "dot_general":
        return exchanged(p, op)[1]
    if op.name == "gather":
        return {a for d in op.params["dimension_numbers"].collapsed_slice_dims for a in p.splits[op.ins[0]][d]}
    if op.name == "reduce_sum":
        return {a for d in op.params["axes"] for a in p.splits[op.ins[0]][d]}
    if op.name == "scatter-add":  # rows of other devices; those of which this one has a column come to it instead
        return axes_of(p, op.ins[2]) - axes_of(p, op.outs[0])
    return set()
