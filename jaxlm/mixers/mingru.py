"""minGRU: a GRU whose gate does not read the past, so that its state is a running average."""

import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.recurrence import recurrence
from jaxlm.typing import Array, Params, State, wide


def above_zero(x: Array) -> Array:
    """g(x) = x + 1/2 for x >= 0, else σ(x): continuous, rising, positive (Feng et al. 2024, appendix B.2)."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


class Averager(Mixer):
    """What minGRU and minLSTM share: h_t = keep_t h_{t-1} + write_t c_t, keep_t + write_t = 1, c_t a map of x_t.

    A cell gives as many maps of x as it has gates (`gates`), and `weigh` makes (keep, write) of them.
    """

    width: int
    inputs: int | None = None
    hidden: int | None = None
    positive: bool = False

    gates = 0

    def __post_init__(self):
        for field in ("inputs", "hidden"):
            self.check(getattr(self, field) is None or getattr(self, field) > 0, field, "a positive number, or None")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    @property
    def channels(self) -> int:
        return self.width if self.hidden is None else self.hidden

    def params(self):
        d, g, n = self.reads, self.gates + 1, self.channels
        init = Uniform(-1 / math.sqrt(d), 1 / math.sqrt(d))
        p = {
            "input": Spec((d, g, n), ("embed", None, "state"), init, ins=("embed",)),
            "bias": Spec((g, n), (None, "state"), init, keep=True),
        }
        if self.hidden is not None:
            p["out"] = Spec((n, self.width), ("state", "embed"), FanIn(), ins=("state",))
        return p

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (self.channels,), ("state",))}

    def weigh(self, *gates: Array) -> tuple[Array, Array]:
        """(keep, write) of the gates' pre-activations, all (b, t, n)."""
        raise NotImplementedError(f"{type(self).__name__}: weigh")

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        *gates, new = jnp.moveaxis(wide(dense(x, params["input"])) + wide(params["bias"])[None, None], 2, 0)
        keep, write = self.weigh(*gates)
        h, last = recurrence(keep, write * (above_zero(new) if self.positive else new), state["h"], starts)
        y = h.astype(x.dtype)
        y = y if self.hidden is None else dense(y, params["out"])
        return spoil(spoiled, y), spoil(spoiled[:, -1], {"h": last})


class MinGRU(Averager):
    """Minimal GRU (Feng et al. 2024, 2410.01201, section 3.1).

    z_t = σ(W_z x_t + b_z)      c_t = W_h x_t + b_h      h_t = (1 - z_t) h_{t-1} + z_t c_t

    input    x        (b, t, i)      i = inputs, by default the width
    output   y        (b, t, d)      h W_o, or h itself without `hidden`
    state    h        (b, n)         n = hidden, by default the width
    positive True: g(c_t) for c_t, g(c) = c + 1/2 for c >= 0, else σ(c): the paper's form for log space (appendix B)
    The gate axis (2) of the maps is ordered z, c. Weights and biases start at U(-1/sqrt i, 1/sqrt i).
    The recurrence runs outside log space, where its weights sum to 1: a state of any sign can be resumed.
    """

    paper = "Feng et al. 2024"
    gates = 1

    def weigh(self, *gates: Array) -> tuple[Array, Array]:
        (z,) = gates
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z)
