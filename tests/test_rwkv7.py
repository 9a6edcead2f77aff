"""RWKV-7 against its recurrence in numpy, the delta rule as its limit, its decay, its initial values, its shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, float64, packed, sigmoid, unit, weights

from jaxlm.mixers.rwkv7 import RWKV7
from jaxlm.module import ConfigError, count, init
from jaxlm.ops.delta import delta

MIXER = RWKV7(16)


class Row:
    """S = S (Diag(w) - κ' (a ⊙ κ)) + v' k as the paper has it, S of values by keys."""

    first = None  # values of the first layer, for a later one

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        d, h, k = self.p["key"].shape
        self.state = {"S": np.zeros((h, k, k)), "past": np.zeros(d)}

    def token(self, x):
        p, past = self.p, self.state["past"]
        u = {n: x + (past - x) * mu for n, mu in p["mix"].items()}
        r, k, v = (np.einsum("d,dhk->hk", u[n], p[n]) for n in ("receptance", "key", "value"))
        low = lambda n, z: np.einsum("r,rhk->hk", z, p[n]["out"]) + p[n].get("bias", 0)  # noqa: E731
        w = np.exp(-np.exp(-0.5) * sigmoid(low("decay", np.tanh(u["decay"] @ p["decay"]["in"]))))
        assert w.min() >= 0.5452 and w.max() <= 1
        a = sigmoid(low("rate", u["rate"] @ p["rate"]["in"]))
        g = low("gate", sigmoid(u["gate"] @ p["gate"]["in"]))
        if self.first is not None:
            v = v + (self.first - v) * sigmoid(low("share", u["value"] @ p["share"]["in"]))
        kappa, k = unit(k * p["removal"]), k * (1 + (a - 1) * p["replacement"])
        S, y = np.zeros_like(self.state["S"]), np.zeros_like(v)
        for h in range(len(S)):
            old = self.state["S"][h].T
            new = old @ (np.diag(w[h]) - np.outer(kappa[h], a[h] * kappa[h])) + np.outer(v[h], k[h])
            S[h], o = new.T, new @ r[h]
            o = (o - o.mean()) / np.sqrt(o.var() + 1e-5 * len(o)) * p["norm"]["gain"][h] + p["norm"]["bias"][h]
            y[h] = (o + (r[h] * k[h] * p["bonus"][h]).sum() * v[h]) * g[h]
        self.state = {"S": S, "past": x}
        return np.einsum("hv,hvd->d", y, p["out"])


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(RWKV7(16, heads=1, ranks=(3, 2, 2, 4)), Row)


def test_a_later_layer_takes_values_of_the_first():
    mixer = RWKV7(16, ranks=(4, 4, 4, 4), shares=True)
    params, (x, _) = weights(mixer), packed(mixer, t=3, b=1)
    first = jax.random.normal(jax.random.key(3), (1, 3, 2, 8))
    y = mixer.mix(params, x, None, None, first)[0]
    twin, want = Row(float64(params)), []
    for t in range(3):
        twin.first = float64(first)[0, t]
        want.append(twin.token(float64(x)[0, t]))
    close(y[0], np.array(want))
    with pytest.raises(ConfigError, match="first is None"):
        mixer.apply(params, x)
    with pytest.raises(ConfigError, match=r"first is shape \(1, 3, 2, 8\)"):
        MIXER.mix(weights(MIXER), x, None, None, first)


def test_limit_is_the_delta_rule():
    """Nothing decays and the key that is removed is the key that is written: the delta rule with rate a."""
    mixer = RWKV7(16, heads=2, ranks=(2, 2, 2, 2))
    params = weights(mixer)
    gone = {n: {**params[n], "in": 0 * params[n]["in"]} for n in ("decay", "rate")}
    gone["decay"]["bias"], gone["rate"]["bias"] = jnp.full((2, 8), -1e4), jnp.full((2, 8), 0.4)
    params = params | gone | {"removal": jnp.ones((2, 8)), "replacement": jnp.ones((2, 8))}
    x = packed(mixer, t=1)[0]
    state = mixer.start(params, 2) | {"S": jax.random.normal(jax.random.key(1), (2, 2, 8, 8))}
    after = mixer.apply(params, x, state)[1]["S"]
    u = {n: x - x * params["mix"][n][None, None] for n in ("key", "value")}
    k, v = (jnp.einsum("btd,dhk->bthk", u[n], params[n]) for n in ("key", "value"))
    length = jnp.sqrt(jnp.sum(k * k, axis=-1, keepdims=True) + 1e-6)
    rate = jnp.full((2, 1, 2), float(sigmoid(0.4)))
    close(after, delta(k, k / length, v * length, rate, None, state["S"])[1])


def test_decay_stays_in_its_range():
    g = MIXER.forget(weights(MIXER), 100 * packed(MIXER)[0].astype(jnp.bfloat16))
    assert g.dtype == jnp.float32 and float(g.min()) >= -0.6066 and float(g.max()) <= 0


def test_initial_values():
    p = init(RWKV7(128), jax.random.key(0))
    lin = np.arange(128) / 127 - 0.5
    z = np.tile(np.linspace(-1, 1, 64), 2)
    z *= np.abs(z)
    flat = lambda *path: np.ravel(p[path[0]] if len(path) == 1 else p[path[0]][path[1]])  # noqa: E731
    close(flat("removal"), (0.71 - 0.1 * lin).astype(np.float32))
    close(flat("rate", "bias"), (-0.19 + 0.3 * z + 0.4 * lin).astype(np.float32))
    close(flat("decay", "bias"), (-5.5 + 6 * (lin + 0.5) + 2.5 * z).astype(np.float32))
    close(flat("mix", "gate"), (1 - (np.arange(128) / 128) ** 0.2).astype(np.float32))
    assert (flat("replacement") == np.float32(1.02)).all() and (flat("bonus") == np.float32(-0.04)).all()
    assert not flat("out").any() and not flat("decay", "in").any()
    for matrix, gain in ((p["key"].reshape(128, 128), 0.1), (p["rate"]["out"].reshape(32, 128).T, 0.1)):
        close(matrix.T @ matrix, gain**2 * jnp.eye(matrix.shape[1]))
    params: Any = RWKV7(128).params()
    spec = params["decay"]["bias"]
    last = spec.init.at(3, 4)(jax.random.key(0), spec)
    close(np.ravel(last), (-5.5 + 6 * (lin + 0.5) ** 2 + 2.5 * z).astype(np.float32))


def test_shapes_and_names():
    d = 768
    published = RWKV7(d)
    assert (published.h, published.through) == (12, (64, 64, 32, 128))
    assert count(published) == 4 * d * d + 6 * d + 2 * d * (64 + 64 + 128) + 2 * d + 3 * d + 2 * d
    assert count(RWKV7(d, shares=True)) == count(published) + 2 * d * 32 + d
    for bad, word in [({"heads": 3}, "heads = 3"), ({"ranks": (1, 2, 3)}, r"ranks = \(1, 2, 3\)")]:
        with pytest.raises(ConfigError, match=word):
            RWKV7(16, **bad)
