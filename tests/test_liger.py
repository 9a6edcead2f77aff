"""Liger against its two readings in numpy, its limits, and a model linearised with every weight kept."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, noisy, wide_numpy
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.liger import linearise
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import LEM, Attention, Liger
from jaxlm.models import LM
from jaxlm.module import ConfigError, abstract, init

MIXER = Liger(8, heads=4, kv_heads=2, head=4, window=3, bias=True)
T = 9


@pytest.fixture(scope="module")
def example():
    x = np.random.default_rng(1).normal(size=(2, T, 8)).astype(np.float32)
    starts = np.zeros((2, T), bool)
    starts[1, 4] = True
    return jax.tree.map(lambda p: 2 * p, noisy(MIXER)), x, starts


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def turn(z, place):
    w = place * 10000.0 ** (-2 * np.arange(2) / 4)
    return np.concatenate([z[:2] * np.cos(w) - z[2:] * np.sin(w), z[2:] * np.cos(w) + z[:2] * np.sin(w)])


def document(p, x, tau=16.0, mix=0.5, window=3):
    """One document x (t, d), head by head -> y (t, d), S (h, k, v)"""
    q, k, v = (np.einsum("td,dhk->thk", x, p[n]) + p[f"{n}_bias"] for n in ("query", "key", "value"))
    S, y = np.zeros((4, 4, 4)), []
    for t in range(len(x)):
        heads = []
        for h in range(4):
            g = h // 2
            alpha = (1 / (1 + np.exp(-k[t, g]))) ** (1 / tau)
            S[h] = alpha[:, None] * S[h] + np.outer(softmax(k[t, g]), v[t, g])
            near = range(max(0, t - window + 1), t + 1)
            a = softmax(np.array([turn(q[t, h], t) @ turn(k[s, g], s) / 2 for s in near]))
            local = sum(w * v[s, g] for w, s in zip(a, near, strict=True))
            heads.append(mix * softmax(q[t, h]) @ S[h] / 2 + (1 - mix) * local)
        y.append(np.einsum("hk,hkd->d", np.array(heads), p["out"]) + p["out_bias"])
    return np.array(y), S


@pytest.mark.parametrize("mixer", [MIXER, dataclasses.replace(MIXER, tau=math.inf, mix=0.25)], ids=["gated", "ungated"])
def test_equals_both_readings(mixer, example):
    params, x, starts = example
    y, state = apply(mixer, params, x, None, starts)
    p, xs = wide_numpy(params), np.float64(x)
    docs = [[xs[0]], np.split(xs[1], [4])]
    want = [[document(p, d, mixer.tau, mixer.mix) for d in row] for row in docs]
    close(y, np.float32([np.concatenate([d[0] for d in row]) for row in want]))
    close(state["S"], np.float32([row[-1][1] for row in want]))


def test_without_the_recurrence_it_is_the_window_and_from_any_share_a_mean_of_both(example):
    params, x, starts = example
    near = Attention(8, heads=4, kv_heads=2, head=4, window=3, bias=True)
    window = apply(near, params, x, None, starts)[0]
    close(apply(dataclasses.replace(MIXER, mix=0.0), params, x, None, starts)[0], window)
    far = apply(dataclasses.replace(MIXER, mix=1.0), params, x, None, starts)[0]
    close(apply(MIXER, params, x, None, starts)[0], (window + far) / 2)


def test_a_linearised_model_has_the_weights_of_its_teacher_and_no_other():
    teacher = LM(13, 16, Stack((Block(Attention(16), SwiGLU(16)), Block(LEM(16))), 2))
    student = linearise(teacher, window=4)
    assert abstract(student) == abstract(teacher) and student.params() == teacher.params()
    first, second = student.body.blocks
    assert first.mixer == Liger(16, window=4) and second.mixer == LEM(16)
    assert student.growth == "linear" and teacher.growth == "quadratic"
    params, tokens = init(teacher, jax.random.key(0)), jnp.arange(9, dtype=jnp.int32)[None]
    run = jax.jit(lambda m, p: m.apply(p, tokens)[0], static_argnums=0)
    gap = jnp.abs(run(student, params) - run(teacher, params)).max(axis=(0, 2))
    assert np.isfinite(gap).all() and gap.max() > 1e-2
    with pytest.raises(ConfigError, match="Attention"):
        linearise(LM(13, 16, Block(LEM(16))))
    with pytest.raises(ConfigError, match="window = 3"):
        linearise(LM(13, 16, Block(Attention(16, window=3))))


def test_fields():
    for bad, word in [({"window": None}, "window = None"), ({"tau": 0.0}, "tau = 0"), ({"mix": 1.5}, "mix = 1.5")]:
        with pytest.raises(ConfigError, match=word):
            Liger(16, **bad)
    assert Liger(16).state(2, 100)["k"].shape == (2, 63, 2, 8)
