"""What mixers with heads share: how many, the maps into and out of them, gains, decays, and the short convolution."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, LogOfUniform, Ones, StepBias, Uniform
from jaxlm.module import Spec
from jaxlm.ops.conv import conv
from jaxlm.ops.dense import dense
from jaxlm.typing import Array, Params, State, wide


def divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`: as many heads as published where the width allows."""
    return next(m for m in range(max(1, min(n, most)), 0, -1) if n % m == 0)


def into_heads(d: int, h: int, k: int, heads: str = "heads") -> Spec:
    """A map from the width into heads.   (d, h, k)"""
    return Spec((d, h, k), ("embed", heads, "head"), FanIn(), ins=("embed",))


def from_heads(h: int, v: int, d: int) -> Spec:
    """A map from heads back to the width.   (h, v, d)"""
    return Spec((h, v, d), ("heads", "head", "embed"), FanIn(), ins=("heads", "head"))


def per_head(d: int, h: int) -> Spec:
    """A map from the width to one number a head.   (d, h)"""
    return Spec((d, h), ("embed", "heads"), FanIn(), ins=("embed",))


def head_gain(h: int, v: int) -> Spec:
    """The gain of a norm over each head.   (h, v)"""
    return Spec((h, v), ("heads", "head"), Ones, keep=True)


def decays(d: int, h: int) -> dict[str, Spec]:
    """What `forget` reads.   alpha (d, h), A_log and dt_bias (h)"""
    return {
        "alpha": per_head(d, h),
        "A_log": Spec((h,), ("heads",), LogOfUniform(0.0, 16.0), keep=True),
        "dt_bias": Spec((h,), ("heads",), StepBias(), keep=True),
    }


def forget(params: Params, x: Array) -> Array:
    """log α = -exp(A) softplus(x W_α + b), a decay a head (Yang et al. 2025, section 3), at least float32.

    params  of `decays`
    x       (b, t, d)
    ->      (b, t, h)
    """
    step = jax.nn.softplus(dense(wide(x), params["alpha"], params["dt_bias"]))
    return -jnp.exp(params["A_log"].astype(step.dtype))[None, None] * step


def taps_of(h: int, k: int, size: int = 4) -> Spec:
    """The weights of `short_conv`, U(-1/sqrt(size), 1/sqrt(size)).   (size, h, k)"""
    bound = size**-0.5
    return Spec((size, h, k), (None, "heads", "head"), Uniform(-bound, bound))


def short_conv(x: Array, w: Array, state: Array | None, starts: Array | None) -> tuple[Array, Array]:
    """SiLU of a depthwise causal convolution along time.

    x       (b, t, h, k)
    w       (size, h, k); the last tap is the present token
    state   the size-1 inputs before x; None: zeros      (b, size-1, h, k)
    ->      y (b, t, h, k);  state, at least float32
    """
    b, t, h, k = x.shape
    size = w.shape[0]
    if state is None:
        state = jnp.zeros((b, size - 1, h, k), wide(x).dtype)
    y, last = conv(x.reshape(b, t, h * k), w.reshape(size, h * k), state.reshape(b, size - 1, h * k), starts)
    return jax.nn.silu(y).reshape(b, t, h, k), last.reshape(state.shape).astype(state.dtype)


def short_heads(params: Params, x: Array, state: State, starts: Array | None) -> tuple[dict[str, Array], State]:
    """Queries, keys and values, each through its map and its short convolution.

    params  the maps `query`, `key`, `value` (d, h, k), and `conv`: the taps of each
    x       (b, t, d)
    state   None: zeros                 {query, key, value} of (b, size-1, h, k)
    ->      {query, key, value} of (b, t, h, k);  state
    """
    now, past = {}, {}
    for n in ("query", "key", "value"):
        before = None if state is None else state[n]
        now[n], past[n] = short_conv(dense(x, params[n]), params["conv"][n], before, starts)
    return now, past
