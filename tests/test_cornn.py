"""coRNN with both dampings against its equations in numpy, its differential equation and its energy."""

import jax
import numpy as np
import pytest
from cells import agrees, apply, example, half, noisy
from tolerance import close

from jaxlm.mixers.cornn import CoRNN
from jaxlm.module import ConfigError, count, init

DT, GAMMA, EPSILON = 0.3, 1.5, 0.8
BOTH = pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])


def made(implicit, **more):
    return CoRNN(6, **{"dt": DT, "gamma": GAMMA, "epsilon": EPSILON, "implicit": implicit, **more})


def drive(p, u, s):
    """What the coupling and the input do to the velocities; matrices on columns."""
    return np.tanh(p["place"].T @ s["y"] + p["velocity"].T @ s["z"] + p["input"].T @ u + p["bias"])


def explicit(p, u, s):
    z = s["z"] + DT * (drive(p, u, s) - GAMMA * s["y"] - EPSILON * s["z"])
    y = s["y"] + DT * z
    return y, {"y": y, "z": z}


def implicit(p, u, s):
    """The velocity that solves z = z_{n-1} + dt (drive - gamma y_{n-1} - epsilon z)."""
    z = (s["z"] + DT * (drive(p, u, s) - GAMMA * s["y"])) / (1 + DT * EPSILON)
    y = s["y"] + DT * z
    return y, {"y": y, "z": z}


FORMULA = {False: explicit, True: implicit}


@BOTH
def test_is_the_papers_recurrence(implicit):
    agrees(made(implicit, inputs=5), FORMULA[implicit])


def test_bfloat16_stays_near():
    half(made(False), explicit)


def test_counts_and_init():
    assert count(CoRNN(16, inputs=5)) == 16 * (5 + 2 * 16) + 16
    assert count(CoRNN(128, inputs=1)) == 128 * (1 + 2 * 128 + 1)  # the paper's 33k
    bound = 1 / np.sqrt(3 * 64)
    for leaf in jax.tree.leaves(jax.jit(lambda: init(CoRNN(64), jax.random.key(0)))()):
        assert np.abs(leaf).max() <= bound
        assert abs(np.std(leaf) / bound * np.sqrt(3) - 1) < 0.2


def test_no_time_passes_as_dt_goes_to_zero():
    params, x, state, _ = example(made(False))
    close(apply(made(False, dt=1e-7), params, x, state)[1], state)


def runge_kutta(p, u, s, steps):
    """Places and velocities after one unit of time of y'' = drive - gamma y - epsilon y', to the fourth order."""
    m = len(s["y"])

    def slope(a):
        y, z = a[:m], a[m:]
        return np.concatenate([z, drive(p, u, {"y": y, "z": z}) - GAMMA * y - EPSILON * z])

    a, h = np.concatenate([s["y"], s["z"]]), 1 / steps
    for _ in range(steps):
        k1 = slope(a)
        k2 = slope(a + h / 2 * k1)
        k3 = slope(a + h / 2 * k2)
        a = a + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(a + h * k3))
    return a


@BOTH
def test_goes_to_the_differential_equation_at_first_order(implicit, x64):
    """With a held input, halving the step halves the distance from the solution."""
    params = jax.tree.map(lambda p: 3 * np.float64(p), noisy(made(False)))
    draw = np.random.default_rng(0)
    u, y, z = draw.normal(size=(3, 1, 6))
    exact = runge_kutta(params, u[0], {"y": y[0], "z": z[0]}, 50)

    def gap(n):
        end = apply(made(implicit, dt=1 / n), params, u[:, None].repeat(n, axis=1), {"y": y, "z": z})[1]
        return np.linalg.norm(np.concatenate([end["y"][0], end["z"][0]]) - exact)

    assert 1.95 < gap(128) / gap(256) < 2.05


@BOTH
def test_free_oscillators_are_a_linear_map_and_come_to_rest(implicit):
    """No weights: (y, z) moves by a matrix of determinant 1 - dt epsilon, or 1 / (1 + dt epsilon)."""
    mixer = made(implicit)
    params, x, state, _ = example(mixer)
    params = jax.tree.map(np.zeros_like, params)
    loss = 1 / (1 + DT * EPSILON) if implicit else 1 - DT * EPSILON
    push = -DT * GAMMA * (loss if implicit else 1)
    move = np.array([[1 + DT * push, DT * loss], [push, loss]])
    np.testing.assert_allclose(np.linalg.det(move), loss)
    end = np.einsum("ij,jbd->ibd", np.linalg.matrix_power(move, 7), np.stack([state["y"], state["z"]]))
    close(apply(mixer, params, x, state)[1], {"y": np.float32(end[0]), "z": np.float32(end[1])})


def eigenvalue(dt, implicit):
    """The largest |eigenvalue| of the map above."""
    loss = 1 / (1 + dt * EPSILON) if implicit else 1 - dt * EPSILON
    push = -dt * GAMMA * (loss if implicit else 1)
    return np.abs(np.linalg.eigvals(np.array([[1 + dt * push, dt * loss], [push, loss]]))).max()


@BOTH
def test_a_step_at_which_free_oscillators_grow_is_refused(implicit):
    """The edge: dt² gamma ± 2 dt epsilon = 4."""
    a = -EPSILON if implicit else EPSILON
    edge = (-a + np.sqrt(a * a + 4 * GAMMA)) / GAMMA
    assert eigenvalue(0.999 * edge, implicit) < 1 < eigenvalue(1.001 * edge, implicit)
    made(implicit, dt=0.999 * edge)
    with pytest.raises(ConfigError, match=r"CoRNN\.dt"):
        made(implicit, dt=1.001 * edge)


def test_energy_bound():
    """gamma |y|² + |z|² grows by at most d dt / (2 epsilon - dt gamma) a step, whatever the weights and the input."""
    mixer = made(True)
    params = jax.tree.map(lambda p: 30 * p, noisy(mixer))
    draw = np.random.default_rng(0)
    x, (y, z) = 100 * draw.normal(size=(2, 33, 6)).astype(np.float32), draw.normal(size=(2, 2, 6)).astype(np.float32)
    ys = np.float64(apply(mixer, params, x, {"y": y, "z": z})[0])
    zs = np.diff(ys, axis=1, prepend=y[:, None]) / DT
    energy = GAMMA * (ys**2).sum(-1) + (zs**2).sum(-1)
    before = np.concatenate([(GAMMA * y**2 + z**2).sum(-1)[:, None], energy[:, :-1]], axis=1)
    gain, most = energy - before, 6 * DT / (2 * EPSILON - DT * GAMMA)
    assert gain.max() <= most + 1e-4
    assert gain.max() > most / 4  # the bound is not idle


@pytest.mark.parametrize("field", ["dt", "gamma", "epsilon"])
def test_a_bad_field_is_named(field):
    with pytest.raises(ConfigError, match=rf"CoRNN\.{field} = 0"):
        CoRNN(4, **{field: 0.0})
