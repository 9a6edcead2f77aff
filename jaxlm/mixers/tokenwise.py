"""A module of single tokens as a mixer, so that it can stand in a chain: the norm between embedding and blocks."""

from typing import Any

from jaxlm.mixers.base import Mixer
from jaxlm.module import Module
from jaxlm.ops.isolate import tokenwise
from jaxlm.typing import Array, Params, State


class Tokenwise(Mixer):
    """y_t = part(x_t); nothing is carried.

    x, y   (b, t, d)
    part   a module with apply(params, x), of one width
    """

    part: Module

    forms = ("tokenwise",)

    @property
    def width(self) -> int:  # type: ignore[override]
        part: Any = self.part
        return part.width

    def params(self):
        return self.part.params()

    def state(self, batch: int, room: int = 0):
        return {}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        part: Any = self.part
        return tokenwise(lambda x: part.apply(params, x), x), {}
