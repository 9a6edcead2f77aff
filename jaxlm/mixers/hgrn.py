"""HGRN: a gated elementwise recurrence that may rotate, with a floor of the forget gate that rises with depth."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Zeros
from jaxlm.layers.norm import LayerNorm, RMSNorm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.mixers.hgrn2 import bounded_forget, floors
from jaxlm.module import Spec
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.pairs import from_pairs, to_pairs
from jaxlm.ops.recurrence import recurrence
from jaxlm.typing import Array, Params, State, wide


@dataclasses.dataclass(frozen=True)
class Frequencies:
    """base^(-2 j / n) for j = 0..n-1: angles from 1 down to base^-2, all but the slowest as in rotary embeddings."""

    base: float = 10000.0

    def __call__(self, key: Array, spec: Spec) -> Array:
        n = spec.shape[-1]
        return jnp.broadcast_to(self.base ** (-2 / n * jnp.arange(n, dtype=jnp.dtype(spec.dtype))), spec.shape)


class HGRN(Mixer):
    """Hierarchically gated recurrent network (Qin et al. 2023, 2311.04823, section 3).

    f_t = γ + (1 - γ) σ(x_t W_f)
    phase True, the paper's:    h_t = f_t e^{iθ} h_{t-1} + (1 - f_t) (SiLU(x_t W_1) + i SiLU(x_t W_2))
                                y_t = W_O (LayerNorm([Re h_t, Im h_t]) SiLU(x_t W_g))
    phase False, the real one:  h_t = f_t h_{t-1} + (1 - f_t) SiLU(x_t W_i)
                                y_t = W_O (RMSNorm(h_t) SiLU(x_t W_g))

    x, y     (b, t, d)
    state    h (b, p, d)             p = 2: real and imaginary part; 1 without a phase
    θ is a weight, the same for all tokens; it starts at 10000^(-2j/d).
    γ comes from all layers of a stack (`tie`: the leaf `floor`): 0 in the first layer, rising with depth. By itself a
    mixer is a first layer, and its weight `bound` is not read.
    """

    width: int
    phase: bool = True

    paper = "Qin et al. 2023"

    @property
    def parts(self) -> int:
        """Real numbers a channel."""
        return 2 if self.phase else 1

    @property
    def normalise(self) -> LayerNorm | RMSNorm:
        return LayerNorm(2 * self.width) if self.phase else RMSNorm(self.width)

    def params(self):
        d, p = self.width, self.parts
        into = Spec((d, p, d), ("embed", None, "state"), FanIn(), ins=("embed",))
        weights = {
            "input": into,
            "gate": into,
            "forget": Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",)),
            "bound": Spec((d,), ("state",), Zeros, keep=True),
            "norm": self.normalise.params(),
            "out": Spec((p, d, d), (None, "state", "embed"), FanIn(1 / p), ins=("state",)),
        }
        return weights | ({"theta": Spec((d,), ("state",), Frequencies(), keep=True)} if self.phase else {})

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (self.parts, self.width), (None, "state"))}

    def tie(self, params: Params) -> Params:
        return {**params, "floor": floors(params["bound"])}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, _ = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        log_f, enters = bounded_forget(wide(dense(x, params["forget"])), params.get("floor"))
        new = enters[:, :, None] * wide(jax.nn.silu(dense(x, params["input"])))
        f = jnp.exp(log_f)
        if self.phase:
            theta = params["theta"].astype(f.dtype)[None, None]
            a = jax.lax.complex(f * jnp.cos(theta), f * jnp.sin(theta))
            h, last = recurrence(a, from_pairs(new), from_pairs(state["h"]), starts)
            h, last = to_pairs(h), to_pairs(last)
        else:
            h, last = recurrence(f[:, :, None], new, state["h"], starts)
        gate = jax.nn.silu(dense(x, params["gate"]))
        y = self.normalise.apply(params["norm"], h.reshape(*x.shape[:2], -1)).astype(x.dtype).reshape(h.shape)
        return spoil(spoiled, merge(y * gate, params["out"])), spoil(spoiled[:, -1], {"h": last})
