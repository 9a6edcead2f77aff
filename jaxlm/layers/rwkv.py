"""What the RWKV family shares: mixing with the token before, the norm over heads, and its initial profiles."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import Constant, Ones, Zeros
from jaxlm.layers.norm import layer_norm
from jaxlm.module import Spec
from jaxlm.typing import Array, Params, wide


def lerp(x: Array, before: Array, mu: Array) -> Array:
    """x + (before - x) μ, rounded once: μ is the share of the token before.   x, before (b, t, d), mu (d)"""
    now = wide(x)
    return (now + (wide(before) - now) * mu.astype(now.dtype)[None, None]).astype(x.dtype)


def shares(d: int, powers: dict[str, float], steep: float = 1.0) -> dict[str, Spec]:
    """One μ a name, 1 - (i / d)^(power (1 - layer / layers)^steep): 1 in the first channel, less in the later.   (d)"""
    return {
        n: Spec((d,), ("embed",), Profile(1.0, fall=-1.0, power=p, steep=steep), keep=True) for n, p in powers.items()
    }


def group_gains(h: int, k: int) -> dict[str, Spec]:
    """Weights of `group_norm`.   gain, bias (h, k)"""
    return {n: Spec((h, k), ("heads", "head"), i, keep=True) for n, i in (("gain", Ones), ("bias", Zeros))}


def group_norm(params: Params, x: Array, eps: float) -> Array:
    """(x - mean) / std of each head, biased variance, times gain plus bias (Wu & He 2018).   x (b, t, h, k)"""
    return layer_norm(x, params["gain"], params["bias"], eps)


@dataclasses.dataclass(frozen=True)
class Profile:
    """A curve over all n channels of a Spec, some of it deeper in the stack (Peng et al. 2025, appendix on init).

    level   constant
    linear  times i / (n-1) - 1/2
    zigzag  times z |z|, z from -1 to 1 inside each head (the last axis)
    rise    times (i / (n-1))^(bend_0 + bend_1 depth^bend_2), depth from 0 in the first layer to 1 in the last
    fall    times (i / n)^(power (1 - layer / layers)^steep)
    """

    level: float = 0.0
    linear: float = 0.0
    zigzag: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    power: float = 1.0
    steep: float = 1.0
    bend: tuple[float, float, float] = (1.0, 1.0, 0.3)
    depth: Any = 0.0
    left: Any = 1.0

    def at(self, layer: Any, depth: int) -> "Profile":
        return dataclasses.replace(self, depth=layer / max(1, depth - 1), left=1 - layer / depth)

    def __call__(self, key: Array, spec: Any) -> Array:
        dtype, n, k = jnp.dtype(spec.dtype), spec.size, spec.shape[-1]
        place = jnp.arange(n, dtype=dtype)
        share = place / max(1, n - 1)
        z = (place % k) * (2 / max(1, k - 1)) - 1
        curve = self.level + self.linear * (share - 0.5) + self.zigzag * z * jnp.abs(z)
        if self.rise:
            low, more, power = self.bend
            curve += self.rise * share ** jnp.asarray(low + more * self.depth**power, dtype)
        if self.fall:
            curve += self.fall * (place / n) ** jnp.asarray(self.power * self.left**self.steep, dtype)
        return curve.reshape(spec.shape)


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """`gain` times an orthogonal matrix between the contracted axes, which come first, and the others together."""

    gain: float = 1.0

    def __call__(self, key: Array, spec: Any) -> Array:
        n = spec.fan_in
        flat = jax.nn.initializers.orthogonal(self.gain)(key, (n, spec.size // n), jnp.dtype(spec.dtype))
        return flat.reshape(spec.shape)


def constant(h: int, k: int, value: float) -> Spec:
    """A number for every channel of every head.   (h, k)"""
    return Spec((h, k), ("heads", "head"), Constant(value), keep=True)
