"""Chunks of time: what the chunkwise forms of matrix-state recurrences share.

Inside a chunk a cumulative log gate is kept as two sums, coarse and fine: the coarse parts are multiples of 1/64, whose
sums are exact, and the fine parts are small. So the difference of two of them is right to the last digits even where
the sums are in the thousands (gates of -30 beside gates of -0.001); a plain cumulative sum loses four digits there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array

GRAIN = 64.0  # the coarse part of a log gate is a multiple of 1/GRAIN
BLOCK = 8  # vector gates: pairs nearer than this take their differences one by one


class Inputs(NamedTuple):
    """What enters a recurrence, after `enter`: finite, checked; q, k, v, beta still in their own dtypes."""

    q: Array  # (b, t, h, k)
    k: Array  # (b, t, h, k)
    v: Array  # (b, t, h, v)
    g: Array | None  # (b, t, h) or (b, t, h, k), wide, 0 at a start
    beta: Array | None  # (b, t, h)
    starts: Array | None  # (b, t) bool


class Bounds(NamedTuple):
    """Which places of a chunk belong together."""

    pair: Array  # (b or 1, 1, c, c): j <= i, and both in one document
    head: Array  # (b or 1, 1, c, 1): still in the document that the incoming state belongs to
    tail: Array  # (b or 1, 1, c, 1): in the document that goes on after the chunk
    whole: Array  # (b or 1, 1, 1, 1): no start inside the chunk


def expect(name: str, x: Array, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless x has this shape."""
    if tuple(x.shape) != shape:
        raise ShapeError(f"{name}: shape {tuple(x.shape)}, expected {shape}")


def enter(q, k, v, g, beta, state, starts) -> tuple[Inputs, Array, Array]:
    """Check shapes, isolate non-finite tokens, widen the state.

    ->      inputs (all finite), state (b, h, k, v) in the working dtype, spoiled (b, t)
    """
    for name, x in (("q", q), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise ShapeError(f"{name}: shape {tuple(x.shape)}, expected (batch, time, heads, width), none empty")
    b, t, h, n = q.shape
    expect("k", k, (b, t, h, n))
    expect("v", v, (b, t, h, v.shape[-1]))
    if beta is not None:
        expect("beta", beta, (b, t, h))
    if g is not None and tuple(g.shape) not in ((b, t, h), (b, t, h, n)):
        raise ShapeError(f"g: shape {tuple(g.shape)}, expected {(b, t, h)} or {(b, t, h, n)}")
    if starts is not None:
        expect("starts", starts, (b, t))
        if starts.dtype != jnp.bool_:
            raise ShapeError(f"starts: dtype {starts.dtype}, expected bool")
    if state is not None:
        expect("state", state, (b, h, n, v.shape[-1]))
    double = any(x is not None and x.dtype == jnp.float64 for x in (q, k, v, g, beta, state))
    dtype = jnp.dtype(jnp.float64 if double else jnp.float32)
    state = jnp.zeros((b, h, n, v.shape[-1]), dtype) if state is None else state.astype(dtype)
    if g is not None:
        # A gate below the floor is exactly zero after exp; the floor keeps sums exact, and lets -inf mean 'forget all'.
        g = jnp.maximum(g.astype(dtype), -800.0 if double else -200.0)
    (q, k, v, g, beta), state, spoiled = isolate(starts, (q, k, v, g, beta), state)
    if g is not None and starts is not None:
        g = jnp.where(starts.reshape(b, t, *(1,) * (g.ndim - 2)), jnp.zeros((), dtype), g)
    return Inputs(q, k, v, g, beta, starts), state, spoiled


def leave(y: Array, state: Array, spoiled: Array, dtype) -> tuple[Array, Array]:
    """Outputs in their dtype; nan from a bad token to its document's end, and in the state of a row that ends so."""
    return spoil(spoiled, y.astype(dtype)), spoil(spoiled[:, -1], state)


def places(t: int, chunk: int) -> int:
    """Places in a chunk: `chunk`, a power of two, but never more than the next power of two above t."""
    if chunk < 1 or chunk & (chunk - 1):
        raise ConfigError(f"chunk: {chunk}, expected a power of two")
    return min(chunk, 1 << (t - 1).bit_length())


def cut(x: Array, c: int) -> Array:
    """(b, t, ...) -> (chunks, b, c), (chunks, b, h, c) or (chunks, b, h, c, width); zeros fill the last chunk."""
    b, t = x.shape[:2]
    n = -(-t // c)
    x = jnp.pad(x, [(0, 0), (0, n * c - t)] + [(0, 0)] * (x.ndim - 2)).reshape(b, n, c, *x.shape[2:])
    x = jnp.moveaxis(x, 1, 0)
    return x if x.ndim == 3 else jnp.moveaxis(x, 2, 3)


def paste(y: Array, t: int) -> Array:
    """(chunks, b, h, c, v) -> (b, t, h, v): the inverse of `cut`."""
    n, b, h, c, v = y.shape
    return y.transpose(1, 0, 3, 2, 4).reshape(b, n * c, h, v)[:, :t]


def bounds(starts: Array | None, c: int) -> Bounds:
    """Masks of one chunk from its starts (b, c)."""
    place = jnp.arange(c)
    causal = (place[:, None] >= place[None, :])[None, None]
    document = jnp.cumsum(jnp.zeros((1, c), bool) if starts is None else starts, axis=1, dtype=jnp.int32)
    pair = causal & (document[:, None, :, None] == document[:, None, None, :])
    last = document[:, None, -1:, None]
    each = document[:, None, :, None]
    return Bounds(pair, each == 0, each == last, last == 0)


def cumulate(g: Array) -> Array:
    """Cumulative log gates of a chunk, (b, h, c) or (b, h, c, k) -> (2, ...): coarse and fine sums."""
    coarse = jax.lax.stop_gradient(jnp.round(g * GRAIN) / GRAIN)
    return jnp.cumsum(jnp.stack([coarse, g - coarse]), axis=3)


def gap(late: Array, early: Array) -> Array:
    """The log decay from the place of `early` to the place of `late`, both as `cumulate` gives them."""
    return (late[0] - early[0]) + (late[1] - early[1])


def edges(b: Array | None, like: Array) -> tuple[Array, Array, Array]:
    """Decays from the chunk's start to each place, from each place to its end, and over all of it.

    b       (2, b, h, c) or (2, b, h, c, k) or None
    ->      two of (b, h, c, k or 1), and (b, h, k or 1, 1)
    """
    if b is None:
        one = jnp.ones((1, 1, 1, 1), like.dtype)
        return one, one, one
    b = b if b.ndim == 5 else b[..., None]
    last = b[:, :, :, -1:]
    return jnp.exp(b[0] + b[1]), jnp.exp(gap(last, b)), jnp.exp(last[0] + last[1]).swapaxes(2, 3)


def scores(q: Array, k: Array, b: Array | None) -> Array:
    """Decayed products of queries and keys, sum_k q_ik k_jk exp(b_ik - b_jk); right for j <= i, finite elsewhere.

    q       (b, h, z, c, k)         z kinds of queries share the keys
    k       (b, h, c, k)
    b       (2, b, h, c) or (2, b, h, c, k) or None
    ->      (b, h, z, c, c)
    """
    if b is not None and b.ndim == 5:
        return _vector_scores(q, k, b)
    out = jnp.einsum("bhzik,bhjk->bhzij", q, k)
    if b is None:
        return out
    causal = jnp.tril(jnp.ones((k.shape[2], k.shape[2]), bool))[None, None]
    gaps = gap(b[:, :, :, :, None], b[:, :, :, None, :])
    return out * jnp.exp(jnp.where(causal, gaps, jnp.zeros((), gaps.dtype)))[:, :, None]


def _vector_scores(q: Array, k: Array, b: Array) -> Array:
    """As `scores`, for a gate per channel: halves until BLOCK, since a (c, c, k) array of differences would be large.

    A pair with the late place in the second half and the early one in the first decays through the middle: both factors
    are at most 1, so the product is a plain matrix product and nothing can overflow.

    The halves lie along h, which stays in front and so keeps its placing: an axis of their own would make arrays of
    seven axes under vmap, on which XLA for CPU may crash (jaxlib 0.10.2, 0.11.0: jax-ml/jax issues 39257, 40412).
    """
    rows, h, z, c, width = q.shape
    if c <= BLOCK:
        causal = jnp.tril(jnp.ones((c, c), bool))[None, None, :, :, None]
        gaps = gap(b[..., :, None, :], b[..., None, :, :])
        decayed = k[..., None, :, :] * jnp.exp(jnp.where(causal, gaps, jnp.zeros((), gaps.dtype)))
        return jnp.einsum("bhzik,bhijk->bhzij", q, decayed)
    m = c // 2
    qs = q.reshape(rows, h, z, 2, m, width).swapaxes(2, 3)
    ks = k.reshape(rows, h, 2, m, width)
    bs = b.reshape(2, rows, h, 2, m, width)
    halves = (a.reshape(*a.shape[:-4], 2 * h, *a.shape[-2:]) for a in (ks, bs))
    near = _vector_scores(qs.reshape(rows, 2 * h, z, m, width), *halves).reshape(rows, h, 2, z, m, m)
    middle = bs[..., 0, -1:, :]
    late = qs[:, :, 1] * jnp.exp(gap(bs[..., 1, :, :], middle))[:, :, None]
    early = ks[:, :, 0] * jnp.exp(gap(middle, bs[..., 0, :, :]))
    far = jnp.einsum("bhzik,bhjk->bhzij", late, early)
    above = jnp.concatenate([near[:, :, 0], jnp.zeros_like(far)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([far, near[:, :, 1]], axis=-1)], axis=-2)


def chosen(keep: Array, x: Array) -> Array:
    """x where `keep` holds, else zero: selected, never multiplied."""
    return jnp.where(keep, x, jnp.zeros((), x.dtype))
