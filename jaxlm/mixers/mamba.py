"""Mamba: a diagonal system per channel whose step, input and output maps are chosen by the token (S6)."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Ones, StepBias, Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.conv import conv
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.typing import Array, Params, State, wide


@dataclasses.dataclass(frozen=True)
class LogCount:
    """log 1, log 2, ..., log n along the last axis: the poles of S4D-Real (Gu et al. 2022)."""

    def __call__(self, key: Array, spec: Spec) -> Array:
        return jnp.broadcast_to(jnp.log(jnp.arange(1, spec.shape[-1] + 1, dtype=jnp.dtype(spec.dtype))), spec.shape)


class Mamba(Mixer):
    """Selective state space model, S6, in its gated block (Gu & Dao 2023, 2312.00752, sections 3.2-3.4).

    u, z = x W_in;  u <- SiLU(conv(u))          δ, B, C = u W_x         Δ = softplus(δ W_Δ + b)
    h_t = exp(Δ_t A) h_{t-1} + Δ_t u_t B_t      y_t = h_t C_t + D u_t   A = -exp(A_log)
    out = (y SiLU(z)) W_out

    x, out          (b, t, d)
    state   h       (b, m, n)           m = expand * d channels, n = slots
            conv    (b, window - 1, m)  the last inputs of the convolution
    slots     n, the size of each channel's state
    expand    m / d
    window    taps of the convolution
    rank      of the map to Δ; None: d / 16, rounded up
    negative  True: the transition is 2 exp(Δ A) - 1, in (-1, 1), so that a state can change its sign at every token
              (Grazzi et al. 2024, 2411.12537)
    The recurrence runs token after token and keeps one state per 32 for the backward, never (t, m, n).
    """

    width: int
    slots: int = 16
    expand: int = 2
    window: int = 4
    rank: int | None = None
    negative: bool = False

    paper = "Gu & Dao 2023"

    def __post_init__(self):
        for field in ("slots", "expand", "window"):
            self.check(getattr(self, field) > 0, field, "a positive number")
        self.check(self.rank is None or self.rank > 0, "rank", "a positive number, or None")

    @property
    def channels(self) -> int:
        return self.expand * self.width

    @property
    def r(self) -> int:
        return -(-self.width // 16) if self.rank is None else self.rank

    def params(self):
        d, m, n, r = self.width, self.channels, self.slots, self.r
        taps = Uniform(-(self.window**-0.5), self.window**-0.5)
        return {
            "input": Spec((d, 2, m), ("embed", None, "state"), FanIn(), ins=("embed",)),
            "conv": Spec((self.window, m), (None, "state"), taps),
            "conv_bias": Spec((m,), ("state",), taps),
            "select": Spec((m, r + 2 * n), ("state", None), FanIn(), ins=("state",)),
            "dt": Spec((r, m), ("head", "state"), Uniform(-(r**-0.5), r**-0.5), ins=("head",)),
            "dt_bias": Spec((m,), ("state",), StepBias(), keep=True),
            "A_log": Spec((m, n), ("state", "slots"), LogCount(), keep=True),
            "skip": Spec((m,), ("state",), Ones, keep=True),
            "out": Spec((m, d), ("state", "embed"), FanIn(), ins=("state",)),
        }

    def state(self, batch: int, room: int = 0):
        return {
            "h": leaf(batch, (self.channels, self.slots), ("state", "slots")),
            "conv": leaf(batch, (self.window - 1, self.channels), (None, "state")),
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        u, z = jnp.moveaxis(dense(x, params["input"]), 2, 0)
        u, tail = conv(u, params["conv"], state["conv"], starts, params["conv_bias"])
        u = jax.nn.silu(u)
        low, b, c = jnp.split(dense(u, params["select"]), [self.r, self.r + self.slots], axis=-1)
        dt = jax.nn.softplus(wide(dense(low, params["dt"])) + wide(params["dt_bias"])[None, None])
        xs = {"dt": dt, "u": dt * wide(u), "b": wide(b), "c": wide(c)}
        y, h = scan(self.select(-jnp.exp(wide(params["A_log"]))), xs, state["h"], starts)
        y = (y + wide(params["skip"])[None, None] * wide(u)).astype(x.dtype) * jax.nn.silu(z)
        return spoil(spoiled, dense(y, params["out"])), spoil(spoiled[:, -1], {"h": h, "conv": tail})

    def select(self, rates: Array):
        """One token of the recurrence.   rates A (m, n)"""

        def step(x: dict[str, Array], h: Array) -> tuple[Array, Array]:
            a = jnp.exp(x["dt"][:, :, None] * rates[None])
            h = (2 * a - 1 if self.negative else a) * h + x["u"][:, :, None] * x["b"][:, None]
            return jnp.sum(h * x["c"][:, None], axis=-1), h

        return step
