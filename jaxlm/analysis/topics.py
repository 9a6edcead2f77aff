"""What one layer has to learn of masked documents of topics, exactly (Li, Li and Risteski 2023).

A layer with uniform attention reads m, the shares of words in a document, and answers W m for a masked word y. Of the
places of a document, q shows its word, r a random one and k a mask; g = 1 / (q v). See `jaxlm.data.topics` for T, v, τ.
"""

from itertools import combinations

import numpy as np
from scipy.optimize import minimize

from jaxlm.data.topics import Masking, Topics


def shares(masking: Masking) -> tuple[float, float, float]:
    """q, r, k: of words shown as they are, random ones, and masks."""
    p = masking.share
    return 1 - (1 - masking.kept) * p, masking.random * p, (1 - masking.kept - masking.random) * p


def block_optimum(topics: Topics, masking: Masking) -> tuple[float, float, float]:
    """a, b, c of the smallest W that is best in long documents."""
    (q, r, k), t, v = shares(masking), topics.topics, topics.words
    g = 1 / (q * v)
    b = -(v * g + (q + r) * r * g / (t * k**2)) / (t * v + (q + r) ** 2 / k**2)
    return b + g, b, -((q + r) * b + r * g / t) / k


def block_matrix(topics: Topics, a: float, b: float, c: float) -> np.ndarray:
    """W of these blocks.   (T v, T v + 1)"""
    same = topics.of[:, None] == topics.of[None]
    return np.concatenate([np.where(same, a, b), np.full((topics.vocab, 1), c)], axis=1)


def long_optimum(topics: Topics, masking: Masking) -> np.ndarray:
    """The same W by least squares over all long documents there are.   (T v, T v + 1)"""
    q, r, k = shares(masking)
    chosen = np.array(list(combinations(range(topics.topics), topics.taken)))
    y = (topics.of[None, :, None] == chosen[:, None]).any(-1) / (topics.taken * topics.words)
    m = np.concatenate([q * y + r / topics.vocab, np.full((len(y), 1), k)], axis=1)
    return np.linalg.lstsq(m, y, rcond=None)[0].T


def optimum(topics: Topics, masking: Masking, length: int) -> np.ndarray:
    """W_n = E[y m'] E[m m']^-1, exactly: m holds the asked place ℓ and n - 1 others, independent given the topics.

    ->  (T v, T v + 1)
    """
    (q, r, k), n, size = shares(masking), length, topics.vocab
    u, mask = np.append(np.full(size, 1 / size), 0.0), np.append(np.zeros(size), 1.0)
    same, t, tau = topics.of[:, None] == topics.of[None], topics.topics, topics.taken
    pairs = np.zeros((size + 1, size + 1))  # E[φ φ'], φ the words' frequencies given the topics
    both = (tau - 1) / (t - 1) if t > 1 else 0.0
    pairs[:-1, :-1] = np.where(same, 1.0, both) * tau / t / (tau * topics.words) ** 2
    other, own = r * u + k * mask, masking.random * u + (1 - masking.kept - masking.random) * mask
    kept = masking.kept  # a place shows q φ + other in the mean, ℓ shows kept φ + own
    far = q**2 * pairs + q * (np.outer(u, other) + np.outer(other, u)) + np.outer(other, other)
    near = kept * q * pairs + kept * np.outer(u, other) + q * np.outer(own, u) + np.outer(own, other)
    single = np.diag(kept * u + own + (n - 1) * (q * u + other))
    moment = single + (n - 1) * (near + near.T) + (n - 1) * (n - 2) * far
    answer = kept * np.diag(u) + np.outer(u, own) + (n - 1) * (q * pairs + np.outer(u, other))
    return n * np.linalg.solve(moment, answer[:-1].T).T


def best_attention(topics: Topics, masking: Masking) -> float:
    """Weight on a word of the query's own topic over one of another, at its best for the block W in long documents."""
    (q, r, k), t, tau, v = shares(masking), topics.topics, topics.taken, topics.words
    a, b, c = block_optimum(topics, masking)
    there = (np.arange(t) < tau) / tau

    def cost(logits: np.ndarray, z: int) -> tuple[np.ndarray, float]:
        own, mask = np.exp(logits)
        mass = np.append((q * there + r / t) * np.where(np.arange(t) == z, own, 1.0), k * mask)
        mass /= mass.sum()
        out = (a - b) * mass[:-1] + b * mass[:-1].sum() + c * mass[-1]
        return out, v * out @ out

    def loss(logits: np.ndarray) -> float:
        """Of a query that shows a word: its own, or any."""
        right, paid = cost(logits, 0)
        wrong, lost = cost(logits, t - 1)
        known = masking.kept * (paid - 2 * right[0])
        guessed = [paid - 2 * there @ right, lost - 2 * there @ wrong]
        return known + masking.random * (tau * guessed[0] + (t - tau) * guessed[1]) / t

    return float(np.exp(minimize(loss, np.zeros(2), tol=1e-12).x[0]))
