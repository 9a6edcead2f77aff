"""A language model of words that are spelt: their characters go in, and the softmax is learned from samples of it."""

import jax
import jax.numpy as jnp

from jaxlm.data.spelling import CHARACTERS, spell
from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Normal
from jaxlm.layers.char_cnn import CharCNN
from jaxlm.mixers.base import Mixer
from jaxlm.models.tokens import Constrain, TokenModel
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.sampled import LogUniform, sampled_nats
from jaxlm.sharding import identity
from jaxlm.typing import Array, Params, State


class CharLM(TokenModel):
    """Words by their characters, a body that mixes along time, a softmax over the vocabulary (Jozefowicz et al. 2016).

    x = CNN(characters of the word)     h = body(x)     logit of w = h e_w

    tokens      (b, t) int, words of the vocabulary, or (b, t, c) int, characters of any words (`jaxlm.data.spelling`)
    logits      (b, t, vocab) at least float32
    words       the vocabulary, falling in frequency if it is sampled
    body        reads what the CNN gives; the paper's is two LSTMs with projection
    softmax     None: e is a table; a CNN of its own: e_w = CNN(characters of w) + M c_w
    correction  width of c_w, which tells words apart that are spelt alike (the paper: 128); 0: none
    samples     classes that `loss` draws when a key is given; 0: it takes all, as it does without a key
    letters     characters of a word with its two marks, at most
    """

    words: tuple[str, ...]
    body: Mixer
    cnn: CharCNN
    softmax: CharCNN | None = None
    correction: int = 0
    samples: int = 0
    letters: int = 50

    def __post_init__(self):
        self.check(bool(self.words), "words", "a vocabulary")
        self.check(self.cnn.width == self.body.reads, "cnn", f"a CharCNN of width {self.body.reads}, as the body reads")
        own = self.softmax is None or self.softmax.width == self.width
        self.check(own, "softmax", f"a CharCNN of width {self.width}, or None")
        for field, cnn in (("cnn", self.cnn), ("softmax", self.softmax)):
            self.check(cnn is None or cnn.chars >= CHARACTERS, field, f"a CharCNN of at least {CHARACTERS} characters")
        ok = self.correction >= 0 and (self.correction == 0 or self.softmax is not None)
        self.check(ok, "correction", "0, or a width beside a softmax")
        self.check(0 <= self.samples <= self.vocab, "samples", f"0 to {self.vocab}, the vocabulary")
        self.check(self.letters >= 3, "letters", "at least 3, one between two marks")

    @property
    def vocab(self) -> int:
        return len(self.words)

    @property
    def width(self) -> int:
        return self.body.width

    @property
    def growth(self) -> str:
        return self.body.growth

    def params(self):
        p = {"cnn": self.cnn.params(), "body": self.body.params()}
        if self.softmax is None:
            table = Spec((self.vocab, self.width), ("vocab", "embed"), FanIn(), ins=("embed",))
            return p | {"readout": table}
        p["softmax"] = self.softmax.params()
        if self.correction:
            p["own"] = Spec((self.vocab, self.correction), ("vocab", "state"), Normal(0.1))
            p["lift"] = Spec((self.correction, self.width), ("state", "embed"), FanIn(), ins=("state",))
        return p

    def state(self, batch: int, room: int = 0):
        return self.body.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return self.body.start(params["body"], batch, room)

    def reads(self, tokens: Array) -> None:
        if tokens.ndim not in (2, 3) or not jnp.issubdtype(tokens.dtype, jnp.integer):
            got = f"shape {tokens.shape} of {tokens.dtype}"
            raise ShapeError(f"CharLM: tokens have {got}, expected (b, t) or (b, t, c) of integers")

    def spelt(self, ids: Array) -> Array:
        """Characters of words of the vocabulary.   (...) int -> (..., letters)"""
        return jnp.take(jnp.asarray(spell(self.words, self.letters)), ids, axis=0)

    def hidden(
        self,
        params: Params,
        tokens: Array,
        state: State = None,
        starts: Array | None = None,
        key: Array | None = None,
        constrain: Constrain = identity,
    ) -> tuple[Array, State]:
        """What the readout reads.   tokens (b, t) or (b, t, c) -> (b, t, d), state"""
        self.reads(tokens)
        if tokens.ndim == 2 and tokens.size > self.vocab:  # each word is read once
            every = self.cnn.apply(params["cnn"], self.spelt(jnp.arange(self.vocab)))
            x = jnp.take(every, tokens, axis=0)
        else:
            x = self.cnn.apply(params["cnn"], tokens if tokens.ndim == 3 else self.spelt(tokens))
        x, state = self.body.apply(params["body"], constrain(x, ("batch", "time", None)), state, starts, key)
        return constrain(x, ("batch", "time", None)), state

    def rows(self, params: Params, ids: Array) -> Array:
        """e of some words.   (...) int -> (..., d)"""
        if self.softmax is None:
            return jnp.take(params["readout"], ids, axis=0)
        rows = self.softmax.apply(params["softmax"], self.spelt(ids))
        return rows + dense(jnp.take(params["own"], ids, axis=0), params["lift"]) if self.correction else rows

    def readout(self, params: Params) -> Array:
        """(d, vocab)."""
        return self.rows(params, jnp.arange(self.vocab)).T

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
        """((sum of weighted nats, sum of weights), state); with a key, nats of the sampled softmax.   all (b, t)"""
        if key is None or not self.samples:
            return super().loss(params, tokens, targets, weights, state, starts, key, constrain)
        own, drawing = jax.random.split(key)
        x, state = self.hidden(params, tokens, state, starts, own, constrain)
        draw = LogUniform(self.vocab, self.samples)
        nats = sampled_nats(x, lambda ids: self.rows(params, ids), targets, draw, drawing)
        return (jnp.sum(nats * weights), jnp.sum(weights)), state
