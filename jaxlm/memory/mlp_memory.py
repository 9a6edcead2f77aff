"""MLP memory: feed-forward layers that have learned to answer as a kNN search would, and need no datastore."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import RMSNorm
from jaxlm.memory.knn_lm import Interpolated
from jaxlm.module import Module, Spec
from jaxlm.ops.losses import nats
from jaxlm.typing import Array, Params, wide


class MLPMemory(Module):
    """x <- x + MLP(Norm x), `depth` times, then logits = W Norm x: no token sees another (MLP Memory, 2025).

    x        (..., d)
    logits   (..., vocab) at least float32
    hidden   None: 4 times the width
    """

    width: int
    vocab: int
    depth: int = 2
    hidden: int | None = None
    activation: str = "gelu"

    def __post_init__(self):
        for field in ("width", "vocab", "depth"):
            self.check(getattr(self, field) > 0, field, "at least 1")

    @property
    def layers(self) -> dict[str, MLP]:
        return {f"layer{i}": MLP(self.width, self.hidden, self.activation) for i in range(self.depth)}

    def params(self):
        norm = RMSNorm(self.width).params()
        readout = Spec((self.width, self.vocab), ("embed", "vocab"), FanIn(), ins=("embed",))
        layers = {n: {"norm": norm, "mlp": mlp.params()} for n, mlp in self.layers.items()}
        return {**layers, "norm": norm, "readout": readout}

    def apply(self, params: Params, x: Array) -> Array:
        norm = RMSNorm(self.width)
        for n, mlp in self.layers.items():
            x = x + mlp.apply(params[n]["mlp"], norm.apply(params[n]["norm"], x))
        return wide(norm.apply(params["norm"], x) @ params["readout"].astype(x.dtype))


class MLPMemoryLM(Interpolated):
    """p = λ p_memory + (1 - λ) p_base, p_memory = softmax(MLPMemory(x)) of an activation x of the base.

    memory   of the activation's width
    """

    memory: Any = None  # an MLPMemory
    tap: str = "resid"

    def __post_init__(self):
        super().__post_init__()
        fits = isinstance(self.memory, MLPMemory) and self.memory.vocab == self.base.vocab
        self.check(fits, "memory", f"an MLPMemory of vocabulary {self.base.vocab}")

    def params(self):
        return {"base": self.base.params(), "memory": self.memory.params()}

    def recall(self, params: Params, x: Array) -> Array:
        return jax.nn.softmax(self.memory.apply(params["memory"], x), axis=-1)


def imitation(logits: Array, shares: Array, tokens: Array, targets: Array, alpha: float) -> Array:
    """alpha KL(p_kNN ‖ p) + (1 - alpha) (-log p(target)), up to what does not depend on p.

    logits           (m, vocab)    of p
    shares, tokens   (m, k)        p_kNN: its neighbours' shares and tokens
    targets          (m)
    ->               (m)           without Σ p_kNN log p_kNN
    """
    told = jnp.take_along_axis(jax.nn.log_softmax(wide(logits), axis=-1), tokens, axis=-1)
    return alpha * -jnp.sum(shares * told, axis=-1) + (1 - alpha) * nats(logits, targets)
