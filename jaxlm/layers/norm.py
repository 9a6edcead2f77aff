"""Normalisations, computed wide."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Ones, Zeros
from jaxlm.module import Module, Spec
from jaxlm.typing import Array, Params, wide


def rms_norm(x: Array, gain: Array | None = None, eps: float = 1e-6) -> Array:
    """x / rms(x) * gain.   x (..., d), gain (d) or (h, d) or None

    The mean is over the last axis alone: with a gain (h, d) each head is normalised by itself.
    """
    y = wide(x)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if gain is not None:
        y = y * gain.astype(y.dtype).reshape((1,) * (y.ndim - gain.ndim) + gain.shape)
    return y.astype(x.dtype)


def layer_norm(x: Array, gain: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> Array:
    """(x - mean) / std * gain + bias over the last axis, biased variance.   x (..., d); gain, bias (d) or (h, d)"""
    y = wide(x)
    y = rms_norm(y - jnp.mean(y, axis=-1, keepdims=True), gain, eps)
    if bias is not None:
        y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    return y.astype(x.dtype)


def l2_norm(x: Array, eps: float = 1e-6) -> Array:
    """x / |x| over the last axis, finite with finite gradients at 0."""
    y = wide(x)
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(Module):
    """x / rms(x) * gain (Zhang & Sennrich 2019).   x, y (..., d)"""

    width: int
    eps: float = 1e-6

    def params(self):
        return {"gain": Spec((self.width,), ("embed",), Ones, keep=True)}

    def apply(self, params: Params, x: Array) -> Array:
        return rms_norm(x, params["gain"], self.eps)


class NoNorm(Module):
    """x as it is, where a block has a norm.   x, y (..., d)"""

    width: int

    def apply(self, params: Params, x: Array) -> Array:
        return x


class LayerNorm(Module):
    """(x - mean) / std * gain + bias, biased variance (Ba et al. 2016).   x, y (..., d)"""

    width: int
    eps: float = 1e-5

    def params(self):
        return {
            "gain": Spec((self.width,), ("embed",), Ones, keep=True),
            "bias": Spec((self.width,), ("embed",), Zeros, keep=True),
        }

    def apply(self, params: Params, x: Array) -> Array:
        return layer_norm(x, params["gain"], params["bias"], self.eps)
