"""End-to-end memory networks: several soft reads of a story, trained from answers alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.babi import NIL
from jaxlm.errors import ShapeError
from jaxlm.initializers import Normal
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.typing import Array, Params, wide


class Inputs(NamedTuple):
    """What is known of a story before any weight: the position weights are affine in the place of a word, so that a
    sentence is two rows over the vocabulary, how often each word occurs and at which places in sum.

    story      (b, n, f)    rows of the sentences, f = vocab (bow) or 2 vocab
    question   (b, f)
    times      (b, n)       time indices, 1 = most recent, 0 = none
    weight     (b, n)       log of how many memories a slot stands for: 0 one, -inf none, log(e) for e empty ones
    place      ()           place of the time word, weighted as a word's ('pe-code'); 0 otherwise
    """

    story: Array
    question: Array
    times: Array
    weight: Array
    place: Array


class MemN2N(Module):
    """End-to-end memory network (Sukhbaatar et al. 2015; the authors' code where it differs).

    m_i = Σ_j l_j A x_ij + T_A(i)         c_i = Σ_j l_j C x_ij + T_C(i)         u = Σ_j l_j B q_j
    p = softmax_i(u m_i)                  u <- u + Σ_i p_i c_i  in each of K hops,  logits = W u

    tying        'adjacent': A of a hop = C of the hop before, B = the first A, W = the last C: K + 1 tables
                 'layerwise': one A, one C for all hops, u <- H u + o between them, B and W free
    encoding     'bow': l = 1
                 'pe': l_kj = (1 - j/J) - (k/d)(1 - 2j/J), J words in the sentence, times unweighted (the paper)
                 'pe-code': l_kj = 1 + 4 (k - (d+1)/2)(j - (J+1)/2)/(d J), J = words + 1, the time word is the last
    vocab        words, id 0 = nil, whose row is zero and gets no gradient
    memory       M, time rows: sentences that are told apart by age; `timed` False has none
    words        of the longest sentence
    relu         max(0, u) after each hop
    mask_empty   empty memories take no part in the softmax; the code leaves them in, with score 0

    As in the code, time rows lie in the words' tables and with adjacent tying are outputs too: v = vocab + M.
    """

    vocab: int
    width: int = 20
    hops: int = 3
    memory: int = 50
    words: int = 11
    tying: str = "adjacent"
    encoding: str = "pe-code"
    timed: bool = True
    relu: bool = False
    mask_empty: bool = False
    std: float = 0.1

    paper = "Sukhbaatar et al. 2015"

    def __post_init__(self):
        self.check(self.hops >= 1, "hops", "at least 1")
        self.check(self.tying in ("adjacent", "layerwise"), "tying", "'adjacent' or 'layerwise'")
        self.check(self.encoding in ("bow", "pe", "pe-code"), "encoding", "'bow', 'pe' or 'pe-code'")

    @property
    def rows(self) -> int:
        """v, rows of a table: words, then times."""
        return self.vocab + (self.memory if self.timed else 0)

    def params(self):
        d, init = self.width, Normal(self.std)
        free = {
            "question": Spec((self.vocab, d), ("vocab", "embed"), init),
            "hop": Spec((d, d), ("embed", "state"), init, ins=("embed",)),
            "answer": Spec((d, self.vocab), ("embed", "vocab"), init, ins=("embed",)),
        }
        tables = 2 if self.tying == "layerwise" else self.hops + 1
        shared = {"tables": Spec((tables, self.rows, d), ("layers", "vocab", "embed"), init)}
        return shared if self.tying == "adjacent" else {**shared, **free}

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(base, slope) of l_kj = base_k + slope_k g_j, g_j the place of word j.   (d,) each"""
        k, one = np.arange(1, self.width + 1) / self.width, np.ones(self.width)
        if self.encoding == "bow":
            return one, 0 * one
        return (1 - k, 2 * k - 1) if self.encoding == "pe" else (one, 4 * k - 2 * (self.width + 1) / self.width)

    def places(self, sentences: Array) -> Array:
        """g_j of each word.   (..., j) ids -> (..., j)"""
        j = jnp.arange(1, sentences.shape[-1] + 1, dtype=jnp.float32).reshape((1,) * (sentences.ndim - 1) + (-1,))
        if self.encoding == "pe-code":
            return jnp.broadcast_to(j / (self.words + 1) - (self.words + 2) / (2 * self.words + 2), sentences.shape)
        return j / jnp.maximum(1, (sentences != NIL).sum(-1, keepdims=True)).astype(jnp.float32)

    def bags(self, sentences: Array) -> Array:
        """Rows over the vocabulary: how often a word occurs, and the sum of its places.

        sentences   (..., j)   ids, NIL where there is no word
        ->          (..., f)   f = vocab (bow) or 2 vocab
        """
        if sentences.shape[-1] > self.words:
            raise ShapeError(f"MemN2N: sentences have {sentences.shape[-1]} words, expected at most {self.words}")
        hot = jax.nn.one_hot(jnp.where(sentences == NIL, -1, sentences), self.vocab, dtype=jnp.float32)
        if self.encoding == "bow":
            return hot.sum(-2)
        return jnp.concatenate([hot.sum(-2), (self.places(sentences)[..., None] * hot).sum(-2)], axis=-1)

    def inputs(self, story: Array, question: Array, times: Array | None = None) -> Inputs:
        """What `read` takes, of ids; shapes as `apply`."""
        story, question = jnp.asarray(story), jnp.asarray(question)
        if times is None:
            times = ages((story != NIL).any(-1).sum(-1), story.shape[1])
        empty = (story == NIL).all(-1) & (times == 0)
        weight = jnp.where(empty & self.mask_empty, -jnp.inf, 0.0)
        return Inputs(self.bags(story), self.bags(question), times, weight, self.place)

    @property
    def place(self) -> Array:
        """g of the time word, the last of the grid in 'pe-code'."""
        return jnp.float32(self.words / (2 * self.words + 2) if self.encoding == "pe-code" else 0)

    def apply(
        self, params: Params, story: Array, question: Array, times: Array | None = None, linear: bool | Array = False
    ) -> tuple[Array, Array]:
        """Answer questions.

        story      (b, n, j)    ids, oldest sentence first, NIL where there is none
        question   (b, j)       ids
        times      (b, n)       time indices, 1 = most recent, 0 = none; by default n, ..., 1 of the sentences there
        linear     bool or ()   linear start: p = u m without the softmax
        ->         (b, v) logits, v = rows (adjacent) or vocab;  (K, b, n) p of every hop
        """
        return self.read(params, self.inputs(story, question, times), linear)

    def read(self, params: Params, x: Inputs, linear: bool | Array = False) -> tuple[Array, Array]:
        """`apply` behind the embedding of ids as rows over the vocabulary, which a training run does once."""
        tables = self.nilled(params["tables"])
        story = self.embed(tables, x.story, x.times, x.place)  # (b, n, tables, d)
        adjacent = self.tying == "adjacent"
        first = tables[0, : self.vocab] if adjacent else self.nilled(params["question"])
        u = dense(x.question, self.mixed(first))
        seen = []
        for hop in range(self.hops):
            m, c = (story[:, :, i] for i in ((hop, hop + 1) if adjacent else (0, 1)))
            score = jnp.einsum("bd,bnd->bn", u, m)
            p = jax.nn.softmax(wide(score) + x.weight, axis=-1).astype(score.dtype)
            p = jnp.where(linear, score, p)  # what does not take part is empty: its score is 0
            seen.append(p)
            u = (u if adjacent else dense(u, params["hop"])) + jnp.einsum("bn,bnd->bd", p, c)
            u = jax.nn.relu(u) if self.relu else u
        w = tables[-1].T if adjacent else params["answer"]
        return dense(u, w), jnp.stack(seen)

    def nilled(self, table: Array) -> Array:
        """A table (..., v, d) with nil's row zero, in value and in gradient."""
        row = jax.lax.broadcasted_iota(jnp.int32, table.shape, table.ndim - 2)
        return jnp.where(row == NIL, jnp.zeros_like(table), table)

    def mixed(self, table: Array) -> Array:
        """Rows weighted for `bags`: one product gives the whole sum over the words.   (..., vocab, d) -> (..., f, d)"""
        base, slope = (jnp.asarray(w, table.dtype).reshape((1,) * (table.ndim - 1) + (-1,)) for w in self.weights())
        return table if self.encoding == "bow" else jnp.concatenate([base * table, slope * table], axis=-2)

    def embed(self, tables: Array, story: Array, times: Array, place: Array) -> Array:
        """Every table's view of the memories, times included.   (b, n, tables, d)"""
        mixed = self.mixed(tables[:, : self.vocab])
        if self.timed:
            base, slope = (jnp.asarray(w, tables.dtype) for w in self.weights())
            weight = base + slope * place if self.encoding == "pe-code" else jnp.ones_like(base)
            mixed = jnp.concatenate([mixed, weight[None, None] * tables[:, self.vocab :]], axis=-2)
            hot = jax.nn.one_hot(times - 1, self.memory, dtype=story.dtype)
            story = jnp.concatenate([story, hot], axis=-1)
        return dense(story, jnp.moveaxis(mixed, 0, 1))


def ages(lengths: Array, slots: int) -> Array:
    """Time indices of stories: n, n-1, ..., 1, then 0.   (b,) -> (b, slots)"""
    return jnp.maximum(0, lengths[:, None] - jnp.arange(slots, dtype=lengths.dtype)[None])


def noisy_ages(key: Array, lengths: Array, slots: int, memory: int, noise: float = 0.1) -> Array:
    """Time indices with random gaps, so that no distance is learned by heart (random noise, by the authors' code).

    Of 1..n+b, b uniform in {0..⌈noise n⌉}, a random n are kept, largest first; those above `memory` count as `memory`.

    lengths   (b,)         n of each story, at most `slots`
    ->        (b, slots)   0 behind the end of a story
    """
    most = np.ceil(noise * np.arange(slots + 1)).astype(np.int32)
    gaps, order = jax.random.split(key)
    share = jax.random.uniform(gaps, lengths.shape)
    gap = jnp.floor(share * (jnp.asarray(most)[lengths] + 1).astype(share.dtype)).astype(lengths.dtype)
    item = jnp.arange(slots + int(most[-1]), dtype=lengths.dtype)[None]
    draw = jax.random.uniform(order, (len(lengths), item.shape[1]))
    chosen = jnp.argsort(jnp.where(item < (lengths + gap)[:, None], draw, jnp.inf), axis=-1).astype(lengths.dtype) + 1
    kept = jnp.sort(jnp.where(item < lengths[:, None], chosen, 0), axis=-1, descending=True)[:, :slots]
    return jnp.minimum(kept, memory)
