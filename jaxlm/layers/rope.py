"""Rotary positions as a value: how queries and keys turn with their place, also beyond the trained length.

A pair i of the k/2 turns by p f_i at place p, f_i = base^(-2i/k). A scaling changes the rates f_i. Where it depends on
the length n of the text (DynamicNTK, LongRope), a token of place p turns by the rates of n = p + 1: what one-token
decoding gives, whose cached keys keep their angles. `Rope.at(n)` is the rotation of a text known to have n tokens.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ShapeError
from jaxlm.module import Module
from jaxlm.typing import Array, wide


def plain_rates(base: float, k: int) -> np.ndarray:
    """f_i = base^(-2i/k).   (k/2)"""
    return base ** (-2.0 * np.arange(k // 2) / k)


class Scaling(Module):
    """What becomes of the rates, and of the size of cosines and sines."""

    @property
    def size(self) -> float:
        """Factor of cosines and sines."""
        return 1.0

    def rates(self, base: float, k: int, n: Any) -> Any:
        """Angle a place of each pair in a text of n tokens.   n a number or (...) -> (k/2) or (..., k/2)"""
        raise NotImplementedError

    def at(self, n: int) -> "Scaling":
        """The scaling of a text known to have n tokens."""
        return self

    @property
    def fixed(self) -> bool:
        """The same rates at any length."""
        return type(self).at is Scaling.at


class Interpolation(Scaling):
    """f_i / s: places pressed together, 'linear' (Chen et al. 2023)."""

    factor: float

    def __post_init__(self):
        self.check(self.factor > 0, "factor", "a positive number")

    def rates(self, base, k, n):
        return plain_rates(base, k) / self.factor


class NTK(Scaling):
    """base s^{k/(k-2)}: pair 0 keeps its rate, the slowest is divided by s (NTK-aware, bloc97 2023)."""

    factor: float

    def __post_init__(self):
        self.check(self.factor > 0, "factor", "a positive number")

    def rates(self, base, k, n):
        return plain_rates(base, k) * _slower(self.factor, k)


class DynamicNTK(Scaling):
    """NTK of s n/L - (s - 1) where n tokens exceed L; nothing up to there (emozilla 2023).

    length    L, tokens seen in training
    """

    factor: float
    length: int

    def __post_init__(self):
        self.check(self.factor >= 1, "factor", "at least 1")
        self.check(self.length > 0, "length", "a positive number of tokens")

    def rates(self, base, k, n):
        x = jnp.maximum(self.factor * jnp.asarray(n, jnp.float32) / self.length - (self.factor - 1), 1)
        return _last(plain_rates(base, k), x) * _slower(x[..., None], k)

    def at(self, n: int) -> NTK:
        return NTK(max(self.factor * n / self.length - (self.factor - 1), 1.0))


class Llama3(Scaling):
    """f_i for wavelengths 2π/f_i below L/high, f_i / s above L/low, between them a mixture (Llama 3.1, 2024)."""

    factor: float
    low: float
    high: float
    length: int

    def __post_init__(self):
        self.check(self.factor > 0, "factor", "a positive number")
        self.check(self.high > self.low > 0, "high", f"more than low = {self.low}, which is positive")

    def rates(self, base, k, n):
        f = plain_rates(base, k)
        turns = self.length * f / (2 * np.pi)  # L / wavelength
        keep = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return keep * f + (1 - keep) * f / self.factor


class YaRN(Scaling):
    """f_i for pairs that turn `fast` times or more within L, f_i / s for `slow` times or fewer, a ramp between them.

    Cosines and sines are multiplied by `amplitude`; None: 0.1 ln s + 1 (Peng et al. 2023, section 3).
    rounded   the ramp begins and ends at whole pairs
    """

    factor: float
    length: int
    fast: float = 32.0
    slow: float = 1.0
    amplitude: float | None = None
    rounded: bool = True

    def __post_init__(self):
        self.check(self.factor >= 1, "factor", "at least 1")
        self.check(self.fast > self.slow > 0, "fast", f"more than slow = {self.slow}, which is positive")

    @property
    def size(self) -> float:
        return 0.1 * math.log(self.factor) + 1 if self.amplitude is None else self.amplitude

    def rates(self, base, k, n):
        pair = lambda r: k * math.log(self.length / (2 * math.pi * r)) / (2 * math.log(base))  # turns r times in L  # noqa: E731
        low, high = pair(self.fast), pair(self.slow)
        if self.rounded:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, k - 1)
        ramp = np.clip((np.arange(k // 2) - low) / max(high - low, 1e-3), 0, 1)
        f = plain_rates(base, k)
        return f * (1 - ramp) + f / self.factor * ramp


class LongRope(Scaling):
    """f_i divided by a factor a pair: `short` up to L tokens, `long` beyond (Ding et al. 2024).

    short, long   factors                  (k/2) each
    length        L, tokens seen in training
    factor        s, by which the text grows: cosines and sines times sqrt(1 + ln s / ln L)
    amplitude     of cosines and sines, if it is known otherwise
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    length: int
    factor: float = 1.0
    amplitude: float | None = None

    def __post_init__(self):
        self.check(len(self.short) == len(self.long), "long", f"as many factors as short, {len(self.short)}")
        self.check(min(self.short + self.long, default=0) > 0, "short", "positive factors, one a pair")
        self.check(self.length > 1, "length", "more than one token")

    @property
    def size(self) -> float:
        if self.amplitude is not None:
            return self.amplitude
        return math.sqrt(1 + math.log(max(self.factor, 1.0)) / math.log(self.length))

    def rates(self, base, k, n):
        if len(self.short) != k // 2:
            raise ShapeError(f"LongRope.short: got {len(self.short)} factors, expected one for each of {k // 2} pairs")
        n = jnp.asarray(n)
        short, long = (_last(plain_rates(base, k) / np.array(f), n) for f in (self.short, self.long))
        return jnp.where((n > self.length)[..., None], long, short)

    def at(self, n: int) -> "LongRope":
        one = self.long if n > self.length else self.short
        return LongRope(one, one, self.length, self.factor, self.amplitude)


class Rope(Module):
    """Queries and keys turned by angles in proportion to their places (Su et al. 2021).

    base          of the rates base^(-2i/k)
    fraction      share of the head that turns: its first dimensions; the rest has no place (GPT-NeoX)
    scaling       of the rates beyond the trained length; None: none
    interleaved   pairs (2i, 2i + 1), as in the paper; else the half layout (i, i + k/2) of Llama's public weights.
                  One is the other with the order (0, 2, 4, ..., 1, 3, 5, ...) inside each head.
    """

    base: float = 10000.0
    fraction: float = 1.0
    scaling: Scaling | None = None
    interleaved: bool = False

    def __post_init__(self):
        self.check(self.base > 0, "base", "a positive number")
        self.check(0 <= self.fraction <= 1, "fraction", "a share in [0, 1]")

    def turning(self, k: int) -> int:
        """How many dimensions of a head of width k turn."""
        return int(self.fraction * k)

    @property
    def fixed(self) -> bool:
        """The same rates at any length."""
        return self.scaling is None or self.scaling.fixed

    def at(self, n: int) -> "Rope":
        """The rotation of a text known to have n tokens."""
        scaling = None if self.scaling is None else self.scaling.at(n)
        return Rope(self.base, self.fraction, scaling, self.interleaved)

    def turn(self, x: Array, places: Array) -> Array:
        """x with its pairs turned.

        x        (b, t, h, k)
        places   (b, t) or (1, t) integers
        ->       (b, t, h, k) in x's dtype;  angles are at least float32
        """
        r = self.turning(x.shape[-1]) if x.ndim == 4 else 1
        if r % 2 or places.shape not in (x.shape[:2], (1, x.shape[1])):
            raise ShapeError(f"Rope: x {x.shape}, places {places.shape}, expected (b, t, h, even), (b or 1, t)")
        if r == 0:
            return x
        cos, sin = self._waves(places, r, wide(x).dtype)
        y = wide(x[..., :r])
        if self.interleaved:
            u, v = y[..., 0::2], y[..., 1::2]
            y = jnp.stack([u * cos - v * sin, v * cos + u * sin], axis=-1).reshape(y.shape)
        else:
            u, v = jnp.split(y, 2, axis=-1)
            y = jnp.concatenate([u * cos - v * sin, v * cos + u * sin], axis=-1)
        y = y.astype(x.dtype)
        return y if r == x.shape[-1] else jnp.concatenate([y, x[..., r:]], axis=-1)

    def _waves(self, places: Array, r: int, dtype: Any) -> tuple[Array, Array]:
        """Cosines and sines of the angles, times the amplitude.   (b or 1, t, 1, r/2) each"""
        scaling = self.scaling
        rates = plain_rates(self.base, r) if scaling is None else scaling.rates(self.base, r, places + 1)
        rates = jnp.asarray(rates, dtype)
        rates = rates[None, None] if rates.ndim == 1 else rates
        angles = (places.astype(dtype)[:, :, None] * rates)[:, :, None]
        size = 1.0 if scaling is None else scaling.size
        return jnp.cos(angles) * size, jnp.sin(angles) * size


def _slower(s: Any, k: int) -> Any:
    """s^(-2i/(k-2)): what base s^{k/(k-2)} makes of the rates.   s a number or (..., 1) -> (k/2) or (..., k/2)"""
    power = -2.0 * np.arange(k // 2) / max(k - 2, 1)
    return s ** (_last(power, s[..., 0]) if isinstance(s, Array) else power)


def _last(x: np.ndarray, n: Array) -> Array:
    """x as the last axis beside those of n, float32.   (k/2) -> (1, ..., k/2)"""
    return jnp.asarray(x, jnp.float32).reshape((1,) * n.ndim + (-1,))
