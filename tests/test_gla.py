"""Gated linear attention against its recurrence in numpy, its limits and its published shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, silu, softplus, weights

from jaxlm.mixers.gla import GLA
from jaxlm.module import ConfigError, count, decay_mask, init

MIXER = GLA(16)


class Row:
    """S = Diag(α) S + k' v with α = σ(x W_1 W_2 + b)^(1/16), o = q S / √k, y = W_O (norm(o) SiLU(x W_r))."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {"S": np.zeros((h, k, self.p["value"].shape[2]))}

    def token(self, x):
        p = self.p
        q, k, v, r = (np.einsum("d,dhk->hk", x, p[n]) for n in ("query", "key", "value", "gate"))
        z = np.einsum("r,rhk->hk", x @ p["forget_in"], p["forget_out"]) + p["forget_bias"]
        alpha = np.exp(-softplus(-z) / 16)
        S = self.state["S"] = alpha[:, :, None] * self.state["S"] + k[:, :, None] * v[:, None, :]
        o = np.einsum("hk,hkv->hv", q, S) / np.sqrt(q.shape[-1])
        return np.einsum("hv,hvd->d", rms(o, p["norm"]) * silu(r), p["out"])


@pytest.mark.parametrize("mixer", [MIXER, GLA(32, heads=2, rank=5)], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_without_forgetting_it_is_linear_attention():
    params, (x, _) = weights(MIXER), packed(MIXER)
    params |= {
        "forget_out": jnp.zeros_like(params["forget_out"]),
        "forget_bias": jnp.full_like(params["forget_bias"], 1e4),
    }
    p, xs = float64(params), float64(x)
    q, k, v, r = (np.einsum("btd,dhk->bthk", xs, p[n]) for n in ("query", "key", "value", "gate"))
    scores = np.tril(np.einsum("bthk,bshk->bhts", q, k)) / np.sqrt(q.shape[-1])
    o = rms(np.einsum("bhts,bshv->bthv", scores, v), p["norm"]) * silu(r)
    close(apply(MIXER, params, x)[0], np.einsum("bthv,hvd->btd", o, p["out"]))


def test_shut_gates_keep_only_the_present_token():
    params, (x, _) = weights(MIXER), packed(MIXER)
    shut = params | {"forget_bias": jnp.full_like(params["forget_bias"], -16 * 60.0)}
    y, state = apply(MIXER, shut, x)
    alone = apply(MIXER, shut, x, None, jnp.ones(x.shape[:2], bool))
    close((y, state), alone)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(MIXER.apply(p, x)[0] ** 2)))(shut)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_gates_start_slow_and_never_grow():
    x = jax.random.normal(jax.random.key(3), (4, 64, 256))
    mixer = GLA(256)
    g = mixer.forget(init(mixer, jax.random.key(0)), x)
    assert g.dtype == jnp.float32 and float(g.max()) <= 0
    # b = 0 and maps of unit gain: σ about 1/2, its 16th root about 0.96: some 16 tokens of memory before any training.
    assert 0.93 < float(jnp.mean(jnp.exp(g))) < 0.97


def test_shapes_and_names():
    d = 1024
    published = GLA(d)
    assert published.h == 4
    shapes = {n: s.shape for n, s in published.params().items()}
    assert shapes["query"] == shapes["key"] == (d, 4, 128) and shapes["value"] == shapes["gate"] == (d, 4, 256)
    assert shapes["forget_in"] == (d, 16) and shapes["forget_out"] == (16, 4, 128) and shapes["norm"] == (4, 256)
    assert count(published) == 4 * d * d + 16 * d + 16 * d // 2 + d // 2 + d
    assert published.state(1)["S"].size == (d // 2) * (d // 4)  # the sheet's (D/2)(D/H)
    mask = decay_mask(published)
    assert mask["forget_out"] and not mask["forget_bias"] and not mask["norm"]
    for bad, word in [({"width": 15}, "width = 15"), ({"width": 16, "heads": 3}, "heads = 3")]:
        with pytest.raises(ConfigError, match=word):
            GLA(**bad)
