"""ReGLA against its recurrence in numpy, the paper's form that sees the whole sequence, and its gate at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, sigmoid, weights

from jaxlm.mixers.regla import ReGLA, refined
from jaxlm.module import ConfigError, count, decay_mask

MIXER = ReGLA(16)


def gate(z, w):
    g, r = sigmoid(z), sigmoid(w)
    return (1 - r) * g**2 + r * (1 - (1 - g) ** 2)


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * p["norm"] + p["norm_bias"]


class Row:
    """S = e^(m - m') F S + exp(k - m')' v with m' = max(m, max k), o = exp(q - max q) S / (e √(k (e² - 1)))."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {"S": np.zeros((h, k, k)), "m": np.zeros(h)}

    def token(self, x):
        p, s = self.p, self.state
        q, k, v, z, w = (np.einsum("d,dhk->hk", x, p[n]) for n in ("query", "key", "value", "forget", "refine"))
        m = np.maximum(s["m"], k.max(-1))
        F = gate(z + p["forget_bias"], w + p["refine_bias"]) * np.exp(s["m"] - m)[:, None]
        S = F[:, :, None] * s["S"] + np.exp(k - m[:, None])[:, :, None] * v[:, None, :]
        self.state = {"S": S, "m": m}
        o = np.einsum("hk,hkv->hv", np.exp(q - q.max(-1, keepdims=True)), S)
        o = o / (np.e * np.sqrt(q.shape[-1] * (np.e**2 - 1)))
        return np.einsum("hv,hvd->d", layer_norm(o, p), p["out"])


@pytest.mark.parametrize("mixer", [MIXER, ReGLA(12, heads=3)], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_equals_the_quadratic_form_with_the_largest_key_of_the_sequence():
    params, x = weights(MIXER), packed(MIXER)[0]
    params = params | {
        "value": 300 * params["value"]
    }  # the two differ in size alone: the norm's eps is small beside it
    p, xs = float64(params), float64(x)
    q, k, v, z, w = (np.einsum("btd,dhk->bthk", xs, p[n]) for n in ("query", "key", "value", "forget", "refine"))
    log_F = np.log(gate(z + p["forget_bias"], w + p["refine_bias"])).cumsum(1)
    q, k = np.exp(q - q.max(-1, keepdims=True)), np.exp(k - k.max((1, 3), keepdims=True))
    past = np.tri(x.shape[1], dtype=bool)[None, :, :, None, None]
    fade = np.exp(np.where(past, log_F[:, :, None] - log_F[:, None], -np.inf))  # (b, t, s, h, k)
    o = np.einsum("bthk,btshk,bshk,bshv->bthv", q, fade, k, v)
    close(apply(MIXER, params, x)[0], np.einsum("bthv,hvd->btd", layer_norm(o, p), p["out"]))


def test_sees_no_future():
    params, x = weights(MIXER), packed(MIXER)[0]
    loud = x.at[:, -1].multiply(30.0)  # its key is the largest of all
    assert (apply(MIXER, params, x)[0][:, :-1] == apply(MIXER, params, loud)[0][:, :-1]).all()


@pytest.mark.parametrize("z", [-80.0, -8.0, -0.5, 0.0, 2.0, 12.0])
@pytest.mark.parametrize("w", [-80.0, -3.0, 0.0, 90.0])
def test_gate_at_the_edges(z, w):
    log_F, (slope, _) = EDGE(jnp.float32(z), jnp.float32(w))
    g, leaves = sigmoid(z), sigmoid(-z)
    inner = g + 2 * sigmoid(w) * leaves
    want = np.log(g) + np.log(inner)
    close([log_F, slope], [want, leaves + (g * leaves - 2 * sigmoid(w) * leaves * g) / inner])
    F = np.exp(float(log_F))
    assert g**2 * (1 - 1e-5) <= F + 1e-30 and (1 - leaves**2) * (1 + 1e-5) + 1e-30 >= F


EDGE = jax.jit(jax.value_and_grad(refined, argnums=(0, 1)))


def test_a_saturated_gate_still_learns():
    for level, w in [(0.99, 40.0), (0.01, -40.0)]:  # nearly open with r = 1, nearly shut with r = 0
        z = np.log(0.9 / 0.1) * np.sign(w)
        log_F, (slope, _) = EDGE(jnp.float32(z), jnp.float32(w))
        close(np.exp(log_F), level)
        assert float(np.exp(log_F) * slope) > 1.7 * level * (1 - level)  # a plain sigmoid's slope at this level


def test_the_scale_is_the_deviation_of_a_sum_of_products():
    x, y = np.random.default_rng(0).normal(size=(2, 2_000_000))
    assert abs(np.std(np.exp(x + y)) / (np.e * np.sqrt(np.e**2 - 1)) - 1) < 0.05


def test_shapes_and_names():
    d = 1024
    published = ReGLA(d)
    assert published.h == 16 and count(published) == 6 * d * d + 4 * d
    assert published.state(1)["S"].size == 64 * d
    mask = decay_mask(published)
    assert mask["refine"] and not mask["refine_bias"] and not mask["norm"]
    with pytest.raises(ConfigError, match="heads = 5"):
        ReGLA(16, heads=5)
