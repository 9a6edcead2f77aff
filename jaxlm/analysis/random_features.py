"""Ridge regression on random linear features: its test loss, measured on draws and predicted in closed form.

Latents x ~ N(0, diag λ), labels wᵀx + noise with w ~ N(0, I), features u x with u ~ N(0, 1).
Maloney, Roberts and Sully 2022, "A Solvable Model of Neural Scaling Laws".
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.typing import Array


def power_spectrum(latents: int, alpha: float) -> np.ndarray:
    """Variances that fall as a power: λ_i = i^-(1 + alpha), i from 1.   (m)"""
    return np.arange(1, latents + 1, dtype=np.float64) ** -(1 + alpha)


@partial(jax.jit, static_argnames=("features", "samples"))
def measure(
    keys: Array, spectrum: Array, features: int, samples: int, ridges: Array, noise: Array | float = 0.0
) -> Array:
    """Test losses of draws of features and samples, averaged exactly over test points and labels.

    keys      one draw each                                     (r,)
    spectrum  λ, in the precision that is wanted                (m,)
    ridges    γ >= 0; 0: the interpolation of least norm        (g,)
    noise     variance of the labels' noise, at test, too
    ->                                                          (r, g)

    With Φ = U s Vᵀ the labels' map to weights is V d Uᵀ, d = s / (s² + γ): the loss is quadratic in d.
    """
    dtype = spectrum.dtype

    def one(key: Array) -> Array:
        u, x = jnp.split(jax.random.normal(key, (features + samples, spectrum.size), dtype), [features])
        x = x * jnp.sqrt(spectrum)[None]
        left, s, right = jnp.linalg.svd(x @ u.T, full_matrices=False)
        a, b = right @ u, left.T @ x
        held = (s > s[0] * max(features, samples) * jnp.finfo(dtype).eps)[None]  # Φ has at most m ranks
        d = jnp.where(held, s[None] / jnp.where(held, s[None] ** 2 + ridges[:, None], 1), 0)
        spread = (a * spectrum[None]) @ a.T
        fit = d @ jnp.sum(a * b * spectrum[None], axis=1)
        square = jnp.sum((d @ (spread * (b @ b.T))) * d, axis=1)
        return jnp.sum(spectrum) - 2 * fit + square + noise * (1 + d**2 @ jnp.diag(spread))

    return jax.lax.map(one, keys)


def effective(spectrum: np.ndarray, kappa: float) -> float:
    """Latents that are resolved at a scale κ: df(κ) = Σ λ / (λ + κ)."""
    return float(np.sum(spectrum / (spectrum + kappa)))


def resolution(spectrum: np.ndarray, features: float, samples: float, ridge: float = 0.0) -> float:
    """The scale κ below which nothing is learned: γ = κ (N - df) (T - df), df < min(N, T).

    Without ridge, df(κ) = min(N, T): the paper's Δ. It vanishes where that is as many as the latents.
    """
    most = min(features, samples)
    low, high = -700.0, math.log(spectrum.sum() + ridge + 1.0) + 1.0
    while high - low > 1e-14 * max(1.0, abs(low)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        kappa = math.exp(middle)
        df = effective(spectrum, kappa)
        if df >= most or kappa * (features - df) * (samples - df) < ridge:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def predict(spectrum: np.ndarray, features: float, samples: float, ridge: float = 0.0, noise: float = 0.0) -> float:
    """The expected test loss, up to terms that fall with the sizes; infinite where N = T without ridge.

    features, samples  N and T; math.inf is allowed
    ridge, noise       γ and the variance of the labels' noise, which is in the loss, too
    """
    if features <= 0 or samples <= 0 or ridge < 0:
        raise ConfigError(f"N, T, ridge = {features}, {samples}, {ridge}: expected N, T > 0 and ridge >= 0")
    if features == samples <= len(spectrum) and ridge == 0:
        return math.inf
    return at_resolution(spectrum, features, samples, resolution(spectrum, features, samples, ridge), noise)


def at_resolution(spectrum: np.ndarray, features: float, samples: float, kappa: float, noise: float = 0.0) -> float:
    """The expected test loss at the ridge γ = κ (N - df) (T - df)."""
    kept = spectrum / (spectrum + kappa)
    df, q = kept.sum(), np.sum(kept**2)
    shift = kappa * (1 - df / features) / (1 - q / features)
    missed = np.sum(spectrum * (kappa / (spectrum + kappa) - shift * kept / (spectrum + kappa)))
    over = (q * (1 - 2 * df / features) + df**2 / features) / (samples * (1 - q / features))
    return float((missed + noise) / (1 - over))


def predict_ridgeless(spectrum: np.ndarray, features: float, samples: float) -> float:
    """L(N, T) = Δ / |1/N - 1/T|: without ridge and noise."""
    gap = abs(1 / features - 1 / samples)
    return resolution(spectrum, features, samples) / gap if gap else math.inf


def best_ridge(spectrum: np.ndarray, features: float, samples: float, noise: float = 0.0) -> tuple[float, float]:
    """(γ, loss) where the predicted loss is least: searched over κ, of which both are explicit."""
    low, high = math.log(resolution(spectrum, features, samples)), math.log(10 * spectrum.sum())
    for _ in range(8):
        grid = np.linspace(low, high, 33)[1:-1]
        found = [at_resolution(spectrum, features, samples, math.exp(k), noise) for k in grid]
        at, width = grid[int(np.argmin(found))], grid[1] - grid[0]
        low, high = max(low, at - width), min(high, at + width)
    kappa = math.exp(at)
    df = effective(spectrum, kappa)
    return kappa * (features - df) * (samples - df), min(found)


def limit(alpha: float) -> float:
    """c of L = c N^-alpha, the loss at T = ∞ with endless latents i^-(1 + alpha): Δ = c N^-(1 + alpha)."""
    x = math.pi / (1 + alpha)
    return (x / math.sin(x)) ** (1 + alpha)
