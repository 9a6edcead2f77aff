"""Long Short-Term Memory: a cell that keeps its content unless its gates say otherwise."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State


@dataclasses.dataclass(frozen=True)
class GateBias:
    """Biases of the four gates, U(-bound, bound), those of the forget gate about `forget`."""

    bound: float
    forget: float

    def __call__(self, key: Array, spec: Spec) -> Array:
        gate = jnp.arange(spec.shape[0])[:, None] == 1
        return Uniform(-self.bound, self.bound)(key, spec) + jnp.where(gate, self.forget, 0.0).astype(spec.dtype)


class LSTM(Mixer):
    """Long Short-Term Memory (Hochreiter & Schmidhuber 1997) with forget gates (Gers et al. 2000).

    No peepholes: those are in `OdysseyLSTM`.

    i, f, o = σ(W u_n + R h_{n-1} + b)   z = tanh(W_z u_n + R_z h_{n-1} + b_z)      each gate its own W, R, b
    c_n = f c_{n-1} + i z
    h_n = o tanh(c_n);  with `cells` a recurrent projection h_n = P (o tanh(c_n)) (Sak et al. 2014, section 2)

    input        u        (b, t, i)           i = inputs, by default the width
    output       h        (b, t, d)
    state        h, c     (b, d), (b, n)      n = cells; None: as many as the width, and no projection
    forget_bias  initial bias of f; 1 keeps the cell at the start of training (Jozefowicz et al. 2015)
    The gate axis (4) of all weights is ordered i, f, z, o. All start at U(-1/sqrt n, 1/sqrt n).
    """

    width: int
    inputs: int | None = None
    forget_bias: float = 1.0
    cells: int | None = None

    paper = "Hochreiter & Schmidhuber 1997; Gers et al. 2000"

    def __post_init__(self):
        self.check(self.cells is None or self.cells > 0, "cells", "a positive number or None")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    def params(self):
        n = self.width if self.cells is None else self.cells
        bound = 1 / math.sqrt(n)
        init = Uniform(-bound, bound)
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        p = {
            "input": Spec((self.reads, 4, n), ("embed", None, "state"), init, ins=("embed",)),
            "hidden": Spec((self.width, 4, n), ("head", None, "state"), init, ins=("head",)),
            "bias": Spec((4, n), (None, "state"), GateBias(bound, self.forget_bias), keep=True),
        }
        if self.cells is not None:
            p["projection"] = Spec((n, self.width), ("head", "state"), init, ins=("head",))
        return p

    def state(self, batch: int, room: int = 0):
        cells = self.width if self.cells is None else self.cells
        return {"h": leaf(batch, (self.width,), ("state",)), "c": leaf(batch, (cells,), ("state",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        maps = {"gates": Affine(params["input"], params["bias"], params["hidden"])}
        if self.cells is not None:
            maps["projection"] = Affine(None, None, params["projection"][:, None])
        ys, state = cell(advance if self.cells is None else projected, maps, x, state, starts, fresh)
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)


def advance(s: State, mix: Mix) -> tuple[Array, State]:
    """One step."""
    i, f, z, o = mix("gates", s["h"])
    c = jax.nn.sigmoid(f) * s["c"] + jax.nn.sigmoid(i) * jnp.tanh(z)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, {"h": h, "c": c}


def projected(s: State, mix: Mix) -> tuple[Array, State]:
    """One step that hands on less than its cells hold."""
    m, s = advance(s, mix)
    (h,) = mix("projection", m)
    return h, s | {"h": h}
