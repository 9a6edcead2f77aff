"""Losses of fine-tuning by the size of its data: a power law that begins late, for what a model already knows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import ConfigError, ShapeError

STEEPEST, FLATTEST = 4.0, 1 / 16  # exponents are looked for between them
NODES = 33


class RectifiedLaw(NamedTuple):
    """L(D) = B / (F t + D^β) + E of some models, one t for all

    scale, exponent, floor   B, β and E                (m,) each
    shift                    F t                       (m,)
    time                     t; 0: the plain power law
    squares                  sum of squared errors of the fit
    """

    scale: np.ndarray
    exponent: np.ndarray
    floor: np.ndarray
    shift: np.ndarray
    time: float
    squares: float

    def __call__(self, sizes: ArrayLike) -> np.ndarray:
        """The losses at other sizes.   (n,) -> (m, n)"""
        power = np.asarray(sizes, float)[None] ** self.exponent[:, None]
        return self.scale[:, None] / (self.shift[:, None] + power) + self.floor[:, None]


def fit_rectified_law(sizes: ArrayLike, losses: ArrayLike, kernels: ArrayLike, times: ArrayLike) -> RectifiedLaw:
    """The least-squares laws of some models' losses, t one of those that are tried.

    sizes     D > 0                               (n,)
    losses    of each model                       (m, n)
    kernels   F of each model, known before       (m,)
    times     t that are tried; (0,) alone fits plain power laws        (k,)

    B and E are not negative. For each t and β they are linear, so that only β is searched, for every model alone, and
    the t is taken whose squares are least in all. Zeng et al. 2025; with a fitted shift Lin et al. 2024.
    """
    d, loss, f, t = (np.asarray(x, float) for x in (sizes, losses, kernels, times))
    if loss.shape != (len(f), len(d)):
        raise ShapeError(f"losses: shape {loss.shape}, expected (kernels, sizes), {(len(f), len(d))}")
    if d.min() <= 0 or f.min() < 0 or t.min() < 0:
        raise ConfigError("sizes, kernels, times: expected positive sizes, and no kernel or time below 0")
    d_log, shift = np.log(d), t[:, None] * f[None]

    def at(log_exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(squares, B, E) at exponents (k, m, g)."""
        x = 1 / (shift[..., None, None] + np.exp(np.exp(log_exponent)[..., None] * d_log))
        return _line(x, loss[:, None])

    low, high = (np.full(shift.shape, np.log(x)) for x in (FLATTEST, STEEPEST))
    for _ in range(10):  # a grid over log β that closes in on its best point
        grid = np.linspace(low, high, NODES, axis=-1)
        best = np.argmin(at(grid)[0], axis=-1)[..., None]
        low, high = (np.take_along_axis(grid, np.clip(best + i, 0, NODES - 1), -1)[..., 0] for i in (-1, 1))
    middle = (low + high) / 2
    squares, scale, floor = (x[..., 0] for x in at(middle[..., None]))
    n = int(np.argmin(squares.sum(axis=1)))
    return RectifiedLaw(scale[n], np.exp(middle[n]), floor[n], shift[n], float(t[n]), float(squares[n].sum()))


def _line(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(squares, B, E) of the best loss = B x + E, neither negative, along the last axis."""
    mean, level = x.mean(axis=-1), loss.mean(axis=-1)
    gap = x - mean[..., None]
    b = np.sum(gap * loss, axis=-1) / np.maximum(np.sum(gap**2, axis=-1), 1e-300)
    e = level - b * mean
    b = np.where(e < 0, np.sum(x * loss, axis=-1) / np.sum(x**2, axis=-1), b)
    e = np.where(b < 0, level, np.maximum(e, 0.0))
    b = np.maximum(b, 0.0)
    return np.sum((b[..., None] * x + e[..., None] - loss) ** 2, axis=-1), b, e
