"""A learned segmenter: where a stream of words without stops is to be cut into facts (Weston et al. 2015, 3.2)."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Normal
from jaxlm.module import Module, Spec
from jaxlm.typing import Array, Params


class Segmenter(Module):
    """seg(c) = W_segᵀ U_S Φ_seg(c), Φ_seg(c) the bag of the words since the last cut; cut where seg(c) > γ.

    words    size of its own dictionary; word 0 is no word
    width    n, rows of U_S
    margin   γ
    """

    words: int
    width: int = 100
    margin: float = 0.1

    def params(self):
        n = self.width
        return {
            "embed": Spec((self.words, n), ("vocab", "embed"), Normal(n**-0.5)),
            "weight": Spec((n,), ("embed",), Normal(n**-0.5)),
        }

    def values(self, params: Params, tokens: Array) -> Array:
        """What each word adds to seg, for a bag is linear.   tokens (..., t) int -> (..., t), 0 for word 0"""
        each = params["embed"] @ params["weight"]
        return jnp.where(tokens == 0, 0, each[tokens])

    def score(self, params: Params, tokens: Array) -> Array:
        """seg of whole segments.   tokens (..., t), filled up with 0 -> (...)"""
        return jnp.sum(self.values(params, tokens), -1)

    def best(self, params: Params, tokens: Array) -> Array:
        """max over i <= j of seg(tokens i..j), the best piece of each segment.   (..., t) -> (...)

        Word 0 may only fill up behind. A piece is a difference of two running sums: one pass instead of all pairs.
        """
        after = jnp.cumsum(self.values(params, tokens), -1)
        before = jnp.concatenate([jnp.zeros_like(after[..., :1]), after[..., :-1]], -1)
        pieces = after - jax.lax.cummin(before, axis=before.ndim - 1)
        return jnp.max(jnp.where(tokens == 0, -jnp.inf, pieces), -1)

    def hinge(self, scores: Array, facts: Array) -> Array:
        """max(0, γ - seg) for supporting segments, max(0, γ + seg) for others.   facts (...) bool"""
        return jax.nn.relu(self.margin + jnp.where(facts, -scores, scores))

    def loss(self, params: Params, tokens: Array, facts: Array) -> Array:
        """Where it is known which segments hold a fact, not where it ends: the best piece is judged.

        tokens   (b, t)         segments, filled up with 0
        facts    (b,) bool      in F, the supporting ones
        ->       (b,)
        """
        return self.hinge(self.best(params, tokens), facts)

    def exact_loss(self, params: Params, tokens: Array, facts: Array) -> Array:
        """Where the cut is known: a segment as a whole is judged; unfinished ones belong to the others."""
        return self.hinge(self.score(params, tokens), facts)

    def cuts(self, params: Params, tokens: Array) -> Array:
        """Whether a segment ends with each word; the sum begins anew behind a cut.   (b, t) -> (b, t) bool"""

        def step(total: Array, value: Array) -> tuple[Array, Array]:
            total = total + value
            cut = total > self.margin
            return jnp.where(cut, 0, total), cut

        values = self.values(params, tokens)
        return jax.lax.scan(step, jnp.zeros_like(values[:, 0]), values.T)[1].T

    def bags(self, params: Params, tokens: Array, room: int) -> tuple[Array, Array]:
        """The stream as facts for a memory: a bag a segment, in order. Words behind the last cut are not written.

        room    segments held; later ones are left out, `count` tells
        ->      (b, room, |W|) counts, (b,) int segments found
        """
        cuts = self.cuts(params, tokens).astype(jnp.int32)
        segment = jnp.cumsum(cuts, 1) - cuts  # the cutting word itself belongs to the segment that it ends
        count = jnp.sum(cuts, 1)
        held = (jnp.arange(room)[None, :, None] == segment[:, None]) & (segment < count[:, None])[:, None]
        words = jax.nn.one_hot(tokens, self.words) * (tokens != 0)[..., None].astype(jnp.float32)
        return held.astype(jnp.float32) @ words, count
