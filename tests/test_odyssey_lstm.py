"""The LSTM with peepholes and its eight ablations against their equations in numpy, and how they are one another."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, half, loop, single
from tolerance import close

from jaxlm.mixers.lstm import LSTM
from jaxlm.mixers.odyssey_lstm import VARIANTS, OdysseyLSTM
from jaxlm.module import ConfigError, abstract, count, init

N, D = 4, 3
GATES = {"NIG": "fo", "NFG": "io", "NOG": "if", "CIFG": "io"}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def formula(variant):
    """Section II of the paper with one change, gate by gate, matrices on columns."""
    names = GATES.get(variant, "ifo")

    def cell(p, u, s):
        def drive(name):
            g = (names + "z").index(name)
            a = p["input"][:, g].T @ u + p["hidden"][:, g].T @ s["y"] + p["bias"][g]
            if variant == "FGR" and name != "z":
                a += sum(p["regulators"][k, :, g].T @ s["gates"][k] for k in range(3))
            return a

        def gate(name, c):
            if variant == "N" + name.upper() + "G":
                return np.ones(N)
            return sigmoid(drive(name) + (0 if variant == "NP" else p["peephole"][names.index(name)] * c))

        z = drive("z") if variant == "NIAF" else np.tanh(drive("z"))
        i = gate("i", s["c"])
        f = 1 - i if variant == "CIFG" else gate("f", s["c"])
        c = z * i + s["c"] * f
        o = gate("o", c)
        y = (c if variant == "NOAF" else np.tanh(c)) * o
        return y, {"y": y, "c": c} | ({"gates": np.stack([i, f, o])} if variant == "FGR" else {})

    return cell


def drawn(mixer, seed=0):
    """(params, x, state, starts) in numpy, the weights wide enough that every part of the cell is heard."""
    draw = np.random.default_rng(seed)
    params = {k: draw.normal(size=s.shape).astype(np.float32) for k, s in abstract(mixer).items()}
    state = {k: draw.normal(size=s.shape).astype(np.float32) for k, s in mixer.state(3).items()}
    starts = np.zeros((3, 7), bool)
    starts[0, 0] = starts[1, 3] = True
    return params, draw.normal(size=(3, 7, D)).astype(np.float32), state, starts


def follows(variant):
    """`apply` from a random state, with starts, is the formula."""
    mixer = OdysseyLSTM(N, D, variant)
    params, x, state, starts = drawn(mixer)
    fresh = jax.tree.map(np.zeros_like, state)
    close(apply(mixer, params, x, state, starts), single(loop(formula(variant), params, x, state, starts, fresh)))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("V", "FGR")])
def test_every_ablation_is_its_equations(variant):
    follows(variant)


def test_is_the_papers_recurrence_from_everywhere():
    agrees(OdysseyLSTM(N, D), formula("V"))


def test_gates_that_read_gates_from_everywhere():
    agrees(OdysseyLSTM(N, D, "FGR"), formula("FGR"))


def test_bfloat16_stays_near():
    half(OdysseyLSTM(N, D), formula("V"))


@pytest.mark.parametrize(("n", "d"), [(4, 3), (16, 16)])
def test_counts_of_the_paper(n, d):
    whole = 4 * n * (d + n) + 4 * n + 3 * n
    less = dict.fromkeys(("NIG", "NFG", "NOG", "CIFG"), -(n * (d + n) + 2 * n)) | {"NP": -3 * n, "FGR": 9 * n * n}
    for variant in VARIANTS:
        assert count(OdysseyLSTM(n, d, variant)) == whole + less.get(variant, 0), variant


def test_starts_normal():
    for leaf in jax.tree.leaves(jax.jit(lambda: init(OdysseyLSTM(64), jax.random.key(0)))()):
        assert abs(np.std(leaf) / 0.1 - 1) < 0.2 and abs(np.mean(leaf)) < 0.02


def whole():
    mixer = OdysseyLSTM(N, D)
    return mixer, *drawn(mixer)


def test_without_peepholes_it_is_the_plain_lstm():
    """With p = 0, and as NP; the plain cell orders its gates i, f, z, o and calls y h."""
    mixer, params, x, state, starts = whole()
    params["peephole"][:] = 0
    want = apply(mixer, params, x, state, starts)
    del params["peephole"]
    close(apply(OdysseyLSTM(N, D, "NP"), params, x, state, starts), want)
    order = [0, 1, 3, 2]
    renamed = {k: params[k][:, order] for k in ("input", "hidden")} | {"bias": params["bias"][order]}
    y, last = apply(LSTM(N, D), renamed, x, {"h": state["y"], "c": state["c"]}, starts)
    close((y, {"y": last["h"], "c": last["c"]}), want)


def lacking(params, g):
    """The weights without gate g."""
    less = {k: np.delete(params[k], g, axis=1) for k in ("input", "hidden")}
    return less | {k: np.delete(params[k], g, axis=0) for k in ("bias", "peephole")}


@pytest.mark.parametrize(("g", "variant"), [(0, "NIG"), (1, "NFG"), (2, "NOG")])
def test_a_gate_held_open_is_none(g, variant):
    mixer, params, x, state, starts = whole()
    params["bias"][g] = 1e4
    want = apply(mixer, params, x, state, starts)
    close(apply(OdysseyLSTM(N, D, variant), lacking(params, g), x, state, starts), want)


def test_coupled_gates_are_a_forget_gate_of_the_opposite_sign():
    """σ(-a) = 1 - σ(a)."""
    mixer, params, x, state, starts = whole()
    for name in ("input", "hidden"):
        params[name][:, 1] = -params[name][:, 0]
    for name in ("bias", "peephole"):
        params[name][1] = -params[name][0]
    want = apply(mixer, params, x, state, starts)
    close(apply(OdysseyLSTM(N, D, "CIFG"), lacking(params, 1), x, state, starts), want)


def test_gates_that_read_nothing_of_the_gates_are_the_whole_cells():
    mixer, params, x, state, starts = whole()
    full = OdysseyLSTM(N, D, "FGR")
    gates = np.random.default_rng(1).random((3, 3, N)).astype(np.float32)
    got = apply(full, params | {"regulators": np.zeros((3, N, 3, N), np.float32)}, x, state | {"gates": gates}, starts)
    got[1].pop("gates")
    close(got, apply(mixer, params, x, state, starts))


@pytest.mark.parametrize("variant", ["NIAF", "NOAF"])
def test_where_tanh_is_a_line_it_is_not_missed(variant):
    """With tanh(a) = a + O(a³): block inputs of 1e-4 keep a and c so small that the ablation is the whole cell."""
    mixer, params, x, state, _ = whole()
    for name in ("input", "hidden"):
        params[name][:, 3] *= 1e-4
    params["bias"][3] *= 1e-4
    state["c"] *= 1e-4
    close(apply(OdysseyLSTM(N, D, variant), params, x, state), apply(mixer, params, x, state))


def test_every_weight_of_gates_that_read_gates_has_a_gradient():
    mixer = OdysseyLSTM(N, D, "FGR")
    params, x, state, starts = drawn(mixer)
    grads = jax.jit(jax.grad(lambda p: (mixer.apply(p, x, state, starts)[0] ** 2).sum()))(params)
    assert all((np.abs(g) > 0).all() for g in jax.tree.leaves(grads))


def test_an_unknown_variant_is_named():
    with pytest.raises(ConfigError, match=r"OdysseyLSTM\.variant = 'GRU'"):
        OdysseyLSTM(4, variant="GRU")
