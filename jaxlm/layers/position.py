"""Rotary position embedding: queries and keys turned by angles in proportion to their positions."""

import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ShapeError
from jaxlm.typing import Array, wide


def _turns(x: Array, positions: Array, base: float) -> tuple[Array, Array]:
    """Cosines and sines of the angles p base^(-2i/k), at least float32.   (b or 1, t, 1, k/2) each"""
    if x.ndim != 4 or x.shape[-1] % 2 or positions.shape not in (x.shape[:2], (1, x.shape[1])):
        raise ShapeError(f"rotary: x {x.shape}, positions {positions.shape}, expected (b, t, h, even), (b or 1, t)")
    k, dtype = x.shape[-1], wide(x).dtype
    rates = jnp.asarray(base ** (-2.0 * np.arange(k // 2) / k), dtype)
    angles = positions.astype(dtype)[:, :, None, None] * rates[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotary(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """Turn the pairs (i, i + k/2) of each head: the half layout (Su et al. 2021; Llama's public weights).

    x           (b, t, h, k), k even
    positions   (b, t) or (1, t) integers
    ->          (b, t, h, k) in x's dtype
    """
    cos, sin = _turns(x, positions, base)
    first, second = jnp.split(wide(x), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotary_interleaved(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """Turn the pairs (2i, 2i + 1) of each head (Su et al. 2021, section 3.2); shapes as `rotary`.

    Equal to `rotary` of x with the order (0, 2, 4, ..., 1, 3, 5, ...) inside each head.
    """
    cos, sin = _turns(x, positions, base)
    even, odd = wide(x)[..., 0::2], wide(x)[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape).astype(x.dtype)
