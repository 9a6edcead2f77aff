"""A language model with n-gram heads in its middle."""

from typing import Any

import jax

from jaxlm.mixers.base import Mixer
from jaxlm.mixers.ngram_head import NGramHead
from jaxlm.models.lm import LM
from jaxlm.module import materialize
from jaxlm.ops.isolate import tokenwise
from jaxlm.typing import Array, Params, State


class NGramLM(LM):
    """LM whose body stands on n-gram heads: below, then h + NGramHead(Norm h) for each order, then the body.

    below    what mixes first; None: nothing
    orders   one head each (Akyurek et al. 2024 stack 1, 2, 3)
    """

    below: Mixer | None = None
    orders: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self):
        super().__post_init__()
        fits = self.below is None or self.below.width == self.width
        self.check(fits, "below", f"a mixer of width {self.width}")
        self.check(bool(self.orders) and min(self.orders) > 0, "orders", "at least one order, each at least 1")

    @property
    def growth(self) -> str:
        return "quadratic"

    @property
    def heads(self) -> dict[str, Any]:
        return {f"head{i}": NGramHead(self.width, n) for i, n in enumerate(self.orders)}

    def params(self):
        p = super().params()
        if self.below is not None:
            p["below"] = self.below.params()
        return p | {n: {"norm": self.normalise.params(), **head.params()} for n, head in self.heads.items()}

    def state(self, batch: int, room: int = 0):
        below = {} if self.below is None else {"below": self.below.state(batch, room)}
        return {**below, **{n: h.state(batch, room) for n, h in self.heads.items()}, "body": super().state(batch, room)}

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        below = {} if self.below is None else {"below": self.below.start(params["below"], batch, room)}
        heads = {n: materialize(h.state(batch, room), jax.random.key(0)) for n, h in self.heads.items()}
        return {**below, **heads, "body": super().start(params, batch, room)}

    def mix(
        self, params: Params, x: Array, tokens: Array, state: State, starts: Array | None, key: Array | None
    ) -> tuple[Array, State]:
        state = self.start(params, *tokens.shape) if state is None else state
        after = {}
        if self.below is not None:
            own = None if key is None else jax.random.fold_in(key, 1)
            x, after["below"] = self.below.apply(params["below"], x, state["below"], starts, own)
        for n, head in self.heads.items():
            h = tokenwise(lambda x, n=n: self.normalise.apply(params[n]["norm"], x), x)
            h, after[n] = head.apply(params[n], h, tokens, state[n], starts)
            x = x + h
        x, after["body"] = super().mix(params, x, tokens, state["body"], starts, key)
        return x, after
