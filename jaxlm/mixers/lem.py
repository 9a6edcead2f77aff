"""Long Expressive Memory: two gated states on two learned time scales."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlm.initializers import Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State


class LEM(Mixer):
    """Long Expressive Memory (Rusch et al. 2022, eq. 3).

    Δ̄_n = Δt σ(W_2 y_{n-1} + V_2 u_n + b_2)           Δ_n = Δt σ(W_1 y_{n-1} + V_1 u_n + b_1)
    z_n = (1 - Δ_n) z_{n-1} + Δ_n tanh(W_z y_{n-1} + V_z u_n + b_z)
    y_n = (1 - Δ̄_n) y_{n-1} + Δ̄_n tanh(W_y z_n + V_y u_n + b_y)          y reads the NEW z

    input    u        (b, t, i)      i = inputs, by default the width
    output   y        (b, t, d)
    state    y, z     (b, d)
    dt       Δt in (0, 1], not trained
    The gate axis (4) of the input map is ordered Δ̄, Δ, drive of y, drive of z; of the hidden map (3) Δ̄, Δ, drive of z.
    """

    width: int
    inputs: int | None = None
    dt: float = 1.0

    paper = "Rusch et al. 2022"

    def __post_init__(self):
        self.check(0 < self.dt <= 1, "dt", "a time step in (0, 1]")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    def params(self):
        m, init = self.width, Uniform(-1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        return {
            "input": Spec((self.reads, 4, m), ("embed", None, "state"), init, ins=("embed",)),
            "hidden": Spec((m, 3, m), ("head", None, "state"), init, ins=("head",)),
            "memory": Spec((m, m), ("head", "state"), init, ins=("head",)),
            "bias": Spec((4, m), (None, "state"), init, keep=True),
        }

    def state(self, batch: int, room: int = 0):
        one = leaf(batch, (self.width,), ("state",))
        return {"y": one, "z": one}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        given, bias = params["input"], params["bias"]
        maps = {
            "old": Affine(without(given, 2, axis=1), without(bias, 2, axis=0), params["hidden"]),
            "new": Affine(given[:, 2:3], bias[2:3], params["memory"][:, None]),
        }
        ys, state = cell(self.advance, maps, x, state, starts, fresh)
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)

    def advance(self, s: State, mix: Mix) -> tuple[Array, State]:
        """One step: `mix` gives the pre-activations that read the old y and the new z."""
        y, z = s["y"], s["z"]
        slow, fast, drive = mix("old", y)
        slow, fast = self.dt * jax.nn.sigmoid(slow), self.dt * jax.nn.sigmoid(fast)
        z = (1 - fast) * z + fast * jnp.tanh(drive)
        (drive,) = mix("new", z)
        y = (1 - slow) * y + slow * jnp.tanh(drive)
        return y, {"y": y, "z": z}


def from_code(weights: Mapping[str, Array]) -> Params:
    """Weights of the paper's form from those of the authors' code, whose three maps have a bias each.

    inp2hid.weight, .bias          (4m, d), (4m)      the gates in the order Δ̄, Δ, drive of y, drive of z
    hid2hid.weight, .bias          (3m, m), (3m)      Δ̄, Δ, drive of z
    transform_z.weight, .bias      (m, m), (m)        what y adds to its drive
    Equal outputs: biases that only meet in a sum are added.
    """
    m = weights["transform_z.weight"].shape[0]
    of_input, of_hidden = weights["inp2hid.bias"].reshape(4, m), weights["hid2hid.bias"].reshape(3, m)
    others = jnp.stack([of_hidden[0], of_hidden[1], weights["transform_z.bias"], of_hidden[2]])
    return {
        "input": weights["inp2hid.weight"].T.reshape(-1, 4, m),
        "hidden": weights["hid2hid.weight"].T.reshape(m, 3, m),
        "memory": weights["transform_z.weight"].T,
        "bias": of_input + others,
    }


def without(a: Array, i: int, axis: int) -> Array:
    """a without its slice i along an axis."""
    before, after = jax.lax.slice_in_dim(a, 0, i, axis=axis), jax.lax.slice_in_dim(a, i + 1, None, axis=axis)
    return jnp.concatenate([before, after], axis=axis)
