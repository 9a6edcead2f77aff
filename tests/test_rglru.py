"""The recurrent block of Griffin against its equations in numpy, and its limits (De et al. 2024)."""

import math

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, wide_numpy
from tolerance import close

from jaxlm.mixers.rglru import RGLRU, bounded_sqrt
from jaxlm.module import ConfigError, count, init


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def cell(p, x, s):
    """Equations 1 to 4 for one token; the convolution reads the last inputs and this one, newest last."""
    recent = np.concatenate([s["conv"], (x @ p["input"])[None]])
    u = (p["conv"] * recent).sum(0) + p["conv_bias"]
    blocks = u.reshape(len(p["gates"]), -1)
    r, i = (
        np.concatenate([b @ w[:, g] + c[g] for b, w, c in zip(blocks, p["gates"], p["gates_bias"], strict=True)])
        for g in (0, 1)
    )
    a = np.exp(-8 * sigmoid(r) * np.log1p(np.exp(p["decay"])))
    gated = sigmoid(i) * u
    h = a * s["h"] + np.sqrt(1 - a**2) * gated if s["seen"] else gated
    return (gelu(x @ p["gelu"]) * h) @ p["out"], {"h": h, "conv": recent[1:], "seen": np.bool_(True)}


@pytest.mark.parametrize("mixer", [RGLRU(6), RGLRU(6, hidden=8, heads=2, window=3)], ids=["width alone", "all fields"])
def test_is_the_papers_block(mixer):
    agrees(mixer, cell)


def test_bfloat16_stays_near():
    half(RGLRU(16, heads=4), cell)


def test_counts():
    """Three maps, four taps and a bias, two block-diagonal gates with biases, and the decay."""
    assert count(RGLRU(16)) == 3 * 16 * 16 + 5 * 16 + 2 * (16 * 8 + 16) + 16
    assert count(RGLRU(16, hidden=24, heads=4)) == 3 * 16 * 24 + 5 * 24 + 2 * (24 * 6 + 24) + 24
    assert RGLRU(2560).parts == 10


def test_starts_as_published():
    """exp(-softplus Λ) on the ring from 0.9 to 0.999, evenly by area; LeCun's fan-in; conv of variance 0.01 / 4."""
    mixer = RGLRU(1024)
    params = wide_numpy(jax.jit(lambda: init(mixer, jax.random.key(0)))())
    radius = np.exp(-np.log1p(np.exp(params["decay"])))
    assert 0.9 - 1e-6 <= radius.min() < 0.903 and 0.996 < radius.max() <= 0.999 + 1e-6
    area = (radius**2 - 0.9**2) / (0.999**2 - 0.9**2)
    assert np.abs(np.sort(area) - (np.arange(1024) + 0.5) / 1024).max() < 0.05
    for name, std in (("input", 1 / 32), ("gelu", 1 / 32), ("out", 1 / 32), ("conv", 0.05), ("gates", 1 / 16)):
        assert abs(params[name].std() / std - 1) < 0.05
    assert not params["gates_bias"].any() and not params["conv_bias"].any()


def test_the_variance_of_the_state_is_that_of_its_input():
    """Constant a, open input gate, independent inputs of variance 1: the squared weights of the past sum to 1."""
    mixer, t = RGLRU(4, window=1), 30
    params, x, _, _ = example(mixer, t=t)
    x = x[:1]
    params["input"][:], params["conv"][:], params["conv_bias"][:] = np.eye(4), 1, 0
    params["gates"][:] = 0
    params["gates_bias"][:, 1] = 1e4
    starts = np.arange(t)[None] == 11
    weights = jax.jit(jax.jacobian(lambda x, starts: mixer.apply(params, x, None, starts)[1]["h"][0].sum()))
    for s, kept in ((np.zeros_like(starts), t), (starts, t - 11)):
        past = np.asarray(weights(x, s))[0]
        close((past**2).sum(0), np.ones(4, np.float32))
        assert (np.abs(past).min(1) > 0).sum() == kept


def test_a_first_token_enters_whole_and_a_cut_is_not_a_start():
    mixer = RGLRU(6)
    params, x, state, _ = example(mixer)
    params["gates_bias"][:, 1] = 1e4
    alone = apply(mixer, params, x[:, :1])[1]
    p = wide_numpy(params)
    close(alone["h"], np.float32(wide_numpy(x[:, 0]) @ p["input"] * p["conv"][-1] + p["conv_bias"]))
    zero = {**jax.tree.map(np.zeros_like, state), "seen": np.ones(3, bool)}
    later = apply(mixer, params, x[:, :1], zero)[1]
    assert (np.abs(later["h"]) < np.abs(alone["h"])).all()


def test_gradients_stay_finite_where_nothing_decays():
    """a = 1 puts the square root at 0: its derivative is cut at 1000, its value is not."""
    slopes = jax.jit(jax.vmap(jax.grad(bounded_sqrt)))(np.array([0, 1e-12, 1e-4, 0.25], np.float32))
    close(slopes, np.array([1000, 1000, 50, 1], np.float32))
    mixer = RGLRU(6)
    params, x, state, _ = example(mixer)
    params["gates_bias"][:, 0] = -1e4
    grads = jax.jit(jax.grad(lambda p, x: mixer.apply(p, x, state)[0].sum(), (0, 1)))(params, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(apply(mixer, params, x, state)[1]["h"], state["h"])


@pytest.mark.parametrize(("field", "value"), [("heads", 5), ("heads", 0), ("window", 0)])
def test_bad_fields_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        RGLRU(16, **{field: value})  # pyright: ignore[reportArgumentType]
