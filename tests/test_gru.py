"""GRU in both its forms against their equations in numpy, and their limits (Cho et al. 2014)."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, loop, single, wide_numpy
from tolerance import close

from jaxlm.mixers.gru import GRU
from jaxlm.module import count, init


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def before(p, u, s):
    """The paper's form: what U reads is reset; the gate writes."""
    h = s["h"]
    r, write = (sigmoid(p["input"][:, g].T @ u + p["hidden"][:, g].T @ h + p["bias"][g]) for g in (0, 1))
    c = np.tanh(p["input"][:, 2].T @ u + p["hidden"][:, 2].T @ (r * h) + p["bias"][2])
    h = (1 - write) * h + write * c
    return h, {"h": h}


def after(p, u, s):
    """cuDNN's form: what U gives is reset; the gate keeps."""
    h = s["h"]
    r, keep = (sigmoid(p["input"][:, g].T @ u + p["hidden"][:, g].T @ h + p["bias"][g]) for g in (0, 1))
    c = np.tanh(p["input"][:, 2].T @ u + p["bias"][2] + r * (p["hidden"][:, 2].T @ h + p["hidden_bias"]))
    h = keep * h + (1 - keep) * c
    return h, {"h": h}


FORMS = pytest.mark.parametrize(("reset_after", "cell"), [(False, before), (True, after)], ids=["before", "after"])


@FORMS
def test_is_the_papers_recurrence(reset_after, cell):
    agrees(GRU(6, inputs=5, reset_after=reset_after), cell)


@FORMS
def test_bfloat16_stays_near(reset_after, cell):
    half(GRU(16, reset_after=reset_after), cell)


def test_counts_and_init():
    assert count(GRU(16, inputs=5)) == 3 * 16 * (16 + 5) + 3 * 16
    assert count(GRU(16, inputs=5, reset_after=True)) == 3 * 16 * (16 + 5) + 4 * 16
    for leaf in jax.tree.leaves(jax.jit(lambda: init(GRU(64, reset_after=True), jax.random.key(0)))()):
        assert np.abs(leaf).max() <= 1 / 8
        assert abs(np.std(leaf) * 8 * np.sqrt(3) - 1) < 0.2


@pytest.mark.parametrize("reset_after", [False, True])
def test_a_gate_that_keeps_freezes_the_state(reset_after):
    mixer = GRU(6, reset_after=reset_after)
    params, x, state, _ = example(mixer)
    params["bias"][1] = 1e4 if reset_after else -1e4
    np.testing.assert_array_equal(apply(mixer, params, x, state)[1]["h"], state["h"])


def test_the_forms_are_one_where_nothing_is_reset():
    """r = 1: the same cell, the gate's sense turned round and the second bias joined to the first."""
    cho, cudnn = GRU(6), GRU(6, reset_after=True)
    params, x, state, starts = example(cudnn)
    params["bias"][0] = 1e4
    want = apply(cudnn, params, x, state, starts)
    params = jax.tree.map(np.copy, params)  # what was given to JAX may still be read
    params["bias"][2] += params.pop("hidden_bias")
    for gate in (params["input"][:, 1], params["hidden"][:, 1], params["bias"][1]):
        gate *= -1
    close(apply(cho, params, x, state, starts), want)


def test_always_writing_is_a_tanh_network_and_always_resetting_has_no_memory():
    mixer = GRU(6)
    params, x, state, _ = example(mixer)
    params["bias"][:2] = 1e4

    def plain(p, u, s):
        h = np.tanh(p["input"][:, 2].T @ u + p["hidden"][:, 2].T @ s["h"] + p["bias"][2])
        return h, {"h": h}

    close(apply(mixer, params, x, state), single(loop(plain, params, x, state)))
    params["bias"][0] = -1e4
    p = wide_numpy(params)
    close(apply(mixer, params, x, state)[0], np.float32(np.tanh(wide_numpy(x) @ p["input"][:, 2] + p["bias"][2])))
