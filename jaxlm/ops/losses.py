"""Losses on arrays."""

import jax
import jax.numpy as jnp

from jaxlm.ops.dense import dense
from jaxlm.typing import Array, wide

WIDE_NUMBERS = 1 << 24  # logits a device holds wide at once; beyond, the loss goes over tokens in pieces


def nats(logits: Array, targets: Array) -> Array:
    """Cross-entropy of each token.   logits (..., n), targets (...) int -> (...) nats, wide"""
    logits = wide(logits)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def cross_entropy(x: Array, w: Array, targets: Array, weights: Array, devices: int = 1) -> tuple[Array, Array]:
    """Summed cross-entropy of a linear readout, never holding more than WIDE_NUMBERS wide logits a device at once.

    x           (b, t, d)
    w           (d, n)              readout
    targets     (b, t) int
    weights     (b, t)              0 leaves a token out
    devices     that share the tokens: with more of them there are fewer pieces, each of which reads all of w
    ->          sum of weighted nats, sum of weights
    """
    b, t, _ = x.shape
    pieces = min(t, -(-b * t * w.shape[1] // (WIDE_NUMBERS * devices)))
    if pieces <= 1:
        return jnp.sum(nats(dense(x, w), targets) * weights), jnp.sum(weights)

    def cut(a: Array) -> Array:
        """(pieces, b, ...): along time, so that rows stay on the devices that hold them."""
        a = jnp.pad(a, [(0, 0), (0, -t % pieces)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(b, pieces, -1, *a.shape[2:]), 1, 0)

    @jax.checkpoint
    def body(total, piece):
        x, targets, weights = piece
        return total + jnp.sum(nats(dense(x, w), targets) * weights), None

    total, _ = jax.lax.scan(body, jnp.zeros((), wide(x).dtype), (cut(x), cut(targets), cut(weights)))
    return total, jnp.sum(weights)
