"""A matrix state whose transition is diagonal plus rank one, with both sides of that free: RWKV-7; chunk by chunk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.ops.chunks import Inputs, bounds, chosen, cumulate, cut, edges, enter, expect, leave, paste, places, scores
from jaxlm.ops.delta import unit_inverse
from jaxlm.ops.isolate import isolate
from jaxlm.typing import Array


class Sides(NamedTuple):
    """The rank-one part, finite; in its own dtype."""

    a: Array  # (b, t, h, k)
    b: Array  # (b, t, h, k)


def dplr(
    q: Array,
    a: Array,
    b: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """S_t = Diag(e^{g_t}) S_{t-1} + b_t' (a_t S_{t-1}) + k_t' v_t;  y_t = q_t S_t.

    q, k                                    (b, t, h, k)
    a, b    what is read and where it goes  (b, t, h, k); bounded where Diag(e^g) + b' a has norm at most 1
    v                                       (b, t, h, v)
    g       log gate <= 0, natural log      None, (b, t, h) or (b, t, h, k); -inf forgets all
    state   None: zeros                     (b, h, k, v)
    starts  first tokens of documents       (b, t) bool; the state is dropped before them
    chunk   a power of two; None: 32, and 16 for a gate per channel
    ->      y (b, t, h, v) in v's dtype;  state (b, h, k, v), at least float32

    a reads the state before it decays; a = -k, b = beta k, values beta v and no gate are `delta`. A non-finite token
    turns y nan from there to its document's end, and the state with it where that is the row's end. Raises ShapeError
    (a shape), ConfigError (chunk).
    Source: Peng et al. 2025 (2503.14456), eq. 16; the chunkwise form is that of `delta`, with its own two sides.
    """
    inputs, sides, state, spoiled = _enter(q, a, b, k, v, g, state, starts)
    t, vector = q.shape[1], g is not None and g.ndim == 4
    c = places(t, (16 if vector else 32) if chunk is None else chunk)

    @jax.checkpoint
    def body(s, x: tuple[Inputs, Sides]):
        return _chunk(s, x[0], x[1], v.dtype)

    state, y = jax.lax.scan(body, state, jax.tree.map(lambda x: cut(x, c), (inputs, sides)))
    return leave(paste(y, t), state, spoiled, v.dtype)


def _enter(q, a, b, k, v, g, state, starts) -> tuple[Inputs, Sides, Array, Array]:
    """As `enter`, with the two sides."""
    expect("a", a, q.shape)
    expect("b", b, q.shape)
    inputs, state, spoiled = enter(q, k, v, g, None, state, starts)
    sides, _, more = isolate(starts, Sides(a, b))
    return inputs, sides, state, spoiled | more


def _chunk(s: Array, x: Inputs, sides: Sides, dtype) -> tuple[Array, Array]:
    """One chunk: the state at its end, and its outputs.

    a_t reads the state after token t-1, as q_{t-1} does: it enters as a query of the place before it.
    """
    q, a, b, k, v = (z.astype(s.dtype) for z in (x.q, sides.a, sides.b, x.k, x.v))
    own = bounds(x.starts, q.shape[2])
    sums = None if x.g is None else cumulate(x.g)
    since, until, across = edges(sums, s)
    strict = jnp.tril(jnp.ones((q.shape[2], q.shape[2]), bool), -1)[None, None]

    early = jnp.concatenate([a[:, :, 1:], jnp.zeros_like(a[:, :, :1])], axis=2)
    queries = jnp.stack([q, early], axis=2)
    of_k, of_b = scores(queries, k, sums), scores(queries, b, sums)
    qk, qb = (chosen(own.pair, z[:, :, 0]) for z in (of_k, of_b))
    ak, ab = (chosen(own.pair & strict, _later(z[:, :, 1])) for z in (of_k, of_b))

    before = since if sums is None else jnp.concatenate([jnp.ones_like(since[:, :, :1]), since[:, :, :-1]], axis=2)
    # Queries and sides read the incoming state in one product, selected on both sides as in `decay`.
    head = own.head[:, :, None]
    readers = chosen(head, jnp.stack([since * q, before * a], axis=2))
    reads = chosen(head, jnp.einsum("bhzck,bhkv->bhzcv", readers, s))
    known = reads[:, :, 1] + jnp.einsum("bhij,bhjv->bhiv", ak, v)
    moved = jnp.einsum("bhij,bhjv->bhiv", unit_inverse(-ab), known)  # a_t S_{t-1} of every place
    y = reads[:, :, 0] + jnp.einsum("bhij,bhjv->bhiv", qk, v) + jnp.einsum("bhij,bhjv->bhiv", qb, moved)
    written = jnp.einsum("bhck,bhcv->bhkv", chosen(own.tail, k * until), v)
    written += jnp.einsum("bhck,bhcv->bhkv", chosen(own.tail, b * until), moved)
    return across * chosen(own.whole, s) + written, y.astype(dtype)


def _later(x: Array) -> Array:
    """Rows one place later, zeros in the first.   (..., c, c)"""
    return jnp.concatenate([jnp.zeros_like(x[..., :1, :]), x[..., :-1, :]], axis=-2)


def dplr_naive(
    q: Array,
    a: Array,
    b: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The twin of `dplr`, token by token; `chunk` is not used."""
    inputs, sides, state, spoiled = _enter(q, a, b, k, v, g, state, starts)

    def token(s, both: tuple[Inputs, Sides]):
        x, sides = both
        q, a, b, k, v = (z.astype(s.dtype) for z in (x.q, sides.a, sides.b, x.k, x.v))
        if x.starts is not None:
            s = jnp.where(x.starts[:, None, None, None], jnp.zeros_like(s), s)
        moved = jnp.einsum("bhk,bhkv->bhv", a, s)
        if x.g is not None:
            s = s * jnp.exp(x.g if x.g.ndim == 3 else x.g[..., None])[..., None]
        s = s + b[..., :, None] * moved[..., None, :] + k[..., :, None] * v[..., None, :]
        return s, jnp.einsum("bhk,bhkv->bhv", q, s)

    state, y = jax.lax.scan(token, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, sides)))
    return leave(jnp.moveaxis(y, 0, 1), state, spoiled, v.dtype)
