"""The elementwise linear recurrence h_t = a_t h_{t-1} + u_t, real or complex: HGRN, LRU, S5, RG-LRU, minGRU, Mamba.

Three forms of one function. Their derivative is one rule for all: the tangent is the same recurrence run on
`du + da h_{t-1}`, which is linear, so the backward is one reversed recurrence and keeps nothing but a and h.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, wide

Form = Callable[[Array, Array, Array, Array | None], Array]


def recurrence_sequential(a: Array, u: Array, state: Array | None, starts: Array | None = None) -> tuple[Array, Array]:
    """h_t = a_t h_{t-1} + u_t, one step after the other; least memory.

    a       transition, of either sign      (b, t, ...) real or complex
    u       input                           (b, t, ...) as a
    state   h before the first token        (b, ...), None: zeros
    starts  first tokens of documents       (b, t) bool: there h_{t-1} counts as 0; None: none
    ->      h (b, t, ...) in u's dtype;  state (b, ...) in at least float32

    A non-finite token turns its document nan from there to its end, in every channel.
    """
    return _recur(_sequential, a, u, state, starts)


def recurrence_associative(a: Array, u: Array, state: Array | None, starts: Array | None = None) -> tuple[Array, Array]:
    """As `recurrence_sequential`, by a parallel prefix over all of time: depth log t, most memory.

    The operator is (a2, u2) after (a1, u1) = (a2 a1, a2 u1 + u2) (Blelloch 1990, section 1.4).
    """
    return _recur(_associative, a, u, state, starts)


def recurrence_chunked(
    a: Array, u: Array, state: Array | None, starts: Array | None = None, chunk: int = 32
) -> tuple[Array, Array]:
    """As `recurrence_sequential`, chunk after chunk with a parallel prefix inside; `chunk` is a power of two."""
    if chunk < 1 or chunk & (chunk - 1):
        raise ConfigError(f"chunk: {chunk}, expected a power of two")
    return _recur(partial(_chunked, chunk), a, u, state, starts)


recurrence = recurrence_sequential


def _recur(form: Form, a: Array, u: Array, state: Array | None, starts: Array | None) -> tuple[Array, Array]:
    """What the forms share: checks, dtypes, isolation, and the last state."""
    if a.shape != u.shape or u.ndim < 2 or 0 in u.shape[:2]:
        raise ShapeError(f"a, u: got {a.shape} and {u.shape}, expected the same (b, t, ...), neither b nor t zero")
    if state is not None and state.shape != u.shape[:1] + u.shape[2:]:
        raise ShapeError(f"state: got {state.shape}, expected (b, ...) = {u.shape[:1] + u.shape[2:]}")
    if starts is not None and starts.shape != u.shape[:2]:
        raise ShapeError(f"starts: got {starts.shape}, expected (b, t) = {u.shape[:2]}")
    dtype = np.promote_types(wide(a).dtype, wide(u).dtype)
    dtype = dtype if state is None else np.promote_types(dtype, state.dtype)
    state = jnp.zeros(u.shape[:1] + u.shape[2:], dtype) if state is None else state.astype(dtype)
    out = np.promote_types(u.dtype, dtype) if jnp.issubdtype(dtype, jnp.complexfloating) else u.dtype
    (a, u), state, spoiled = isolate(starts, (a.astype(dtype), u.astype(dtype)), state)
    h = _solve(form, a, u, state, starts)
    return spoil(spoiled, h.astype(out)), spoil(spoiled[:, -1], h[:, -1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(form: Form, a: Array, u: Array, state: Array, starts: Array | None) -> Array:
    return form(a, u, state, starts)


@_solve.defjvp
def _solve_jvp(form, primals, tangents):
    a, u, state, starts = primals
    da, du, dstate, _ = tangents
    h = _solve(form, a, u, state, starts)
    before = _select(starts, jnp.concatenate([state[:, None], h[:, :-1]], axis=1))
    return h, form(a, du + da * before, dstate, starts)


def _select(starts: Array | None, before: Array) -> Array:
    """What each token sees of the past: zeros at a start."""
    if starts is None:
        return before
    return jnp.where(starts.reshape(starts.shape + (1,) * (before.ndim - starts.ndim)), jnp.zeros_like(before), before)


def _sequential(a: Array, u: Array, state: Array, starts: Array | None) -> Array:
    if u.shape[1] == 1:
        return a * _select(starts, state[:, None]) + u

    def step(h, x):
        a, u, start = x
        h = a * _select(start, h) + u
        return h, h

    _, h = jax.lax.scan(step, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (a, u, starts)))
    return jnp.moveaxis(h, 0, 1)


def _associative(a: Array, u: Array, state: Array, starts: Array | None) -> Array:
    first = a[:, :1] * _select(None if starts is None else starts[:, :1], state[:, None]) + u[:, :1]
    u = jnp.concatenate([first, u[:, 1:]], axis=1)
    if starts is None:
        return jax.lax.associative_scan(lambda x, y: (y[0] * x[0], y[0] * x[1] + y[1]), (a, u), axis=1)[1]
    starts = starts.reshape(starts.shape + (1,) * (u.ndim - 2))

    def after(x, y):
        # The flag travels with the element and selects: a product of transitions may be inf, and 0 * inf is nan.
        (a1, u1, f1), (a2, u2, f2) = x, y
        return jnp.where(f2, a2, a2 * a1), jnp.where(f2, u2, a2 * u1 + u2), f1 | f2

    return jax.lax.associative_scan(after, (a, u, starts), axis=1)[1]


def _chunked(chunk: int, a: Array, u: Array, state: Array, starts: Array | None) -> Array:
    b, t = u.shape[:2]
    c = min(chunk, 1 << (t - 1).bit_length())
    n = -(-t // c)
    if n == 1:
        return _associative(a, u, state, starts)

    def split(x, fill):
        # What fills the last chunk comes after every token, and its outputs are dropped.
        x = jnp.pad(x, [(0, 0), (0, n * c - t)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(b, n, c, *x.shape[2:]), 1, 0)

    def body(state, x):
        h = _associative(x[0], x[1], state, x[2])
        return h[:, -1], h

    xs = (split(a, 1), split(u, 0), None if starts is None else split(starts, False))
    _, h = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, xs)
    return jnp.moveaxis(h, 0, 1).reshape(b, n * c, *u.shape[2:])[:, :t]
