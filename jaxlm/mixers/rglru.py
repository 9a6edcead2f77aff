"""The recurrent block of Griffin: a gated diagonal recurrence behind a short convolution."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Normal, Zeros
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.layers.heads import divisor
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.conv import conv
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.recurrence import recurrence
from jaxlm.typing import Array, Params, State, wide

SHARPNESS = 8.0  # c of the paper: how far the gate r may bend the decay
STEEPEST = 1000.0  # bound on the derivative of the square root in the backward


@dataclasses.dataclass(frozen=True)
class Ring:
    """Λ with exp(-softplus Λ) spread over the ring [low, high] of the complex plane, evenly by area."""

    low: float = 0.9
    high: float = 0.999

    def __call__(self, key: Array, spec: Spec) -> Array:
        square = jax.random.uniform(key, spec.shape, jnp.dtype(spec.dtype), self.low**2, self.high**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(square)))


@jax.custom_jvp
def bounded_sqrt(x: Array) -> Array:
    """sqrt(x) for x >= 0, its derivative cut at STEEPEST: finite at 0, where a = 1."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return bounded_sqrt(x), dx * 0.5 * jax.lax.rsqrt(jnp.maximum(x, 0.25 / STEEPEST**2))


class RGLRU(Mixer):
    """Recurrent block with the Real-Gated Linear Recurrent Unit (De et al. 2024, section 2.4, eqs. 1-4).

    u = conv(x W_x)                             depthwise, causal, without activation
    r, i = σ(W u + b)                           block-diagonal W: a block per head
    log a_n = -8 r_n softplus(Λ)
    h_n = a_n h_{n-1} + sqrt(1 - a_n^2) i_n u_n         at the first token of a document h_n = i_n u_n
    y = (GELU(x W_y) h) W_out

    input, output   (b, t, d)
    state   h       (b, n)              n = hidden, by default the width
            conv    (b, window - 1, n)  the last inputs of the convolution
            seen    (b) bool            has the document begun? its first token has no past to make room for
    heads   blocks of the gates; None: blocks of 256 channels, but two at least
    window  taps of the convolution
    Λ starts with exp(-softplus Λ) on the ring from 0.9 to 0.999. Other weights: as the authors' release.
    """

    width: int
    hidden: int | None = None
    heads: int | None = None
    window: int = 4

    paper = "De et al. 2024"

    def __post_init__(self):
        self.check(self.window > 0, "window", "a positive number of taps")
        self.check(self.heads is None or self.heads > 0, "heads", "a positive number, or None")
        self.check(self.channels % self.parts == 0, "heads", f"a divisor of the {self.channels} channels")

    @property
    def channels(self) -> int:
        return self.width if self.hidden is None else self.hidden

    @property
    def parts(self) -> int:
        """Number of blocks of the gates."""
        return divisor(self.channels, max(2, self.channels // 256)) if self.heads is None else self.heads

    def params(self):
        d, n, h = self.width, self.channels, self.parts
        into = Spec((d, n), ("embed", "state"), FanIn(), ins=("embed",))
        return {
            "input": into,
            "gelu": into,
            "conv": Spec((self.window, n), (None, "state"), Normal(0.1 / math.sqrt(self.window))),
            "conv_bias": Spec((n,), ("state",), Zeros),
            "gates": Spec((h, n // h, 2, n // h), ("heads", "head", None, None), FanIn(), ins=("head",)),
            "gates_bias": Spec((h, 2, n // h), ("heads", None, None), Zeros, keep=True),
            "decay": Spec((n,), ("state",), Ring(), keep=True),
            "out": Spec((n, d), ("state", "embed"), FanIn(), ins=("state",)),
        }

    def state(self, batch: int, room: int = 0):
        n = self.channels
        return {
            "h": leaf(batch, (n,), ("state",)),
            "conv": leaf(batch, (self.window - 1, n), (None, "state")),
            "seen": leaf(batch, (), (), "bool"),
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        begin = jnp.arange(x.shape[1])[None] == 0
        first = begin & ~state["seen"][:, None]
        first = first if starts is None else first | starts
        u, tail = conv(dense(x, params["input"]), params["conv"], state["conv"], starts, params["conv_bias"])
        r, i = self.gate(params, u)
        log_a = -SHARPNESS * r * jax.nn.softplus(wide(params["decay"]))[None, None]
        # At a first token nothing decays, so nothing makes room: the input enters whole.
        room = jnp.where(first[..., None], jnp.ones_like(log_a), bounded_sqrt(-jnp.expm1(2 * log_a)))
        h, last = recurrence(jnp.exp(log_a), room * i * wide(u), state["h"], first)
        y = dense(ACTIVATIONS["gelu"](dense(x, params["gelu"])) * h.astype(x.dtype), params["out"])
        state = {"h": last, "conv": tail, "seen": jnp.ones_like(state["seen"])}
        return spoil(spoiled, y), spoil(spoiled[:, -1], state)

    def gate(self, params: Params, u: Array) -> tuple[Array, Array]:
        """The gates r and i of each channel.   u (b, t, n) -> two of (b, t, n), wide"""
        heads = u.reshape(*u.shape[:2], self.parts, -1)
        pre = wide(jnp.einsum("bthk,hkgn->bthgn", heads, params["gates"].astype(u.dtype)))
        gates = jax.nn.sigmoid(pre + wide(params["gates_bias"])[None, None])
        return gates[:, :, :, 0].reshape(u.shape), gates[:, :, :, 1].reshape(u.shape)
