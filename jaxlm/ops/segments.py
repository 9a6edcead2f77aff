"""Rows cut into segments of one size, each row standing anywhere in its segment: for what acts at a segment's end."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.typing import Array


class Segments:
    """Rows laid out in n whole segments: the p (b) tokens of the segment under way, t new ones, then zeros."""

    def __init__(self, p: Array, t: int, size: int, n: int):
        self.p, self.t, self.size, self.n = p, t, size, n
        at = jnp.arange(n * size, dtype=jnp.int32)[None] - p[:, None]
        self.new = (at >= 0) & (at < t)
        self.source = jnp.where(at < 0, at + p[:, None], jnp.minimum(at, t) + size)
        ends = (jnp.arange(n, dtype=jnp.int32)[:, None] + 1) * size
        self.complete = ends <= p[None] + t

    def laid(self, new: Array, old: Array | None = None) -> Array:
        """(b, t, ...) behind what is left of (b, size, ...) -> (b, n size, ...)"""
        old = jnp.zeros((new.shape[0], self.size, *new.shape[2:]), new.dtype) if old is None else old
        return pick(jnp.concatenate([old, new, jnp.zeros_like(new[:, :1])], axis=1), self.source)

    def segments(self, tree: Any) -> Any:
        """(b, n size, ...) -> (n, b, size, ...)"""
        cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], self.n, self.size, *x.shape[2:]), 1, 0)  # noqa: E731
        return jax.tree.map(cut, tree)

    def taken(self, y: Array) -> Array:
        """The new tokens of (n, b, size, ...): (b, t, ...)"""
        y = jnp.moveaxis(y, 0, 1).reshape(y.shape[1], self.n * self.size, *y.shape[3:])
        return pick(y, jnp.arange(self.t, dtype=jnp.int32)[None] + self.p[:, None])

    def rest(self, x: Array) -> Array:
        """The segment under way at the end: (b, size, ...)"""
        first = (self.p + self.t) // self.size * self.size
        x = jnp.pad(x, [(0, 0), (0, self.size)] + [(0, 0)] * (x.ndim - 2))
        return pick(x, first[:, None] + jnp.arange(self.size, dtype=jnp.int32)[None])


def pick(x: Array, at: Array) -> Array:
    """x (b, s, ...) at places (b, t): (b, t, ...)"""
    return jax.vmap(lambda x, at: x[at])(x, at)


def by_row(rows: Array, like: Array) -> Array:
    """(b) with the rank of `like`."""
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
