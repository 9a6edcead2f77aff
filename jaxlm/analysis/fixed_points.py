"""Fixed points of a map, x = f(x), and whether what is near to them goes there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.typing import Array

Map = Callable[[Array], Array]


def iterate(f: Map, x: Array, steps: int) -> Array:
    """x, f(x), f(f(x)), ...   f (n) -> (n), x (n) -> (steps + 1, n)"""
    return jax.lax.scan(lambda x, _: (f(x), x), x, length=steps + 1)[1]


def newton(f: Map, x: Array, steps: int) -> Array:
    """A fixed point near x, by Newton's method on f(x) - x.   f (n) -> (n), x (n) -> (n)

    Quadratic where 1 is no eigenvalue of the Jacobian there: also at fixed points that repel.
    """

    def step(x: Array, _: None) -> tuple[Array, None]:
        eye = jnp.eye(len(x), dtype=x.dtype)
        return x + jnp.linalg.solve(eye - jax.jacfwd(f)(x), f(x) - x), None

    return jax.lax.scan(step, x, length=steps)[0]


def radius(matrices: Array | np.ndarray) -> np.ndarray:
    """Spectral radii, nan of what is not finite.   (..., n, n) -> (...)

    Of the Jacobian at a fixed point: it attracts below 1, and repels above.
    """
    m = np.array(matrices)
    known = np.isfinite(m).all(axis=(-2, -1))
    m[~known] = 0  # eigvals refuses what is not finite
    return np.where(known, np.abs(np.linalg.eigvals(m)).max(axis=-1), np.nan)
