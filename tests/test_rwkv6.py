"""RWKV-6 against its recurrence in numpy, gated linear attention as its limit, its initial values, its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_state import inputs, random_starts
from tolerance import close
from twin import agree, agree64, packed, sigmoid, weights

from jaxlm.mixers.rwkv6 import RWKV6
from jaxlm.module import ConfigError, ShapeError, count, init
from jaxlm.ops.bonus import bonus_decay
from jaxlm.ops.decay import decay

MIXER = RWKV6(16, rank=3, decay=4)


class Row:
    """o = r (S + Diag(u) k' v), then S = Diag(exp(-exp(w))) S + k' v."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        d, h, k = self.p["key"].shape
        self.state = {"S": np.zeros((h, k, k)), "past": np.zeros(d)}

    def token(self, x):
        p, S, delta = self.p, self.state["S"], self.state["past"] - x
        more = np.tanh(np.einsum("d,dnr->nr", x + delta * p["mix"]["input"], p["mix_in"]))
        u = {}
        for i, n in enumerate(("decay", "key", "value", "receptance", "gate")):
            u[n] = x + delta * (p["mix"][n] + more[i] @ p["mix_out"][i])
        r, k, v, g = (np.einsum("d,dhk->hk", u[n], p[n]) for n in ("receptance", "key", "value", "gate"))
        low = p["decay"]
        w = np.exp(-np.exp(np.einsum("r,rhk->hk", np.tanh(u["decay"] @ low["in"]), low["out"]) + low["bias"]))
        o = np.zeros_like(v)
        for h in range(len(S)):
            o[h] = r[h] @ (S[h] + np.diag(p["bonus"][h]) @ np.outer(k[h], v[h]))
        self.state = {"S": w[:, :, None] * S + k[:, :, None] * v[:, None, :], "past": x}
        o = o - o.mean(axis=1, keepdims=True)
        o = o / np.sqrt(np.mean(o * o, axis=1, keepdims=True) + 1e-5 * o.shape[1])
        return np.einsum("hv,hvd->d", (o * p["norm"]["gain"] + p["norm"]["bias"]) * g * sigmoid(g), p["out"])


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_with_a_bonus_of_one_and_no_decay_it_is_linear_attention():
    """Then the token reads what all tokens so far wrote, its own among it."""
    d, starts = inputs("vector"), random_starts()
    d["g"] = 0 * d["g"]
    r, k, v = d["q"], d["k"], d["v"]
    got = jax.jit(bonus_decay)(r, k, v, np.ones(k.shape[2:], np.float32), d["g"], d["state"], starts)
    close(got, jax.jit(decay)(r, k, v, None, d["state"], starts))


def test_bad_token_stays_in_its_document():
    d, starts = inputs("vector"), np.zeros((2, 69), bool)
    starts[0, [20, 45]] = True
    u, at = jnp.ones(d["k"].shape[2:]), jnp.asarray(starts)
    run = jax.jit(lambda d, state: bonus_decay(d["q"], d["k"], d["v"], u, d["g"], state, at))
    clean, state = run(d, d["state"])
    d["q"][0, 30, 1], d["k"][1, 60, 0] = np.nan, np.inf
    y, last = run(d, d["state"])
    bad = np.zeros((2, 69), bool)
    bad[0, 30:45] = bad[1, 60:] = True
    assert np.isnan(np.asarray(y)[bad]).all() and np.isnan(last[1]).all()
    close((np.asarray(y)[~bad], last[0]), (np.asarray(clean)[~bad], state[0]))


def test_a_large_decay_forgets_all_and_stays_finite():
    params = weights(MIXER)
    params["decay"]["bias"] = jnp.full((2, 8), 1e4)
    x = packed(MIXER)[0]
    g = MIXER.forget(params, x)
    assert bool(jnp.isfinite(g).all()) and float(g.max()) < -1e3
    short, long = (MIXER.apply(params, a)[1]["S"] for a in (x[:, -2:], x))
    close(short, long)


def test_initial_values():
    p = init(RWKV6(128), jax.random.key(0))
    place = np.arange(128) / 127
    close(np.ravel(p["decay"]["bias"]), (-6 + 5 * place**0.7).astype(np.float32))
    close(p["mix"]["gate"], (1 - (np.arange(128) / 128) ** 0.5).astype(np.float32))
    close(p["mix"]["key"], (1 - np.arange(128) / 128).astype(np.float32))
    assert float(jnp.abs(p["mix_in"]).max()) <= 1e-4


def test_shapes_and_names():
    d = 2048
    published = RWKV6(d)
    assert published.h == 32
    assert count(published) == 5 * d * d + 6 * d + 2 * 5 * 32 * d + 2 * 64 * d + d + d + 2 * d
    assert published.state(1)["S"].size + d == 66 * d - d  # 64 d of memory and one of two shifts: 66 d in all
    for bad, word in [({"heads": 3}, "heads = 3"), ({"rank": 0}, "rank = 0"), ({"decay": 0}, "decay = 0")]:
        with pytest.raises(ConfigError, match=word):
            RWKV6(16, **bad)
    with pytest.raises(ShapeError, match=r"u: shape \(3,\)"):
        x = jnp.ones((1, 2, 2, 4))
        bonus_decay(x, x, x, jnp.ones((3,)), -x)
