"""What a mixer is, and the derivation of its one-token form from its many-token form and back.

A mixer mixes along time and can be cut anywhere: running [a; b] equals running a, then b from a's state. Define `step`
or `apply`; the other follows. A Block of a mixer is a mixer, a Stack of blocks is a mixer.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.initializers import Zeros
from jaxlm.module import Module, Spec, map_specs, materialize
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.typing import Array, Params, State, Tree


class Mixer(Module):
    """A pure function along time, with a visible state.

    x, y     apply                          (b, t, d)
    x, y     step                           (b, d)
    state    tree, every leaf with an axis  `batch`
    starts   first tokens of documents      (b, t) bool
    key      None: deterministic (no dropout, no noise)
    """

    growth: ClassVar[str] = "linear"  # cost in the length of the sequence: 'linear' or 'quadratic'
    paper: ClassVar[str] = ""  # 'Author et al. year'; what `jaxlm mixers` shows
    forms: ClassVar[tuple[str, ...]] = ("sequential",)  # how `apply` runs along time

    width: ClassVar[int]  # said here for readers; a field or a property of each mixer

    @property
    def reads(self) -> int:
        """Width of x; a cell may read another width than it gives."""
        return self.width

    def state(self, batch: int, room: int = 0) -> Tree:
        """Tree of Spec: what is carried from token to token. `room` = tokens still to come, for memories that grow."""
        raise ConfigError(f"{type(self).__name__} declares no state(batch, room)")

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        """The state before the first token: zeros, unless a mixer learns it or fills it otherwise."""
        return materialize(self.state(batch, room), jax.random.key(0))

    def step(self, params: Params, x: Array, state: State) -> tuple[Array, State]:
        """One token.   x, y (b, d)"""
        if type(self).apply is Mixer.apply:
            raise ConfigError(f"{type(self).__name__} defines neither step nor apply: define one")
        y, state = self.apply(params, x[:, None], state)
        return y[:, 0], state

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        """Many tokens.   x, y (b, t, d);  state None: a fresh start with room for exactly x"""
        if type(self).step is Mixer.step:
            raise ConfigError(f"{type(self).__name__} defines neither step nor apply: define one")
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        y, state = scan(lambda x, s: self.step(params, x, s), x, state, starts, fresh)
        return spoil(spoiled, y), spoil(spoiled[:, -1], state)

    def enter(self, params: Params, x: Array, state: State, starts: Array | None) -> tuple[State, State]:
        """Check x and give (state to begin from, state that a start goes back to)."""
        self.accepts(x, starts)
        fresh = self.start(params, x.shape[0], x.shape[1]) if state is None or starts is not None else None
        return (fresh if state is None else state), fresh

    def accepts(self, x: Array, starts: Array | None = None) -> None:
        """Raise unless x is (b, t, width) and starts, if given, (b, t) bool."""
        if x.ndim != 3 or x.shape[-1] != self.reads:
            raise ShapeError(f"{type(self).__name__}: x has shape {x.shape}, expected (b, t, {self.reads})")
        if starts is not None and (starts.shape != x.shape[:2] or starts.dtype != jnp.bool_):
            got = f"shape {starts.shape} of {starts.dtype}"
            raise ShapeError(f"{type(self).__name__}: starts has {got}, expected {x.shape[:2]} of bool")

    def tie(self, params: Params) -> Params:
        """Weights that are functions of all layers: this mixer's weights, stacked over `layers` before the scan."""
        return params


def leaf(batch: int, sizes: tuple[int, ...], axes: tuple[str | None, ...], dtype: str = "float32") -> Spec:
    """A leaf of a state, zero at the start: (batch, *sizes)."""
    return Spec((batch, *sizes), ("batch", *axes), Zeros, dtype)


def batch_axes(state_specs: Tree) -> Tree:
    """Where the batch axis of each leaf of a state is, found by name."""
    return map_specs(lambda s: s.axes.index("batch"), state_specs)
