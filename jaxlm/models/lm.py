"""A language model: tokens in, logits out, any mixer between."""

from typing import Any

import jax.numpy as jnp

from jaxlm.initializers import FanIn, Normal
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.base import Mixer
from jaxlm.models.tokens import Constrain, TokenModel
from jaxlm.module import Module, Spec
from jaxlm.sharding import identity
from jaxlm.typing import Array, Params, State


class LM(TokenModel):
    """Embedding, a body that mixes along time, a last norm, a readout. It is cut, packed and batched as a mixer is.

    tokens   (b, t) int
    logits   (b, t, vocab) at least float32
    tied     one matrix embeds and reads out
    norm     None: RMSNorm
    scale    of the embedding on entry; None: sqrt(width)
    """

    vocab: int
    width: int
    body: Mixer
    tied: bool = True
    norm: Module | None = None
    scale: float | None = None

    def __post_init__(self):
        self.check(self.vocab > 0, "vocab", "a positive number of tokens")
        self.check(self.body.width == self.width, "body", f"a mixer of width {self.width}")
        self.check(self.normalise.width == self.width, "norm", f"a module of width {self.width}")

    @property
    def growth(self) -> str:
        return self.body.growth

    @property
    def normalise(self) -> Any:  # a Module with apply(params, x)
        return RMSNorm(self.width) if self.norm is None else self.norm

    def params(self):
        # Rows of length 1: logits of unit size as a readout; sqrt(width) makes them entries of unit size on entry.
        embed = Spec((self.vocab, self.width), ("vocab", "embed"), Normal(self.width**-0.5))
        p = {"embed": embed, "body": self.body.params(), "norm": self.normalise.params()}
        if not self.tied:
            p["readout"] = Spec((self.width, self.vocab), ("embed", "vocab"), FanIn(), ins=("embed",))
        return p

    def state(self, batch: int, room: int = 0):
        return self.body.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        """The state before the first token, with room for `room` tokens."""
        return self.body.start(params["body"], batch, room)

    def hidden(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """What the readout reads.   tokens (b, t) -> (b, t, d)"""
        self.reads(tokens)
        scale = self.width**0.5 if self.scale is None else self.scale
        x = jnp.take(params["embed"], tokens, axis=0) * jnp.asarray(scale, params["embed"].dtype)
        x = constrain(x, ("batch", "time", None))
        x, state = self.mix(params, x, tokens, state, starts, key)
        return constrain(self.normalise.apply(params["norm"], x), ("batch", "time", None)), state

    def mix(
        self, params: Params, x: Array, tokens: Array, state: State, starts: Array | None, key: Array | None
    ) -> tuple[Array, State]:
        """What stands between the embedding and the last norm.   x (b, t, d), tokens (b, t) -> (b, t, d), state"""
        return self.body.apply(params["body"], x, state, starts, key)

    def readout(self, params: Params) -> Array:
        """(d, vocab)."""
        return params["embed"].T if self.tied else params["readout"]
