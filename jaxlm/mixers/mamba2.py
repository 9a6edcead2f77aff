"""Mamba-2: a state space model whose transition is one number a head, that is, linear attention with a learned step."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, LogOfUniform, Ones, StepBias, Uniform
from jaxlm.layers.heads import divisor
from jaxlm.layers.norm import rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.conv import conv
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class Mamba2(Mixer):
    """State space duality (Dao & Gu 2024, 2405.21060, section 7.1).

    [z, u, δ] = x_t W       [v, B, C] = SiLU(conv4(u) + b_conv)       Δ = softplus(δ + b)       log a = -exp(A) Δ
    S_t = a_t S_{t-1} + B_t' (Δ_t v_t)       o_t = C_t S_t + D v_t
    y_t = W_O RMSNorm_group(o_t ⊙ SiLU(z_t))

    x, y     (b, t, d)
    state    S (b, h, k, v);  conv (b, 3, n), the last inputs u of the convolution, n = expand d + 2 groups k
    expand   width of the heads together, in widths d
    head     v; None: 64, or the largest divisor of half their width below
    slots    k, the published N; None: 128, or the width where that is less
    groups   sets of B and C, each shared by h / groups heads; the norm is over a group's heads together
    eps      of that norm
    """

    width: int
    expand: int = 2
    head: int | None = None
    slots: int | None = None
    groups: int = 1
    eps: float = 1e-6

    paper = "Dao & Gu 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.expand > 0, "expand", "a positive number")
        fits = self.v > 0 and self.inner % self.v == 0
        self.check(fits, "head", f"a divisor of the width of all heads, {self.inner}")
        self.check(self.k > 0, "slots", "a positive number, or None")
        self.check(self.groups > 0 and self.h % self.groups == 0, "groups", f"a divisor of the {self.h} heads")

    @property
    def inner(self) -> int:
        """Width of the heads together."""
        return self.expand * self.width

    @property
    def v(self) -> int:
        return divisor(self.inner // 2, 64) if self.head is None else self.head

    @property
    def h(self) -> int:
        return self.inner // self.v

    @property
    def k(self) -> int:
        return min(128, self.width) if self.slots is None else self.slots

    @property
    def mixed(self) -> int:
        """Channels that pass the convolution: v, B and C."""
        return self.inner + 2 * self.groups * self.k

    def params(self):
        d, h, g = self.width, self.h, self.groups
        tap = Uniform(-0.5, 0.5)
        return {
            "into": Spec((d, self.inner + self.mixed + h), ("embed", "state"), FanIn(), ins=("embed",)),
            "conv": Spec((4, self.mixed), (None, "state"), tap),
            "conv_bias": Spec((self.mixed,), ("state",), tap),
            "A_log": Spec((h,), ("heads",), LogOfUniform(1.0, 16.0), keep=True),
            "dt_bias": Spec((h,), ("heads",), StepBias(), keep=True),
            "skip": Spec((h,), ("heads",), Ones, keep=True),
            "norm": Spec((g, self.inner // g), (None, "state"), Ones, keep=True),
            "out": Spec((self.inner, d), ("state", "embed"), FanIn(), ins=("state",)),
        }

    def state(self, batch: int, room: int = 0):
        return {
            "S": leaf(batch, (self.h, self.k, self.v), ("heads", "head", None)),
            "conv": leaf(batch, (3, self.mixed), (None, "state")),
        }

    def project(
        self, params: Params, x: Array, past: Array | None, starts: Array | None
    ) -> tuple[Array, Array, Array, Array, Array, Array]:
        """z (b, t, inner), v (b, t, h, v), B, C (b, t, groups, k), Δ (b, t, h) wide, and the convolution's state."""
        z, u, step = jnp.split(dense(x, params["into"]), [self.inner, self.inner + self.mixed], axis=-1)
        if past is None:
            past = jnp.zeros((x.shape[0], 3, self.mixed), wide(x).dtype)
        u, past = conv(u, params["conv"], past, starts, params["conv_bias"])
        u = jax.nn.silu(u)
        v = u[..., : self.inner].reshape(*x.shape[:2], self.h, self.v)
        pair = u[..., self.inner :].reshape(*x.shape[:2], 2, self.groups, self.k)
        step = jax.nn.softplus(wide(step) + params["dt_bias"].astype(wide(x).dtype)[None, None])
        return z, v, pair[:, :, 0], pair[:, :, 1], step, past

    def remember(
        self, params: Params, x: Array, state: State, starts: Array | None, **given: Any
    ) -> tuple[Array, dict[str, Array]]:
        """o (b, t, h, v), and the memory after the last token.   given: q, k, v, g of `decay`"""
        o, S = decay(**given, state=None if state is None else state["S"], starts=starts)
        return o, {"S": S}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        z, v, B, C, step, past = self.project(params, x, None if state is None else state["conv"], starts)
        rate, skip = (params[n].astype(step.dtype)[None, None] for n in ("A_log", "skip"))
        k, q = (jnp.repeat(a, self.h // self.groups, axis=2) for a in (B, C))
        written, g = step[..., None] * wide(v), -jnp.exp(rate) * step
        o, after = self.remember(params, x, state, starts, q=q, k=k, v=written, g=g)
        o = (o + skip[..., None] * wide(v)).reshape(z.shape) * jax.nn.silu(wide(z))
        o = rms_norm(o.reshape(*x.shape[:2], *params["norm"].shape), params["norm"], self.eps).reshape(z.shape)
        after = after if state is None else {n: a.astype(state[n].dtype) for n, a in after.items()}
        after["conv"] = past
        return spoil(spoiled, dense(o.astype(x.dtype), params["out"])), spoil(spoiled[:, -1], after)
