"""Resona: a recurrent mixer that looks up, in chunks of the past, what its state could not hold."""

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Zeros
from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.mixers.rglru import RGLRU
from jaxlm.module import Spec
from jaxlm.ops.attention import cut
from jaxlm.ops.cache import Cache, documents, keep, positions
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide

BLOCK = 128  # queries at a time
STORED = ("k", "v", "length")


class Resona(Mixer):
    """A retrieval branch beside a recurrent mixer (Resona, Wang et al. 2025).

    o_t = base(x)_t       q_t = o_t W_Q       k_s, v_s = x_s W_K, x_s W_V
    c_t = W_O Σ_s softmax_s(q_t·k_s / √k) v_s       s in the `top` chunks whose mean key scores highest in the head
    y_t = (1 - ρ_t) ⊙ o_t + ρ_t ⊙ c_t       ρ_t = σ(o_t W_ρ + b)

    Only chunks that ended before t are seen; before the first of them y = o. With ρ = 0 the mixer is its base.

    x, y     (b, t, d)
    state    base: the base's;  k, v (b, slots, h, k), slots = room, up to a multiple of the chunk
             length (b), tokens of the document so far
    base     the recurrent mixer; None: RGLRU
    chunk    tokens; chunks count from the document's first
    top      chunks that a head reads for a token
    heads    h; None: the largest divisor of the width up to max(2, width / 64)

    The paper's maps, chunk, `top` and gate could not be had: these are the plainest that do what it describes.
    """

    width: int
    base: Mixer | None = None
    chunk: int = 16
    top: int = 4
    heads: int | None = None

    growth = "quadratic"
    paper = "Wang et al. 2025"
    forms = ("blockwise",)

    def __post_init__(self):
        self.check(self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        own = self.inner.width == self.inner.reads == self.width
        self.check(own, "base", f"a mixer that reads and gives the width {self.width}")
        self.check(self.chunk > 0, "chunk", "at least 1 token")
        self.check(self.top > 0, "top", "at least 1 chunk")

    @property
    def inner(self) -> Mixer:
        return RGLRU(self.width) if self.base is None else self.base

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        return {
            "base": self.inner.params(),
            **{n: into_heads(d, h, k) for n in ("query", "key", "value")},
            "out": from_heads(h, k, d),
            "gate": Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",)),
            "gate_bias": Spec((d,), ("state",), Zeros, keep=True),
        }

    def tie(self, params: Params) -> Params:
        return {**params, "base": self.inner.tie(params["base"])}

    def state(self, batch: int, room: int = 0):
        kept = leaf(batch, (self.slots(room), self.h, self.width // self.h), (None, "heads", "head"))
        return {"base": self.inner.state(batch, room), "k": kept, "v": kept, "length": leaf(batch, (), (), "int32")}

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return {**super().start(params, batch, room), "base": self.inner.start(params["base"], batch, room)}

    def slots(self, room: int) -> int:
        """Tokens that are stored, in whole chunks."""
        return -(-room // self.chunk) * self.chunk

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        (b, t, _), fresh = x.shape, state is None
        slots = self.slots(t) if fresh else state["k"].shape[1]
        if t > slots:
            raise ShapeError(f"t: got {t} tokens, expected at most the {slots} slots of the state")
        x, state, spoiled = isolate(starts, x, state)
        o, base = self.inner.apply(params["base"], x, None if fresh else state["base"], starts, key)
        past = None if fresh else {n: state[n] for n in STORED}
        k, v = (wide(dense(x, params[n])) for n in ("key", "value"))
        k, v = (k, v) if past is None else (k.astype(past["k"].dtype), v.astype(past["v"].dtype))
        place = jnp.broadcast_to(positions(starts, None if past is None else past["length"], t), (b, t))
        c, found = self.read(dense(o, params["query"]), _ended(k, v, past, starts, place, self.chunk), starts)
        c = merge(c.astype(x.dtype), params["out"])
        rho = jax.nn.sigmoid(dense(wide(o), params["gate"], params["gate_bias"]))
        rho = jnp.where(found, rho, jnp.zeros((), rho.dtype))
        y = ((1 - rho) * wide(o) + rho * wide(c)).astype(x.dtype)
        after = {"base": base, **keep(k, v, past, starts, place, None, slots)}
        # Beyond its room a row has lost tokens: it must not go on as if it had not.
        return spoil(spoiled | (place >= slots), y), spoil(spoiled[:, -1], after)

    def read(self, q: Array, chunks: tuple[Array, Array, Array, Array], starts: Array | None) -> tuple[Array, Array]:
        """What each head finds, a block of queries at a time.

        q       (b, t, h, k)
        chunks  see `_ended`
        ->      (b, t, h, v);  found (b, t, 1) bool: was there a chunk to read?
        """
        b, t = q.shape[:2]
        keys, values, own, end = chunks
        doc = jnp.zeros((b, t), jnp.int32) if starts is None else documents(starts)
        order = jnp.arange(t, dtype=jnp.int32)[None]

        @jax.checkpoint
        def one(q: Array, doc: Array, order: Array) -> tuple[Array, Array]:
            seen = (own[:, None] == doc[:, :, None]) & (end[:, None] < order[:, :, None])
            scores = jnp.einsum("bthk,bnchk->bthnc", q, keys) * q.shape[-1] ** -0.5
            # The score of a mean key is the mean of the scores.
            mean = jnp.where(seen[:, :, None], jax.lax.stop_gradient(scores.mean(axis=-1)), -jnp.inf)
            least = jax.lax.top_k(mean, min(self.top, mean.shape[-1]))[0][..., -1:]
            chosen = ((mean >= least) & seen[:, :, None])[..., None]
            scores = jnp.where(chosen, scores, jnp.finfo(scores.dtype).min)
            p = jax.nn.softmax(scores, axis=(-2, -1))
            return jnp.einsum("bthnc,bnchv->bthv", p, values), jnp.any(seen, axis=-1, keepdims=True)

        n = -(-t // BLOCK)
        size = -(-t // n)
        blocks = cut((wide(q).astype(keys.dtype), doc, order), n, size)
        _, out = jax.lax.scan(lambda _, x: (None, one(*x)), None, blocks)
        c, found = (jnp.moveaxis(y, 0, 1).reshape(b, n * size, *y.shape[3:])[:, :t] for y in out)
        return c, found


def _ended(
    k: Array, v: Array, past: Cache | None, starts: Array | None, place: Array, size: int
) -> tuple[Array, Array, Array, Array]:
    """The whole chunks: those of the cache, then those that end among these tokens.

    k, v    (b, t, h, k)
    place   of each token in its document               (b, t)
    ->      keys, values (b, n, size, h, k);  own (b, n) int32: number of the document, -1: none;
            end (b, n) int32: the token that ends it, -1: one of before
    """
    t = place.shape[1]
    order = jnp.where(place % size == size - 1, jnp.arange(t, dtype=jnp.int32)[None], t)
    end = jnp.sort(order, axis=1)[:, : -(-t // size)]  # of t tokens no more can end a chunk
    doc = jnp.zeros_like(place) if starts is None else documents(starts)
    own = jnp.where(end < t, jnp.take_along_axis(doc, jnp.minimum(end, t - 1), axis=1), -1)
    at = jnp.minimum(end, t - 1)[..., None] + jnp.arange(size, dtype=jnp.int32)[None, None]

    def laid(new: Array, name: str) -> Array:
        """(b, n, size, h, k), the first chunk begun in the cache perhaps."""
        if past is None:
            before = jnp.zeros((new.shape[0], size - 1, *new.shape[2:]), new.dtype)
        else:
            last = past["length"][:, None] + jnp.arange(1 - size, 0, dtype=jnp.int32)[None]
            before = _pick(past[name], jnp.clip(last, 0, past[name].shape[1] - 1))
        return _pick(jnp.concatenate([before, new], axis=1), at)

    keys, values = laid(k, "k"), laid(v, "v")
    if past is None:
        return keys, values, own, end
    b, slots = past["k"].shape[:2]
    old = (jnp.arange(slots // size, dtype=jnp.int32)[None] + 1) * size <= past["length"][:, None]
    whole = lambda name: past[name].reshape(b, slots // size, size, *past[name].shape[2:])  # noqa: E731
    join = lambda a, z: jnp.concatenate([a, z], axis=1)  # noqa: E731
    before = jnp.where(old, 0, -1), jnp.full(old.shape, -1, jnp.int32)
    return join(whole("k"), keys), join(whole("v"), values), join(before[0], own), join(before[1], end)


def _pick(x: Array, at: Array) -> Array:
    """x (b, s, ...) at places (b, ...)."""
    return jax.vmap(lambda x, at: x[at])(x, at)
