"""Unigram and bigram statistics of a text: what a Markov chain of its characters needs."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder

SHAKESPEARE = "tinyshakespeare/input.txt.gz"


@dataclass(frozen=True, eq=False)
class Bigrams:
    """Token frequencies and what follows what.

    unigram   (n,)      π_u, sums to 1
    follow    (n, n)    π_b: row i is the distribution of the token after i
    symbols   n names, in the order of the ids
    """

    unigram: np.ndarray
    follow: np.ndarray
    symbols: tuple[str, ...]

    @property
    def vocab(self) -> int:
        return len(self.symbols)

    @cached_property
    def entropies(self) -> tuple[float, float]:
        """(unigram, bigram) entropy in nats; the rows of π_b are weighted by π_u."""
        return float(_nats(self.unigram)), float(self.unigram @ _nats(self.follow))

    def frequent(self, count: int) -> tuple[int, ...]:
        """The ids of the most frequent tokens, most frequent first; equal ones by id."""
        return tuple(int(i) for i in np.argsort(-self.unigram, kind="stable")[:count])


def count_bigrams(text: str) -> Bigrams:
    """Statistics of a text's characters, ids in the order of the characters.

    A character that ends the text and occurs nowhere else is followed by any, as often as it occurs.
    """
    if len(text) < 2:
        raise DataError(f"text: {len(text)} characters, expected at least 2")
    codes, ids = np.unique(np.array([text]).view(np.uint32), return_inverse=True)
    n = len(codes)
    unigram = np.bincount(ids, minlength=n) / len(ids)
    pairs = np.bincount(ids[:-1] * n + ids[1:], minlength=n * n).reshape(n, n).astype(float)
    pairs = np.where(pairs.sum(1, keepdims=True) > 0, pairs, unigram[None])
    return Bigrams(unigram, pairs / pairs.sum(1, keepdims=True), tuple(chr(c) for c in codes))


def shakespeare_bigrams(data: DataFolder) -> Bigrams:
    """Statistics of tiny Shakespeare: 65 characters."""
    return count_bigrams(data.text(SHAKESPEARE))


def random_bigrams(seed: int, vocab: int = 65, concentration: float = 0.1) -> Bigrams:
    """A synthetic text's statistics: rows drawn from a Dirichlet distribution, unigrams their stationary distribution.

    concentration   of the Dirichlet distribution; small: few tokens follow each
    """
    if vocab < 2 or concentration <= 0:
        raise DataError(f"vocab={vocab}, concentration={concentration}: expected at least 2 tokens and a positive one")
    rng = np.random.default_rng(seed)
    follow = rng.dirichlet(np.full(vocab, concentration), size=vocab) + 1e-6
    follow /= follow.sum(1, keepdims=True)
    # Stationary: π (P - 1) = 0 with Σ π = 1, as least squares with the sum as one equation more.
    system = np.concatenate([follow.T - np.eye(vocab), np.ones((1, vocab))])
    unigram = np.linalg.lstsq(system, np.eye(vocab + 1)[-1], rcond=None)[0].clip(0)
    return Bigrams(unigram / unigram.sum(), follow, tuple(f"t{i}" for i in range(vocab)))


def _nats(p: np.ndarray) -> np.ndarray:
    """Entropy of distributions along the last axis; 0 log 0 = 0."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)
