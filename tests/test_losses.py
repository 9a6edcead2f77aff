"""Cross-entropy in pieces is cross-entropy, values and gradients, whatever the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.ops import losses


@pytest.mark.parametrize(("t", "limit", "devices"), [(7, 1 << 24, 1), (7, 60, 1), (8, 20, 3), (5, 1, 1)], ids=str)
def test_pieces_change_nothing(t, limit, devices, monkeypatch):
    monkeypatch.setattr(losses, "WIDE_NUMBERS", limit)
    keys = jax.random.split(jax.random.key(0), 4)
    x, w = jax.random.normal(keys[0], (3, t, 4)), jax.random.normal(keys[1], (4, 6))
    targets = jax.random.randint(keys[2], (3, t), 0, 6)
    weights = jax.random.bernoulli(keys[3], 0.7, (3, t)).astype(jnp.float32)

    def whole(x, w):
        p = jax.nn.log_softmax(x @ w)
        return -jnp.sum(weights * jnp.take_along_axis(p, targets[..., None], axis=-1)[..., 0])

    got, grads = jax.value_and_grad(lambda x, w: losses.cross_entropy(x, w, targets, weights, devices)[0], (0, 1))(x, w)
    want, wanted = jax.value_and_grad(whole, (0, 1))(x, w)
    close(got, want)
    jax.tree.map(close, grads, wanted)
    assert np.asarray(losses.cross_entropy(x, w, targets, weights)[1]) == np.asarray(weights).sum()
