"""Linear attention with a short causal convolution of its values beside it: what is near is not smoothed away."""

import jax.numpy as jnp

from jaxlm.layers.heads import taps_of
from jaxlm.mixers.base import leaf
from jaxlm.mixers.linear_attention import LinearAttention
from jaxlm.ops.conv import conv
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class ConvLinearAttention(LinearAttention):
    """Linear attention augmented by a masked depthwise convolution (You et al. 2024, 2406.07368, section 4).

    y_t = W_O (o_t + Σ_i w_i ⊙ v_{t-i})       i = 0 .. taps - 1;  o_t and v_t as in `LinearAttention`

    x, y     (b, t, d)
    state    S (b, h, k, v), z (b, h, k);  past, the last values (b, taps - 1, h, v)
    taps     width of the convolution; with w = 0 it is linear attention
    """

    taps: int = 4

    paper = "You et al. 2024"

    def __post_init__(self):
        super().__post_init__()
        self.check(self.taps > 0, "taps", "at least 1")

    def params(self):
        return {**super().params(), "conv": taps_of(self.h, self.width // self.h, self.taps)}

    def state(self, batch: int, room: int = 0):
        h = self.h
        past = leaf(batch, (self.taps - 1, h, self.width // h), (None, "heads", "head"))
        return {**super().state(batch, room), "past": past}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        far, after = super().apply(params, x, state and {n: state[n] for n in ("S", "z")}, starts)
        x, past, spoiled = isolate(starts, x, state and state["past"])
        v = wide(dense(x, params["value"]))
        b, t, h, k = v.shape
        past = jnp.zeros((b, self.taps - 1, h, k), v.dtype) if past is None else past
        flat = past.reshape(b, self.taps - 1, h * k)
        near, last = conv(v.reshape(b, t, h * k), params["conv"].reshape(self.taps, h * k), flat, starts)
        y = far + merge(near.reshape(v.shape).astype(x.dtype), params["out"])
        return spoil(spoiled, y), {**after, "past": spoil(spoiled[:, -1], last.reshape(past.shape))}
