"""Scaling laws: a loss that falls with size as a power, to a floor; fitted with error bars."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import ConfigError, ShapeError

STEEPEST = 8.0  # exponents are looked for between 1 / STEEPEST**2 and this


class PowerLaw(NamedTuple):
    """L(N) = a N^-b + c

    error   standard errors of a, b and c, 0 for a c that was given; nan without a size to spare
    r2      share of the variance of L that the law explains
    """

    a: float
    b: float
    c: float
    error: tuple[float, float, float]
    r2: float

    def __call__(self, sizes: ArrayLike) -> np.ndarray:
        """The loss at other sizes."""
        return self.a * np.asarray(sizes, float) ** -self.b + self.c


def fit_power_law(sizes: ArrayLike, losses: ArrayLike, floor: float | None = None) -> PowerLaw:
    """The least-squares power law of some measured losses.

    sizes    N > 0, at least three different ones       (n,)
    losses                                              (n,)
    floor    c where it is known, 0 for a pure power; None: fitted, 0 at least

    For each b the best a and c are linear, so only b is searched. Errors are those of the linearised model at the
    best fit. Raises ConfigError for losses that do not fall. Kaplan et al. 2020, eq. 1.1; Hoffmann et al. 2022.
    """
    n, loss = np.asarray(sizes, float), np.asarray(losses, float)
    if n.ndim != 1 or n.shape != loss.shape:
        raise ShapeError(f"losses: shape {loss.shape}, expected that of sizes, {n.shape}, one axis")
    if len(np.unique(n)) < 3 or n.min() <= 0:
        raise ConfigError(f"sizes = {n.tolist()}: expected at least three different positive numbers")
    if np.polyfit(np.log(n), loss, 1)[0] >= 0:
        raise ConfigError(f"losses = {loss.tolist()}: expected to fall with size")
    scale = np.exp(np.mean(np.log(n)))  # sizes about 1: a and c are then of one magnitude

    def best(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sums of squares, a, c) at exponents (m)."""
        x = (n / scale) ** -b[:, None]
        mean, level = (x.mean(axis=1), loss.mean()) if floor is None else (np.zeros(len(b)), floor)
        gap = x - mean[:, None]
        a = gap @ (loss - level) / np.sum(gap**2, axis=1)
        c = level - a * mean
        if floor is None:
            a, c = np.where(c < 0, x @ loss / np.sum(x**2, axis=1), a), np.maximum(c, 0.0)
        return np.sum((a[:, None] * x + c[:, None] - loss) ** 2, axis=1), a, c

    low, high = -2 * np.log(STEEPEST), np.log(STEEPEST)
    for _ in range(12):  # a grid over log b that closes in on its best point
        grid = np.linspace(low, high, 65)
        at = int(np.argmin(best(np.exp(grid))[0]))
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, 64)]
    b = float(np.exp((low + high) / 2))
    squares, a, c = (float(found[0]) for found in best(np.array([b])))
    x = (n / scale) ** -b
    slopes = [x, -a * np.log(n / scale) * x, np.ones_like(n)][: 2 if floor is not None else 3]
    error = _errors(np.stack(slopes, axis=1), squares)
    # a of sizes themselves: its logarithm is log a' + b log scale.
    turn = np.array([scale**b, a * scale**b * np.log(scale), 0.0])[: len(error)]
    a_error = float(np.sqrt(turn @ error @ turn))
    b_error, c_error = float(np.sqrt(error[1, 1])), float(np.sqrt(error[2, 2])) if len(error) == 3 else 0.0
    r2 = 1 - squares / float(np.sum((loss - loss.mean()) ** 2))
    return PowerLaw(a * scale**b, b, c, (a_error, b_error, c_error), r2)


def _errors(slopes: np.ndarray, squares: float) -> np.ndarray:
    """The covariance of fitted numbers, from the model's slopes by each (n, m) and the sum of squares."""
    spare = slopes.shape[0] - slopes.shape[1]
    if spare < 1:
        return np.full((slopes.shape[1],) * 2, np.nan)
    return np.linalg.pinv(slopes.T @ slopes) * squares / spare


def slope(sizes: ArrayLike, losses: ArrayLike) -> float:
    """The exponent of a law without floor, L = a N^slope: least squares of log L on log N."""
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(losses, float)), 1)[0])
