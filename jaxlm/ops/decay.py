"""Matrix state with decay: the recurrence of linear attention and of its gated kin, chunk by chunk in log space."""

import jax
import jax.numpy as jnp

from jaxlm.ops.chunks import Inputs, bounds, chosen, cumulate, cut, edges, enter, leave, paste, places, scores
from jaxlm.typing import Array


def decay(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """S_t = Diag(e^{g_t}) S_{t-1} + k_t' v_t,  y_t = q_t S_t, of which the gradient keeps one state per chunk.

    q, k                                    (b, t, h, k)
    v                                       (b, t, h, v)
    g       log gate <= 0, natural log      None, (b, t, h) or (b, t, h, k); -inf forgets all
    state   None: zeros                     (b, h, k, v)
    starts  first tokens of documents       (b, t) bool; the state is dropped before them
    chunk   a power of two; None: 64, and 16 for a gate per channel
    ->      y (b, t, h, v) in v's dtype;  state (b, h, k, v), at least float32

    There is no scale on q. A non-finite token turns y nan from there to its document's end, and the state with it where
    that is the row's end. Raises ShapeError (a shape), ConfigError (chunk).
    Source: Yang et al. 2024 (2312.06635), section 4; Dao & Gu 2024 (2405.21060), section 6.
    """
    inputs, state, spoiled = enter(q, k, v, g, None, state, starts)
    t, vector = q.shape[1], g is not None and g.ndim == 4
    c = places(t, (16 if vector else 64) if chunk is None else chunk)

    @jax.checkpoint
    def body(s, x):
        return _chunk(s, x, v.dtype)

    state, y = jax.lax.scan(body, state, jax.tree.map(lambda x: cut(x, c), inputs))
    return leave(paste(y, t), state, spoiled, v.dtype)


def _chunk(s: Array, x: Inputs, dtype) -> tuple[Array, Array]:
    """One chunk: the state at its end, and its outputs."""
    q, k, v = (a.astype(s.dtype) for a in (x.q, x.k, x.v))
    own = bounds(x.starts, q.shape[2])
    b = None if x.g is None else cumulate(x.g)
    since, until, across = edges(b, s)
    within = chosen(own.pair, scores(q[:, :, None], k, b)[:, :, 0])
    # Selected on both sides of the product: a state that overflowed must not reach the next document's gradients.
    past = chosen(own.head, jnp.einsum("bhck,bhkv->bhcv", chosen(own.head, q * since), s))
    y = past + jnp.einsum("bhij,bhjv->bhiv", within, v)
    s = across * chosen(own.whole, s) + jnp.einsum("bhck,bhcv->bhkv", chosen(own.tail, k * until), v)
    return s, y.astype(dtype)


def decay_naive(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The twin of `decay`, token by token; `chunk` is not used."""
    inputs, state, spoiled = enter(q, k, v, g, None, state, starts)

    def token(s, x: Inputs):
        if x.starts is not None:
            s = jnp.where(x.starts[:, None, None, None], jnp.zeros_like(s), s)
        if x.g is not None:
            s = s * jnp.exp(x.g if x.g.ndim == 3 else x.g[..., None])[..., None]
        s = s + x.k.astype(s.dtype)[..., :, None] * x.v.astype(s.dtype)[..., None, :]
        return s, jnp.einsum("bhk,bhkv->bhv", x.q.astype(s.dtype), s)

    state, y = jax.lax.scan(token, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs))
    return leave(jnp.moveaxis(y, 0, 1), state, spoiled, v.dtype)
