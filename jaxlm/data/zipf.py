"""Facts with Zipf frequencies: few are met all the time, most almost never."""

from dataclasses import dataclass

import numpy as np

from jaxlm.data.errors import DataError


@dataclass(frozen=True)
class Zipf:
    """Inputs x = 0 .. inputs-1 with p(x) ∝ (x + 1)^-alpha, and one output for each (Cabannes et al. 2024).

    inputs    n
    alpha     >= 0; above 1 the frequent inputs hold most of the mass however many there are
    outputs   m; y = x mod m
    """

    inputs: int
    alpha: float
    outputs: int = 5

    def __post_init__(self):
        for field, low in (("inputs", 1), ("alpha", 0), ("outputs", 1)):
            if not getattr(self, field) >= low:
                raise DataError(f"Zipf.{field} = {getattr(self, field)}: expected at least {low}")

    @property
    def p(self) -> np.ndarray:
        """Frequencies, falling.   (n) float64, sum 1"""
        p = np.arange(1, self.inputs + 1, dtype=np.float64) ** -self.alpha
        return p / p.sum()

    @property
    def y(self) -> np.ndarray:
        """The output of every input.   (n) int32"""
        return np.arange(self.inputs, dtype=np.int32) % self.outputs

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Independent examples.   x (count), y (count), int32"""
        x = np.searchsorted(np.cumsum(self.p)[:-1], rng.random(count), side="right").astype(np.int32)
        return x, self.y[x]

    def counts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """How often each input occurs among `count` independent examples.   (n) int64"""
        return rng.multinomial(count, self.p)

    def unseen(self, count: int) -> float:
        """Expected mass of the inputs that `count` examples do not show: Σ p (1 - p)^count, as count^-(1 - 1/alpha)."""
        return float(np.sum(self.p * np.exp(count * np.log1p(-np.minimum(self.p, 1 - 1e-16)))))
