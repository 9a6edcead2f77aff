"""Learned positions: a vector for each place is added to the token that stands there."""

import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import Normal
from jaxlm.layers.position import Sets
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cache import positions
from jaxlm.typing import Array, Params, State


class LearnedPositions(Mixer):
    """y_t = x_t + P[place of t in its document] (Gehring et al. 2017; Radford et al. 2019).

    x, y     (b, t, d)
    state    length (b), tokens of the document so far
    length   places that have a vector; a token beyond them turns nan
    sets     parts of the document without an order among them; None: it is one sequence
    """

    width: int
    length: int = 1024
    sets: Sets | None = None

    paper = "Gehring et al. 2017"
    forms = ("tokenwise",)

    def __post_init__(self):
        self.check(self.length > 0, "length", "a positive number of places")

    def params(self):
        return {"table": Spec((self.length, self.width), (None, "embed"), Normal(0.02))}

    def state(self, batch: int, room: int = 0):
        return {"length": leaf(batch, (), (), "int32")}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        b, t = x.shape[:2]
        if starts is None and self.sets is None and t > self.length:
            raise ShapeError(f"LearnedPositions: x has {t} tokens, expected at most length = {self.length}")
        number = positions(starts, None if state is None else state["length"], t)
        place = number if self.sets is None else self.sets.places(number)
        learned = jnp.take(params["table"], place, axis=0, mode="fill", fill_value=jnp.nan)
        return x + learned.astype(x.dtype), {"length": jnp.broadcast_to(number[:, -1] + 1, (b,))}
