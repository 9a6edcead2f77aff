"""Hashing of memories: only facts that share a bucket with the question are scored (Weston et al. 2015, 3.3).

Every word has a label; a sentence lies in the buckets of its words' labels.
    word hash      labels 0 .. |W| - 1: a bucket per word
    cluster hash   labels by K-means on the embeddings (U_O)_w: words of like use share a bucket
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.typing import Array


def word_hash(words: int) -> Array:
    """A label of its own for every word.   -> (words,) int"""
    return jnp.arange(words, dtype=jnp.int32)


def cluster_hash(key: Array, embedded: Array, clusters: int, rounds: int = 20) -> Array:
    """Labels of words by K-means, begun with spread-out centres (Arthur & Vassilvitskii 2007).

    embedded   (|W|, n)       e.g. params['output']['slots'][FACT] of a MemNN
    clusters   at most |W|
    ->         (|W|,) int     0 .. clusters - 1
    """
    words = len(embedded)
    if not 1 <= clusters <= words:
        raise ConfigError(f"clusters = {clusters}: expected 1 to the number of words, {words}")

    def distances(centres: Array) -> Array:
        return jnp.sum((embedded[:, None] - centres[None]) ** 2, -1)

    keys = jax.random.split(key, clusters)
    centres = embedded[jax.random.randint(keys[0], (1,), 0, words)]
    for again in keys[1:]:
        far = jnp.min(distances(centres), 1)
        # Words that a centre lies on have no chance, unless all have none.
        centres = jnp.concatenate([centres, embedded[jax.random.categorical(again, jnp.log(far + 1e-30))][None]])

    def improve(_: int, centres: Array) -> Array:
        own = jax.nn.one_hot(jnp.argmin(distances(centres), 1), clusters, dtype=embedded.dtype)
        size = jnp.sum(own, 0)[:, None]
        return jnp.where(size > 0, own.T @ embedded / jnp.maximum(size, 1), centres)

    centres = jax.lax.fori_loop(0, rounds, improve, centres)
    return jnp.argmin(distances(centres), 1).astype(jnp.int32)


def buckets(labels: Array, bags: Array, count: int) -> Array:
    """Which buckets sentences lie in.   labels (|W|,), bags (..., |W|) counts -> (..., count) bool"""
    return (bags @ jax.nn.one_hot(labels, count, dtype=bags.dtype)) > 0


def candidates(labels: Array, count: int, question: Array, memory: Array) -> Array:
    """Facts that share a bucket with the question, as MemNN's `candidates`.

    labels     (|W|,) int
    count      number of buckets
    question   (b, |W|)         counts
    memory     (b, s, |W|)      counts
    ->         (b, s) bool
    """
    return jnp.any(buckets(labels, question, count)[:, None] & buckets(labels, memory, count), -1)


class Index(NamedTuple):
    """The facts of a large memory by bucket, on the host, so that facts in other buckets are not touched at all.

    labels   (|W|,)                    label of each word
    starts   (buckets + 1,)            where each bucket begins in
    facts    (entries,)                the slots of its facts, ascending
    """

    labels: np.ndarray
    starts: np.ndarray
    facts: np.ndarray

    @classmethod
    def of(cls, labels: Array | np.ndarray, sentences: Sequence[Sequence[int]]) -> "Index":
        """File sentences, given as ids of words, by the buckets of their words."""
        labels = np.asarray(labels)
        filed = [np.unique(labels[list(words)]) for words in sentences]
        bucket = np.concatenate([np.zeros(0, int), *filed]).astype(int)
        slot = np.repeat(np.arange(len(filed)), [len(f) for f in filed])
        sizes = np.bincount(bucket, minlength=int(labels.max()) + 1)
        return cls(labels, np.concatenate([[0], np.cumsum(sizes)]), slot[np.argsort(bucket, kind="stable")])

    def candidates(self, words: Sequence[int]) -> np.ndarray:
        """Slots of the facts that share a bucket with a question's words, ascending."""
        own = np.unique(self.labels[list(words)])
        found = [self.facts[self.starts[b] : self.starts[b + 1]] for b in own]
        return np.unique(np.concatenate([np.zeros(0, int), *found]))
