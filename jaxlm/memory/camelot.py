"""CAMELoT: an associative memory of running means beside each attention head of a frozen language model.

A memory is a dict, one slot a mode:  key (b, n, g, k)   value (b, n, g, v)   count (b, n, g)   age (b, n, g).
A slot of count 0 is empty. `highest` and `write` are the method (He et al. 2024); `CamelotAttention` puts them around
the weights of an `Attention`, segment by segment.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.layers.norm import l2_norm
from jaxlm.layers.rope import Rope
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.segments import Segments, by_row
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State, wide

Memory = dict[str, Array]
OLDEST = np.iinfo(np.int32).max


def memory_specs(batch: int, slots: int, heads: int, k: int, v: int) -> dict[str, Any]:
    """An empty memory, as Specs: ages count the tokens since a slot was last written."""
    axes = (None, "kv_heads")
    return {
        "key": leaf(batch, (slots, heads, k), (*axes, "head")),
        "value": leaf(batch, (slots, heads, v), (*axes, "head")),
        "count": leaf(batch, (slots, heads), axes, "int32"),
        "age": leaf(batch, (slots, heads), axes, "int32"),
    }


def cosines(memory: Memory, x: Array) -> Array:
    """Cosine of each vector with each mode's mean key, -inf for empty slots.   (b, t, g, k) -> (b, t, g, n)"""
    x, keys = l2_norm(wide(x)), l2_norm(wide(memory["key"]))
    return jnp.where(_filled(memory), jnp.clip(jnp.einsum("btgk,bngk->btgn", x, keys), -1.0, 1.0), -jnp.inf)


def highest(scores: Array, most: int = 1) -> Array:
    """READ: the modes of the `most` highest scores.   (..., n), -inf where empty -> (..., n) bool"""
    return (scores >= jax.lax.top_k(scores, most)[0][..., -1:]) & (scores > -jnp.inf)


def write(memory: Memory, key: Array, value: Array, novelty: float) -> Memory:
    """WRITE of one token: into the mean of the nearest mode where its cosine is at least `novelty`, else a new mode.

    key, value      (b, g, k), (b, g, v)
    novelty         R: above 1 no token is ever merged, at -1 all are

    A new mode takes an empty slot, or that of the greatest age. He et al. 2024, section 3.
    """
    count, age, slots = memory["count"], memory["age"], jnp.arange(memory["count"].shape[1])[None, :, None]
    near = cosines(memory, key[:, None])[:, 0]
    known = jnp.max(near, axis=-1) >= novelty
    oldest = jnp.argmax(jnp.where(count == 0, OLDEST, age), axis=1)
    here = slots == jnp.where(known, jnp.argmax(near, axis=-1), oldest)[:, None]
    before = jnp.where(known[:, None], count, 0)

    def mean(old: Array, new: Array) -> Array:
        c = before[..., None].astype(old.dtype)
        return jnp.where(here[..., None], (c * old + new[:, None].astype(old.dtype)) / (c + 1), old)

    return {
        "key": mean(memory["key"], key),
        "value": mean(memory["value"], value),
        "count": jnp.where(here, before + 1, count),
        "age": jnp.where(here | (count == 0), 0, age + 1),
    }


def write_all(memory: Memory, keys: Array, values: Array, novelty: float) -> Memory:
    """WRITE of tokens one after the other.   keys, values (b, t, g, .)"""
    xs = jnp.moveaxis(keys, 1, 0), jnp.moveaxis(values, 1, 0)
    return jax.lax.scan(lambda m, kv: (write(m, *kv, novelty), None), memory, xs)[0]


def _filled(memory: Memory) -> Array:
    """(b, 1, g, n) bool."""
    return (memory["count"] > 0).swapaxes(1, 2)[:, None]


class CamelotAttention(Mixer):
    """An `Attention` that sees its segment and, of all segments before it, the modes that its tokens call up.

    y_t = W_O softmax(q_t·[K_j; k_s]) [V_j; v_s]     s <= t in the segment; j called up in it up to t

    A token calls up the modes that its queries score highest. At the end of a segment its tokens are written.
    Weights are those of `attention`, and so are the outputs while the memory is empty: in the first segment.

    state      memory; local: k, v (b, segment, g, k) of the segment so far, place (b) its tokens;
               called (b, n, g) bool, the modes called up in it
    attention  the frozen mixer: no window, positions by Rope or None
    slots      n, modes of each key head
    segment    tokens
    novelty    R of `write`
    nearest    modes that each query calls up
    behind     places from a mode to the first token of the segment

    Keys are stored unturned, for a mean over turned ones would mix their places; so all modes share one place.
    The paper's set of modes is of the whole segment; here a token never sees what a later one called up.
    """

    attention: Attention
    slots: int = 256
    segment: int = 128
    novelty: float = 0.95
    nearest: int = 1
    behind: int = 32

    paper = "He et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        a = self.attention
        plain = a.window is None and a.sets is None and (a.position is None or isinstance(a.position, Rope))
        self.check(plain, "attention", "an Attention without window and sets, its position a Rope or None")
        self.check(self.slots > 0, "slots", "at least 1")
        self.check(self.segment > 0, "segment", "at least 1")
        self.check(0 < self.nearest <= self.slots, "nearest", f"1 to the {self.slots} slots")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.attention.width

    def params(self):
        return self.attention.params()

    def state(self, batch: int, room: int = 0):
        del room  # a memory of fixed size
        a = self.attention
        kept = leaf(batch, (self.segment, a.g, a.k), (None, "kv_heads", "head"))
        return {
            "memory": memory_specs(batch, self.slots, a.g, a.k, a.k),
            "called": leaf(batch, (self.slots, a.g), (None, "kv_heads"), "bool"),
            "k": kept,
            "v": kept,
            "place": leaf(batch, (), (), "int32"),
        }

    def step(self, params: Params, x: Array, state: State) -> tuple[Array, State]:
        y, state = self._run(params, x[:, None], state)
        return y[:, 0], state

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        if starts is not None:  # each document has segments of its own: token by token
            return super().apply(params, x, state, starts, key)
        self.accepts(x)
        x, state, spoiled = isolate(None, x, state)
        y, state = self._run(params, x, state)
        return spoil(spoiled, y), spoil(spoiled[:, -1], state)

    def _run(self, params: Params, x: Array, state: State) -> tuple[Array, State]:
        """All tokens, one segment after the other.   x (b, t, d)"""
        (b, t, _), size, a = x.shape, self.segment, self.attention
        whole = t if state is None else t + size - 1  # the most that the tokens and those before them can take
        state = self.start(params, b) if state is None else state
        q, k, v = a.project(params, x)
        rows = Segments(state["place"], t, size, -(-whole // size))
        k, v = rows.laid(k, state["k"].astype(k.dtype)), rows.laid(v, state["v"].astype(v.dtype))
        xs = rows.segments((rows.laid(q), k, v, rows.new)), rows.complete

        def one(carry: tuple[Memory, Array], x: Any) -> tuple[tuple[Memory, Array], Array]:
            (memory, called), ((q, k, v, new), done) = carry, x
            y, called = self._attend(memory, called, q, k, v, new)
            after = jax.lax.cond(jnp.any(done), lambda m: write_all(m, k, v, self.novelty), lambda m: m, memory)
            memory = jax.tree.map(lambda new, old: jnp.where(by_row(done, new), new, old), after, memory)
            return (memory, called & ~by_row(done, called)), y

        (memory, called), y = jax.lax.scan(one, (state["memory"], state["called"]), xs)
        y = a.give(params, rows.taken(y).astype(x.dtype))
        kept = {n: rows.rest(new).astype(state[n].dtype) for n, new in (("k", k), ("v", v))}
        return y, {"memory": memory, "called": called, **kept, "place": (state["place"] + t) % size}

    def _attend(self, memory: Memory, called: Array, q: Array, k: Array, v: Array, new: Array) -> tuple[Array, Array]:
        """One segment: READ, and attention over what was read and the segment itself.

        q (b, c, h, k);  k, v (b, c, g, k);  new (b, c) bool, tokens that are not from before;  called (b, n, g)
        ->      (b, c, h, k);  called
        """
        (b, c, h, _), a = q.shape, self.attention
        far, place = memory["key"].astype(k.dtype), jnp.arange(c, dtype=jnp.int32)
        if isinstance(a.position, Rope):
            q, k = a.position.turn(q, place[None]), a.position.turn(k, place[None])
            far = a.position.turn(far, jnp.full((1, self.slots), -self.behind, jnp.int32))
        q = wide(q).reshape(b, c, a.g, h // a.g, -1) * a.k**-0.5
        far, near = (jnp.einsum("bcgrk,bsgk->bcgrs", q, wide(keys)) for keys in (far, k))
        far = jnp.where(_filled(memory)[:, :, :, None], far, -jnp.inf)
        hits = jnp.any(highest(far, self.nearest), axis=3) & new[:, :, None, None]
        hits = jax.lax.cummax(hits.astype(jnp.int8), axis=1) > 0
        hits = hits | called.swapaxes(1, 2)[:, None]
        causal = (place[:, None] >= place[None])[None, :, None, None]
        scores = jnp.where(hits[:, :, :, None], far, -jnp.inf), jnp.where(causal, near, -jnp.inf)
        p = name(jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1), "attn.probs")
        values = jnp.concatenate([wide(memory["value"]).astype(p.dtype), wide(v).astype(p.dtype)], axis=1)
        return jnp.einsum("bcgrs,bsgv->bcgrv", p, values).reshape(b, c, h, -1), hits[:, -1].swapaxes(1, 2)
