"""Gated Recurrent Unit: one gate to reset what is read, one to say how much is replaced."""

import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.typing import Array, Params, State, wide


class GRU(Mixer):
    """Gated Recurrent Unit (Cho et al. 2014, eqs. 5-8).

    r = σ(W_r u_n + U_r h_{n-1} + b_r)      ζ = σ(W_z u_n + U_z h_{n-1} + b_z)
    reset_after False, the paper's form, the gate ζ writes (as in Chung et al. 2014):
        c = tanh(W u_n + U (r h_{n-1}) + b)             h_n = (1 - ζ) h_{n-1} + ζ c
    reset_after True, the form of cuDNN, the gate ζ keeps; one product with h a step:
        c = tanh(W u_n + b + r (U h_{n-1} + b'))        h_n = ζ h_{n-1} + (1 - ζ) c

    input    u        (b, t, i)      i = inputs, by default the width
    output   h        (b, t, d)
    state    h        (b, d)
    The gate axis (3) of all weights is ordered r, ζ, c. Weights and biases start at U(-1/sqrt d, 1/sqrt d).
    """

    width: int
    inputs: int | None = None
    reset_after: bool = False

    paper = "Cho et al. 2014"

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    def params(self):
        m, init = self.width, Uniform(-1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        p = {
            "input": Spec((self.reads, 3, m), ("embed", None, "state"), init, ins=("embed",)),
            "hidden": Spec((m, 3, m), ("head", None, "state"), init, ins=("head",)),
            "bias": Spec((3, m), (None, "state"), init, keep=True),
        }
        if self.reset_after:
            p["hidden_bias"] = Spec((m,), ("state",), init, keep=True)
        return p

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (self.width,), ("state",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        if self.reset_after:
            drive = wide(dense(x, params["input"])) + wide(params["bias"])[None, None]
            ys, state = scan(self.cudnn(params, x.dtype), drive, state, starts, fresh)
        else:
            given, bias, hidden = params["input"], params["bias"], params["hidden"]
            maps = {
                "gates": Affine(given[:, :2], bias[:2], hidden[:, :2]),
                "inner": Affine(given[:, 2:], bias[2:], hidden[:, 2:]),
            }
            ys, state = cell(cho, maps, x, state, starts, fresh)
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)

    def cudnn(self, params: Params, dtype):
        """The step that resets what U gives."""
        hidden, inner = params["hidden"], wide(params["hidden_bias"])[None]

        def step(u: Array, s: State) -> tuple[Array, State]:
            h = s["h"]
            p = wide(dense(h.astype(dtype), hidden))
            g = jax.nn.sigmoid(u[:, :2] + p[:, :2])
            c = jnp.tanh(u[:, 2] + g[:, 0] * (p[:, 2] + inner))
            h = g[:, 1] * h + (1 - g[:, 1]) * c
            return h, {"h": h}

        return step


def cho(s: State, mix: Mix) -> tuple[Array, State]:
    """The step that resets what U reads."""
    h = s["h"]
    r, write = (jax.nn.sigmoid(a) for a in mix("gates", h))
    (c,) = mix("inner", r * h)
    h = (1 - write) * h + write * jnp.tanh(c)
    return h, {"h": h}
