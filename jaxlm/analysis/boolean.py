"""What learns a Boolean function from labelled points, for comparison: numpy, every label predicted from those before.

All take points x (b, m, n) of -1, 1 and labels y (b, m) of 0, 1, and give the predictions of every place, (b, m).
"""

import itertools
import math

import numpy as np


def majority(y: np.ndarray) -> np.ndarray:
    """The more frequent label so far; 1 where they are equal."""
    before = np.cumsum(2 * y - 1, axis=1) - (2 * y - 1)
    return (before >= 0).astype(int)


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The label of the first of the most similar points so far; 1 at the first place."""
    m, one = x.shape[1], np.ones((len(x), 1), int)
    alike = np.where(np.tri(m, k=-1, dtype=bool), x @ x.swapaxes(1, 2), -np.inf)
    return np.concatenate([one, np.take_along_axis(y, alike[:, 1:].argmax(-1), axis=1)], axis=1)


def least_squares(x: np.ndarray, y: np.ndarray, at: int) -> np.ndarray:
    """At place `at` the sign of the smallest affine map that fits the labels before best.   -> (b,)"""
    x = np.concatenate([x[:, : at + 1], np.ones((len(x), at + 1, 1))], axis=-1)
    w = np.linalg.pinv(x[:, :at]) @ (2.0 * y[:, :at, None] - 1)
    return (np.einsum("bn,bn->b", x[:, at], w[..., 0]) > 0).astype(int)


def elimination(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The strictest conjunction: 1 where the point has every literal that all positive points so far share.

    Of disjunctions: 1 - elimination(x, 1 - y).
    """
    seen = np.cumsum(x * y[..., None], axis=1) - x * y[..., None]  # sums over the positive points before
    count = (np.cumsum(y, axis=1) - y)[..., None]
    shared = np.where(np.abs(seen) == count, np.sign(seen), 0)
    return ((shared == 0) | (shared == x)).all(-1) * (count[..., 0] > 0)


def conjunctions(n: int) -> np.ndarray:
    """All but the empty one.   (3^n - 1, n) of -1, 0, 1"""
    every = np.array(list(itertools.product((-1, 0, 1), repeat=n)))
    return every[np.abs(every).sum(1) > 0]


def conjunction_points(w: np.ndarray, x: np.ndarray, forced: float) -> tuple[np.ndarray, np.ndarray]:
    """Which points satisfy which conjunctions, and how likely each point is, by ratio to a uniform one.

    A share `forced` of points has the conjunction's literals, so that a point tells of the function by itself.
    w (h, n), x (m, n) -> (h, m) bool, (h, m) log
    """
    size = np.abs(w).sum(1)
    met = x @ w.T == size[None]
    return met.T, np.log1p(forced * (np.where(met, 2.0**size, 0) - 1)).T


def bayes(log_prior: np.ndarray, value: np.ndarray, log_point: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(label 1) at every place, given the points up to it and the labels before it, over all hypotheses.

    log_prior (h,), value (h, m) bool, log_point (h, m), y (m,) -> (m,)
    """
    fits = np.where(value == (y == 1)[None], log_point, -np.inf)
    past = log_prior[:, None] + np.concatenate([np.zeros((len(value), 1)), np.cumsum(fits, axis=1)[:, :-1]], axis=1)
    now = past + log_point
    return np.exp(np.logaddexp.reduce(np.where(value, now, -np.inf)) - np.logaddexp.reduce(now))


def bayes_conjunctions(x: np.ndarray, y: np.ndarray, absent: float, forced: float) -> np.ndarray:
    """`bayes` of conjunctions whose variables are absent with that probability, of signs alike.   -> (b, m) P(1)"""
    w = conjunctions(x.shape[-1])
    size = np.abs(w).sum(1)
    log_prior = size * math.log((1 - absent) / 2) + (x.shape[-1] - size) * math.log(absent)
    return np.stack([bayes(log_prior, *conjunction_points(w, a, forced), b) for a, b in zip(x, y, strict=True)])
