"""The language model of end-to-end memory networks: the last words are the memory, a constant is the question."""

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import Normal
from jaxlm.mixers.base import leaf
from jaxlm.models.tokens import Constrain, TokenModel
from jaxlm.module import Spec, materialize
from jaxlm.ops.cache import positions
from jaxlm.ops.dense import dense
from jaxlm.sharding import identity
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State, wide

BLOCK = 32  # queries that share a stretch of memory, at least


class MemN2NLM(TokenModel):
    """Several hops over the last `memory` words, one word a slot (Sukhbaatar et al. 2015, section 5; layer-wise tying).

    p_i = softmax_i u·(A x_i + T_A(i))      o = Σ_i p_i (C x_i + T_C(i))      u <- f(H u + o)      logits = W u

    f leaves the first `linear` entries as they are and rectifies the rest; u begins as a constant.

    tokens   (b, t) int
    logits   (b, t, vocab) at least float32: of the word that follows each token
    state    words (b, memory - 1), the words before, stale ones 0;  length (b), words of the document so far
    linear   None: half of the width
    query    every entry of the first u
    std      of all weights at the start
    A document's first words have fewer slots: empty ones take no part.
    """

    vocab: int
    width: int = 150
    hops: int = 6
    memory: int = 100
    linear: int | None = None
    query: float = 0.1
    std: float = 0.05

    growth = "linear"

    def __post_init__(self):
        for field in ("vocab", "width", "hops", "memory"):
            self.check(getattr(self, field) > 0, field, "at least 1")
        self.check(0 <= self.straight <= self.width, "linear", f"0 to the width {self.width}")

    @property
    def straight(self) -> int:
        return self.width // 2 if self.linear is None else self.linear

    def params(self):
        draw, word = Normal(self.std), ((self.vocab, self.width), ("vocab", "embed"))
        slot = ((self.memory, self.width), ("slots", "embed"))  # slot 0 holds the oldest word
        return {
            "key": Spec(*word, draw),
            "value": Spec(*word, draw),
            "key_time": Spec(*slot, draw),
            "value_time": Spec(*slot, draw),
            "hidden": Spec((self.width, self.width), ("embed", "state"), draw, ins=("embed",)),
            "readout": Spec((self.width, self.vocab), ("embed", "vocab"), draw, ins=("embed",)),
        }

    def state(self, batch: int, room: int = 0):
        del room  # a memory of fixed size
        return {"words": leaf(batch, (self.memory - 1,), (None,), "int32"), "length": leaf(batch, (), (), "int32")}

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
        """u after the last hop, for all tokens at once: each word is embedded once.   tokens (b, t) -> (b, t, d)"""
        del key  # nothing is random
        self.reads(tokens)
        (b, t), m = tokens.shape, self.memory
        state = self.start(params, b) if state is None else state
        words = jnp.concatenate([state["words"], tokens.astype(jnp.int32)], axis=1)
        place = jnp.broadcast_to(positions(starts, state["length"], t), (b, t))
        c = max(m, BLOCK) if t > max(m, BLOCK) else t
        filled = place[:, :, None] >= jnp.arange(m - 1, -1, -1, dtype=jnp.int32)[None, None]
        filled = _fill(filled, c).reshape(b, -1, c, m)
        keys, values = (
            _windows(constrain(jnp.take(params[n], words, axis=0), ("batch", None, None)), m - 1, c)
            for n in ("key", "value")
        )
        u = jnp.full((b, filled.shape[1], c, self.width), self.query, params["hidden"].dtype)
        for _ in range(self.hops):
            u = self._hop(params, u, keys, values, filled)
        u = constrain(u.reshape(b, -1, self.width)[:, :t], ("batch", "time", None))
        return u, self._keep(words, place[:, -1] + 1)

    def _hop(self, params: Params, u: Array, keys: Array, values: Array, filled: Array) -> Array:
        """One read and the step that follows it.   u (b, n, c, d); keys, values (b, n, c + m - 1, d)"""
        kind = wide(u).dtype
        scores = _band(jnp.einsum("bncd,bnsd->bncs", u, keys, preferred_element_type=kind), self.memory)
        scores = scores + dense(u, params["key_time"].T).astype(kind)
        scores = jnp.where(filled, scores, jnp.finfo(kind).min)
        p = name(jax.nn.softmax(scores, axis=-1), "attn.probs").astype(u.dtype)
        o = jnp.einsum("bncs,bnsd->bncd", _unband(p), values) + dense(p, params["value_time"])
        u = dense(u, params["hidden"]) + o
        return jnp.concatenate([u[..., : self.straight], jax.nn.relu(u[..., self.straight :])], axis=-1)

    def _keep(self, words: Array, length: Array) -> State:
        """The state after these words: the last memory - 1 of the document."""
        kept = words[:, words.shape[1] - self.memory + 1 :]
        alive = length[:, None] >= jnp.arange(self.memory - 1, 0, -1, dtype=jnp.int32)[None]
        return {"words": jnp.where(alive, kept, 0), "length": length}

    def readout(self, params: Params) -> Array:
        """(d, vocab)."""
        return params["readout"]

    def window_loss(self, params: Params, windows: Array) -> Array:
        """Summed nats of each window's last word given the others, the paper's training.   windows (b, memory + 1)"""
        if windows.ndim != 2 or windows.shape[1] != self.memory + 1:
            raise ShapeError(f"MemN2NLM: windows {windows.shape}, expected (b, memory + 1 = {self.memory + 1})")
        b = windows.shape[0]
        state = {"words": windows[:, :-2], "length": jnp.full((b,), self.memory - 1, jnp.int32)}
        (nats, _), _ = self.loss(params, windows[:, -2:-1], windows[:, -1:], jnp.ones((b, 1)), state)
        return nats


def _fill(x: Array, c: int) -> Array:
    """Zeros at the end of time (b, t, ...), up to a multiple of c."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % c)] + [(0, 0)] * (x.ndim - 2))


def _windows(x: Array, before: int, c: int) -> Array:
    """What each block of c tokens sees: (b, before + t, d) -> (b, blocks, before + c, d)."""
    b, t, d = x.shape[0], x.shape[1] - before, x.shape[2]
    if t <= c:
        return x[:, None]
    blocks = jnp.pad(x, [(0, 0), (c - before, -t % c), (0, 0)]).reshape(b, -1, c, d)
    return jnp.concatenate([blocks[:, :-1, c - before :], blocks[:, 1:]], axis=2)


def _band(x: Array, m: int) -> Array:
    """Row i's entries i to i + m - 1.   (..., c, c + m - 1) -> (..., c, m)"""
    *lead, c, n = x.shape
    flat = jnp.pad(x.reshape(*lead, c * n), [(0, 0)] * len(lead) + [(0, c)])
    return flat.reshape(*lead, c, n + 1)[..., :m]


def _unband(x: Array) -> Array:
    """The transpose of `_band`, zeros elsewhere.   (..., c, m) -> (..., c, c + m - 1)"""
    *lead, c, m = x.shape
    flat = jnp.pad(x, [(0, 0)] * len(lead) + [(0, 0), (0, c)]).reshape(*lead, c * (c + m))
    return flat[..., : c * (c + m - 1)].reshape(*lead, c, c + m - 1)
