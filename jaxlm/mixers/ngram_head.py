"""n-gram (induction) heads: attention to what followed the last n tokens before, decided by the tokens alone."""

from jaxlm.initializers import FanIn, Zeros
from jaxlm.mixers.base import leaf
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.ngram import ngram_mean
from jaxlm.typing import Array, Params, State


class NGramHead(Module):
    """T_0(A h) + T_1 h, two affine maps; A is the mean over what followed the last n tokens (Akyurek et al. 2024).

    A_ij = 1 iff j < i and ids_{i-r} = ids_{j-1-r} for r = 0..n-1; each row sums to 1, or to 0 without a match.

    h, y     (b, t, d)
    ids      tokens (b, t) int: what a Mixer does not see, so this is none; `models.NGramLM` gives them to it
    state    gram (b, slots, n), x (b, slots, d), recent (b, n), length (b);  slots = room
    order    n
    """

    width: int
    order: int = 1

    def __post_init__(self):
        self.check(self.order > 0, "order", "at least 1")

    def params(self):
        d = self.width
        square, bias = Spec((d, d), ("embed", "state"), FanIn(2.0), ins=("embed",)), Spec((d,), ("embed",), Zeros)
        return {"followed": square, "followed_bias": bias, "own": square, "own_bias": bias}

    def state(self, batch: int, room: int = 0):
        whole = {n: leaf(batch, shape, (None,) * len(shape), "int32") for n, shape in self._ids(room).items()}
        return {**whole, "x": leaf(batch, (room, self.width), (None, None))}

    def _ids(self, room: int) -> dict[str, tuple[int, ...]]:
        return {"gram": (room, self.order), "recent": (self.order,), "length": ()}

    def apply(
        self, params: Params, h: Array, ids: Array, state: State, starts: Array | None = None
    ) -> tuple[Array, State]:
        """Cut and packed as a Mixer."""
        h, state, spoiled = isolate(starts, h, state)
        seen, state = ngram_mean(ids.astype("int32"), h, self.order, state, starts)
        y = dense(seen, params["followed"], params["followed_bias"]) + dense(h, params["own"], params["own_bias"])
        return spoil(spoiled, y), spoil(spoiled[:, -1], state)
