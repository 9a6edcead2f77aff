"""Activations by name, so that a hyperparameter can say which one and stay a plain value."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxlm.typing import Array


def relu_squared(x: Array) -> Array:
    """max(x, 0)^2 (So et al. 2021)."""
    return jnp.square(jax.nn.relu(x))


def elu_plus_one(x: Array) -> Array:
    """elu(x) + 1 > 0, the feature map of Katharopoulos et al. 2020; exp(x) below 0, without cancellation."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu2": relu_squared,
    "gelu": partial(jax.nn.gelu, approximate=True),  # the tanh form
    "gelu_erf": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}
