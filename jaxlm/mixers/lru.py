"""LRU: a linear system with a complex diagonal, the same at every token."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import Normal
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.pairs import diagonal_system, from_pairs
from jaxlm.typing import Array, Params, State, wide


@dataclasses.dataclass(frozen=True)
class LogRate:
    """ν with exp(-exp ν) spread over the ring [low, high] of the complex plane, evenly by area."""

    low: float
    high: float

    def __call__(self, key: Array, spec: Spec) -> Array:
        # 1 - u in place of u in [0, 1): the radius is then above `low`, which may be 0, where ν would be infinite.
        share = 1 - jax.random.uniform(key, spec.shape, jnp.dtype(spec.dtype))
        return jnp.log(-0.5 * jnp.log(share * (self.high**2 - self.low**2) + self.low**2))


@dataclasses.dataclass(frozen=True)
class LogAngle:
    """θ with exp θ spread evenly over (0, most]."""

    most: float

    def __call__(self, key: Array, spec: Spec) -> Array:
        return jnp.log(self.most * (1 - jax.random.uniform(key, spec.shape, jnp.dtype(spec.dtype))))


class LRU(Mixer):
    """Linear Recurrent Unit (Orvieto et al. 2023, 2303.06349, section 3 and eq. 7).

    λ = exp(-e^ν + i e^θ)       h_t = λ h_{t-1} + γ B x_t,  γ = sqrt(1 - |λ|^2)       y_t = Re(C h_t) + D x_t

    x, y            (b, t, d)
    state   h       (b, 2, n)       real and imaginary part
    hidden  n; None: the width
    low, high       radii of the ring on which λ starts, evenly by area
    angle           largest phase of λ at the start, radians
    B, C and D start normal, of variance 1 / d, 1 / n and 1 (real and imaginary part of B together; of C each).
    γ stays tied to λ, so that a white input always keeps a state of its own variance; the authors learn it apart.
    The nonlinearity of the paper's layer is the Block's MLP.
    """

    width: int
    hidden: int | None = None
    low: float = 0.9
    high: float = 0.999
    angle: float = math.pi / 10

    paper = "Orvieto et al. 2023"

    def __post_init__(self):
        self.check(self.hidden is None or self.hidden > 0, "hidden", "a positive number, or None")
        self.check(0 < self.high < 1, "high", "a radius between 0 and 1")
        self.check(0 <= self.low < self.high, "low", f"a radius from 0 to below high = {self.high}")
        self.check(0 < self.angle <= 2 * math.pi, "angle", "radians in (0, 2 pi]")

    @property
    def channels(self) -> int:
        return self.width if self.hidden is None else self.hidden

    def params(self):
        d, n = self.width, self.channels
        return {
            "nu": Spec((n,), ("state",), LogRate(self.low, self.high), keep=True),
            "theta": Spec((n,), ("state",), LogAngle(self.angle), keep=True),
            "B": Spec((d, 2, n), ("embed", None, "state"), Normal(1 / math.sqrt(2 * d)), ins=("embed",)),
            "C": Spec((2, n, d), (None, "state", "embed"), Normal(1 / math.sqrt(n)), ins=("state",)),
            "D": Spec((d,), ("embed",), Normal(1.0), keep=True),
        }

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (2, self.channels), (None, "state"))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        rate, angle = jnp.exp(wide(params["nu"])), jnp.exp(wide(params["theta"]))
        radius, gamma = jnp.exp(-rate), jnp.sqrt(-jnp.expm1(-2 * rate))
        a = jax.lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))
        u = from_pairs(gamma[None, None, None] * wide(dense(x, params["B"])))
        y, h = diagonal_system(a, u, params["C"], state["h"], starts, x.dtype)
        y = y + params["D"].astype(x.dtype)[None, None] * x
        return spoil(spoiled, y), spoil(spoiled[:, -1], {"h": h})
