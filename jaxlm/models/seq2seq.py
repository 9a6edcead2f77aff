"""From one sequence to another: a mixer reads the source, another one writes, and looks at what the first has read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Normal
from jaxlm.mixers.base import Mixer
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import tokenwise
from jaxlm.ops.losses import nats
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State, wide

NOTHING, BEGIN, END = 0, 1, 2  # of both vocabularies: what fills up a row; what stands before and behind a target


class Source(NamedTuple):
    """What the writer knows of a source.

    memory   (b, s, d)     what was read at each token
    there    (b, s) bool   where tokens are
    state    after the last token
    """

    memory: Array
    there: Array
    state: State


class Seq2Seq(Module):
    """Encoder and decoder with global attention (Luong et al. 2015, sections 3 and 3.1, score 'general').

    m = encoder(source)        h = decoder(target), from the encoder's last state
    a = softmax_s(h_t W_a m_s)        c = Σ_s a_s m_s        logits = W tanh(W_c [c; h_t])

    source   (b, s) int    filled up on the left with 0, so that each row ends with its last token
    target   (b, t) int    its END included, filled up on the right with 0
    logits   (b, t, writes) at least float32, of target token t given those before it
    reads    tokens of the source's vocabulary, and writes of the target's, ids 0 to 2 included
    The attention's result does not go back into the decoder (no input feeding): targets are read at once.
    """

    reads: int
    writes: int
    encoder: Mixer
    decoder: Mixer

    def __post_init__(self):
        for field in ("reads", "writes"):
            self.check(getattr(self, field) > END, field, "more than the ids 0 to 2")
        same = self.encoder.state(1) == self.decoder.state(1) and self.encoder.width == self.decoder.width
        self.check(same, "decoder", "a mixer that goes on from the encoder's state, of its width")

    @property
    def width(self) -> int:
        return self.decoder.width

    def params(self):
        d = self.width
        read, write = (self.reads, self.encoder.reads), (self.writes, self.decoder.reads)
        return {
            "source": Spec(read, ("vocab", "embed"), Normal(1.0)),
            "target": Spec(write, ("vocab", "embed"), Normal(1.0)),
            "encoder": self.encoder.params(),
            "decoder": self.decoder.params(),
            "score": Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",)),
            "seen": Spec((d, d), ("state", "embed"), FanIn(), ins=("state",)),
            "own": Spec((d, d), ("state", "embed"), FanIn(), ins=("state",)),
            "readout": Spec((d, self.writes), ("embed", "vocab"), FanIn(), ins=("embed",)),
        }

    def encode(self, params: Params, source: Array, key: Array | None = None) -> Source:
        """Read sources.   (b, s) -> what the decoder starts from and looks at"""
        if source.ndim != 2 or not jnp.issubdtype(source.dtype, jnp.integer):
            raise ShapeError(f"Seq2Seq: source has shape {source.shape} of {source.dtype}, expected (b, s) of integers")
        there = source != NOTHING
        begun = jnp.pad(there, ((0, 0), (1, 0)))[:, :-1]
        x = jnp.take(params["source"], source, axis=0)
        memory, state = self.encoder.apply(params["encoder"], x, None, there & ~begun, key)
        return Source(memory, there, state)

    def decode(
        self, params: Params, source: Source, tokens: Array, state: State = None, key: Array | None = None
    ) -> tuple[Array, State]:
        """Logits of what follows each token, and the state after the last; may be cut anywhere.

        tokens   (b, t) int    BEGIN and the target so far
        state    None: the source's
        ->       (b, t, writes), state
        """
        x = jnp.take(params["target"], tokens, axis=0)
        h, state = self.decoder.apply(params["decoder"], x, source.state if state is None else state, None, key)
        scores = wide(jnp.einsum("btd,bsd->bts", dense(h, params["score"]), source.memory))
        scores = jnp.where(source.there[:, None], scores, jnp.finfo(scores.dtype).min)
        p = name(jax.nn.softmax(scores, axis=-1), "attn.probs").astype(h.dtype)
        c = jnp.einsum("bts,bsd->btd", p, source.memory)
        y = jnp.tanh(dense(c, params["seen"]) + dense(h, params["own"]))
        return wide(tokenwise(lambda y: dense(y, params["readout"]), y)), state

    def apply(self, params: Params, source: Array, target: Array, key: Array | None = None) -> Array:
        """Logits of every token of the target, given the source and the right tokens before.   -> (b, t, writes)"""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        before = jnp.pad(target, ((0, 0), (1, 0)), constant_values=BEGIN)[:, :-1]
        return self.decode(params, self.encode(params, source, keys[0]), before, None, keys[1])[0]

    def loss(self, params: Params, source: Array, target: Array, key: Array | None = None) -> tuple[Array, Array]:
        """(sum of nats of the target's tokens, how many there are)."""
        weights = (target != NOTHING).astype(jnp.float32)
        return jnp.sum(nats(self.apply(params, source, target, key), target) * weights), jnp.sum(weights)

    def greedy(self, params: Params, source: Array, steps: int) -> Array:
        """The most probable token, step by step; END is the last one, then come zeros.   -> (b, steps) int32"""
        read = self.encode(params, source)
        begin = jnp.full(source.shape[:1], BEGIN, jnp.int32)

        def one(carry: tuple[Array, Array, State], _: None) -> tuple[tuple[Array, Array, State], Array]:
            token, done, state = carry
            logits, state = self.decode(params, read, token[:, None], state)
            token = jnp.where(done, NOTHING, jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32))
            return (token, done | (token == END), state), token

        _, out = jax.lax.scan(one, (begin, jnp.zeros(begin.shape, bool), read.state), None, length=steps)
        return out.T
