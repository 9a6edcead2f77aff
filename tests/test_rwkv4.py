"""RWKV-4 against its recurrence and its sum over all tokens in numpy, its extremes, its initial values, its shape."""

import jax
import jax.numpy as jnp
import numpy as np
from tolerance import close
from twin import agree, agree64, apply, float64, packed, sigmoid, weights

from jaxlm.mixers.rwkv4 import NOTHING, RWKV4
from jaxlm.module import count, init

MIXER = RWKV4(16)


def inner(p, x, past):
    """Keys, values and receptance."""
    return (((1 - p["mix"][n]) * x + p["mix"][n] * past) @ p[n] for n in ("key", "value", "receptance"))


class Row:
    """Numerator and denominator as they are; the state holds them over the largest term's exponential."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        zero = np.zeros(self.p["decay"].shape)
        self.state = {"sum": zero, "weight": zero, "peak": zero + NOTHING, "past": np.zeros(len(self.p["key"]))}

    def token(self, x):
        p, s = self.p, self.state
        k, v, r = inner(p, x, s["past"])
        above, below = (s[n] * np.exp(s["peak"]) for n in ("sum", "weight"))
        own, fade = np.exp(p["bonus"] + k), np.exp(-np.exp(p["decay"]))
        wkv = (above + own * v) / (below + own)
        peak = np.maximum(s["peak"] - np.exp(p["decay"]), k)
        above, below = ((fade * a + np.exp(k) * b) / np.exp(peak) for a, b in ((above, v), (below, 1)))
        self.state = {"sum": above, "weight": below, "peak": peak, "past": x}
        return (sigmoid(r) * wkv) @ p["out"]


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_equals_the_sum_over_all_tokens():
    params, (x, _) = weights(MIXER), packed(MIXER)
    p, row = float64(params), float64(x)[0]
    before = np.concatenate([0 * row[:1], row[:-1]])
    k, v, r = inner(p, row, before)
    for t in range(len(row)):
        logs = np.array([k[i] - (t - 1 - i) * np.exp(p["decay"]) for i in range(t)] + [p["bonus"] + k[t]])
        share = np.exp(logs) / np.exp(logs).sum(axis=0)
        close(apply(MIXER, params, x)[0][0, t], (sigmoid(r[t]) * (share * v[: t + 1]).sum(axis=0)) @ p["out"])


def test_huge_keys_choose_and_stay_finite():
    """Keys of +-1e4: the mean becomes the value of the largest key; nothing overflows."""
    params, (x, _) = weights(MIXER), packed(MIXER)
    huge = params | {"key": 1e4 * params["key"]}
    out = jax.value_and_grad(lambda p: jnp.sum(MIXER.apply(p, x)[0]))(huge)
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(out))


def test_initial_values():
    p = init(RWKV4(64), jax.random.key(0))
    place = np.arange(64) / 63
    close(p["decay"], (-5 + 8 * place**0.7).astype(np.float32))
    close(p["mix"]["receptance"], (1 - (np.arange(64) / 64) ** 0.5).astype(np.float32))
    assert (p["bonus"] == np.float32(-1.2)).all()


def test_shapes_and_names():
    d = 768
    assert count(RWKV4(d)) == 4 * d * d + 5 * d
    assert sum(s.size for s in RWKV4(d).state(1).values()) == 4 * d
