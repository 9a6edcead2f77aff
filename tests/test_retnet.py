"""RetNet against its recurrence in numpy, the paper's normalised parallel form, its fading, and its published shape."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, silu, weights

from jaxlm.layers.rope import Rope
from jaxlm.mixers.gla import GLA
from jaxlm.mixers.retnet import RetNet
from jaxlm.module import ConfigError, count
from jaxlm.ops.decay import decay

MIXER = RetNet(16)


def turned(x, place):
    """Pairs (i, i + k/2) of each head as complex numbers, times e^{i place 10000^(-2i/k)}.   x (..., h, k)"""
    u, v = np.split(x, 2, axis=-1)
    z = (u + 1j * v) * np.exp(1j * place * 10000.0 ** (-np.arange(u.shape[-1]) / u.shape[-1]))
    return np.concatenate([z.real, z.imag], axis=-1)


class Row:
    """S = γ S + k' v with γ = 1 - 2^(-5-h), o = q S / √k, q and k turned, y = W_O (norm(o) SiLU(x W_G))."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        self.state = {"S": np.zeros((*self.p["query"].shape[1:], self.p["value"].shape[2])), "length": np.int32(0)}

    def token(self, x):
        p, place = self.p, self.state["length"]
        q, k, v, r = (np.einsum("d,dhk->hk", x, p[n]) for n in ("query", "key", "value", "gate"))
        q, k = turned(q, place), turned(k, place)
        gamma = 1 - 2.0 ** (-5 - np.arange(len(q)))
        S = gamma[:, None, None] * self.state["S"] + k[:, :, None] * v[:, None, :]
        self.state = {"S": S, "length": np.int32(place + 1)}
        o = np.einsum("hk,hkv->hv", q, S) / np.sqrt(q.shape[-1])
        return np.einsum("hv,hvd->d", rms(o, 1.0) * silu(r), p["out"])


@pytest.mark.parametrize("mixer", [MIXER, RetNet(24, heads=3, expand=1)], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_the_scores_divisions_cancel_under_the_norm():
    params, x = weights(MIXER), 8 * packed(MIXER)[0]  # large, so that the norm's eps is small beside it
    p, xs = float64(params), float64(x)
    q, k, v, r = (np.einsum("btd,dhk->bthk", xs, p[n]) for n in ("query", "key", "value", "gate"))
    q, k = (np.stack([turned(z[:, t], t) for t in range(x.shape[1])], axis=1) for z in (q, k))
    gap = np.arange(x.shape[1])[:, None] - np.arange(x.shape[1])
    D = np.where(gap >= 0, np.exp(MIXER.rates()[:, None, None] * np.maximum(gap, 0)), 0)
    R = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1]) * D / np.sqrt(D.sum(-1, keepdims=True))
    R = R / np.maximum(np.abs(R.sum(-1, keepdims=True)), 1)
    o = rms(np.einsum("bhts,bshv->bthv", R, v), 1.0, eps=0) * silu(r)
    close(apply(MIXER, params, x)[0], np.einsum("bthv,hvd->btd", o, p["out"]))


def test_where_nothing_turns_it_is_gla_with_one_fixed_gate_a_head():
    mixer, gated = RetNet(16, heads=2, expand=1, rope=Rope(fraction=0.0)), GLA(16, heads=2)
    params, (x, starts) = weights(gated), packed(gated)
    gamma = np.exp(mixer.rates())[:, None] ** gated.tau  # GLA takes the root of its gate
    tied = params | {
        "norm": jnp.ones_like(params["norm"]),
        "forget_out": jnp.zeros_like(params["forget_out"]),
        "forget_bias": jnp.asarray(np.broadcast_to(np.log(gamma / (1 - gamma)), (2, 4)), jnp.float32),
    }
    same = {n: params[n] for n in ("value", "gate", "out")}
    for n, scale in (("query", 2**0.5), ("key", 1.0)):  # GLA's keys are half as wide: √k differs, the rest is zero
        same[n] = jnp.concatenate([scale * params[n], jnp.zeros_like(params[n])], axis=-1)
    y, state = apply(mixer, same, x, None, starts)
    want, S = apply(gated, tied, x, None, starts)
    close((y, state["S"][:, :, :4]), (want, S["S"]))


def test_an_only_token_fades_by_gamma():
    k = jnp.zeros((1, 9, 3, 1)).at[0, 0].set(1.0)
    g = jnp.broadcast_to(jnp.asarray(RetNet(24, heads=3).rates(), jnp.float32), k.shape[:3])
    y = decay(jnp.ones_like(k), k, k, g)[0]
    for h in range(3):
        close(y[0, :, h, 0], (1 - 2.0 ** (-5 - h)) ** np.arange(9))


def test_rates():
    close(np.exp(RetNet(2048).rates()), 1 - 2.0 ** -np.arange(5.0, 13.0), jnp.float64)
    large = RetNet(2048, fade=(1 / 32, 1 / 512)).rates()
    close(np.exp(large), 1 - np.exp(np.linspace(np.log(1 / 32), np.log(1 / 512), 8)), jnp.float64)
    assert np.isfinite(RetNet(64, heads=32).rates()).all() and RetNet(64, heads=32).rates().max() < 0


def test_shapes_and_names():
    d = 2048
    published = RetNet(d)
    assert published.h == 8 and published.params()["query"].shape == (d, 8, 256)
    assert published.params()["value"].shape == published.params()["gate"].shape == (d, 8, 512)
    assert count(published) == 8 * d * d
    assert published.state(1)["S"].size == 2 * d * 256  # the sheet's 2D d_k
    for bad, word in [({"heads": 16}, "heads = 16"), ({"fade": (0.1, 1.0)}, r"fade = \(0.1, 1.0\)")]:
        with pytest.raises(ConfigError, match=word):
            RetNet(16, **bad)
