"""Models of a function near a point, and the kernel that its gradients make."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError
from jaxlm.typing import Array, Params, Tree


def taylor(f: Callable[[Params], Tree], at: Params, order: int) -> Callable[[Params], Tree]:
    """The Taylor model of f around `at`: g(w) = Σ_{k <= order} f^(k)(at)[w - at, ..., w - at] / k!.

    f       (params) -> tree of arrays
    order   1: the linear model of the tangent kernel; 2: the quadratic model (Zhu et al. 2022, eq. 1)

    Derivatives are taken along w - at, none is stored: g costs 2^order times f, and can be differentiated itself.
    """
    if order < 0:
        raise ConfigError(f"order = {order}: expected 0 or more")

    def g(params: Params) -> Tree:
        way = jax.tree.map(jnp.subtract, params, at)
        derivative, total = f, f(at)
        for k in range(1, order + 1):
            derivative = along(derivative, way)
            total = jax.tree.map(lambda a, b, k=k: a + b / math.factorial(k), total, derivative(at))
        return total

    return g


def along(f: Callable[[Params], Tree], way: Params) -> Callable[[Params], Tree]:
    """The derivative of f along a direction, as a function of the point."""
    return lambda params: jax.jvp(f, (params,), (way,))[1]


def tangent_kernel(f: Callable[[Params], Array], params: Params) -> Array:
    """K_ij = ∇f_i · ∇f_j over all weights (Jacot et al. 2018).   f (params) -> (n,);   -> (n, n)"""
    rows = [j.reshape(j.shape[0], -1) for j in jax.tree.leaves(jax.jacrev(f)(params))]
    return jnp.sum(jnp.stack([j @ j.T for j in rows]), axis=0)


def sharpest(kernel: Array) -> Array:
    """The largest eigenvalue of a symmetric matrix.   (n, n) -> ()"""
    return jnp.linalg.eigvalsh(kernel)[-1]
