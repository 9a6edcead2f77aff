"""Liger: the weights of softmax attention, read as gated linear attention beside a window."""

import jax
import jax.numpy as jnp

from jaxlm.mixers.attention import Attention
from jaxlm.mixers.base import leaf
from jaxlm.ops.decay import decay
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide

LOCAL = ("k", "v", "length")


class Liger(Attention):
    """Attention's own weights as a gated recurrence, mixed with softmax attention in a window (Lan et al. 2025).

    S_t = Diag(α_t) S_{t-1} + softmax(k_t)' v_t       o_t = softmax(q_t) S_t / √k       α_t = σ(k_t)^(1/τ)
    y_t = W_O (m o_t + (1 - m) window_t)

    x, y     (b, t, d)
    state    S (b, h, k, v), and the window's: k, v (b, window - 1, g, k), length (b)
    window   of the softmax attention, which alone turns by `position`
    tau      τ; infinite: α = 1, nothing is forgotten
    mix      m, the share of the recurrence

    Softmaxes over the features of a head. The gate is the key projection, pooled to its own width: the identity.
    Other fields and all weights are those of `Attention`.
    """

    window: int | None = 64
    tau: float = 16.0
    mix: float = 0.5

    paper = "Lan et al. 2025"
    forms = ("chunkwise",)

    def __post_init__(self):
        super().__post_init__()
        self.check(self.window is not None, "window", "at least 1")
        self.check(self.tau > 0, "tau", "a positive number")
        self.check(0 <= self.mix <= 1, "mix", "a share from 0 to 1")

    def state(self, batch: int, room: int = 0):
        return {"S": leaf(batch, (self.h, self.k, self.k), ("heads", "head", None)), **super().state(batch, room)}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        near, window = super().apply(params, x, state and {n: state[n] for n in LOCAL}, starts)
        x, before, spoiled = isolate(starts, x, state and state["S"])
        q, k, v = self.project(params, x)
        k, v = (wide(jnp.repeat(a, self.h // self.g, axis=2)) for a in (k, v))
        q = jax.nn.softmax(wide(q), axis=-1) * self.k**-0.5
        o, after = decay(q, jax.nn.softmax(k, axis=-1), v, jax.nn.log_sigmoid(k) / self.tau, before, starts)
        far = self.give(params, o.astype(x.dtype))
        y = spoil(spoiled, self.mix * far + (1 - self.mix) * near)
        after = after if before is None else after.astype(before.dtype)
        return y, {"S": spoil(spoiled[:, -1], after), **window}
