"""KDA against its recurrence in numpy, Gated DeltaNet as its limit of equal channels, its decay at init, its shape."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, conv4, float64, packed, rms, sigmoid, softplus, unit, weights

from jaxlm.mixers.gated_deltanet import GatedDeltaNet
from jaxlm.mixers.kda import KDA
from jaxlm.module import ConfigError, cast, count, decay_mask, init

MIXER = KDA(16)


class Row:
    """S = (I - β k' k) Diag(α) S + β k' v, α = exp(-exp(A) softplus(x W_1 W_2 + b)) for every channel of the keys."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {
            "S": np.zeros((h, k, k)),
            "conv": {n: np.zeros((3, h, k)) for n in ("query", "key", "value")},
        }

    def token(self, x):
        p, past, now = self.p, {}, {}
        for n in ("query", "key", "value"):
            now[n], past[n] = conv4(p["conv"][n], self.state["conv"][n], np.einsum("d,dhk->hk", x, p[n]))
        q, k, v = unit(now["query"]), unit(now["key"]), now["value"]
        maps = {n: np.einsum("r,rhk->hk", x @ p[n]["in"], p[n]["out"]) + p[n]["bias"] for n in ("alpha", "gate")}
        alpha = np.exp(-np.exp(p["A_log"])[:, None] * softplus(maps["alpha"]))
        beta, S, o = sigmoid(x @ p["beta"]), np.zeros_like(self.state["S"]), []
        for h in range(len(S)):
            turn = np.eye(len(k[h])) - beta[h] * np.outer(k[h], k[h])
            S[h] = turn @ np.diag(alpha[h]) @ self.state["S"][h] + beta[h] * np.outer(k[h], v[h])
            o.append(q[h] @ S[h] / np.sqrt(len(k[h])))
        self.state = {"S": S, "conv": past}
        return np.einsum("hv,hvd->d", rms(np.array(o), p["norm"]) * sigmoid(maps["gate"]), p["out"])


def slow(params):
    """Decays that leave something to see: at init the largest rates empty the memory at once."""
    return params | {"A_log": params["A_log"] - 3}


@pytest.mark.parametrize("mixer", [MIXER, KDA(16, heads=1, rank=3)], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, Row, slow(weights(mixer)))


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_equal_channels_are_gated_deltanet():
    """The same memory, token after token: a decay map of one channel a head, copied to all channels of its keys."""
    h, k = 2, 8
    mixer, gated = KDA(16, heads=h, rank=h), GatedDeltaNet(16, heads=h, head=k, expand=1)
    params = slow(weights(gated))
    copied = jnp.broadcast_to(jnp.eye(h)[:, :, None], (h, h, k))
    bias = jnp.broadcast_to(params["dt_bias"][:, None], (h, k))
    same = {n: params[n] for n in ("query", "key", "value", "conv", "beta", "A_log", "out", "norm")}
    same |= {"alpha": {"in": params["alpha"], "out": copied, "bias": bias}, "gate": weights(mixer)["gate"]}
    x, starts = packed(mixer)
    close(mixer.forget(same, x), jnp.broadcast_to(gated.forget(params, x)[..., None], (*x.shape[:2], h, k)))
    close(apply(mixer, same, x, None, starts)[1], apply(gated, params, x, None, starts)[1])


def test_decay_at_init():
    params: Any = MIXER.params()
    rate, bias = params["A_log"], params["alpha"]["bias"]
    rate = dataclasses.replace(rate, shape=(40000,), axes=(None,))
    A = np.exp(float64(rate.init(jax.random.key(0), rate)))
    assert A.min() > 0.999 and A.max() <= 16 * (1 + 1e-6)
    assert abs(A.mean() - 8.5) < 0.1 and abs(A.std() - 15 / np.sqrt(12)) < 0.1  # U(1, 16)
    bias = dataclasses.replace(bias, shape=(40000,), axes=(None,))
    dt = softplus(float64(bias.init(jax.random.key(0), bias)))
    assert dt.min() > 0.999e-3 and dt.max() < 1.001e-1
    g = MIXER.forget(cast(MIXER, init(MIXER, jax.random.key(0)), jnp.bfloat16), packed(MIXER)[0].astype(jnp.bfloat16))
    assert g.dtype == jnp.float32 and float(g.max()) <= 0


def test_shapes_and_names():
    d = 2048
    published = KDA(d)
    params: Any = published.params()
    assert published.h == 16 and params["alpha"]["out"].shape == (128, 16, 128)
    low = 128 * d + 128 * d + d
    assert count(published) == 4 * d * d + 3 * 4 * d + 16 * d + 2 * low + 16 + 128 * 16
    assert published.state(1)["S"].size == 128 * d
    half, mask = cast(MIXER, init(MIXER, jax.random.key(0)), jnp.bfloat16), decay_mask(MIXER)
    for tree in (half, jax.tree.map(lambda m: jnp.zeros((), jnp.bfloat16 if m else jnp.float32), mask)):
        assert tree["A_log"].dtype == tree["alpha"]["bias"].dtype == tree["norm"].dtype == jnp.float32
        assert tree["alpha"]["in"].dtype == tree["key"].dtype == jnp.bfloat16
    for bad, word in [({"heads": 3}, "heads = 3"), ({"rank": 0}, "rank = 0"), ({"beta_max": 3.0}, "beta_max = 3.0")]:
        with pytest.raises(ConfigError, match=word):
            KDA(16, **bad)
