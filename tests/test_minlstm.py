"""minLSTM against its equations in numpy, and minGRU as the case of gates that sum to 1 (Feng et al. 2024)."""

from functools import partial

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, wide_numpy
from tolerance import close
from twin import sigmoid

from jaxlm.mixers.mingru import MinGRU
from jaxlm.mixers.minlstm import MinLSTM
from jaxlm.module import ConfigError, count


def cell(p, x, s, positive=False):
    """f, i = σ(W x + b), h = f / (f + i) h + i / (f + i) c, c = W_h x + b or g of it, for one token."""
    f, i, c = np.einsum("d,dgn->gn", x, p["input"]) + p["bias"]
    f, i, c = sigmoid(f), sigmoid(i), np.where(c >= 0, c + 0.5, sigmoid(c)) if positive else c
    h = f / (f + i) * s["h"] + i / (f + i) * c
    return (h @ p["out"] if "out" in p else h), {"h": h}


@pytest.mark.parametrize("mixer", [MinLSTM(6), MinLSTM(6, 4, 9, True)], ids=["width alone", "all fields"])
def test_is_the_papers_cell(mixer):
    agrees(mixer, partial(cell, positive=mixer.positive))


def test_bfloat16_stays_near():
    half(MinLSTM(16), cell)


@pytest.mark.parametrize("positive", [True, False])
def test_gates_that_sum_to_one_are_those_of_mingru(positive):
    mixer, other = MinLSTM(6, positive=positive), MinGRU(6, positive=positive)
    params, x, state, starts = example(mixer)
    params["input"][:, 0], params["bias"][0] = -params["input"][:, 1], -params["bias"][1]
    single = {n: p[..., 1:, :] for n, p in params.items()}
    close(apply(mixer, params, x, state, starts), apply(other, single, x, state, starts))


def test_two_gates_that_are_both_shut_still_average():
    """f = i = e^-200, which is 0 in float32: h is the mean of what was and what comes, and learns."""
    mixer = MinLSTM(6)
    params, x, state, _ = example(mixer, t=1)
    params["input"][:, :2], params["bias"][:2] = 0, -200
    c = wide_numpy(x)[:, 0] @ wide_numpy(params["input"][:, 2]) + params["bias"][2]
    close(apply(mixer, params, x, state)[1]["h"], np.float32((c + state["h"]) / 2))
    grads = jax.jit(jax.grad(lambda p: mixer.apply(p, x, state)[0].sum()))(params)
    assert np.isfinite(grads["bias"]).all() and (np.abs(grads["bias"]) > 0).any()


def test_counts_and_bad_fields():
    assert count(MinLSTM(16)) == 3 * (16 * 16 + 16)
    with pytest.raises(ConfigError, match=r"MinLSTM\.hidden = 0"):
        MinLSTM(16, hidden=0)
