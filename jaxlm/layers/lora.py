"""LoRA: a frozen model's matrices plus trained ones of low rank, as one more module whose weights are the adapters."""

import math
from typing import Any

import jax.numpy as jnp

from jaxlm.errors import ConfigError
from jaxlm.initializers import FanIn, Zeros
from jaxlm.module import Module, Spec, is_spec
from jaxlm.typing import Params, Tree


class LoRA(Module):
    """Low-rank adapters beside the matrices of a model (Hu et al. 2022, eq. 3).

    W' = W + scale A B       A: what W contracts -> rank, B: rank -> what W gives, 0 at the start

    model   any module; it stays as it is
    rank    r
    scale   a / r of the paper
    names   of the weights that get adapters: those that contract something

        lora = LoRA(model)
        adapters = init(lora, key)                          the only weights to train: they are a tree of their own
        model.apply(lora.merge(params, adapters), x)

    Layers, and the blocks of a block-diagonal matrix, have adapters of their own.
    """

    model: Module
    rank: int = 8
    scale: float = 1.0
    names: tuple[str, ...] = ("query", "key", "value", "out")

    def __post_init__(self):
        self.check(self.rank > 0, "rank", "at least 1")
        self.check(bool(self.params()), "names", f"names of matrices of {type(self.model).__name__}")

    def params(self):
        return self._adapters(self.model.params())

    def merge(self, params: Params, adapters: Params) -> Params:
        """The model's weights with the adapters added."""
        return self._merged(self.model.params(), params, adapters)

    def _adapters(self, specs: Tree) -> dict[str, Any]:
        out = {}
        for name, spec in specs.items():
            if not is_spec(spec):
                if inner := self._adapters(spec):
                    out[name] = inner
            elif name in self.names and spec.ins:
                first, last = _contracted(spec)
                shape, axes = spec.shape, spec.axes
                down = Spec((*shape[:last], self.rank), (*axes[:last], None), FanIn(), spec.dtype, spec.ins)
                up = Spec(
                    (*shape[:first], self.rank, *shape[last:]), (*axes[:first], None, *axes[last:]), Zeros, spec.dtype
                )
                out[name] = {"down": down, "up": up}
        return out

    def _merged(self, specs: Tree, params: Params, adapters: Params) -> Params:
        out = dict(params)
        for name, own in adapters.items():
            spec = specs[name]
            if not is_spec(spec):
                out[name] = self._merged(spec, params[name], own)
                continue
            blocks = math.prod(spec.shape[: _contracted(spec)[0]])
            down = own["down"].reshape(blocks, -1, self.rank)
            added = jnp.matmul(down, own["up"].reshape(blocks, self.rank, -1)).reshape(spec.shape)
            out[name] = params[name] + (self.scale * added).astype(params[name].dtype)
        return out


def _contracted(spec: Spec) -> tuple[int, int]:
    """Where the contracted axes begin and end; those before them number matrices side by side."""
    places = sorted(spec.axes.index(a) for a in spec.ins)
    if places[-1] - places[0] >= len(places):
        raise ConfigError(f"Spec.ins {spec.ins} of axes {spec.axes}: expected axes side by side, for an adapter")
    return places[0], places[-1] + 1
