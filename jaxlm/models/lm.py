"""A language model: tokens in, logits out, any mixer between."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Normal
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.base import Mixer
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.losses import cross_entropy
from jaxlm.sharding import identity
from jaxlm.typing import Array, Params, State, wide

Constrain = Callable[[Array, tuple[str | None, ...]], Array]


class LM(Module):
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
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ShapeError(f"LM: tokens have shape {tokens.shape} of {tokens.dtype}, expected (b, t) of integers")
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

    def apply(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """Logits of the token that follows each token.   tokens (b, t) -> (b, t, vocab), state"""
        x, state = self.hidden(params, tokens, state, starts, key, constrain)
        return constrain(wide(dense(x, self.readout(params))), ("batch", "time", "vocab")), state

    def loss(
        self,
        params: Params,
        tokens: Array,
        targets: Array,
        weights: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[tuple[Array, Array], State]:
        """((sum of weighted nats, sum of weights), state), never holding all logits wide.   all (b, t)"""
        x, state = self.hidden(params, tokens, state, starts, key, constrain)
        return cross_entropy(x, self.readout(params), targets, weights), state
