"""DocNADE and ctx-DocNADE: topic models that predict each word of a document from the words before it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.initializers import FanIn, Normal, Uniform, Zeros
from jaxlm.mixers.base import leaf
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.tokens import Constrain, TokenModel
from jaxlm.module import Spec, materialize
from jaxlm.ops.dense import dense
from jaxlm.ops.losses import nats
from jaxlm.ops.recurrence import recurrence_associative
from jaxlm.sharding import identity
from jaxlm.typing import Array, Params, State, wide

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


class DocNADE(TokenModel):
    """h_i = g(c + λ LSTM(v_<i) + Σ_{k<i} W_{v_k})      p(v_i | v_<i) = softmax(b + U h_i)

    λ = 0 is DocNADE (Larochelle & Lauly 2012), to which the order of the words before is nothing; λ > 0 is
    ctx-DocNADE (Gupta et al. 2019). The LSTM reads W_v; in ctx-DocNADEe W_v + E_v, with given embeddings E.

    tokens   (b, t) int
    logits   (b, t, vocab)      log p of the word that follows each token, at least float32
    state    sum (b, d) of W over the words so far; the LSTM's, if λ > 0
    mix      λ
    given    params['given'] (vocab, d) is E: put there, never trained
    tree     p is a product of choices along a binary tree, left or right with probability σ(±(b_n + U_n h_i)), its
             leaves the words (Morin & Bengio 2005): a word costs log2(vocab) choices
    A document's first word, which follows nothing, is predicted by `conditionals` and `document_nats`.
    """

    vocab: int
    width: int = 200
    mix: float = 0.0
    given: bool = False
    tree: bool = False
    activation: str = "sigmoid"

    growth = "linear"

    def __post_init__(self):
        self.check(self.vocab > 1, "vocab", "at least 2")
        self.check(self.width > 0, "width", "at least 1")
        self.check(self.mix >= 0 and math.isfinite(self.mix), "mix", "0 or more")
        self.check(not self.given or self.mix > 0, "given", "a mix above 0: it is the LSTM that reads them")
        self.check(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")

    @property
    def lstm(self) -> LSTM:
        return LSTM(self.width)

    def params(self):
        choices = self.vocab - 1 if self.tree else self.vocab
        p: dict[str, Any] = {
            "embed": Spec((self.vocab, self.width), ("vocab", "embed"), Uniform(0.0, 1 / (self.vocab * self.width))),
            "bias": Spec((self.width,), ("embed",), Zeros),
            "readout": Spec((self.width, choices), ("embed", "vocab"), FanIn(), ins=("embed",)),
            "readout_bias": Spec((choices,), ("vocab",), Zeros),
        }
        if self.mix:
            p["lstm"] = self.lstm.params()
        if self.given:
            p["given"] = Spec((self.vocab, self.width), ("vocab", "embed"), Normal(self.width**-0.5))
        return p

    def state(self, batch: int, room: int = 0):
        own = {"sum": leaf(batch, (self.width,), ("embed",))}
        return own | ({"lstm": self.lstm.state(batch, room)} if self.mix else {})

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        """No words yet."""
        del params
        return materialize(self.state(batch, room), jax.random.key(0))

    def hidden(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """h of the words that follow the tokens.   (b, t) -> (b, t, d), state"""
        del key  # nothing is random
        self.reads(tokens)
        state = self.start(params, tokens.shape[0]) if state is None else state
        words = constrain(jnp.take(params["embed"], tokens, axis=0), ("batch", "time", None))
        total, after = recurrence_associative(jnp.ones_like(words), words, state["sum"], starts)
        state = {**state, "sum": after}
        if self.mix:
            if self.given:
                words = words + jax.lax.stop_gradient(jnp.take(params["given"], tokens, axis=0))
            context, state["lstm"] = self.lstm.apply(params["lstm"], words, state["lstm"], starts)
            total = total + jnp.asarray(self.mix, total.dtype) * context
        return self._squash(params, total), state

    def apply(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """Log p of the word that follows each token.   (b, t) -> (b, t, vocab), state"""
        h, state = self.hidden(params, tokens, state, starts, key, constrain)
        return constrain(self.log_p(params, h), ("batch", "time", "vocab")), state

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
        """((sum of weighted nats, sum of weights), state); a tree computes the targets' choices alone.   all (b, t)"""
        h, state = self.hidden(params, tokens, state, starts, key, constrain)
        return (jnp.sum(self.nats(params, h, targets) * weights), jnp.sum(weights)), state

    def conditionals(self, params: Params, documents: Array) -> Array:
        """log p(v_i = w | v_<i) for every place of documents, the first included.   (b, t) -> (b, t, vocab)"""
        return self.log_p(params, self._before(params, documents))

    def document_nats(self, params: Params, documents: Array) -> Array:
        """-log p(v_i | v_<i): their sum over a document is its -log p.   (b, t) -> (b, t)"""
        return self.nats(params, self._before(params, documents), documents)

    def _before(self, params: Params, documents: Array) -> Array:
        """h_i of every place: what is known before it.   (b, t) -> (b, t, d)"""
        none = self._squash(params, jnp.zeros((documents.shape[0], 1, self.width), params["embed"].dtype))
        if documents.shape[1] == 1:
            return none
        return jnp.concatenate([none, self.hidden(params, documents[:, :-1])[0].astype(none.dtype)], axis=1)

    def _squash(self, params: Params, total: Array) -> Array:
        return ACTIVATIONS[self.activation](total + params["bias"].astype(total.dtype)[None, None])

    def log_p(self, params: Params, h: Array) -> Array:
        """Log p of every word.   (b, t, d) -> (b, t, vocab)"""
        scores = wide(dense(h, params["readout"], params["readout_bias"]))
        if not self.tree:
            return jax.nn.log_softmax(scores, axis=-1)
        nodes, signs = paths(self.vocab)
        total = jnp.zeros((*scores.shape[:2], self.vocab), scores.dtype)
        for node, sign in zip(nodes.T, signs.T, strict=True):
            sign = jnp.asarray(sign, scores.dtype)[None, None]
            total = total + jnp.where(sign != 0, jax.nn.log_sigmoid(scores[..., node] * sign), 0.0)
        return total

    def nats(self, params: Params, h: Array, targets: Array) -> Array:
        """-log p of the targets.   (b, t, d), (b, t) -> (b, t)"""
        if not self.tree:
            return nats(dense(h, params["readout"], params["readout_bias"]), targets)
        nodes, signs = (jnp.asarray(x)[targets] for x in paths(self.vocab))
        h, weights = wide(h), wide(params["readout"]).T[nodes]
        scores = jnp.einsum("btd,btnd->btn", h, weights) + wide(params["readout_bias"])[nodes]
        chosen = jax.nn.log_sigmoid(scores * signs.astype(scores.dtype))
        return -jnp.sum(jnp.where(signs != 0, chosen, 0.0), axis=-1)


def paths(vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """The choices on the way to each word in a binary tree of least depth: nodes, and 1 or -1; 0 beyond the leaf.

    ->      2 of (vocab, depth) int32
    """
    # The tree of a heap: the children of node n are 2n and 2n + 1, the leaves are the nodes from `vocab` on.
    leaf = np.arange(vocab, 2 * vocab)[:, None]
    back = np.arange((2 * vocab - 1).bit_length() - 1)[None]
    node, right = leaf >> (back + 1), (leaf >> back) & 1
    signs = np.where(node > 0, 2 * right - 1, 0)
    return np.maximum(node - 1, 0).astype(np.int32), signs.astype(np.int32)
