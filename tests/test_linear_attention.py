"""Linear attention against its recurrence in numpy, its weighted-mean form, and its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, weights

from jaxlm.mixers.linear_attention import LinearAttention
from jaxlm.module import ConfigError, count

MIXER = LinearAttention(16)


def phi(x):
    return np.where(x > 0, x + 1, np.exp(x))


class Row:
    """S += φ(k)' v, z += φ(k), o = φ(q) S / (φ(q)·z + ε)."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {"S": np.zeros((h, k, k)), "z": np.zeros((h, k))}

    def token(self, x):
        q, k, v = (np.einsum("d,dhk->hk", x, self.p[n]) for n in ("query", "key", "value"))
        q, k = phi(q), phi(k)
        S, z = self.state["S"] + np.einsum("hk,hv->hkv", k, v), self.state["z"] + k
        self.state = {"S": S, "z": z}
        o = np.einsum("hk,hkv->hv", q, S) / (np.sum(q * z, axis=-1, keepdims=True) + 1e-6)
        return np.einsum("hv,hvd->d", o, self.p["out"])


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_is_a_mean_of_the_past_weighted_by_features():
    params, (x, _) = weights(MIXER), packed(MIXER)
    p, xs = float64(params), float64(x)
    q, k, v = (np.einsum("btd,dhk->bthk", xs, p[n]) for n in ("query", "key", "value"))
    scores = np.tril(np.einsum("bthk,bshk->bhts", phi(q), phi(k)))
    o = np.einsum("bhts,bshv->bthv", scores / scores.sum(-1, keepdims=True), v)
    close(apply(MIXER, params, x)[0], np.einsum("bthv,hvd->btd", o, p["out"]))


def test_a_value_that_never_changes_is_given_back():
    # The features are positive, so the weights of the past sum to one whatever the queries and keys are.
    params = weights(MIXER)
    row = jnp.zeros((1, 9, 16)).at[..., 0].set(1.0)
    first = apply(MIXER, params, row)[0]
    close(first, jnp.broadcast_to(first[:, :1], first.shape))
    q = jnp.zeros_like(params["query"]).at[0].set(-40.0)  # φ near 0: the ε alone keeps the quotient finite
    assert np.isfinite(apply(MIXER, {**params, "query": q, "key": q}, row)[0]).all()


def test_shapes_and_names():
    assert count(MIXER) == 4 * 16 * 16 and MIXER.h == 2
    assert LinearAttention(512).h == 8  # heads of 64
    assert MIXER.state(3)["S"].shape == (3, 2, 8, 8) and MIXER.state(3)["z"].shape == (3, 2, 8)
    assert jax.tree.map(lambda s: s.dtype, MIXER.start(weights(MIXER), 3)) == {"S": jnp.float32, "z": jnp.float32}
    with pytest.raises(ConfigError, match="heads = 3"):
        LinearAttention(16, heads=3)
