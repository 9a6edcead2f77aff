"""The simple recurrent network: the state is one nonlinear map of the input and of itself."""

import math

from jaxlm.initializers import Uniform
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State


class RNN(Mixer):
    """Simple recurrent network (Elman 1990).

    h_n = f(V u_n + W h_{n-1} + b)

    input       u     (b, t, i)      i = inputs, by default the width
    output      h     (b, t, d)
    state       h     (b, d)
    activation  f: 'tanh', 'sigmoid' or 'relu'
    Weights and biases start at U(-1/sqrt d, 1/sqrt d).
    """

    width: int
    inputs: int | None = None
    activation: str = "tanh"

    paper = "Elman 1990"

    def __post_init__(self):
        self.check(self.activation in ("tanh", "sigmoid", "relu"), "activation", "'tanh', 'sigmoid' or 'relu'")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    def params(self):
        m, init = self.width, Uniform(-1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        return {
            "input": Spec((self.reads, m), ("embed", "state"), init, ins=("embed",)),
            "hidden": Spec((m, m), ("head", "state"), init, ins=("head",)),
            "bias": Spec((m,), ("state",), init, keep=True),
        }

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (self.width,), ("state",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        maps = {"all": Affine(params["input"][:, None], params["bias"][None], params["hidden"][:, None])}
        ys, state = cell(self.advance, maps, x, state, starts, fresh)
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)

    def advance(self, s: State, mix: Mix) -> tuple[Array, State]:
        """One step."""
        (a,) = mix("all", s["h"])
        h = ACTIVATIONS[self.activation](a)
        return h, {"h": h}
