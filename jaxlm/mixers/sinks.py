"""Attention that can run for ever: the first tokens of a document and the last ones, with a memory of fixed size."""

import jax
import jax.numpy as jnp

from jaxlm.layers.rope import Rope
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.base import leaf
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.sinks import sink_attention
from jaxlm.typing import Array, Params, State, wide


class SinkAttention(Attention):
    """Attention sinks: the first tokens and the last `window`, placed as they lie in the cache (Xiao et al. 2024).

    Weights are those of Attention, so that a trained model goes on with them at any length. Query i sees key j <= i
    where i - j < window, or j < sinks; the first at their true distance. The cache holds sinks + window tokens: once it
    is full, the query stands at place sinks + window - 1, and sink j at place j.

    x, y         (b, t, d)
    state        k, v (b, window - 1, g, k); first_k, first_v (b, sinks, g, k); not turned
                 length (b), tokens of the document so far
    sinks        first tokens that stay; 0: a sliding window
    position     Rope whose rates do not depend on the length, or None
    Other fields as Attention's.
    """

    window: int | None = 28
    sinks: int = 4

    paper = "Xiao et al. 2024"

    def __post_init__(self):
        super().__post_init__()
        self.check(self.window is not None, "window", "a number of tokens")
        self.check(self.sinks >= 0 and self.sinks + self.last > 1, "sinks", "0 or more, and with `window` at least 2")
        rope = self.position is None or (isinstance(self.position, Rope) and self.position.fixed)
        self.check(rope, "position", "Rope of rates that do not depend on the length, or None")

    @property
    def last(self) -> int:
        return self.window or 0

    def state(self, batch: int, room: int = 0):
        axes = (None, "kv_heads", "head")
        last, first = (leaf(batch, (n, self.g, self.k), axes, self.cache_dtype) for n in (self.last - 1, self.sinks))
        return {"k": last, "v": last, "first_k": first, "first_v": first, "length": leaf(batch, (), (), "int32")}

    def far_query(self, number: Array) -> Array:
        """The place of a query for first tokens beyond its window."""
        return jnp.minimum(number, self.sinks + self.last - 1)

    def far_key(self, number: Array) -> Array:
        """The place of a first token beyond the window."""
        return number

    def turn(self, x: Array, places: Array) -> Array:
        return self.position.turn(x, places) if isinstance(self.position, Rope) else x

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        if state is None:
            state = self.start(params, x.shape[0])
            if x.dtype == jnp.float64:  # stays, as in Attention
                state = jax.tree.map(lambda a: a if a.dtype == jnp.int32 else a.astype(x.dtype), state)
        x, state, spoiled = isolate(starts, x, state)
        q, k, v = self.project(params, x)
        q = (wide(q) * self.k**-0.5).astype(x.dtype)
        y, after = sink_attention(q, k, v, state, starts, self.last, self.turn, (self.far_query, self.far_key))
        return spoil(spoiled, self.give(params, y)), spoil(spoiled[:, -1], after)


class LambdaAttention(SinkAttention):
    """LM-Infinite: the Lambda mask, and a distance that has a limit (Han et al. 2024).

    As SinkAttention, but a first token beyond the window is scored un-turned by a query at place min(limit, i): at one
    distance for all of them. Up to `window` tokens it is Attention.

    window   L_loc, the length seen in training
    sinks    n_glob, 10 to 100
    limit    L_lim; None: the window
    """

    limit: int | None = None

    paper = "Han et al. 2024"

    def far_query(self, number: Array) -> Array:
        return jnp.minimum(number, self.last if self.limit is None else self.limit)

    def far_key(self, number: Array) -> Array:
        return jnp.zeros_like(number)
