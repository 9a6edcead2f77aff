"""The stabiliser of memories with exponential gates: a running maximum that fades, as a parallel prefix."""

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.typing import Array


def peak(a: Array, u: Array, state: Array | None = None, starts: Array | None = None) -> tuple[Array, Array]:
    """m_t = max(a_t + m_{t-1}, u_t), and m_{t-1} as token t meets it: 0 at a start.

    a, u    log gates of keeping and of writing     (b, t, ...), finite, at least float32
    state   m before the first token; None: 0       (b, ...)
    starts  first tokens of documents               (b, t) bool; None: none
    ->      m (b, t, ...), m_{t-1} (b, t, ...)

    With it a sum of e^{u_s} e^{a_{s+1} + ... + a_t} is kept as its share of e^{m_t}: each token multiplies what is
    there by e^{a_t + m_{t-1} - m_t} and adds e^{u_t - m_t}, neither above 1 (Beck et al. 2024, 2405.04517, eqs. 15-17).
    """
    if a.shape != u.shape or u.ndim < 2 or 0 in u.shape[:2]:
        raise ShapeError(f"a, u: got {a.shape} and {u.shape}, expected the same (b, t, ...), neither b nor t zero")
    state = jnp.zeros(u.shape[:1] + u.shape[2:], u.dtype) if state is None else state.astype(u.dtype)
    if starts is not None:
        starts = starts.reshape(starts.shape + (1,) * (u.ndim - 2))
        state = jnp.where(starts[:, 0], jnp.zeros_like(state), state)
    u = jnp.concatenate([jnp.maximum(u[:, :1], a[:, :1] + state[:, None]), u[:, 1:]], axis=1)
    if starts is not None:
        # A start begins from 0 and lets nothing through.
        u = jnp.where(starts, jnp.maximum(u, a), u)
        a = jnp.where(starts, -jnp.inf, a)
    m = jax.lax.associative_scan(lambda x, y: (x[0] + y[0], jnp.maximum(x[1] + y[0], y[1])), (a, u), axis=1)[1]
    before = jnp.concatenate([state[:, None], m[:, :-1]], axis=1)
    return m, before if starts is None else jnp.where(starts, jnp.zeros_like(before), before)
