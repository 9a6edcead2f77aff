"""The smallest transformer with an induction head: its trained matrices are associative memories."""

import math

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import Normal, Uniform
from jaxlm.memory.bigram_task import Episodes
from jaxlm.module import Module, Spec
from jaxlm.ops.losses import nats
from jaxlm.taps import capture, name
from jaxlm.typing import Array, Params, wide

MEMORIES = ("out2", "key2", "key1", "feed")  # what is trained, in the order in which it is learned


class InductionTransformer(Module):
    """Two layers of one attention head, no norm, most maps frozen at random (Bietti et al. 2023, section 4.1).

    x_t = w_E(z_t) + p_t
    x <- x + W_O W_V Σ_s a_ts x_s,    a_ts = softmax_{s <= t}(x_tᵀ W_K x_s / √d)        twice; W_Q = 1
    x <- x + W_F x                                                                      if `feed`
    logits = W_U x

    tokens     (b, t) int, t <= length
    logits     (b, t, vocab)
    frozen     embed w_E, position p ~ N(0, 1), unembed W_U, value1, out1, value2 ~ U(±1/√d)
    trained    key1 W_K^1, key2 W_K^2, out2 W_O^2, and feed W_F ~ U(±1/√d)
    unit       embeddings of unit length on average: N(0, 1/d)
    Matrices are the paper's: they act on columns. The attention weights carry the name 'attn.probs'.
    """

    vocab: int = 65
    width: int = 128
    length: int = 256
    feed: bool = False
    unit: bool = False

    def __post_init__(self):
        for field in ("vocab", "width", "length"):
            self.check(getattr(self, field) > 1, field, "at least 2")

    @property
    def trained(self) -> tuple[str, ...]:
        return MEMORIES if self.feed else MEMORIES[:3]

    def params(self):
        n, d = self.vocab, self.width
        vector, map_ = Normal(d**-0.5 if self.unit else 1.0), Uniform(-(d**-0.5), d**-0.5)
        square = Spec((d, d), ("state", "embed"), map_, ins=("embed",))
        frozen = {
            "embed": Spec((n, d), ("vocab", "embed"), vector),
            "position": Spec((self.length, d), (None, "embed"), vector),
            "unembed": Spec((n, d), ("vocab", "embed"), map_),
        }
        return frozen | dict.fromkeys(("value1", "out1", "value2", *self.trained), square)

    def orthonormal(self, params: Params, key: Array) -> dict[str, Array]:
        """The weights with all embeddings, and what W_O^1 W_V^1 makes of them, orthonormal: the limit of a large width.

        The width must be at least 3 vocab + 2 length.
        """
        n, t, d = self.vocab, self.length, self.width
        self.check(3 * n + 2 * t <= d, "width", f"at least 3 · {n} + 2 · {t}, for as many orthonormal vectors")
        q = jnp.linalg.qr(jax.random.normal(key, (d, d), params["embed"].dtype))[0]
        e, p, u = q[:n], q[n : n + t], q[d - n :]
        one = jnp.eye(d, dtype=q.dtype)
        moved = jnp.roll(q, -(n + t), axis=0)  # what takes row i of q to row i + n + t
        return {**params, "embed": e, "position": p, "unembed": u, "out1": moved.T @ q, "value1": one, "value2": one}

    def apply(self, params: Params, tokens: Array) -> Array:
        """Logits of the next token.   (b, t) -> (b, t, vocab)"""
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise ShapeError(
                f"InductionTransformer: tokens {tokens.shape}, expected (b, t) with t at most {self.length}"
            )
        x = params["embed"][tokens] + params["position"][None, : tokens.shape[1]]
        x = self.layer(x, params["key1"], params["out1"] @ params["value1"])
        x = self.layer(x, params["key2"], params["out2"] @ params["value2"])
        if self.feed:
            x = x + x @ params["feed"].T
        return x @ params["unembed"].T

    def layer(self, x: Array, key: Array, moved: Array) -> Array:
        """x + W_O W_V (attention's mean of x).   moved = W_O W_V"""
        t = x.shape[1]
        scores = jnp.einsum("btd,bsd->bts", x @ key, x) / math.sqrt(self.width)
        past = jnp.tril(jnp.ones((t, t), bool))
        weights = name(jax.nn.softmax(jnp.where(past[None], scores, -jnp.inf), axis=-1), "attn.probs")
        return x + jnp.einsum("bts,bsd->btd", weights, x) @ moved.T

    def loss(self, params: Params, episodes: Episodes, head_only: bool = True) -> Array:
        """Mean cross-entropy in nats: at known triggers (count >= 2) alone, or everywhere."""
        each = nats(self.apply(params, episodes.inputs), episodes.targets)
        return mean_where(each, episodes.count >= 2) if head_only else jnp.mean(each)

    def measure(self, params: Params, episodes: Episodes) -> dict[str, Array]:
        """What the model does on sequences.

        accuracy          of the most likely token at known triggers (count >= 2)
        in_context_loss   cross-entropy in nats there
        global_loss       cross-entropy in nats where the token is no trigger
        previous          layer 1: after a trigger, the strongest weight is on the trigger
        copied            layer 2: at a known trigger, the strongest weight is on a token that is its output
        """
        inputs, targets, count = episodes.inputs, episodes.targets, episodes.count
        logits, taps = capture(self.apply, ["attn.probs"])(params, inputs)
        first, second = (jnp.argmax(a, axis=-1) for a in taps["attn.probs"])
        each, known = nats(logits, targets), count >= 2
        after = jnp.arange(1, inputs.shape[1])[None]
        return {
            "accuracy": mean_where(jnp.argmax(logits, -1) == targets, known),
            "in_context_loss": mean_where(each, known),
            "global_loss": mean_where(each, count == 0),
            "previous": mean_where(first[:, 1:] == after - 1, count[:, :-1] >= 1),
            "copied": mean_where(jnp.take_along_axis(inputs, second, axis=1) == targets, known),
        }

    def recall(
        self, params: Params, triggers: Array | None = None, early: int = 64, follow: Array | None = None
    ) -> dict[str, Array]:
        """Share of the ideal associations that a matrix has as its strongest: a query's key, an input's output.

        triggers   (n,) the tokens for which and among which W_K^2 is asked, 'key2_all': among all; None: all
        early      positions up to which W_K^1 is asked a second time, 'key1_early'
        follow     (vocab, vocab) π_b: adds 'feed', the KL divergence in nats of W_F's softmax from it on other tokens
        """
        e, p, u = params["embed"], params["position"], params["unembed"]
        own = jnp.arange(self.vocab) if triggers is None else jnp.asarray(triggers)
        matches = e[own] @ params["key2"] @ (e @ (params["out1"] @ params["value1"]).T).T
        before = p[1:] @ params["key1"] @ p[:-1].T
        found = {
            "out2": _diagonal((e @ params["value2"].T) @ params["out2"].T @ u.T),
            "key2": _diagonal(matches[:, own]),
            "key2_all": jnp.mean((jnp.argmax(matches, axis=-1) == own).astype(jnp.float32)),
            "key1": _diagonal(before),
            "key1_early": _diagonal(before[: early - 1, : early - 1]),
        }
        if self.feed and follow is not None:
            others = jnp.ones(self.vocab, bool) if triggers is None else jnp.ones(self.vocab, bool).at[own].set(False)
            guess = jax.nn.log_softmax(e @ params["feed"].T @ u.T, axis=-1)
            kl = jnp.sum(follow * (jnp.log(jnp.where(follow > 0, follow, 1.0)) - guess), axis=-1)
            found["feed"] = mean_where(kl, others)
        return found

    def ideal(
        self, params: Params, triggers: Array, scale: float = 15.0, follow: Array | None = None, least: float = 1e-4
    ) -> dict[str, Array]:
        """The weights with the associative memories written into the trained matrices (eq. 7 to 9).

        W_K^1 ∝ Σ_t p_t p_{t-1}ᵀ                      each token looks at the one before it
        W_K^2 ∝ Σ_q w_E(q) (W_O^1 W_V^1 w_E(q))ᵀ      a trigger looks for tokens that followed it
        W_O^2 ∝ Σ_k w_U(k) (W_V^2 w_E(k))ᵀ            what is attended to is copied
        W_F ∝ Σ_ij log π_b(j|i) w_U(j) w_E(i)ᵀ        the language's bigrams

        scale    nats that a written association adds to its attention score or logit (log π_b to those of W_F), if all
                 embeddings are orthogonal
        follow   (vocab, vocab) π_b, for W_F; probabilities below `least` count as `least`
        """
        e, p, u = params["embed"], params["position"], params["unembed"]
        asked, root = e[triggers], math.sqrt(self.width)
        written = {
            "key1": scale * root * _written(p[1:], p[:-1]),
            "key2": scale * root * _written(asked, asked @ (params["out1"] @ params["value1"]).T),
            "out2": scale * _written(u, e @ params["value2"].T),
        }
        if self.feed:
            if follow is None:
                raise ShapeError("follow = None: expected the bigrams (vocab, vocab) that W_F is to hold")
            written["feed"] = _written(jnp.log(jnp.maximum(follow, least)) @ u, e, u)
        return {**params, **written}


def mean_where(x: Array, where: Array) -> Array:
    """Mean over the places that count; nan if there are none."""
    x = wide(x) if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    return jnp.sum(jnp.where(where, x, 0)) / jnp.sum(where).astype(x.dtype)


def _written(v: Array, u: Array, size: Array | None = None) -> Array:
    """Σ_i v_i u_iᵀ, divided by the mean |v|² (of `size`, if given) and the mean |u|².   (n, d), (n, d) -> (d, d)"""
    squares = [jnp.mean(jnp.sum(a * a, axis=-1)) for a in (v if size is None else size, u)]
    return v.T @ u / (squares[0] * squares[1])


def _diagonal(scores: Array) -> Array:
    """Share of the rows whose largest entry is on the diagonal."""
    return jnp.mean((jnp.argmax(scores, axis=-1) == jnp.arange(scores.shape[0])).astype(jnp.float32))
