"""The loss of a readout over very many classes, from a few classes drawn at random."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.ops.dense import dense
from jaxlm.typing import Array, wide

Rows = Callable[[Array], Array]
TICKS = (1 << 31) - 1  # of the ruler that classes are drawn from


@dataclass(frozen=True)
class LogUniform:
    """Draws of distinct classes, frequent ones more often: P(w is drawn) = min(1, c log((w + 2) / (w + 1))).

    classes    n, numbered by falling frequency; the logarithms are Zipf's law
    samples    k <= n, drawn together; c makes the probabilities sum to k
    Each class has a stretch of a ruler, and points one unit apart, at a common random offset, fall into k of them
    (systematic sampling, Madow 1949): so the probability of a class is the length of its stretch, exactly.
    """

    classes: int
    samples: int

    def __post_init__(self):
        if not 0 < self.samples <= self.classes:
            raise ConfigError(f"LogUniform.samples = {self.samples}: expected 1 to {self.classes}, the classes")
        if self.classes > 1 << 24:
            raise ConfigError(f"LogUniform.classes = {self.classes}: expected at most 2^24, as stretches are ticks")

    @property
    def unit(self) -> int:
        """Ticks between two points; no stretch is longer, so none holds two points."""
        return TICKS // self.samples

    @cached_property
    def stretches(self) -> np.ndarray:
        """Ticks of each class, in sum samples * unit.   (n,) int64"""
        n, k, unit = self.classes, self.samples, self.unit
        p = np.log1p(1 / np.arange(1, n + 1))
        scale = (k - np.arange(n)) / np.cumsum(p[::-1])[::-1]  # c, if the classes before this one are always drawn
        always = int(np.argmax(scale * p <= 1 + 1e-9))
        exact = np.where(np.arange(n) < always, 1.0, np.minimum(1, scale[always] * p)) * unit
        ticks = np.floor(exact).astype(np.int64)
        ticks[np.argsort(ticks - exact, kind="stable")[: k * unit - ticks.sum()]] += 1
        return ticks

    @cached_property
    def log_counts(self) -> np.ndarray:
        """log of how often a draw holds each class, on the average.   (n,) float32"""
        return np.log(self.stretches / self.unit).astype(np.float32)

    def draw(self, key: Array) -> Array:
        """k distinct classes, in rising order.   (k,) int32"""
        ends = jnp.asarray(np.cumsum(self.stretches).astype(np.uint32))
        offset = jax.random.randint(key, (), 0, self.unit, jnp.uint32)
        points = offset[None] + jnp.asarray(np.arange(self.samples) * self.unit, jnp.uint32)
        return jnp.searchsorted(ends, points, side="right").astype(jnp.int32)


def sampled_nats(x: Array, rows: Rows, targets: Array, draw: LogUniform, key: Array) -> Array:
    """Importance-sampled softmax: cross-entropy among the target and drawn classes, logits less log expected counts.

    x         (..., d)
    rows      classes (...) int -> their rows of the readout (..., d)
    targets   (...) int
    ->        (...) nats, wide; with all classes drawn, those of the full softmax

    The right logits are its optimum at any number of samples (Jean et al. 2015; Jozefowicz et al. 2016, section 3.1). A
    target that is drawn too counts once. All x share one draw.
    """
    target, others, same = corrected(x, rows, targets, draw, key)
    others = jnp.where(same, -jnp.inf, others)
    return jax.nn.logsumexp(jnp.concatenate([target[..., None], others], axis=-1), axis=-1) - target


def nce_nats(x: Array, rows: Rows, targets: Array, draw: LogUniform, key: Array) -> Array:
    """Noise-contrastive estimation: nats of telling the target from drawn classes; arguments as `sampled_nats`.

    The optimum's logits are log probabilities that sum to 1 by themselves (Gutmann & Hyvarinen 2012).
    """
    target, others, _ = corrected(x, rows, targets, draw, key)
    return jax.nn.softplus(-target) + jnp.sum(jax.nn.softplus(others), axis=-1)


def corrected(x: Array, rows: Rows, targets: Array, draw: LogUniform, key: Array) -> tuple[Array, Array, Array]:
    """Logits less log expected counts, wide: of targets (...), of the drawn (..., k); which of these is the target."""
    drawn, counts = draw.draw(key), jnp.asarray(draw.log_counts)
    target = jnp.sum(wide(x) * wide(rows(targets)), axis=-1)
    others = wide(dense(x, rows(drawn).T))
    own = jnp.take(counts, drawn).astype(others.dtype).reshape((1,) * targets.ndim + (-1,))
    same = targets[..., None] == drawn.reshape((1,) * targets.ndim + (-1,)).astype(targets.dtype)
    return target - jnp.take(counts, targets).astype(target.dtype), others - own, same
