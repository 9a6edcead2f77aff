"""Walks over a few states: the states visited, in logarithmic depth, and how often each is visited on average."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.typing import Array


def follow(maps: Array, start: int = 0) -> Array:
    """The state after each token.

    maps     (t, s) int      maps[i, s]: the state that token i leads to from s
    ->       (t,) int
    """
    composed = jax.lax.associative_scan(lambda f, g: jnp.take_along_axis(g, f, axis=-1), maps)
    return composed[:, start]


def before(states: Array, start: int = 0) -> Array:
    """The state that each token meets, of those it leads to.   (t,) -> (t,)"""
    return jnp.concatenate([jnp.full((1,), start, states.dtype), states[:-1]])


def latest(happened: Array) -> Array:
    """The last place at or before each where it happened; -1: not yet.   (t, ...) bool -> (t, ...) int32"""
    place = jnp.arange(happened.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (happened.ndim - 1))
    return jax.lax.cummax(jnp.where(happened, place, -1), axis=0)


def visits(step: np.ndarray, first: np.ndarray, n: int) -> np.ndarray:
    """Expected share of the first n places that each state holds.

    step     (s, s)      probability of column after row
    first    (s,)        where the first place stands
    """
    total, here = np.zeros(len(first)), np.asarray(first, np.float64)
    for _ in range(n):
        total += here
        here = here @ step
    return total / n
