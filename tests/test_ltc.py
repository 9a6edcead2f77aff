"""LTC against its differential equation and its solver in numpy, and their limits (Hasani et al. 2021)."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, loop, noisy, single, wide_numpy
from tolerance import close

from jaxlm.mixers.ltc import LTC
from jaxlm.module import ConfigError, count, init

WIRING = ((0, 1, -1, 0), (1, 0, 0, -1), (0, 0, 1, 1), (-1, 1, 0, 0))
SENSORY = ((1, 0, 0, -1), (0, -1, 1, 0), (0, 0, 0, 0))


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def opened(p, v, wiring):
    """w σ(γ (v_j - μ)), from j to i; 0 where there is no synapse."""
    mask = 1 if wiring is None else np.array(wiring) != 0
    return mask * softplus(p["weight"]) * sigmoid(p["slope"] * (v[:, None] - p["middle"]))


def solver(mixer):
    """The published form of the fused solver: multiplied by C, a small number in the denominator."""

    def token(p, u, s):
        v, into, inner = s["v"], p["sensory"], p["recurrent"]
        g, rest = softplus(p["leak"]["weight"]), p["leak"]["reversal"]
        c = softplus(p["capacity"]) * mixer.unfolds / mixer.dt
        outside = opened(into, p["input"]["gain"] * u + p["input"]["bias"], mixer.sensory)
        for _ in range(mixer.unfolds):
            inside = opened(inner, v, mixer.wiring)
            top = c * v + g * rest + (inside * inner["reversal"]).sum(0) + (outside * into["reversal"]).sum(0)
            v = top / (c + g + inside.sum(0) + outside.sum(0) + 1e-8)
        return p["output"]["gain"] * v + p["output"]["bias"], {"v": v}

    return token


def test_is_the_fused_solver_on_a_wiring():
    mixer = LTC(4, inputs=3, unfolds=3, dt=0.7, wiring=WIRING, sensory=SENSORY)
    agrees(mixer, solver(mixer))
    first = init(mixer, jax.random.key(0))
    np.testing.assert_array_equal(first["recurrent"]["reversal"], WIRING)
    np.testing.assert_array_equal(first["sensory"]["reversal"], SENSORY)


FULL = LTC(4, inputs=3)


def test_is_the_fused_solver_with_all_synapses():
    params, x, state, _ = example(FULL)
    close(apply(FULL, params, x, state), single(loop(solver(FULL), params, x, state)))


rates = jax.jit(FULL.rates)


def test_rates_are_the_differential_equation(x64):
    """C v' = g (E - v) + sums of w σ(γ (v_j - μ)) (E_ij - v), term by term, is C (A v + b)."""
    p = wide_numpy(noisy(FULL))
    u, v = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(1).normal(size=(5, 4))
    a, b = rates(p, u, v)
    assert (np.asarray(a) < 0).all()

    def slope(u, v):
        total = softplus(p["leak"]["weight"]) * (p["leak"]["reversal"] - v)
        for source, synapses in (u * p["input"]["gain"] + p["input"]["bias"], p["sensory"]), (v, p["recurrent"]):
            w = opened(synapses, source, None)
            total = total + sum(w[j] * (synapses["reversal"][j] - v) for j in range(len(w)))
        return total / softplus(p["capacity"])

    close(np.asarray(a) * v + np.asarray(b), np.array([slope(*row) for row in zip(u, v, strict=True)]), "float64")


def test_is_the_papers_abstract_form_where_reversals_are_shared(x64):
    """C = 1, a leak to 0 with g = 1/τ, one reversal A_i a neuron: x' = -(1/τ + f(x, I)) x + f(x, I) A."""
    p = wide_numpy(noisy(FULL))
    tau, target = np.linspace(0.5, 2, 4), np.linspace(-1, 1, 4)
    p["capacity"][:] = np.log(np.expm1(1.0))
    p["leak"] = {"weight": np.log(np.expm1(1 / tau)), "reversal": np.zeros(4)}
    p["sensory"]["reversal"][:] = p["recurrent"]["reversal"][:] = target
    u, x = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(1).normal(size=(5, 4))
    given = u * p["input"]["gain"] + p["input"]["bias"]
    pairs = zip(given, x, strict=True)
    f = np.array([opened(p["sensory"], i, None).sum(0) + opened(p["recurrent"], v, None).sum(0) for i, v in pairs])
    a, b = rates(p, u, x)
    close(np.asarray(a) * x + np.asarray(b), -(1 / tau + f) * x + f * target, "float64")


def test_potentials_stay_among_the_reversals_and_the_start():
    params, _, _, _ = example(FULL)
    params["output"] = {"gain": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    start = np.array([[3.0, -2.0, 0.5, 0.0], [0.0] * 4, [0.9] * 4], np.float32)
    ends = [params["leak"]["reversal"][None], params["recurrent"]["reversal"], params["sensory"]["reversal"]]
    corners = [np.concatenate([*ends, row[None]]) for row in start]
    low, high = (np.stack([f(c, axis=0) for c in corners])[:, None] for f in (np.min, np.max))
    state, seen = {"v": start}, []
    for seed in range(20):
        x = 30 * np.random.default_rng(seed).normal(size=(3, 7, 3)).astype(np.float32)
        v, state = apply(FULL, params, x, state)
        assert (v >= low - 1e-6).all() and (v <= high + 1e-6).all()
        seen.append(v)
    assert (np.ptp(np.concatenate(seen, axis=1)[1], axis=0) > 0.1).all()  # and they do move


def test_without_synapses_potentials_relax_to_the_leak():
    """(v - E) falls by 1 + Δ g / C an unfold, which nears e^(-t g / C)."""
    params, x, state, _ = example(FULL)
    params["sensory"]["weight"][:] = params["recurrent"]["weight"][:] = -1e4
    params["capacity"][:] = 5
    p, t = wide_numpy(params), x.shape[1]
    rate = softplus(p["leak"]["weight"]) / softplus(p["capacity"])
    gap = state["v"] - p["leak"]["reversal"]
    v = np.asarray(apply(FULL, params, x, state)[1]["v"])
    close(v, np.float32(p["leak"]["reversal"] + gap * (1 + rate / 6) ** (-6 * t)))
    np.testing.assert_allclose(v, p["leak"]["reversal"] + gap * np.exp(-rate * t), rtol=0, atol=0.01)


def test_first_order_in_the_unfolds(x64):
    """Twice the unfolds halve the error."""
    params = wide_numpy(noisy(LTC(4, inputs=3)))
    x, state = np.random.default_rng(0).normal(size=(1, 1, 3)), {"v": np.zeros((1, 4))}
    ends = [apply(LTC(4, inputs=3, unfolds=n), params, x, state)[1]["v"] for n in (64, 128, 256)]
    coarse, fine = (np.linalg.norm(np.subtract(a, b)) for a, b in ((ends[0], ends[1]), (ends[1], ends[2])))
    assert 1.9 < coarse / fine < 2.1


def test_counts_and_init():
    mixer = LTC(32, inputs=8)
    params = jax.jit(lambda: init(mixer, jax.random.key(0)))()
    assert count(mixer) == 4 * (32 * 32 + 8 * 32) + 3 * 32 + 2 * 32 + 2 * 8
    ranges = {"weight": (0.001, 1), "slope": (3, 8), "middle": (0.3, 0.8)}
    for synapses in (params["recurrent"], params["sensory"]):
        for name, (low, high) in ranges.items():
            values = softplus(synapses[name]) if name == "weight" else np.asarray(synapses[name])
            assert low - 1e-5 <= values.min() < low + 0.1 * (high - low)
            assert high - 0.1 * (high - low) < values.max() <= high + 1e-5
        assert set(np.unique(synapses["reversal"])) == {-1.0, 1.0}
    capacity = softplus(params["capacity"])
    assert capacity.min() >= 0.4 and capacity.max() <= 0.6 + 1e-6 and np.abs(params["leak"]["reversal"]).max() <= 0.2


@pytest.mark.parametrize("bad", [{"unfolds": 0}, {"dt": 0.0}, {"wiring": ((1,),)}, {"sensory": ((1, 2, 0, 0),) * 4}])
def test_bad_fields_are_named(bad):
    with pytest.raises(ConfigError, match=rf"LTC\.{next(iter(bad))}"):
        LTC(4, **bad)
