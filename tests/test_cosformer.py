"""cosFormer against its recurrence and its quadratic form in numpy, its horizon, and its published shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, weights

from jaxlm.mixers.cosformer import CosFormer
from jaxlm.module import ConfigError, count, decay_mask, init

MIXER = CosFormer(16, horizon=20)
SECOND = CosFormer(16, second=True)


class Row:
    """S += φ(k)' v, z += φ(k), o = φ(q) S / max(φ(q)·z, ε), φ(x) = [ReLU(x) cos, ReLU(x) sin] of π i / 2M, M = 20."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {"S": np.zeros((h, 2 * k, k)), "length": np.int32(0)}
        if "theta" not in self.p:
            self.state["z"] = np.zeros((h, 2 * k))

    def token(self, x):
        p, s = self.p, self.state
        angle = s["length"] * p.get("theta", np.pi / 40)
        q, k, v = (np.einsum("d,dhk->hk", x, p[n]) + p[f"{n}_bias"] for n in ("query", "key", "value"))
        q, k = (np.concatenate([np.maximum(a, 0) * f(angle) for f in (np.cos, np.sin)], axis=-1) for a in (q, k))
        S = s["S"] + k[:, :, None] * v[:, None, :]
        self.state = {"S": S, "length": np.int32(s["length"] + 1)}
        o = np.einsum("hk,hkv->hv", q, S)
        if "theta" in p:
            o = rms(o, p["norm"])
        else:
            self.state["z"] = s["z"] + k
            o = o / np.maximum(np.sum(q * self.state["z"], axis=-1), 1e-6)[:, None]
        return np.einsum("hv,hvd->d", o, p["out"]) + p["out_bias"]


@pytest.mark.parametrize("mixer", [MIXER, SECOND], ids=["first", "second"])
def test_equals_the_recurrence(mixer):
    agree(mixer, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


@pytest.mark.parametrize("horizon", [20, 10**9])
def test_equals_the_quadratic_form_and_without_a_horizon_relu_attention(horizon):
    mixer = CosFormer(16, horizon=horizon)
    params, x = weights(mixer), packed(mixer)[0]
    p, xs = float64(params), float64(x)
    q, k, v = (np.einsum("btd,dhk->bthk", xs, p[n]) for n in ("query", "key", "value"))
    gap = np.arange(x.shape[1])[:, None] - np.arange(x.shape[1])
    far = np.cos(np.pi * gap / 40) if horizon == 20 else np.ones(gap.shape)
    scores = np.einsum("bthk,bshk->bhts", np.maximum(q, 0), np.maximum(k, 0)) * far * (gap >= 0)
    scores = scores / np.maximum(scores.sum(-1, keepdims=True), 1e-6)
    close(apply(mixer, params, x)[0], np.einsum("bhts,bshv,hvd->btd", scores, v, p["out"]))


def test_weights_fall_to_zero_at_the_horizon_and_below_beyond():
    one = jnp.ones((1, 22, 1, 1))
    phi = float64(MIXER.features({}, one, jnp.arange(22, dtype=jnp.int32)[None])[0, :, 0])
    weigh = phi @ phi[0]
    assert (np.diff(weigh) < 0).all() and abs(weigh[20]) < 1e-6 and weigh[19] > 0 > weigh[21]
    close(phi @ phi[1], np.cos(np.pi * (np.arange(22) - 1) / 40))  # the distance alone


def test_shapes_and_names():
    d = 512
    published, second = CosFormer(d), CosFormer(d, second=True)
    assert published.h == 8 and count(published) == 4 * d * d + 4 * d and count(second) == count(published) + 2 * d
    assert published.state(1)["S"].size == 2 * 64 * d
    assert decay_mask(published)["out"] and not decay_mask(published)["out_bias"]
    theta = init(SECOND, jax.random.key(0))["theta"]
    close(theta, 10000 ** (-2 * np.arange(16) / 16).reshape(2, 8))
    for bad, word in [({"heads": 5}, "heads = 5"), ({"horizon": 0}, "horizon = 0")]:
        with pytest.raises(ConfigError, match=word):
            CosFormer(16, **bad)
