"""minGRU against its equations in numpy, its log-space form, and the running average that it is (Feng et al. 2024)."""

from functools import partial

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, wide_numpy
from tolerance import close
from twin import sigmoid, softplus

from jaxlm.mixers.mingru import MinGRU, above_zero
from jaxlm.module import ConfigError, count, decay_mask, init


def g(x):
    return np.where(x >= 0, x + 0.5, sigmoid(x))


def cell(p, x, s, positive=False):
    """z = σ(W_z x + b), c = W_h x + b or g of it, h = (1 - z) h + z c, for one token."""
    z, c = np.einsum("d,dgn->gn", x, p["input"]) + p["bias"]
    h = (1 - sigmoid(z)) * s["h"] + sigmoid(z) * (g(c) if positive else c)
    return (h @ p["out"] if "out" in p else h), {"h": h}


@pytest.mark.parametrize("mixer", [MinGRU(6), MinGRU(6, 4, 9, True)], ids=["width alone", "all fields"])
def test_is_the_papers_cell(mixer):
    agrees(mixer, partial(cell, positive=mixer.positive))


def test_bfloat16_stays_near():
    half(MinGRU(16), cell)


def test_is_its_log_space_form():
    """log h_t = B_t + logcumsumexp(log u_s - B_s), B = cumsum log(1 - z), with the start state as the first u."""
    mixer = MinGRU(5, positive=True)
    params, x, state, _ = example(mixer, t=30)
    state = {"h": np.abs(state["h"])}
    z, c = np.moveaxis(np.einsum("btd,dgn->btgn", wide_numpy(x), wide_numpy(params["input"])) + params["bias"], 2, 0)
    B = np.cumsum(-softplus(z), axis=1)
    log_u = np.concatenate([np.log(wide_numpy(state["h"]))[:, None], -softplus(-z) + np.log(g(c)) - B], axis=1)
    h = np.exp(B + np.logaddexp.accumulate(log_u, axis=1)[:, 1:])
    close(apply(mixer, params, x, state)[0], np.float32(h))


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.9])
def test_a_fixed_gate_is_an_exponential_moving_average(rate):
    mixer, t = MinGRU(4), 20
    params, x, state, _ = example(mixer, t=t)
    params["input"][:, 0], params["bias"][0] = 0, np.log(rate / (1 - rate))
    params["input"][:, 1], params["bias"][1] = np.eye(4), 0
    lag = np.arange(t)[:, None] - np.arange(t)[None]
    weights = np.where(lag >= 0, rate * (1 - rate) ** np.maximum(lag, 0), 0)
    want = np.einsum("ts,bsn->btn", weights, wide_numpy(x))
    want += (1 - rate) ** np.arange(1, t + 1)[None, :, None] * wide_numpy(state["h"])[:, None]
    close(apply(mixer, params, x, state)[0], np.float32(want))


def test_shut_and_open_gates():
    """Shut, the state stays to the last bit; open, it is the candidate alone."""
    mixer = MinGRU(6)
    params, x, state, _ = example(mixer)
    params["bias"][0] = -1e4
    np.testing.assert_array_equal(apply(mixer, params, x, state)[1]["h"], state["h"])
    params["bias"][0] = 1e4
    c = wide_numpy(x) @ wide_numpy(params["input"][:, 1]) + params["bias"][1]
    close(apply(mixer, params, x, state)[0], np.float32(c))


def test_candidates_are_positive_and_their_map_has_no_step():
    x = np.array([-40.0, -3.0, -1e-6, 0.0, 1e-6, 5.0], np.float32)
    y = above_zero(jax.numpy.asarray(x))
    close(y, np.float32(g(np.float64(x))))
    assert (np.asarray(y) > 0).all() and (np.diff(y) > 0).all()


def test_counts_and_names():
    assert count(MinGRU(16)) == 2 * (16 * 16 + 16)
    mixer = MinGRU(16, inputs=8, hidden=32)
    assert count(mixer) == 2 * (8 * 32 + 32) + 32 * 16 and mixer.state(3)["h"].shape == (3, 32)
    params = init(MinGRU(64), jax.random.key(0))
    assert 0.12 < np.abs(params["input"]).max() <= 0.125 and 0.11 < np.abs(params["bias"]).max() <= 0.125
    assert decay_mask(mixer) == {"input": True, "bias": False, "out": True}


@pytest.mark.parametrize("field", ["hidden", "inputs"])
def test_bad_fields_are_named(field):
    with pytest.raises(ConfigError, match=f"MinGRU.{field} = 0"):
        MinGRU(16, **{field: 0})  # pyright: ignore[reportArgumentType]
