"""Maps of scores to probabilities, other than softmax."""

import jax
import jax.numpy as jnp

from jaxlm.typing import Array


def hardmax(z: Array) -> Array:
    """All weight on the largest score of the last axis, the first of equal ones.   z (..., n) -> (..., n)"""
    return jax.nn.one_hot(jnp.argmax(z, axis=-1), z.shape[-1], dtype=z.dtype)


def sparsemax(z: Array) -> Array:
    """The point of the simplex that is nearest to z: what falls too far behind the largest gets nothing.

    z    scores, -inf hides one      (..., n)
    ->   max(z - tau, 0), sum 1      (..., n)
    Martins & Astudillo 2016, algorithm 1.
    """
    falling = -jnp.sort(-z, axis=-1)
    count = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
    sums = jnp.cumsum(falling, axis=-1)
    kept = jnp.sum(1 + count * falling > sums, axis=-1, keepdims=True)
    tau = (jnp.take_along_axis(sums, kept - 1, axis=-1) - 1) / kept.astype(z.dtype)
    return jnp.maximum(z - tau, jnp.zeros((), z.dtype))


def sparsemax_naive(z: Array) -> Array:
    """The twin of `sparsemax`: tau found by halving."""

    def halve(_: int, tau: tuple[Array, Array]) -> tuple[Array, Array]:
        mid = (tau[0] + tau[1]) / 2
        much = jnp.sum(jnp.maximum(z - mid, jnp.zeros((), z.dtype)), axis=-1, keepdims=True) >= 1
        return jnp.where(much, mid, tau[0]), jnp.where(much, tau[1], mid)

    top = jnp.max(z, axis=-1, keepdims=True)
    low, high = jax.lax.fori_loop(0, 60, halve, (top - 1, top))
    return jnp.maximum(z - (low + high) / 2, jnp.zeros((), z.dtype))
