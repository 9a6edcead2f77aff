"""S5: one linear system of all channels with a complex diagonal, made discrete from continuous time."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.initializers import FanIn, Normal, Uniform
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.pairs import diagonal_system, from_pairs
from jaxlm.typing import Array, Params, State, wide

SLOWEST = -1e-4  # bound on Re Λ: a pole that drifts to the right of it would make the state grow


@dataclasses.dataclass(frozen=True)
class Legs:
    """Λ as pairs (2, n): the eigenvalues above the real axis of the normal part of HiPPO-LegS of size 2 n.

    The normal part is -1/2 on the diagonal and sqrt((2 i + 1)(2 j + 1)) / 2 beside it, negative below and positive
    above: half the identity and a skew matrix, so that every real part is -1/2.
    """

    def __call__(self, key: Array, spec: Spec) -> Array:
        n = spec.shape[-1]
        order = np.arange(2 * n)
        root = np.sqrt(2 * order + 1)
        skew = np.outer(root, root) / 2 * np.sign(order[None] - order[:, None])
        above = np.linalg.eigvalsh(-1j * skew)[n:]  # ascending, and symmetric about 0
        return jnp.asarray(np.stack([np.full(n, -0.5), above]), spec.dtype)


class S5(Mixer):
    """Simplified state space layer (Smith et al. 2023, 2208.04933, sections 3 and 4).

    h' = Λ h + B x  made discrete with a step Δ for each state:
    zoh         a = exp(Λ Δ)                        b = (a - 1) / Λ
    bilinear    a = (1 + Λ Δ / 2) / (1 - Λ Δ / 2)   b = Δ / (1 - Λ Δ / 2)
    h_t = a h_{t-1} + b B x_t       y_t = 2 Re(C h_t) + D x_t
    gated True: y <- GELU(y), and the output is y σ(y W); False: y itself

    x, output       (b, t, d)
    state   h       (b, 2, n)       real and imaginary part; of each conjugate pair one, n = hidden / 2
    hidden  size of the real system, even; None: the width, rounded up to an even number
    shortest, longest   bounds between which Δ starts, log-uniform
    Λ starts as the normal part of HiPPO-LegS, V Λ V*. V is unitary, so V* B of a Gaussian B is again Gaussian, with
    independent real and imaginary parts: B of variance 1 / d in all, C of 1 / hidden in each part, D of 1.
    """

    width: int
    hidden: int | None = None
    discretization: str = "zoh"
    gated: bool = True
    shortest: float = 1e-3
    longest: float = 1e-1

    paper = "Smith et al. 2023"

    def __post_init__(self):
        even = self.hidden is None or (self.hidden > 0 and self.hidden % 2 == 0)
        self.check(even, "hidden", "a positive even number, or None")
        self.check(self.discretization in ("zoh", "bilinear"), "discretization", "zoh or bilinear")
        self.check(self.shortest > 0, "shortest", "a positive step")
        self.check(self.longest > self.shortest, "longest", f"a step above shortest = {self.shortest}")

    @property
    def n(self) -> int:
        return -(-self.width // 2) if self.hidden is None else self.hidden // 2

    def params(self):
        d, n = self.width, self.n
        weights = {
            "Lambda": Spec((2, n), (None, "state"), Legs(), keep=True),
            "log_step": Spec((n,), ("state",), Uniform(math.log(self.shortest), math.log(self.longest)), keep=True),
            "B": Spec((d, 2, n), ("embed", None, "state"), Normal(1 / math.sqrt(2 * d)), ins=("embed",)),
            "C": Spec((2, n, d), (None, "state", "embed"), Normal(1 / math.sqrt(2 * n)), ins=("state",)),
            "D": Spec((d,), ("embed",), Normal(1.0), keep=True),
        }
        gate = Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",))
        return weights | ({"gate": gate} if self.gated else {})

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (2, self.n), (None, "state"))}

    def discrete(self, params: Params) -> tuple[Array, Array]:
        """(a, b) of h_t = a h_{t-1} + b B x_t.   two complex (n)"""
        (re, im), step = wide(params["Lambda"]), jnp.exp(wide(params["log_step"]))
        re = jnp.minimum(re, SLOWEST)
        pole = jax.lax.complex(re, im)
        if self.discretization == "bilinear":
            half = pole * (step / 2).astype(pole.dtype)
            return (1 + half) / (1 - half), step.astype(pole.dtype) / (1 - half)
        re, im = re * step, im * step
        # exp(Λ Δ) - 1 without the cancellation of a small Λ Δ, of which half the digits would be lost.
        gain = jax.lax.complex(jnp.expm1(re) * jnp.cos(im) - 2 * jnp.sin(im / 2) ** 2, jnp.exp(re) * jnp.sin(im))
        return gain + 1, gain / pole

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        a, b = self.discrete(params)
        u = b[None, None] * from_pairs(dense(x, params["B"]))
        y, h = diagonal_system(a, u, params["C"], state["h"], starts, x.dtype)
        y = 2 * y + params["D"].astype(x.dtype)[None, None] * x
        if self.gated:
            y = ACTIVATIONS["gelu"](y)
            y = y * jax.nn.sigmoid(dense(y, params["gate"]))
        return spoil(spoiled, y), spoil(spoiled[:, -1], {"h": h})
