"""MemoryLLM: a language model with a pool of latent slots at each layer, into which it writes text by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ShapeError
from jaxlm.initializers import Zeros
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.models.lm import LM
from jaxlm.module import Spec, materialize
from jaxlm.typing import Array, Params, State, Tree, wide

# (weights of a layer, its memory, its input) -> slots in front of the text, the first of them that is seen, memory
Front = Callable[[Tree, Tree, Array], tuple[Array, Array, Tree]]


class MemoryLLM(LM):
    """An LM whose layers read [θ_l; x]: N slots of their own pool, then the text (Wang et al. 2024, section 3).

    read     x_{l+1} = layer_l([θ_l; x_l]), its outputs at the text
    update   h = layer_l([last K of θ_l; x_l]);  θ_l loses K slots at random, keeps the order of the others, and takes
             the last K states of h, each with a learned offset, at its end;  x_{l+1} = h at the text

    A slot survives n updates with probability (1 - K/N)^n. The first update tiles its K slots over the whole pool;
    before it the model is the LM alone. A first token that all texts share (bos) is the text's own.

    state    layers: pool (l, b, slots, d);  number (b, slots), each slot's place among all that were ever written
             updates (b)
    body     a Stack of one Block
    slots    N, of each layer
    new      K, a divisor of N

    `apply` reads and leaves the pool as it is; `update` writes. Texts are rows: `starts` is not taken.
    """

    slots: int = 64
    new: int = 8

    def __post_init__(self):
        super().__post_init__()
        one = isinstance(self.body, Stack) and len(self.body.pattern) == 1 and isinstance(self.body.pattern[0], Block)
        self.check(one, "body", "a Stack of one Block")
        self.check(self.slots > 0, "slots", "at least 1")
        self.check(self.new > 0 and self.slots % self.new == 0, "new", f"a divisor of the {self.slots} slots")

    @property
    def block(self) -> Mixer:
        return self.body.pattern[0]  # type: ignore[attr-defined]

    def params(self):
        return {**super().params(), "offset": Spec((self.width,), ("embed",), Zeros)}

    def layers(self, params: Params) -> Tree:
        """The weights that differ by layer."""
        return {"block": self.block.tie(params["body"]["block0"])}

    def state(self, batch: int, room: int = 0):
        del room  # a memory of fixed size
        pool = (self.body.units, batch, self.slots, self.width)  # type: ignore[attr-defined]
        return {
            "layers": {"pool": Spec(pool, ("layers", "batch", None, "embed"), Zeros)},
            "number": leaf(batch, (self.slots,), (None,), "int32"),
            "updates": leaf(batch, (), (), "int32"),
        }

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        """Nothing written."""
        del params
        return materialize(self.state(batch, room), jax.random.key(0))

    def mix(
        self, params: Params, x: Array, tokens: Array, state: State, starts: Array | None, key: Array | None
    ) -> tuple[Array, State]:
        if starts is not None:
            raise ShapeError(
                f"{type(self).__name__}: starts has shape {starts.shape}, expected None: a row is one text"
            )
        state = self.start(params, len(tokens)) if state is None else state
        front = self.front(state)

        def layer(carry: tuple[Array, Array], at: tuple[Tree, Tree]) -> tuple[tuple[Array, Array], Tree]:
            (x, i), (p, memory) = carry, at
            slots, first, memory = front(p, memory, x)
            own = None if key is None else jax.random.fold_in(key, i)
            return (_behind(self.block, p["block"], slots.astype(x.dtype), first, x, own), i + 1), memory

        (y, _), layers = jax.lax.scan(layer, (x, jnp.int32(0)), (self.layers(params), state["layers"]))
        return y, {**state, "layers": layers}

    def front(self, state: State) -> Front:
        """What stands in front of a text that is read: the pool."""
        first = jnp.where(state["updates"] == 0, self.slots, 0)
        return lambda p, memory, x: (memory["pool"], first, memory)

    def update(self, params: Params, tokens: Array, state: State, key: Array) -> State:
        """The state after a text was written into the pool.

        tokens   (b, t) int, t at least K
        key      which slots go: the same of each layer, others in each row
        """
        x, (b, t), k = self.entry(params, tokens), tokens.shape, self.new
        if t < k:
            raise ShapeError(f"{type(self).__name__}: a text of {t} tokens, expected at least {k}")
        first = jnp.where(state["updates"] == 0, k, 0)
        marks = jnp.arange(k + t, dtype=jnp.int32)[None] == first[:, None]

        def layer(x: Array, at: tuple[Params, Array]) -> tuple[Array, Array]:
            p, last = at
            h = self.block.apply(p, jnp.concatenate([last.astype(x.dtype), x], axis=1), None, marks)[0]
            return h[:, k:], h[:, -k:]

        _, new = jax.lax.scan(layer, x, (self.layers(params)["block"], state["layers"]["pool"][:, :, -k:]))
        return self.push(state, wide(new) + wide(params["offset"])[None, None, None], jax.random.split(key, b))[0]

    def entry(self, params: Params, tokens: Array) -> Array:
        """Embeddings as `hidden` makes them.   (b, t) -> (b, t, d)"""
        self.reads(tokens)
        scale = self.width**0.5 if self.scale is None else self.scale
        return jnp.take(params["embed"], tokens, axis=0) * jnp.asarray(scale, params["embed"].dtype)

    def push(self, state: State, new: Array, keys: Array) -> tuple[State, dict[str, Array]]:
        """K slots at random out of each row's pool, the new ones in at its end.

        new      (l, b, K, d)
        keys     (b)
        ->       state;  what was dropped, oldest first: slot (l, b, K, d), number (b, K), real (b): there was a pool
        """
        pool, (n, k) = state["layers"]["pool"], (self.slots, self.new)
        order = jax.vmap(lambda key: jax.random.permutation(key, n))(keys).astype(jnp.int32)
        gone, stay = jnp.sort(order[:, :k], axis=1), jnp.sort(order[:, k:], axis=1)
        filled = state["updates"] > 0
        number = state["updates"][:, None] * k + jnp.arange(k, dtype=jnp.int32)[None]

        def changed(old: Array, new: Array, axis: int) -> Array:
            expand = lambda rows: rows.reshape((1,) * (axis - 1) + rows.shape + (1,) * (old.ndim - axis - 1))  # noqa: E731
            new = new.astype(old.dtype)
            later = jnp.concatenate([jnp.take_along_axis(old, expand(stay), axis), new], axis)
            return jnp.where(expand(filled[:, None]), later, jnp.concatenate([new] * (n // k), axis))

        dropped = {
            "slot": jnp.take_along_axis(pool, gone[None, :, :, None], axis=2),
            "number": jnp.take_along_axis(state["number"], gone, axis=1),
            "real": filled,
        }
        layers = {**state["layers"], "pool": changed(pool, new, 2)}
        after = {"layers": layers, "number": changed(state["number"], number, 1), "updates": state["updates"] + 1}
        return after, dropped


def _behind(block: Any, p: Params, slots: Array, first: Array, x: Array, key: Array | None) -> Array:
    """What a block makes of x in [slots; x], of which it sees the slots from `first` (b) on.   (b, t, d)

    In two calls, so that a compiler drops the first one's outputs, which nobody reads. What is not seen counts as
    another document: it takes no place.
    """
    (b, t, _), n = x.shape, slots.shape[1]
    marks = jnp.arange(n + t, dtype=jnp.int32)[None] == first[:, None]
    state = block.apply(p, slots, block.start(p, b, n + t), marks[:, :n])[1]
    return block.apply(p, x, state, marks[:, n:], key)[0]
