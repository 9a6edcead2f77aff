"""What every model over tokens shares: logits and a loss from a hidden stream and a readout."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.module import Module
from jaxlm.ops.dense import dense
from jaxlm.ops.losses import cross_entropy
from jaxlm.sharding import identity, ways
from jaxlm.typing import Array, Params, State, wide

Constrain = Callable[[Array, tuple[str | None, ...]], Array]


class TokenModel(Module):
    """Tokens in, logits out. A model gives `hidden`, `readout` and a mixer's `params`, `state` and `start`.

    tokens   (b, t) int
    logits   (b, t, vocab) at least float32
    """

    def hidden(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """What the readout reads.   tokens (b, t) -> (b, t, d), state"""
        raise NotImplementedError(f"{type(self).__name__}: expected a method hidden")

    def readout(self, params: Params) -> Array:
        """(d, vocab)."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method readout")

    def reads(self, tokens: Array) -> None:
        """Raise for what are no tokens."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            kind = type(self).__name__
            raise ShapeError(f"{kind}: tokens have shape {tokens.shape} of {tokens.dtype}, expected (b, t) of integers")

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
        devices = ways(constrain, ("batch", "time"), tokens.shape)
        # Whole but for the vocabulary before the loss goes piece by piece: or else each piece would gather it again.
        readout = constrain(self.readout(params), (None, "vocab"))
        return cross_entropy(x, readout, targets, weights, devices), state
