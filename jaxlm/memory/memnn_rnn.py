"""R as a recurrent net: it reads the question and the facts found, and writes the answer word by word."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Normal
from jaxlm.mixers.lstm import LSTM
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.losses import nats
from jaxlm.typing import Array, Params


class RNNResponse(Module):
    """An LSTM over [x, m_o1 ..] as words, then over the answer (Weston et al. 2015, sections 2.1 and 3.1).

    Trained by the log-likelihood of the answer, which takes the place of the third margin. Reading a whole story and
    its question, without any lookup, it is the paper's LSTM baseline.

    words   |W|; word 0 is no word, and ends an answer
    width   of the embedding and of the LSTM
    """

    words: int
    width: int = 100

    @property
    def body(self) -> LSTM:
        return LSTM(self.width)

    def params(self):
        n = self.width
        return {
            "embed": Spec((self.words, n), ("vocab", "embed"), Normal(0.1)),
            "body": self.body.params(),
            "readout": Spec((n, self.words), ("embed", "vocab"), FanIn(), ins=("embed",)),
        }

    def _logits(self, params: Params, tokens: Array, state=None) -> tuple[Array, Array]:
        hidden, state = self.body.apply(params["body"], params["embed"][tokens], state)
        return dense(hidden, params["readout"]), state

    def loss(self, params: Params, context: Array, answer: Array) -> Array:
        """Negative log-likelihood of the answers, the word 0 that ends them included.

        context   (b, t)      ids, filled up in front with 0
        answer    (b, a)      ids, filled up behind with 0
        ->        (b,)        nats
        """
        tokens = jnp.concatenate([context, answer[:, :-1]], 1)
        logits, _ = self._logits(params, tokens)
        each = nats(logits[:, context.shape[1] - 1 :], answer)
        ended = jnp.cumsum((answer == 0).astype(jnp.int32), 1) - (answer == 0).astype(jnp.int32)
        return jnp.sum(jnp.where(ended > 0, 0, each), 1)

    def apply(self, params: Params, context: Array) -> Array:
        """Logits of the answer's first word.   context (b, t) -> (b, |W|)"""
        return self._logits(params, context)[0][:, -1]

    def write(self, params: Params, context: Array, room: int) -> Array:
        """The likeliest answer, word by word.   context (b, t) -> (b, room), 0 from its end on"""
        logits, state = self._logits(params, context)

        def step(carry, _):
            state, word, done = carry
            word = jnp.where(done, 0, word)
            done = done | (word == 0)
            logits, state = self._logits(params, word[:, None], state)
            return (state, jnp.argmax(logits[:, -1], -1).astype(jnp.int32), done), word

        first = jnp.argmax(logits[:, -1], -1).astype(jnp.int32)
        return jax.lax.scan(step, (state, first, jnp.zeros(first.shape, bool)), None, room)[1].T
