"""The loss of models of N parameters after D tokens: L = E + A N^-a + B D^-b, fitted as Hoffmann et al. 2022 do."""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.errors import ConfigError, ShapeError

KNEE = 1e-3  # of the Huber loss, in log loss
STEPS = 300
STARTS = ((0, 5, 10), (0, 5, 10), (0, 1), (0.2, 0.6), (0.2, 0.6))  # log A, log B, log E, a, b


class LossSurface(NamedTuple):
    """L(N, D) = E + A N^-a + B D^-b

    objective   the mean Huber loss of its logarithm
    """

    floor: float
    big_a: float
    big_b: float
    a: float
    b: float
    objective: float

    def __call__(self, sizes: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """The loss at other sizes and numbers of tokens."""
        n, d = np.asarray(sizes, float), np.asarray(tokens, float)
        return self.floor + self.big_a * n**-self.a + self.big_b * d**-self.b

    @property
    def exponent(self) -> float:
        """b / (a + b): the best size grows as compute to this power, tokens as compute to one minus it."""
        return self.b / (self.a + self.b)

    def best(self, compute: ArrayLike, cost: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) of the least loss among those with cost N D = compute."""
        product = np.asarray(compute, float) / cost
        scale = (self.a * self.big_a / (self.b * self.big_b)) ** (1 / (self.a + self.b))
        size = scale * product**self.exponent
        return size, product / size


def fit_loss_surface(sizes: ArrayLike, tokens: ArrayLike, losses: ArrayLike) -> LossSurface:
    """The surface whose logarithm is nearest to that of measured losses, by the Huber loss.

    sizes, tokens, losses   N, D and L, all positive        (n,), n > 5

    Many starts at once, each by damped Gauss-Newton steps with the Huber loss's weights; the best end is kept. a, E and
    the exponent are well determined, B and b only together. Hoffmann et al. 2022, eq. 10 and appendix D.2.
    """
    n, d, loss = (np.asarray(x, float) for x in (sizes, tokens, losses))
    if not n.shape == d.shape == loss.shape or n.ndim != 1:
        raise ShapeError(f"losses: shape {loss.shape}, expected that of sizes and tokens, one axis")
    if len(n) <= len(STARTS) or min(n.min(), d.min(), loss.min()) <= 0:
        raise ConfigError(f"losses: {len(n)} points, expected more than {len(STARTS)}, all positive")
    x, value = _descend(np.array(list(product(*STARTS)), float), np.log(n), np.log(d), np.log(loss))
    best = int(np.argmin(value))
    log_a, log_b, log_e, a, b = (float(p) for p in x[best])
    return LossSurface(float(np.exp(log_e)), float(np.exp(log_a)), float(np.exp(log_b)), a, b, float(value[best]))


def _residuals(x: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of log L, and their slopes by (log A, log B, log E, a, b).   x (s, 5) -> (s, n), (s, n, 5)"""
    floor = np.broadcast_to(x[:, 2:3], (len(x), len(log_n)))
    terms = np.stack([x[:, :1] - x[:, 3:4] * log_n, x[:, 1:2] - x[:, 4:] * log_d, floor], axis=-1)
    top = terms.max(axis=-1)
    total = top + np.log(np.sum(np.exp(terms - top[..., None]), axis=-1))
    share = np.exp(terms - total[..., None])
    slopes = [share, -share[..., :1] * log_n[:, None], -share[..., 1:2] * log_d[:, None]]
    return total - log_loss, np.concatenate(slopes, axis=-1)


def _huber(r: np.ndarray) -> np.ndarray:
    size = np.abs(r)
    return np.mean(np.where(size < KNEE, r**2 / 2, KNEE * (size - KNEE / 2)), axis=-1)


def _descend(x: np.ndarray, *data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every start (s, 5) at its minimum, and the mean Huber loss there.   -> (s, 5), (s)"""
    r, slopes = _residuals(x, *data)
    damping, value = np.full(len(x), 1e-2), _huber(r)
    for _ in range(STEPS):
        weight = np.minimum(1, KNEE / np.maximum(np.abs(r), KNEE))
        square = np.einsum("sni,sn,snj->sij", slopes, weight, slopes)
        pull = np.einsum("sni,sn,sn->si", slopes, weight, r)
        ridge = damping[:, None] * (np.einsum("sii->si", square) + 1e-12)
        move = np.linalg.solve(square + ridge[:, None] * np.eye(x.shape[1]), pull[..., None])[..., 0]
        tried = x - np.clip(move, -1, 1)
        r_new, slopes_new = _residuals(tried, *data)
        new = _huber(r_new)
        better = new < value
        x, r = np.where(better[:, None], tried, x), np.where(better[:, None], r_new, r)
        slopes, value = np.where(better[:, None, None], slopes_new, slopes), np.where(better, new, value)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if damping.min() > 1e9:  # no start finds a better place
            break
    return x, value
