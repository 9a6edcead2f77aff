"""Gated DeltaNet against its recurrence in numpy, DeltaNet as its limit, its decay at init, and its published shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, conv4, float64, packed, rms, sigmoid, silu, softplus, unit, weights

from jaxlm.mixers.deltanet import DeltaNet
from jaxlm.mixers.gated_deltanet import GatedDeltaNet
from jaxlm.module import ConfigError, cast, count, decay_mask, init

MIXER = GatedDeltaNet(16)


class Row:
    """S = α S, then S += β k' (v - k S), then the reading; α = exp(-exp(A) softplus(x W_α + b))."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        p = self.p
        self.state = {
            "S": np.zeros((*p["query"].shape[1:], p["value"].shape[2])),
            "conv": {n: np.zeros((3, *p[n].shape[1:])) for n in ("query", "key", "value")},
        }

    def token(self, x):
        p, past, now = self.p, {}, {}
        for n in ("query", "key", "value"):
            now[n], past[n] = conv4(p["conv"][n], self.state["conv"][n], np.einsum("d,dhk->hk", x, p[n]))
        q, k, v = unit(now["query"]), unit(now["key"]), now["value"]
        alpha = np.exp(-np.exp(p["A_log"]) * softplus(x @ p["alpha"] + p["dt_bias"]))
        S = alpha[:, None, None] * self.state["S"]
        error = v - np.einsum("hk,hkv->hv", k, S)
        S = S + sigmoid(x @ p["beta"])[:, None, None] * k[:, :, None] * error[:, None, :]
        self.state = {"S": S, "conv": past}
        y = rms(np.einsum("hk,hkv->hv", q, S) / np.sqrt(q.shape[-1]), p["norm"])
        return np.einsum("hv,hvd->d", y * silu(np.einsum("d,dhk->hk", x, p["gate"])), p["out"])


def slow(params):
    """Decays that leave something to see: at init the largest rates empty the memory at once."""
    return params | {"A_log": params["A_log"] - 4}


@pytest.mark.parametrize("mixer", [MIXER, GatedDeltaNet(16, heads=3, head=4, expand=1)], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, Row, slow(weights(mixer)))


def test_equals_the_recurrence_at_the_first_weights():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_without_decay_it_is_deltanet():
    mixer, plain = GatedDeltaNet(16, heads=2, head=8, expand=1), DeltaNet(16, heads=2, gate=True)
    params = weights(mixer) | {"A_log": jnp.full((2,), -1e4)}
    x, starts = packed(mixer)
    close(apply(mixer, params, x, None, starts), apply(plain, {n: params[n] for n in plain.params()}, x, None, starts))


def test_decay_at_init():
    rate, bias = MIXER.params()["A_log"], MIXER.params()["dt_bias"]
    wide = {"shape": (40000,), "axes": (None,)}
    rate, bias = (float64(s.init(jax.random.key(0), dataclasses.replace(s, **wide))) for s in (rate, bias))
    A, dt = np.exp(rate), softplus(bias)
    assert A.min() > 0 and A.max() <= 16 * (1 + 1e-6)
    assert abs(A.mean() - 8) < 0.1 and abs(A.std() - 16 / np.sqrt(12)) < 0.1  # U(0, 16)
    assert dt.min() > 0.999e-3 and dt.max() < 1.001e-1
    assert abs(np.log(dt).mean() - np.log(1e-2)) < 0.03 and abs(np.log(dt).std() - np.log(100) / np.sqrt(12)) < 0.02
    g = MIXER.forget(init(MIXER, jax.random.key(0)), packed(MIXER)[0])
    assert g.dtype == jnp.float32 and float(g.max()) <= 0


def test_decay_weights_stay_wide_and_undecayed():
    half, mask = cast(MIXER, init(MIXER, jax.random.key(0)), jnp.bfloat16), decay_mask(MIXER)
    for n in ("A_log", "dt_bias", "norm"):
        assert half[n].dtype == jnp.float32 and not mask[n]
    assert half["alpha"].dtype == jnp.bfloat16 and mask["alpha"]


def test_shapes_and_names():
    d = 2048
    published = GatedDeltaNet(d)
    keys, values = 6 * 256, 6 * 512
    assert (published.h, published.k) == (6, 256) and published.params()["value"].shape == (d, 6, 512)
    assert count(published) == (
        d * (2 * keys + values) + 4 * (2 * keys + values) + 2 * d * 6 + 2 * 6 + 2 * d * values + 2 * 512 * 3
    )
    assert published.state(1)["S"].size == 6 * 256 * 512
    assert MIXER.h == 2 and GatedDeltaNet(32).k == 12
    for bad, word in [({"heads": 0}, "heads = 0"), ({"beta_max": 3.0}, "beta_max = 3.0")]:
        with pytest.raises(ConfigError, match=word):
            GatedDeltaNet(16, **bad)
