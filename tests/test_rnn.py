"""The simple recurrent network against its equation in numpy, and its limits (Elman 1990)."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, begin, example, loop, single
from tolerance import close

from jaxlm.mixers.gru import GRU
from jaxlm.mixers.rnn import RNN
from jaxlm.module import ConfigError, count, init

FIELDS = {"tanh": np.tanh, "sigmoid": lambda a: 1 / (1 + np.exp(-a)), "relu": lambda a: np.maximum(a, 0)}


def cell(activation):
    """h = f(V u + W h + b), matrices on columns."""

    def step(p, u, s):
        h = FIELDS[activation](p["input"].T @ u + p["hidden"].T @ s["h"] + p["bias"])
        return h, {"h": h}

    return step


def test_is_the_equation():
    agrees(RNN(6, inputs=5), cell("tanh"))


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_is_the_equation_with_another_activation(activation):
    mixer = RNN(6, activation=activation)
    params, x, state, starts = example(mixer)
    want = loop(cell(activation), params, x, state, starts, begin(mixer, params, 3))
    close(apply(mixer, params, x, state, starts), single(want))


def test_counts_and_init():
    assert count(RNN(16, inputs=5)) == 16 * (16 + 5) + 16
    for leaf in jax.tree.leaves(jax.jit(lambda: init(RNN(64), jax.random.key(0)))()):
        assert np.abs(leaf).max() <= 1 / 8
        assert abs(np.std(leaf) * 8 * np.sqrt(3) - 1) < 0.2


def test_is_the_gru_that_always_writes_and_never_resets():
    params, x, state, starts = example(GRU(6))
    params["bias"][:2] = 1e4
    last = {n: p[..., 2, :] for n, p in params.items()}
    close(apply(RNN(6), last, x, state, starts), apply(GRU(6), params, x, state, starts))


def test_relu_of_what_is_positive_is_a_sum_over_powers():
    """No negative weight, input or state: then h_t = W^t h_0 + sum over s of W^(t-s) (V u_s + b)."""
    mixer = RNN(6, activation="relu")
    params, x, state, _ = (jax.tree.map(np.abs, a) for a in example(mixer))
    p, t = jax.tree.map(np.float64, params), x.shape[1]
    power = [np.linalg.matrix_power(p["hidden"], n) for n in range(t + 1)]
    drive = x @ p["input"] + p["bias"]
    want = state["h"] @ power[t] + sum(drive[:, s] @ power[t - 1 - s] for s in range(t))
    close(apply(mixer, params, x, state)[1]["h"], np.float32(want))


def test_a_bad_activation_is_named():
    with pytest.raises(ConfigError, match=r"RNN\.activation = 'step'"):
        RNN(4, activation="step")
