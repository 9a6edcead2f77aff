"""Complex numbers as pairs of reals: weights and states stay real, for casts, optimizers and files."""

import jax
import jax.numpy as jnp

from jaxlm.ops.dense import merge
from jaxlm.ops.recurrence import recurrence
from jaxlm.typing import Array, wide


def from_pairs(x: Array) -> Array:
    """x[0] + i x[1] along the last axis but one.   real (..., 2, n) -> complex (..., n), of at least float32"""
    x = wide(x)
    return jax.lax.complex(x[..., 0, :], x[..., 1, :])


def to_pairs(z: Array) -> Array:
    """The inverse of `from_pairs`.   complex (..., n) -> real (..., 2, n)"""
    return jnp.stack([z.real, z.imag], axis=-2)


def diagonal_system(
    a: Array, u: Array, c: Array, state: Array, starts: Array | None, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """y_t = Re(C h_t) of h_t = a h_{t-1} + u_t.

    a       complex                     (n)
    u       complex                     (b, t, n)
    c       C, pairs                    (2, n, d)
    state   pairs                       (b, 2, n)
    starts  first tokens of documents   (b, t) bool; None: none
    dtype   of the product with C
    ->      y (b, t, d);  state
    """
    h, last = recurrence(jnp.broadcast_to(a[None, None], u.shape), u, from_pairs(state), starts)
    return merge(to_pairs(h.conj()).astype(dtype), c), to_pairs(last)  # Re(C h) is the product of C with h* as pairs
