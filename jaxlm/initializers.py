"""Initializers: frozen values, equal by value, called as `init(key, spec) -> array`.

Fan-in is read from the Spec's contracted axes (`ins`), so that no initializer has to guess which axis is which.
`Layers` gives every layer of a stack its own key, folded from the layer's index, and tells it where it stands.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxlm.typing import Array


@runtime_checkable
class Initializer(Protocol):
    """Anything that makes a value for a Spec. Write a frozen dataclass: a Spec must stay hashable."""

    def __call__(self, key: Array, spec: Any) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Constant:
    value: float = 0.0

    def __call__(self, key: Array, spec: Any) -> Array:
        return jnp.full(spec.shape, self.value, spec.dtype)


Zeros, Ones = Constant(0.0), Constant(1.0)


@dataclasses.dataclass(frozen=True)
class Normal:
    """N(mean, std^2)."""

    std: float
    mean: float = 0.0

    def __call__(self, key: Array, spec: Any) -> Array:
        return self.mean + self.std * jax.random.normal(key, spec.shape, jnp.dtype(spec.dtype))


@dataclasses.dataclass(frozen=True)
class FanIn:
    """Normal of variance scale / fan-in, cut at two standard deviations and rescaled (LeCun: scale 1; He: scale 2)."""

    scale: float = 1.0

    def __call__(self, key: Array, spec: Any) -> Array:
        std = math.sqrt(self.scale / spec.fan_in) / 0.87962566103423978  # std of a unit normal cut at +-2
        return std * jax.random.truncated_normal(key, -2.0, 2.0, spec.shape, jnp.dtype(spec.dtype))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """U(low, high)."""

    low: float
    high: float

    def __call__(self, key: Array, spec: Any) -> Array:
        return jax.random.uniform(key, spec.shape, jnp.dtype(spec.dtype), self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The initializer of a stacked Spec: `inner` once per layer, each with the layer's index folded into the key.

    Leaf values of layer i do not depend on the depth. `first` and `every` place the layer in a hybrid pattern: unit i
    holds layer first + every * i of `depth`. An inner initializer with a method `at(layer, depth)` is told where it
    stands.
    """

    inner: Initializer
    spec: Any
    first: int = 0
    every: int = 1
    depth: int = 1

    def __call__(self, key: Array, spec: Any) -> Array:
        if isinstance(self.inner, Constant):
            return self.inner(key, spec)

        def one(unit: Array) -> Array:
            layer = self.first + self.every * unit
            inner = self.inner.at(layer, self.depth) if hasattr(self.inner, "at") else self.inner  # type: ignore[attr-defined]
            return inner(jax.random.fold_in(key, layer), self.spec)

        return jax.vmap(one)(jnp.arange(spec.shape[0]))


@dataclasses.dataclass(frozen=True)
class LogOfUniform:
    """log of U(low, high], e.g. A_log of a decay rate; never log 0."""

    low: float
    high: float

    def __call__(self, key: Array, spec: Any) -> Array:
        share = jax.random.uniform(key, spec.shape, jnp.dtype(spec.dtype))  # in [0, 1)
        return jnp.log(self.high - (self.high - self.low) * share)


@dataclasses.dataclass(frozen=True)
class StepBias:
    """The bias b of a time step softplus(b) that is log-uniform in [low, high] and at least `floor` (Gu & Dao 2023)."""

    low: float = 1e-3
    high: float = 1e-1
    floor: float = 1e-4

    def __call__(self, key: Array, spec: Any) -> Array:
        low, high = math.log(self.low), math.log(self.high)
        dt = jnp.exp(jax.random.uniform(key, spec.shape, jnp.dtype(spec.dtype), low, high))
        dt = jnp.maximum(dt, self.floor)
        return dt + jnp.log(-jnp.expm1(-dt))  # the inverse of softplus, without exp(dt) - 1
