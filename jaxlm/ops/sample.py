"""Choosing a token from logits: pure transforms, then one draw.

The order is fixed: penalty, temperature, top-k, top-p, min-p. A transform lowers what it drops to -inf and leaves the
rest as it is; what is left is sampled from its softmax. Every transform never drops the most probable token.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.typing import Array, wide


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: a frozen value, a legal static argument.

    temperature  logits are divided by it; 0 = the most probable token, lowest index on ties
    top_k        keep the k largest logits and what ties with the k-th; None: all
    top_p        keep the smallest set of most probable tokens with mass p or more (Holtzman et al. 2020); None: all
    min_p        keep tokens at least min_p times as probable as the most probable one (Nguyen et al. 2024); None: all
    repetition   logits of seen tokens are divided by it if positive, else multiplied (Keskar et al. 2019); 1: none
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition: float = 1.0

    def __post_init__(self):
        def check(field: str, ok: bool, expected: str) -> None:
            if not ok:
                raise ConfigError(f"Sampling.{field} = {getattr(self, field)!r}: expected {expected}")

        check("temperature", _number(self.temperature) and self.temperature >= 0, "a finite number, 0 (greedy) or more")
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool)
        check("top_k", self.top_k is None or (whole and self.top_k > 0), "None or a whole number, 1 or more")
        check("top_p", self.top_p is None or (_number(self.top_p) and 0 < self.top_p <= 1), "None or a share in (0, 1]")
        check(
            "min_p", self.min_p is None or (_number(self.min_p) and 0 <= self.min_p <= 1), "None or a share in [0, 1]"
        )
        check("repetition", _number(self.repetition) and self.repetition > 0, "a finite number above 0 (1: no penalty)")

    @property
    def greedy(self) -> bool:
        """Nothing is drawn, so no key is needed."""
        return self.temperature == 0


def _number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def keep(logits: Array, kept: Array) -> Array:
    """-inf where `kept` is False."""
    return jnp.where(kept, logits, jnp.asarray(-jnp.inf, logits.dtype))


def penalize(logits: Array, seen: Array, penalty: float) -> Array:
    """l / penalty for seen tokens with l > 0, l * penalty for other seen ones.   logits (..., n), seen (..., n) bool"""
    if penalty == 1:
        return logits
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def heat(logits: Array, temperature: float) -> Array:
    """(l - max l) / temperature, whose softmax is that of l / temperature without overflow at any temperature.

    logits (..., n);  temperature > 0, at 1 the identity
    """
    if temperature == 1:
        return logits
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature


def top_k(logits: Array, k: int | None) -> Array:
    """The k largest, and all that tie with the k-th.   logits (..., n);  k None, or at least n: the identity"""
    if k is None or k >= logits.shape[-1]:
        return logits
    return keep(logits, logits >= jax.lax.top_k(logits, k)[0][..., -1:])


def top_p(logits: Array, p: float | None) -> Array:
    """The smallest set of most probable tokens with mass >= p, lower indices first on ties.

    logits (..., n);  p in (0, 1]; None or 1: the identity
    """
    if p is None or p == 1:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    mass = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # Mass before each token. A parallel sum may round downwards here and there: the maximum keeps the set a prefix.
    before = jax.lax.cummax(jnp.cumsum(mass, axis=-1), axis=logits.ndim - 1)[..., :-1]
    kept = jnp.concatenate([jnp.ones_like(before[..., :1], dtype=bool), before < p], axis=-1)
    return keep(logits, jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False))


def min_p(logits: Array, p: float | None) -> Array:
    """Tokens with probability >= p times the largest one.   logits (..., n);  p in [0, 1]; None or 0: the identity"""
    if p is None or p == 0:
        return logits
    return keep(logits, logits >= jnp.max(logits, axis=-1, keepdims=True) + math.log(p))


def transform(logits: Array, sampling: Sampling, seen: Array | None = None) -> Array:
    """All transforms in their order; the softmax of the result is what is sampled.

    logits  (..., n)            temperature 0: after the penalty, the most probable token alone is left
    seen    (..., n) bool       tokens that were read or written before; needed where repetition != 1
    ->      (..., n) at least float32
    """
    logits = wide(logits)
    if sampling.repetition != 1:
        if seen is None or seen.shape != logits.shape:
            got = None if seen is None else seen.shape
            raise ShapeError(
                f"seen = {got}: expected shape {logits.shape}, as Sampling.repetition = {sampling.repetition}"
            )
        logits = penalize(logits, seen, sampling.repetition)
    if sampling.greedy:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        places = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
        return keep(logits, places == best)
    logits = heat(logits, sampling.temperature)
    return min_p(top_p(top_k(logits, sampling.top_k), sampling.top_p), sampling.min_p)


def sample(key: Array | None, logits: Array, sampling: Sampling = Sampling(), seen: Array | None = None) -> Array:
    """One token per row; a row's token depends on its own key and logits alone.

    key      (...) PRNG keys, one per row; may be None at temperature 0
    logits   (..., n)
    seen     (..., n) bool, see `transform`
    ->       (...) int32
    """
    logits = transform(logits, sampling, seen)
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if key is None or key.shape != logits.shape[:-1]:
        got = None if key is None else key.shape
        raise ShapeError(
            f"key = {got}: expected keys of shape {logits.shape[:-1]}, one per row of logits {logits.shape}"
        )
    draw = jax.random.categorical
    for _ in range(logits.ndim - 1):
        draw = jax.vmap(draw)
    return draw(key, logits).astype(jnp.int32)
