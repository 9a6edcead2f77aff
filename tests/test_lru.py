"""LRU against its equation in numpy, its ring, its variance, and RG-LRU as a relative (Orvieto et al. 2023)."""

import math

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, noisy, wide_numpy
from tolerance import close

from jaxlm.mixers.lru import LRU
from jaxlm.mixers.rglru import RGLRU
from jaxlm.module import ConfigError, count, decay_mask, init


def cell(p, x, s):
    """h = λ h + sqrt(1 - |λ|^2) B x, y = Re(C h) + D x, for one token."""
    a = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    b, c = p["B"][:, 0] + 1j * p["B"][:, 1], p["C"][0] + 1j * p["C"][1]
    h = a * (s["h"][0] + 1j * s["h"][1]) + np.sqrt(1 - np.abs(a) ** 2) * (x @ b)
    return (h @ c).real + p["D"] * x, {"h": np.stack([h.real, h.imag])}


@pytest.mark.parametrize(
    "mixer", [LRU(6), LRU(6, hidden=9, low=0, high=0.5, angle=6)], ids=["width alone", "all fields"]
)
def test_is_the_papers_system(mixer):
    agrees(mixer, cell)


def test_bfloat16_stays_near():
    half(LRU(16), cell)


def test_is_a_convolution():
    """Linear, the same at every token: y_t = D x_t + sum_s Re(C λ^s γ B) x_{t-s}."""
    mixer, t = LRU(5), 20
    params, x, _, _ = example(mixer, t=t)
    p = wide_numpy(params)
    a = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    b, c = p["B"][:, 0] + 1j * p["B"][:, 1], p["C"][0] + 1j * p["C"][1]
    kernel = np.einsum("dn,sn,ne->sde", b * np.sqrt(1 - np.abs(a) ** 2), a[None] ** np.arange(t)[:, None], c).real
    want = p["D"] * x + sum(np.pad(x @ kernel[s], [(0, 0), (s, 0), (0, 0)])[:, :t] for s in range(t))
    close(apply(mixer, params, x)[0], np.float32(want))


def test_real_poles_are_rglru_with_a_constant_gate():
    """θ = -inf, so that λ is real, against RG-LRU with open gates and no convolution, in the middle of a document."""
    mixer, other = LRU(6), RGLRU(6, window=1)
    params, x, state, _ = example(mixer)
    theirs = noisy(other)
    theirs["gates"][:], theirs["gates_bias"][:] = 0, 1e4
    theirs["conv"][:], theirs["conv_bias"][:], theirs["input"] = 1, 0, params["B"][:, 0]
    params["nu"], params["theta"][:] = np.log(8 * np.log1p(np.exp(theirs["decay"]))), -1e4
    params["B"][:, 1] = state["h"][:, 1] = 0
    start = {"h": state["h"][:, 0], "conv": np.zeros((3, 0, 6), np.float32), "seen": np.ones(3, bool)}
    h = apply(mixer, params, x, state)[1]["h"]
    close(h[:, 0], apply(other, theirs, x, start)[1]["h"])
    assert (np.asarray(h[:, 1]) == 0).all()


def test_a_white_input_keeps_its_variance():
    """The squared weights of the past sum to those of B: γ^2 (1 + |λ|^2 + |λ|^4 + ...) = 1."""
    mixer, t = LRU(4, low=0.3, high=0.8), 60
    params, x, _, _ = example(mixer, t=t)
    weights = jax.jit(jax.jacobian(lambda x: mixer.apply(params, x)[1]["h"][0]))(x[:1])  # (2, n, 1, t, d)
    power = np.float32((np.asarray(weights, np.float64) ** 2).sum((0, 2, 3, 4)))
    close(power, np.float32((wide_numpy(params["B"]) ** 2).sum((0, 1))))


def test_starts_as_published():
    mixer = LRU(1024, low=0.4, high=0.9)
    params = wide_numpy(jax.jit(lambda: init(mixer, jax.random.key(0)))())
    radius, angle = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    assert 0.4 - 1e-6 <= radius.min() < 0.41 and 0.895 < radius.max() <= 0.9 + 1e-6
    even = (np.arange(1024) + 0.5) / 1024
    assert np.abs(np.sort((radius**2 - 0.4**2) / (0.9**2 - 0.4**2)) - even).max() < 0.06
    assert np.abs(np.sort(angle / (math.pi / 10)) - even).max() < 0.06
    for name, std in (("B", 1 / math.sqrt(2048)), ("C", 1 / 32), ("D", 1)):
        assert abs(params[name].std() / std - 1) < 0.07


def test_counts_and_names():
    assert count(LRU(16, hidden=24)) == 2 * 24 + 4 * 16 * 24 + 16
    assert LRU(16, hidden=24).state(3)["h"].shape == (3, 2, 24)
    assert decay_mask(LRU(16)) == {"nu": False, "theta": False, "B": True, "C": True, "D": False}


@pytest.mark.parametrize(("field", "value"), [("hidden", 0), ("high", 1), ("low", 0.999), ("angle", 0)])
def test_bad_fields_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        LRU(16, **{field: value})
