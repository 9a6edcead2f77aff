"""The short causal convolution over time that linear mixers put before their recurrence."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ShapeError
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, wide


def conv(
    x: Array, w: Array, state: Array, starts: Array | None = None, bias: Array | None = None
) -> tuple[Array, Array]:
    """Depthwise causal convolution, y_t = bias + sum_i w_i x_{t - width + 1 + i}, that can be cut anywhere.

    x       inputs                          (b, t, n)
    w       taps, the last one meets x_t    (width, n)
    state   the width-1 inputs before x     (b, width-1, n), oldest first; zeros: a fresh start
    starts  first tokens of documents       (b, t) bool: no tap reaches across; None: none
    bias                                    (n) or None
    ->      y (b, t, n) in x's dtype;  state, zeros where a slot is older than the document

    A non-finite token turns its document nan from there to its end (width 1 remembers nothing: that token only).
    """
    width, t = _check(x, w, state, starts, bias), x.shape[1]
    # Without memory nothing could carry the spoiling across a cut, so each token is on its own.
    bounds = jnp.ones(x.shape[:2], bool) if width == 1 else starts
    x_safe, before, spoiled = isolate(bounds, x, state)
    past = jnp.concatenate([before.astype(x.dtype), x_safe], axis=1)
    age = None if starts is None else _age(starts)
    taps = wide(w)
    dtype = np.promote_types(np.promote_types(x.dtype, np.float32), taps.dtype)
    y = jnp.zeros((), dtype) if bias is None else bias.astype(dtype)[None, None]
    for lag in range(width):
        tap = past[:, width - 1 - lag : width - 1 - lag + t]
        if age is not None and lag:
            tap = jnp.where((age >= lag)[..., None], tap, jnp.zeros((), x.dtype))
        y = y + tap.astype(dtype) * taps[width - 1 - lag].astype(dtype)[None, None]
    last = past[:, t:].astype(state.dtype)
    if age is not None and width > 1:
        back = jnp.arange(width - 2, -1, -1, dtype=jnp.int32)[None]
        last = jnp.where((age[:, -1:] >= back)[..., None], last, jnp.zeros((), last.dtype))
    return spoil(spoiled, y.astype(x.dtype)), spoil(spoiled[:, -1], last)


def conv_naive(
    x: Array, w: Array, state: Array, starts: Array | None = None, bias: Array | None = None
) -> tuple[Array, Array]:
    """The twin of `conv` for finite inputs: one token at a time, the memory emptied at a start."""
    _check(x, w, state, starts, bias)
    ys = []
    for i in range(x.shape[1]):
        if starts is not None:
            state = jnp.where(starts[:, i, None, None], jnp.zeros_like(state), state)
        seen = jnp.concatenate([state, x[:, i : i + 1].astype(state.dtype)], axis=1)
        y = jnp.sum(wide(seen) * wide(w)[None], axis=1)
        ys.append(y if bias is None else y + wide(bias)[None])
        state = seen[:, 1:]
    return jnp.stack(ys, axis=1).astype(x.dtype), state


def _age(starts: Array) -> Array:
    """(b, t) int32: tokens since the document's start; before the first start more than any width (the state knows)."""
    t = starts.shape[1]
    place = jnp.arange(t, dtype=jnp.int32)[None]
    far = jnp.int32(-(2**30))
    return place - jax.lax.cummax(jnp.where(starts, place, far), axis=1)


def _check(x: Array, w: Array, state: Array, starts: Array | None, bias: Array | None) -> int:
    """The width, after a look at every shape."""
    if x.ndim != 3 or 0 in x.shape[:2]:
        raise ShapeError(f"x: got {x.shape}, expected (b, t, n), neither b nor t zero")
    b, t, n = x.shape
    if w.ndim != 2 or w.shape[0] < 1 or w.shape[1] != n:
        raise ShapeError(f"w: got {w.shape}, expected (width, n) = (width, {n})")
    for name, got, want in (
        ("state", state, (b, w.shape[0] - 1, n)),
        ("starts", starts, (b, t)),
        ("bias", bias, (n,)),
    ):
        if got is not None and got.shape != want:
            raise ShapeError(f"{name}: got {got.shape}, expected {want}")
    return w.shape[0]
