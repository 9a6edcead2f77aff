"""Contractions with weights: the last axis of x with the first axis of w."""

import jax

from jaxlm.typing import Array


def dense(x: Array, w: Array, bias: Array | None = None) -> Array:
    """x w + bias.

    x       (..., d)
    w       (d, *out)       in x's dtype, or cast to it
    bias    (*out)
    ->      (..., *out)     in x's dtype
    """
    y = jax.lax.dot_general(x, w.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    if bias is not None:
        y = y + bias.astype(x.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    return y


def merge(x: Array, w: Array) -> Array:
    """Contract the last two axes of x with the first two of w: heads back to the width.

    x       (..., h, v)
    w       (h, v, d)
    ->      (..., d)
    """
    return jax.lax.dot_general(x, w.astype(x.dtype), (((x.ndim - 2, x.ndim - 1), (0, 1)), ((), ())))
