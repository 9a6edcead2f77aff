"""The token shift of RWKV: every token sees the one before it."""

import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.typing import Array, wide


def shift(x: Array, state: Array | None = None, starts: Array | None = None) -> tuple[Array, Array]:
    """x_{t-1} for every x_t; zeros before the first token of a document.

    x       finite inputs                   (b, t, d)
    state   the input before x; None: zeros (b, d)
    starts  first tokens of documents       (b, t) bool
    ->      x_{t-1} (b, t, d) in x's dtype;  state (b, d), at least float32
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ShapeError(f"x: shape {x.shape}, expected (b, t, d), t not zero")
    if state is None:
        state = jnp.zeros((x.shape[0], x.shape[2]), wide(x).dtype)
    before = jnp.concatenate([state.astype(x.dtype)[:, None], x[:, :-1]], axis=1)
    if starts is not None:
        before = jnp.where(starts[..., None], jnp.zeros((), x.dtype), before)
    return before, x[:, -1].astype(state.dtype)
