"""RWKV-5 against its recurrence in numpy, RWKV-6 as the same with data in its decay, its initial values, its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, packed, sigmoid, weights

from jaxlm.mixers.rwkv5 import RWKV5
from jaxlm.mixers.rwkv6 import RWKV6
from jaxlm.module import ConfigError, count, init

MIXER = RWKV5(16)


class Row:
    """o = r (S + Diag(u) k' v), then S = Diag(exp(-exp(w))) S + k' v."""

    eps = 8e-5

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        d, h, k = self.p["key"].shape
        self.state = {"S": np.zeros((h, k, k)), "past": np.zeros(d)}

    def token(self, x):
        p, S, past = self.p, self.state["S"], self.state["past"]
        u = {n: (1 - mu) * x + mu * past for n, mu in p["mix"].items()}
        r, k, v, g = (np.einsum("d,dhk->hk", u[n], p[n]) for n in ("receptance", "key", "value", "gate"))
        new, o = np.zeros_like(S), np.zeros_like(v)
        for h in range(len(S)):
            own = np.outer(k[h], v[h])
            o[h] = r[h] @ (S[h] + np.diag(p["bonus"][h]) @ own)
            new[h] = np.diag(np.exp(-np.exp(p["decay"][h]))) @ S[h] + own
            o[h] = (o[h] - o[h].mean()) / np.sqrt(o[h].var() + self.eps)
        self.state = {"S": new, "past": x}
        return np.einsum("hv,hvd->d", (o * p["norm"]["gain"] + p["norm"]["bias"]) * g * sigmoid(g), p["out"])


class Sharp(Row):
    eps = 1e-5


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(RWKV5(16, heads=4, eps=1e-5), Sharp)


def test_is_rwkv6_without_what_data_moves():
    mixer = RWKV6(16, rank=2, decay=2)
    params, (x, starts) = weights(MIXER), packed(MIXER)
    more = weights(mixer)
    still = {"in": 0 * more["decay"]["in"], "out": more["decay"]["out"], "bias": params["decay"]}
    mixes = more["mix"] | params["mix"]
    same = params | {"mix": mixes, "mix_in": more["mix_in"], "mix_out": 0 * more["mix_out"], "decay": still}
    close(apply(mixer, same, x, None, starts), apply(MIXER, params, x, None, starts))


def test_initial_values():
    p = init(RWKV5(128), jax.random.key(0))
    place = np.arange(128) / 127
    close(np.ravel(p["decay"]), (-6 + 5 * place**0.7).astype(np.float32))
    close(np.ravel(p["bonus"]), (1 - place).astype(np.float32))
    assert p["decay"].dtype == jnp.float32 and float(p["mix"]["key"][0]) == 1


def test_shapes_and_names():
    d = 1024
    published = RWKV5(d)
    assert published.h == 16 and count(published) == 5 * d * d + 4 * d + 2 * d + 2 * d
    for bad, word in [({"heads": 3}, "heads = 3"), ({"eps": 0.0}, "eps = 0.0")]:
        with pytest.raises(ConfigError, match=word):
            RWKV5(16, **bad)
