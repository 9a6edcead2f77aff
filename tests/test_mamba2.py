"""Mamba-2 against its recurrence in numpy, RetNet's scan as its limit, its first weights, and its published shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, silu, softplus, weights

from jaxlm.mixers.mamba2 import Mamba2
from jaxlm.mixers.retnet import RetNet
from jaxlm.module import ConfigError, cast, count, decay_mask, init

MIXER = Mamba2(16)
RATES = ("A_log", "dt_bias")
GROUPED = Mamba2(12, head=6, slots=5, groups=2)


def row(mixer):
    """The twin of a mixer: its sizes cannot all be read off its weights."""
    inner, h, g, k = mixer.inner, mixer.h, mixer.groups, mixer.k

    class Row:
        """S = a S + B' (Δ v) with a = exp(-exp(A) Δ), o = C S + D v, y = W_O norm_group(o SiLU(z))."""

        def __init__(self, p):
            self.p = p
            self.reset()

        def reset(self):
            self.state = {"S": np.zeros((h, k, inner // h)), "conv": np.zeros((3, inner + 2 * g * k))}

        def token(self, x):
            p, u = self.p, x @ self.p["into"]
            z, u, dt = u[:inner], u[inner:-h], softplus(u[-h:] + p["dt_bias"])
            seen = np.concatenate([self.state["conv"], u[None]])
            u = silu(p["conv_bias"] + np.sum(p["conv"] * seen, axis=0))
            S, o = self.state["S"], []
            for head in range(h):
                own = head * g // h
                v = u[head * inner // h :][: inner // h]
                B = u[inner + own * k :][:k]
                C = u[inner + (g + own) * k :][:k]
                S[head] = np.exp(-np.exp(p["A_log"][head]) * dt[head]) * S[head] + np.outer(B, dt[head] * v)
                o.append(C @ S[head] + p["skip"][head] * v)
            self.state = {"S": S, "conv": seen[1:]}
            y = np.concatenate(o) * silu(z)
            return rms(y.reshape(g, -1), p["norm"]).reshape(-1) @ p["out"]

    return Row


def slow(params):
    """Decays that leave something to see: the published ones, at a step of this size, would soon empty the memory."""
    return params | {"A_log": params["A_log"] - 2, "dt_bias": params["dt_bias"] + 3}


@pytest.mark.parametrize("mixer", [MIXER, GROUPED], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, row(mixer), slow(weights(mixer)))


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, row(MIXER))


def test_with_a_fixed_decay_it_is_the_scan_of_retnet():
    params, (x, starts) = weights(MIXER), packed(MIXER)
    rates = RetNet(16, heads=2).rates()
    fixed = params | {
        "into": params["into"].at[:, -2:].set(0.0),
        "dt_bias": jnp.full((2,), np.log(np.e - 1), jnp.float32),  # Δ = 1
        "A_log": jnp.asarray(np.log(-rates), jnp.float32),
        "conv": jnp.zeros_like(params["conv"]).at[3].set(1.0),
        "skip": jnp.zeros((2,)),
    }
    p, xs = float64(fixed), float64(x)
    u = xs @ p["into"][:, :-2]
    z, v, B, C = np.split(u, [32, 64, 80], axis=-1)
    v, B, C = (silu(a + b) for a, b in zip((v, B, C), np.split(p["conv_bias"], [32, 48]), strict=True))
    gap = np.arange(x.shape[1])[:, None] - np.arange(x.shape[1])
    document = np.cumsum(np.asarray(starts), axis=1)
    seen = (gap >= 0) & (document[:, :, None] == document[:, None, :])
    D = np.exp(rates[:, None, None] * gap)[None] * seen[:, None]
    o = np.einsum("btn,bsn,bhts,bshv->bthv", C, B, D, v.reshape(*v.shape[:2], 2, 16)).reshape(v.shape)
    close(apply(MIXER, fixed, x, None, starts)[0], rms(o * silu(z), p["norm"][0]) @ p["out"])


def test_first_weights():
    specs = MIXER.params()
    many = {"shape": (40000,), "axes": (None,)}
    A, dt = (float64(specs[n].init(jax.random.key(0), dataclasses.replace(specs[n], **many))) for n in RATES)
    A, dt = np.exp(A), softplus(dt)
    assert A.min() > 0.999 and A.max() < 16.001 and abs(A.mean() - 8.5) < 0.1  # U(1, 16)
    assert dt.min() > 0.999e-3 and dt.max() < 1.001e-1 and abs(np.log(dt).mean() - np.log(1e-2)) < 0.03
    params, mask = init(MIXER, jax.random.key(0)), decay_mask(MIXER)
    assert (params["skip"] == 1).all() and (params["norm"] == 1).all()
    half = cast(MIXER, params, jnp.bfloat16)
    for n in (*RATES, "skip", "norm"):
        assert half[n].dtype == jnp.float32 and not mask[n]


def test_shapes_and_names():
    d = 768
    published = Mamba2(d)
    assert (published.h, published.v, published.k) == (24, 64, 128)
    mixed = 2 * d + 256
    assert count(published) == d * (2 * d + mixed + 24) + 5 * mixed + 3 * 24 + 2 * d + 2 * d * d
    assert published.state(1)["S"].size == 2 * d * 128  # the sheet's 2D N
    for bad, word in [({"head": 5}, "head = 5"), ({"groups": 4}, "groups = 4"), ({"slots": 0}, "slots = 0")]:
        with pytest.raises(ConfigError, match=word):
            Mamba2(16, **bad)
