"""Keep a non-finite token inside its own document.

A parallel form multiplies masked scores by values, and 0 * nan is nan: one bad token would reach every row of the
product, even the past. `isolate` zeroes such tokens before any product and says which tokens are spoiled by them;
`spoil` puts the nan back, from the bad token to the end of its document, so that nothing is hidden and nothing leaks.
`tokenwise` does both for a function of single tokens: there too the gradient of a weight is a sum over tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.typing import Array, Tree


def _rows_bad(tree: Tree) -> Array:
    """(b,): does the row hold any non-finite floating number?"""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.any(jnp.stack([jnp.any(~jnp.isfinite(x).reshape(x.shape[0], -1), axis=1) for x in leaves]), axis=0)


def _where_rows(mask: Array, x: Array, value: float) -> Array:
    """Put `value` where mask (b) or (b, t) holds; x has further axes. Integer leaves pass."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), jnp.asarray(value, x.dtype), x)


def isolate(starts: Array | None, xs: Tree, state: Tree = None) -> tuple[Tree, Tree, Array]:
    """Zero non-finite tokens and rows of state, and say which tokens they spoil.

    starts                                  (b, t) bool, first tokens of documents; None: one document
    xs      tree of                         (b, t, ...)
    state   tree of, may be None            (b, ...)
    ->      xs and state, all finite;  spoiled (b, t) bool: from a bad token (or a bad state) to its document's end
    """
    leaves = jax.tree.leaves(xs)
    b, t = leaves[0].shape[:2]
    bad = jnp.any(jnp.stack([jnp.any(~jnp.isfinite(x).reshape(b, t, -1), axis=2) for x in leaves]), axis=0)
    place = jnp.arange(1, t + 1, dtype=jnp.int32)[None]
    last_bad = jax.lax.cummax(jnp.where(bad, place, 0), axis=1)
    last_start = jnp.zeros_like(last_bad) if starts is None else jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
    spoiled = (last_bad > 0) & (last_bad >= last_start)
    if state is not None and jax.tree.leaves(state):
        row = _rows_bad(state)
        spoiled |= row[:, None] & (last_start == 0)
        state = jax.tree.map(lambda s: _where_rows(row, s, 0.0), state)
    return jax.tree.map(lambda x: _where_rows(bad, x, 0.0), xs), state, spoiled


def spoil(spoiled: Array, tree: Tree) -> Tree:
    """Nan where `spoiled` (b, t) or (b) holds; leaves (b, t, ...) or (b, ...); integer leaves pass."""
    return jax.tree.map(lambda x: _where_rows(spoiled, x, jnp.nan), tree)


def tokenwise(f: Callable[[Array], Array], x: Array) -> Array:
    """f(x), nan at tokens where x is not finite; these tokens do not touch the gradient of what f closes over.

    f       a function of single tokens         (b, t, d) -> (b, t, n)
    x                                           (b, t, d)
    """
    bad = jnp.any(~jnp.isfinite(x), axis=-1)
    return spoil(bad, f(_where_rows(bad, x, 0.0)))
