"""The (gated) delta rule: a matrix state that replaces what a key holds instead of adding to it; chunkwise WY form."""

import jax
import jax.numpy as jnp

from jaxlm.ops.chunks import Inputs, bounds, chosen, cumulate, cut, edges, enter, leave, paste, places, scores
from jaxlm.typing import Array

EXACT = jax.lax.Precision.HIGHEST  # errors of the inverse grow with its condition: no fast, short products here


def delta(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """S~ = Diag(e^{g_t}) S_{t-1};  S_t = S~ + beta_t k_t' (v_t - k_t S~);  y_t = q_t S_t.

    q, k                                    (b, t, h, k)
    v                                       (b, t, h, v)
    beta    writing rate                    (b, t, h); beta |k|^2 in [0, 2] keeps the recurrence from growing
    g       log gate <= 0, natural log      None, (b, t, h) or (b, t, h, k); -inf forgets all
    state   None: zeros                     (b, h, k, v)
    starts  first tokens of documents       (b, t) bool; the state is dropped before them
    chunk   a power of two; None: 32, and 16 for a gate per channel
    ->      y (b, t, h, v) in v's dtype;  state (b, h, k, v), at least float32

    Decay first, then the delta, then the reading; no scale on q, no norm on k. A non-finite token turns y nan from
    there to its document's end, and the state with it where that is the row's end. Raises ShapeError (a shape),
    ConfigError (chunk).
    Source: Schlag et al. 2021 (2102.11174), eq. 24; Yang et al. 2024 (2406.06484), section 3; (2412.06464), section 3.
    """
    inputs, state, spoiled = enter(q, k, v, g, beta, state, starts)
    t, vector = q.shape[1], g is not None and g.ndim == 4
    c = places(t, (16 if vector else 32) if chunk is None else chunk)

    @jax.checkpoint
    def body(s, x):
        return _chunk(s, x, v.dtype)

    state, y = jax.lax.scan(body, state, jax.tree.map(lambda x: cut(x, c), inputs))
    return leave(paste(y, t), state, spoiled, v.dtype)


def _chunk(s: Array, x: Inputs, dtype) -> tuple[Array, Array]:
    """One chunk: the state at its end, and its outputs."""
    assert x.beta is not None
    q, k, v, rate = (a.astype(s.dtype) for a in (x.q, x.k, x.v, x.beta[..., None]))
    own = bounds(x.starts, q.shape[2])
    b = None if x.g is None else cumulate(x.g)
    since, until, across = edges(b, s)
    both = scores(jnp.stack([q, rate * k], axis=2), k, b)
    strict = jnp.tril(jnp.ones(both.shape[-2:], bool), -1)[None, None]
    inverse = unit_inverse(chosen(own.pair & strict, both[:, :, 1]))
    # Queries and keys read the incoming state in one product, selected on both sides as in `decay`.
    head = own.head[:, :, None]
    readers = chosen(head, since[:, :, None] * jnp.stack([q, k], axis=2))
    reads = chosen(head, jnp.einsum("bhzck,bhkv->bhzcv", readers, s))
    written = jnp.einsum("bhij,bhjv->bhiv", inverse, rate * (v - reads[:, :, 1]))
    y = reads[:, :, 0] + jnp.einsum("bhij,bhjv->bhiv", chosen(own.pair, both[:, :, 0]), written)
    s = across * chosen(own.whole, s) + jnp.einsum("bhck,bhcv->bhkv", chosen(own.tail, k * until), written)
    return s, y.astype(dtype)


@jax.custom_jvp
def unit_inverse(lower: Array) -> Array:
    """M = (I + L)^{-1} for strictly lower L, by joining diagonal blocks: [A 0; C B]^{-1} = [A' 0; -B' C A'  B'].

    lower   L; a power of two places        (..., c, c)
    ->      M, unit lower triangular        (..., c, c)

    Never by powers of L, which overflow long before M is large. The derivative is written down, dM = -M dL M, so
    reverse mode is dL = -M' G M' below the diagonal and keeps only M. What is on or above L's diagonal is not read.
    """
    c = lower.shape[-1]
    if c == 1:
        return jnp.ones_like(lower)
    m = c // 2
    halves = unit_inverse(jnp.stack([lower[..., :m, :m], lower[..., m:, m:]]))
    first, second = halves[0], halves[1]
    corner = -jnp.matmul(jnp.matmul(second, lower[..., m:, :m], precision=EXACT), first, precision=EXACT)
    above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([corner, second], axis=-1)], axis=-2)


@unit_inverse.defjvp
def _unit_inverse_jvp(primals, tangents):
    inverse = unit_inverse(primals[0])
    change = jnp.tril(tangents[0], -1)
    return inverse, -jnp.matmul(inverse, jnp.matmul(change, inverse, precision=EXACT), precision=EXACT)


def delta_naive(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    state: Array | None = None,
    starts: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The twin of `delta`, token by token; `chunk` is not used."""
    inputs, state, spoiled = enter(q, k, v, g, beta, state, starts)

    def token(s, x: Inputs):
        assert x.beta is not None
        q, k, v, rate = (a.astype(s.dtype) for a in (x.q, x.k, x.v, x.beta[..., None]))
        if x.starts is not None:
            s = jnp.where(x.starts[:, None, None, None], jnp.zeros_like(s), s)
        if x.g is not None:
            s = s * jnp.exp(x.g if x.g.ndim == 3 else x.g[..., None])[..., None]
        error = v - jnp.einsum("bhk,bhkv->bhv", k, s)
        s = s + k[..., :, None] * (rate * error)[..., None, :]
        return s, jnp.einsum("bhk,bhkv->bhv", q, s)

    state, y = jax.lax.scan(token, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs))
    return leave(jnp.moveaxis(y, 0, 1), state, spoiled, v.dtype)
