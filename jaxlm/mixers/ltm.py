"""Long Term Memory network: a cell that is never told to forget, held in bounds by a sigmoid."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import Constant, Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State


@dataclasses.dataclass(frozen=True)
class ScaledIdentity:
    """scale times the identity matrix."""

    scale: float = 1.0

    def __call__(self, key: Array, spec: Spec) -> Array:
        return self.scale * jnp.eye(*spec.shape, dtype=spec.dtype)


class LTM(Mixer):
    """Long Term Memory network (Nugaliyadde et al. 2019, 1904.08936; 2023, 2305.11462).

    L1, L2, L3 = σ(W_k (h_{n-1} + u_n) + b_k)
    C'_n = L1 L2 + C_{n-1}
    C_n = σ(W_4 C'_n + b_4)                     in (0, 1), whatever comes in
    h_n = C_n L3

    input, output   u, h     (b, t, d)
    state           h, C     (b, d)
    The gate axis (3) of W_1 to W_3 is ordered as they are. They and their biases start at U(-1/sqrt d, 1/sqrt d).
    C is contracted by |W_4| / 4 a token or more, as the slope of σ is at most 1/4: with small weights nothing would be
    remembered for ten tokens. So W_4 starts at 4 I and b_4 at -3, where C = 1/2 rests at L1 = L2 = 1/2 with slope 1.
    """

    width: int

    paper = "Nugaliyadde et al. 2019"

    def params(self):
        m, init = self.width, Uniform(-1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        return {
            "gates": Spec((m, 3, m), ("head", None, "state"), init, ins=("head",)),
            "gates_bias": Spec((3, m), (None, "state"), init, keep=True),
            "memory": Spec((m, m), ("head", "state"), ScaledIdentity(4.0), ins=("head",)),
            "memory_bias": Spec((m,), ("state",), Constant(-3.0), keep=True),
        }

    def state(self, batch: int, room: int = 0):
        one = leaf(batch, (self.width,), ("state",))
        return {"h": one, "C": one}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        gates, memory = params["gates"], params["memory"][:, None]
        maps = {
            "gates": Affine(gates, params["gates_bias"], gates),  # W (h + u): one matrix for both
            "memory": Affine(jnp.zeros_like(memory), params["memory_bias"][None], memory),
        }
        ys, state = cell(advance, maps, x, state, starts, fresh)
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)


def advance(s: State, mix: Mix) -> tuple[Array, State]:
    """One step."""
    one, two, three = (jax.nn.sigmoid(a) for a in mix("gates", s["h"]))
    (a,) = mix("memory", one * two + s["C"])
    c = jax.nn.sigmoid(a)
    h = c * three
    return h, {"h": h, "C": c}
