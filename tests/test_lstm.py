"""LSTM against its equations in numpy, and its limits (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, loop, single
from tolerance import close

from jaxlm.mixers.lstm import LSTM
from jaxlm.module import ConfigError, count, init


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(p, u, s):
    """Gate by gate, matrices on columns."""
    i, f, z, o = (p["input"][:, g].T @ u + p["hidden"][:, g].T @ s["h"] + p["bias"][g] for g in range(4))
    c = sigmoid(f) * s["c"] + sigmoid(i) * np.tanh(z)
    h = sigmoid(o) * np.tanh(c)
    return h, {"h": h, "c": c}


def projected(p, u, s):
    """Sak et al. 2014: what is given, and read back, is a map of the cells' outputs."""
    m, s = cell(p, u, s)
    h = p["projection"].T @ m
    return h, s | {"h": h}


@pytest.mark.parametrize(("cells", "formula"), [(None, cell), (9, projected)], ids=["cells", "projection"])
def test_is_the_papers_recurrence(cells, formula):
    agrees(LSTM(6, inputs=5, cells=cells), formula)


def test_bfloat16_stays_near():
    half(LSTM(16), cell)


def test_counts():
    assert count(LSTM(16)) == 4 * 16 * 32 + 4 * 16
    assert count(LSTM(16, inputs=5)) == 4 * 16 * (16 + 5) + 4 * 16


def test_counts_with_a_projection():
    """Sak et al. 2014, section 2: 4 n_c n_r + 4 n_i n_c + n_c n_r without peepholes, biases and the readout."""
    assert count(LSTM(7, inputs=5, cells=16)) == 4 * 16 * 7 + 4 * 5 * 16 + 16 * 7 + 4 * 16


def test_a_projection_by_the_identity_is_none():
    plain = LSTM(6)
    params, x, state, starts = example(plain)
    want = apply(plain, params, x, state, starts)
    close(apply(LSTM(6, cells=6), params | {"projection": np.eye(6, dtype=np.float32)}, x, state, starts), want)


def test_a_bad_number_of_cells_is_named():
    with pytest.raises(ConfigError, match=r"LSTM\.cells = 0"):
        LSTM(4, cells=0)


def test_starts_uniform_with_the_forget_gate_open():
    params, plain = jax.jit(lambda: [init(m, jax.random.key(0)) for m in (LSTM(64, forget_bias=2.5), LSTM(64))])()
    for leaf in (params["input"], params["hidden"]):
        assert np.abs(leaf).max() <= 1 / 8
        assert abs(np.std(leaf) * 8 * np.sqrt(3) - 1) < 0.05
    about = np.asarray(params["bias"]) - np.array([0, 2.5, 0, 0])[:, None]
    assert np.abs(about).max() <= 1 / 8 + 1e-6
    assert abs(np.mean(plain["bias"][1]) - 1) < 0.05


def test_a_cell_that_forgets_nothing_and_writes_nothing_is_frozen():
    mixer = LSTM(6)
    params, x, state, _ = example(mixer)
    params["bias"][0] = -1e4
    params["bias"][1] = 1e4
    np.testing.assert_array_equal(apply(mixer, params, x, state)[1]["c"], state["c"])


def test_the_constant_error_carousel():
    """With f = 1 and nothing read back, an error flows back through c undiminished (1997, section 3.2)."""
    mixer = LSTM(6)
    params, x, state, _ = example(mixer, t=50)
    params["hidden"] = np.zeros_like(params["hidden"])
    params["bias"][1] = 1e4
    back = jax.jit(jax.grad(lambda s: mixer.apply(params, x, s)[1]["c"].sum()))(state)
    close(back["c"], np.ones_like(back["c"]))


def test_open_gates_without_forgetting_are_a_tanh_network():
    """f = 0, i = o = 1: h = tanh(tanh(W u + R h + b)), no memory but h."""
    mixer = LSTM(6)
    params, x, state, _ = example(mixer)
    params["bias"][0] = 1e4
    params["bias"][1] = -1e4
    params["bias"][3] = 1e4

    def plain(p, u, s):
        c = np.tanh(p["input"][:, 2].T @ u + p["hidden"][:, 2].T @ s["h"] + p["bias"][2])
        return np.tanh(c), {"h": np.tanh(c), "c": c}

    close(apply(mixer, params, x, state), single(loop(plain, params, x, state)))
