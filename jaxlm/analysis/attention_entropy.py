"""How spread out attention is."""

import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxlm.typing import Array, wide


def attention_entropy(probs: Array) -> tuple[Array, Array]:
    """Entropy of causal attention in nats, and as a share of its maximum, log of the keys that a query sees.

    probs   of queries 1, ..., t over keys 1, ..., t      (..., t, t)
    ->      entropy, share                                (..., t); the first query sees itself alone: 0 and nan
    """
    probs = wide(probs)
    entropy = -jnp.sum(xlogy(probs, probs), axis=-1)
    most = jnp.log(jnp.arange(1, probs.shape[-1] + 1, dtype=probs.dtype))
    most = most.reshape((1,) * (entropy.ndim - 1) + most.shape)
    return entropy, entropy / most
