"""RWKV-5 and 6's reading of a decaying memory: before the token's own decay and writing, which it meets apart."""

import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.ops.decay import decay
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array


def bonus_decay(
    r: Array,
    k: Array,
    v: Array,
    u: Array,
    g: Array,
    state: Array | None = None,
    starts: Array | None = None,
) -> tuple[Array, Array]:
    """y_t = r_t (S_{t-1} + Diag(u) k_t' v_t);  S_t = Diag(e^{g_t}) S_{t-1} + k_t' v_t.

    r, k                                    (b, t, h, k)
    v                                       (b, t, h, v)
    u       what the token itself counts    (h, k)
    g       log gate <= 0, natural log      (b, t, h, k)
    state   None: zeros                     (b, h, k, v)
    starts  first tokens of documents       (b, t) bool; the state is dropped before them
    ->      y (b, t, h, v) in v's dtype;  state (b, h, k, v), at least float32

    What r_t reads is the state after token t-1: `decay` with the queries one place earlier, and the first query at
    `state` itself. A non-finite token turns y nan from there to its document's end. Raises ShapeError.
    Source: Peng et al. 2024 (2404.05892), eq. 16 to 19.
    """
    if u.shape != k.shape[2:]:
        raise ShapeError(f"u: shape {u.shape}, expected (h, k) = {k.shape[2:]}")
    (r, k, v, g), state, spoiled = isolate(starts, (r, k, v, g), state)
    early = jnp.concatenate([r[:, 1:], jnp.zeros_like(r[:, :1])], axis=1)
    later, after = decay(early, k, v, g, state, starts)
    first = jnp.zeros_like(later[:, :1])
    if state is not None:
        first = jnp.einsum("bhk,bhkv->bhv", r[:, 0].astype(after.dtype), state.astype(after.dtype))
        first = first[:, None].astype(v.dtype)
    past = jnp.concatenate([first, later[:, :-1]], axis=1)
    if starts is not None:
        past = jnp.where(starts[..., None, None], jnp.zeros((), v.dtype), past)
    own = jnp.sum(r.astype(after.dtype) * k.astype(after.dtype) * u.astype(after.dtype)[None, None], -1, keepdims=True)
    y = past + (own * v.astype(after.dtype)).astype(v.dtype)
    return spoil(spoiled, y), spoil(spoiled[:, -1], after)
