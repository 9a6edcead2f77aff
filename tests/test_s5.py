"""S5 against its equations in numpy, HiPPO, exact steps, and LRU as the same system (Smith et al. 2023)."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, wide_numpy
from tolerance import close
from twin import sigmoid

from jaxlm.mixers.lru import LRU
from jaxlm.mixers.s5 import S5
from jaxlm.module import ConfigError, count, decay_mask, init


def discrete(p, how):
    """(a, b): exact for an input that is constant over a step, or the trapezoid's."""
    pole, step = p["Lambda"][0] + 1j * p["Lambda"][1], np.exp(p["log_step"])
    if how == "zoh":
        return np.exp(pole * step), (np.exp(pole * step) - 1) / pole
    return (1 + step / 2 * pole) / (1 - step / 2 * pole), step / (1 - step / 2 * pole)


def cell(p, x, s, how="zoh"):
    """h = a h + b B x, y = 2 Re(C h) + D x, then GELU and the gate, for one token."""
    a, b = discrete(p, how)
    h = a * (s["h"][0] + 1j * s["h"][1]) + b * (x @ (p["B"][:, 0] + 1j * p["B"][:, 1]))
    y = 2 * (h @ (p["C"][0] + 1j * p["C"][1])).real + p["D"] * x
    if "gate" in p:
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        y = y * sigmoid(y @ p["gate"])
    return y, {"h": np.stack([h.real, h.imag])}


@pytest.mark.parametrize(
    "mixer", [S5(6), S5(5, hidden=8, discretization="bilinear", gated=False)], ids=["width alone", "all fields"]
)
def test_is_the_papers_layer(mixer):
    agrees(mixer, partial(cell, how=mixer.discretization))


def test_bfloat16_stays_near():
    half(S5(16), cell)


@pytest.mark.parametrize("how", ["zoh", "bilinear"])
def test_without_a_gate_it_is_lru(how):
    """a = λ, b B = γ B', and C counted for both of each conjugate pair."""
    mixer, other = S5(6, discretization=how, gated=False), LRU(6, hidden=3)
    params, x, state, starts = example(mixer)
    p = wide_numpy(params)
    a, b = discrete(p, how)
    into = b / np.sqrt(1 - np.abs(a) ** 2) * (p["B"][:, 0] + 1j * p["B"][:, 1])
    theirs = {"nu": np.log(-np.log(np.abs(a))), "theta": np.log(np.angle(a)), "D": p["D"]}
    theirs |= {"B": np.stack([into.real, into.imag], axis=1), "C": 2 * p["C"]}
    theirs = jax.tree.map(np.float32, theirs)
    close(apply(mixer, params, x, state, starts), apply(other, theirs, x, state, starts))


def test_poles_are_those_of_the_normal_part_of_hippo():
    """A + p p' with LegS A, in the paper's words: all its eigenvalues are Λ and the conjugates."""
    size = 16
    i, j = np.arange(size)[:, None], np.arange(size)[None]
    legs = np.where(i > j, -np.sqrt((2 * i + 1) * (2 * j + 1)), np.where(i == j, -(i + 1.0), 0))
    p = np.sqrt(i + 0.5)
    poles = np.linalg.eigvals(legs + p * p.T)
    poles = poles[np.argsort(poles.imag)]
    re, im = init(S5(size), jax.random.key(0))["Lambda"]
    close(np.concatenate([-im[::-1], im]), np.float32(poles.imag))
    close(np.concatenate([re, re]), np.float32(poles.real))


def test_a_constant_input_may_be_held_in_halves():
    """zoh is exact: every token twice with half the step passes the same states."""
    mixer = S5(6)
    params, x, state, _ = example(mixer)
    halves = params | {"log_step": params["log_step"] - np.float32(math.log(2))}
    close(apply(mixer, halves, x.repeat(2, axis=1), state)[1], apply(mixer, params, x, state)[1])


def test_small_steps_keep_their_digits():
    """b -> Δ as Λ Δ -> 0, which exp(Λ Δ) - 1 in float32 would miss by far."""
    mixer = S5(6)
    params = {**init(mixer, jax.random.key(0)), "log_step": jax.numpy.full(3, math.log(1e-5))}
    close(mixer.discrete(params)[1], np.complex64(discrete(wide_numpy(params), "zoh")[1]))


@pytest.mark.parametrize("how", ["zoh", "bilinear"])
def test_poles_stay_left_of_the_axis(how):
    mixer = S5(6, discretization=how)
    params = init(mixer, jax.random.key(0))
    drifted, bounded = ({**params, "Lambda": params["Lambda"].at[0].set(re)} for re in (3, -1e-4))
    close(mixer.discrete(drifted), mixer.discrete(bounded))


def test_starts_as_published():
    mixer = S5(512)
    params = wide_numpy(jax.jit(lambda: init(mixer, jax.random.key(0)))())
    step = np.exp(params["log_step"])
    assert 1e-3 - 1e-6 <= step.min() < 1.1e-3 and 0.09 < step.max() <= 0.1 + 1e-6
    for name, std in (("B", 1 / 32), ("C", 1 / math.sqrt(512)), ("D", 1)):
        assert abs(params[name].std() / std - 1) < 0.1


def test_counts_and_names():
    assert count(S5(16)) == 3 * 8 + 4 * 16 * 8 + 16 + 16 * 16
    assert count(S5(16, hidden=32, gated=False)) == 3 * 16 + 4 * 16 * 16 + 16
    assert S5(5).state(3)["h"].shape == (3, 2, 3)
    mask = decay_mask(S5(16))
    assert mask == {"Lambda": False, "log_step": False, "B": True, "C": True, "D": False, "gate": True}


@pytest.mark.parametrize(
    ("field", "value"), [("hidden", 5), ("hidden", 0), ("discretization", "euler"), ("shortest", 0), ("longest", 1e-4)]
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        S5(16, **{field: value})
