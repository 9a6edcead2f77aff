"""What mixers share that go over segments and carry a memory from each to the next."""

import jax
import jax.numpy as jnp

from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import materialize
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.segments import Segments, by_row
from jaxlm.typing import Array, Params, State, Tree


class Segmented(Mixer):
    """A mixer whose tokens see their segment and a memory, which changes only where a segment ends.

    state    memory; x (b, segment, d), what was read of the segment under way; place (b), its tokens

    A subclass says what the memory is (`memory_state`, `first`) and how it passes over segments (`over`). Rows may be
    cut anywhere: the tokens of the segment under way are kept, and read again by the next call.
    """

    forms = ("chunkwise",)

    @property
    def segment(self) -> int:
        """Tokens; a field of each mixer."""
        raise NotImplementedError(f"{type(self).__name__}: expected a field segment")

    def memory_state(self, batch: int) -> Tree:
        """Tree of Spec."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method memory_state")

    def first(self, params: Params, batch: int) -> Tree:
        """The memory before the first segment."""
        del params
        return materialize(self.memory_state(batch), jax.random.key(0))

    def over(self, params: Params, memory: Tree, x: Array, rows: Segments, key: Array | None) -> tuple[Array, Tree]:
        """Segments one after the other; a memory changes where `rows.complete`.   x, y (n, b, segment, d)"""
        raise NotImplementedError(f"{type(self).__name__}: expected a method over")

    def state(self, batch: int, room: int = 0):
        del room  # a memory of fixed size
        kept = leaf(batch, (self.segment, self.width), (None, "embed"))
        return {"memory": self.memory_state(batch), "x": kept, "place": leaf(batch, (), (), "int32")}

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return {**super().start(params, batch, room), "memory": self.first(params, batch)}

    def step(self, params: Params, x: Array, state: State) -> tuple[Array, State]:
        y, state = self._run(params, x[:, None], state, None)
        return y[:, 0], state

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        if starts is not None:  # each document has segments of its own: token by token
            return super().apply(params, x, state, starts, key)
        self.accepts(x)
        x, state, spoiled = isolate(None, x, state)
        y, state = self._run(params, x, state, key)
        return spoil(spoiled, y), spoil(spoiled[:, -1], state)

    def _run(self, params: Params, x: Array, state: State, key: Array | None) -> tuple[Array, State]:
        (b, t, _), size = x.shape, self.segment
        whole = t if state is None else t + size - 1  # the most that the tokens and those before them can take
        state = self.start(params, b) if state is None else state
        rows = Segments(state["place"], t, size, -(-whole // size))
        x = rows.laid(x, state["x"].astype(x.dtype))
        y, memory = self.over(params, state["memory"], rows.segments(x), rows, key)
        kept = rows.rest(x).astype(state["x"].dtype)
        return rows.taken(y), {"memory": memory, "x": kept, "place": (state["place"] + t) % size}


def where_rows(rows: Array, new: Tree, old: Tree) -> Tree:
    """`new` in the rows (b) that say so, in the dtype of `old`."""
    return jax.tree.map(lambda n, o: jnp.where(by_row(rows, o), n.astype(o.dtype), o), new, old)
