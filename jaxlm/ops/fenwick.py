"""A matrix state for every scale of the past: the gated recurrences, their memory split into Fenwick-tree levels."""

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.chunks import Inputs, bounds, chosen, cumulate, cut, edges, enter, expect, leave, paste, places, scores
from jaxlm.ops.delta import unit_inverse
from jaxlm.ops.isolate import isolate
from jaxlm.typing import Array


def level(t: Array, s: Array, levels: int) -> Array:
    """Which memory of place t holds place s <= t: 0 where s = t, else the bit length of t xor s, or the last.

    t, s    places in the document          int32, equal ranks
    levels  how many there are
    """
    return jnp.minimum(32 - jax.lax.clz(t ^ s), levels - 1)


def fenwick(
    q: Array,
    k: Array,
    v: Array,
    weights: Array,
    place: Array,
    g: Array | None = None,
    beta: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """y_t = sum_l w_tl q_t S_t^l, where S^l is what `decay` (or, with beta, `delta`) keeps of the places of level l.

    q, k                                    (b, t, h, k)
    v                                       (b, t, h, v)
    weights  of the levels                  (b, t, h, l), l at most 31
    place    of each token in its document  (b or 1, t) int32, from 0
    g        log gate <= 0, natural log     None, (b, t, h) or (b, t, h, k); -inf forgets all
    beta     writing rate                   (b, t, h), or None: values are added
    state    None: zeros                    (b, l, h, k, v)
    starts   first tokens of documents      (b, t) bool; the state is dropped before them, and `place` is 0 there
    chunk    a power of two; None: that of `decay` or `delta`
    ->       y (b, t, h, v) in v's dtype;  state (b, l, h, k, v), at least float32

    A document of n tokens has popcount(n - 1) + 1 levels that are not zero, and needs ceil(log2 n) + 1 in all; beyond,
    the last one goes on as an ordinary state. With all weights 1 it is `decay` or `delta`. Non-finite tokens are dealt
    with as there. Raises ShapeError (a shape), ConfigError (chunk, levels).
    Source: Guo et al. 2025 (2506.04761), sections 3 and 4.
    """
    inputs, weights, place, state, spoiled = _enter(q, k, v, weights, place, g, beta, state, starts)
    t, vector = q.shape[1], g is not None and g.ndim == 4
    c = places(t, (16 if vector else 64 if beta is None else 32) if chunk is None else chunk)
    # What fills the last chunk writes nothing; standing where the last token does, it moves nothing either.
    place = jnp.pad(place, [(0, 0), (0, -t % c)], mode="edge")

    @jax.checkpoint
    def body(s, x: tuple[Inputs, Array, Array]):
        return _chunk(s, x[0], x[1], x[2], v.dtype)

    state, y = jax.lax.scan(body, state, jax.tree.map(lambda x: cut(x, c), (inputs, weights, place)))
    return leave(paste(y, t), state, spoiled, v.dtype)


def _enter(q, k, v, weights, place, g, beta, state, starts) -> tuple[Inputs, Array, Array, Array, Array]:
    """As `enter`, with weights, places and one state a level."""
    inputs, one, spoiled = enter(q, k, v, g, beta, None, starts)
    b, t, h = q.shape[:3]
    if weights.ndim != 4:
        raise ShapeError(f"weights: shape {tuple(weights.shape)}, expected {(b, t, h)} and the number of levels")
    n = weights.shape[-1]
    if not 0 < n < 32:
        raise ConfigError(f"weights: {n} levels, expected 1 to 31")
    expect("weights", weights, (b, t, h, n))
    if tuple(place.shape) not in ((b, t), (1, t)) or place.dtype != jnp.int32:
        raise ShapeError(f"place: shape {tuple(place.shape)} of {place.dtype}, expected {(b, t)} of int32")
    if state is None:
        state = jnp.zeros((b, n, *one.shape[1:]), one.dtype)
    expect("state", state, (b, n, *one.shape[1:]))
    weights, state, more = isolate(starts, weights.astype(one.dtype), state.astype(one.dtype))
    return inputs, weights, jnp.broadcast_to(place, (b, t)), state, spoiled | more


def _chunk(s: Array, x: Inputs, w: Array, place: Array, dtype) -> tuple[Array, Array]:
    """One chunk: the states at its end, and its outputs.   s (b, l, h, k, v), w (b, h, c, l), place (b, c)"""
    own, n = bounds(x.starts, place.shape[1]), s.shape[1]
    pairs, reader, writer, erased, v, across = _linear(s, x, own)
    near, moved = _levels(place, n)
    near, moved = (jax.nn.one_hot(a, n, dtype=s.dtype) for a in (near, moved))

    of_past = chosen(own.head, jnp.einsum("bilm,bhim->bhil", moved, w))
    readers = of_past[..., None] * chosen(own.head, reader)[..., None, :]
    past = chosen(own.head, jnp.einsum("bhilk,blhkv->bhiv", readers, s))
    y = past + jnp.einsum("bhij,bhjv->bhiv", pairs * jnp.einsum("bijl,bhil->bhij", near, w), v)

    # Levels that have become one since the chunk before are added up, and pass through all its transitions together.
    s = jnp.einsum("blm,blhkv->bmhkv", moved[:, -1], chosen(own.whole[..., None], s))
    after = across[:, None] * s
    if erased is not None:
        after = after - jnp.einsum("bhjk,bmhjv->bmhkv", writer, jnp.einsum("bhjk,bmhkv->bmhjv", erased, s))
    writers = near[:, None, -1, :, :, None] * chosen(own.tail, writer)[..., None, :]
    return after + jnp.einsum("bhjmk,bhjv->bmhkv", writers, v), y.astype(dtype)


def _linear(s: Array, x: Inputs, own) -> tuple[Array, Array, Array, Array | None, Array, Array]:
    """The recurrence of a chunk as one linear map of what it writes and of the state S that comes in.

    ->      pairs (b, h, c, c), reader (b, h, c, k): y = reader S + pairs v
            writer, erased (b, h, c, k), across (b, h, k or 1, 1): the last state = across S + writer' (v - erased S)
            v (b, h, c, v), what is written
    """
    q, k, v = (a.astype(s.dtype) for a in (x.q, x.k, x.v))
    b = None if x.g is None else cumulate(x.g)
    since, until, across = edges(b, s)
    if x.beta is None:
        return chosen(own.pair, scores(q[:, :, None], k, b)[:, :, 0]), since * q, until * k, None, v, across
    rate = x.beta[..., None].astype(s.dtype)
    both = scores(jnp.stack([q, rate * k], axis=2), k, b)
    strict = jnp.tril(jnp.ones(both.shape[-2:], bool), -1)[None, None]
    inverse = unit_inverse(chosen(own.pair & strict, both[:, :, 1]))
    pairs = jnp.einsum("bhij,bhjl->bhil", chosen(own.pair, both[:, :, 0]), inverse)
    erased = chosen(own.head, since * k)
    reader = since * q - jnp.einsum("bhij,bhjk->bhik", pairs, rate * erased)
    writer = jnp.einsum("bhij,bhik->bhjk", inverse, chosen(own.tail, until * k))
    return pairs, reader, writer, rate * erased, rate * v, across


def _levels(place: Array, levels: int) -> tuple[Array, Array]:
    """Levels of one chunk at each of its places i: of its places j, and of what was level l when it began.

    place   (b, c)
    ->      (b, c, c), right for j <= i in one document; (b, c, l), right for i in the document that goes on
    """
    at, each = place[:, :, None], jnp.arange(levels, dtype=jnp.int32)
    # Coming to place t merges all levels up to t's trailing zeros into the next; of the places after t0 and up to t the
    # most trailing zeros are the bit length of t xor t0, less one. So what was below that is there, and the rest stays.
    merged = level(place, place[:, :1] - 1, levels)
    return level(at, place[:, None, :], levels), jnp.maximum(each[None, None], merged[:, :, None])


def fenwick_naive(
    q: Array,
    k: Array,
    v: Array,
    weights: Array,
    place: Array,
    g: Array | None = None,
    beta: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The twin of `fenwick`, token by token: merge what the place's trailing zeros say, step, write; no `chunk`."""
    inputs, weights, place, state, spoiled = _enter(q, k, v, weights, place, g, beta, state, starts)
    each = jnp.arange(state.shape[1], dtype=jnp.int32)[None]

    def token(s, both):
        x, w, place = both
        q, k, v = (a.astype(s.dtype)[:, None] for a in (x.q, x.k, x.v))
        if x.starts is not None:
            s = jnp.where(x.starts[:, None, None, None, None], jnp.zeros_like(s), s)
        zeros = jax.lax.population_count((place & -place) - 1)[:, None]
        into = jnp.minimum(zeros + 1, each.shape[1] - 1)
        low, here = ((a)[:, :, None, None, None] for a in (each < into, each == into))
        merged = jnp.sum(chosen(low, s), axis=1, keepdims=True)
        s = chosen(~low, s) + chosen(here, jnp.broadcast_to(merged, s.shape))
        if x.g is not None:
            s = s * jnp.exp(x.g if x.g.ndim == 3 else x.g[..., None])[:, None, ..., None]
        if x.beta is not None:
            rate = x.beta.astype(s.dtype)[:, None, :, None]
            s = s - (rate * k)[..., :, None] * jnp.einsum("bzhk,blhkv->blhv", k, s)[..., None, :]
            v = rate * v
        s = s.at[:, 0].add((k[..., :, None] * v[..., None, :])[:, 0])
        return s, jnp.einsum("bhl,bhk,blhkv->bhv", w, q[:, 0], s)

    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, weights, place))
    state, y = jax.lax.scan(token, state, xs)
    return leave(jnp.moveaxis(y, 0, 1), state, spoiled, v.dtype)
