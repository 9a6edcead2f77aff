"""Channel mixers: modules with weights that look at one token at a time."""

from jaxlm.initializers import FanIn, Zeros
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.taps import name
from jaxlm.typing import Array, Params


def hidden_width(width: int, hidden: int | None, multiple: int = 8) -> int:
    """The given hidden width, or 8/3 of the width rounded up: the parameters of a plain MLP of 4 times the width."""
    return hidden if hidden is not None else -(-8 * width // (3 * multiple)) * multiple


class GatedMLP(Module):
    """(act(x W_gate) * x W_up) W_down (Shazeer 2020); `SwiGLU` is its SiLU form.   x, y (..., d)"""

    width: int
    hidden: int | None = None
    activation: str = "silu"

    def __post_init__(self):
        self.check(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")

    def params(self):
        d, f = self.width, hidden_width(self.width, self.hidden)
        into = Spec((d, f), ("embed", "mlp"), FanIn(), ins=("embed",))
        return {"gate": into, "up": into, "down": Spec((f, d), ("mlp", "embed"), FanIn(), ins=("mlp",))}

    def apply(self, params: Params, x: Array) -> Array:
        act, x = ACTIVATIONS[self.activation], name(x, "mlp.in")
        h = name(act(dense(x, params["gate"])) * dense(x, params["up"]), "mlp.hidden")
        return dense(h, params["down"])


def SwiGLU(width: int, hidden: int | None = None) -> GatedMLP:
    """GatedMLP with SiLU; hidden defaults to 8/3 of the width."""
    return GatedMLP(width, hidden, "silu")


class MLP(Module):
    """act(x W_up + b) W_down + b.   x, y (..., d)"""

    width: int
    hidden: int | None = None
    activation: str = "gelu"
    bias: bool = True

    def __post_init__(self):
        self.check(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")

    def params(self):
        d, f = self.width, self.hidden or 4 * self.width
        p = {
            "up": Spec((d, f), ("embed", "mlp"), FanIn(), ins=("embed",)),
            "down": Spec((f, d), ("mlp", "embed"), FanIn(), ins=("mlp",)),
        }
        if self.bias:
            p |= {"up_bias": Spec((f,), ("mlp",), Zeros), "down_bias": Spec((d,), ("embed",), Zeros)}
        return p

    def apply(self, params: Params, x: Array) -> Array:
        h = ACTIVATIONS[self.activation](dense(name(x, "mlp.in"), params["up"], params.get("up_bias")))
        return dense(name(h, "mlp.hidden"), params["down"], params.get("down_bias"))
