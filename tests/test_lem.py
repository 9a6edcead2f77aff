"""LEM against the paper's recurrence in numpy, and its limits (Rusch et al. 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import agrees, apply, example, half, loop, noisy, single
from tolerance import close

from jaxlm.mixers.lem import LEM, from_code
from jaxlm.module import ConfigError, count, init

DT = 0.3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(p, u, s, dt=DT):
    """Equation 3, gate by gate; the drive and the hidden map are kept as matrices that act on columns."""
    v2, v1, vy, vz = (p["input"][:, i].T for i in range(4))
    w2, w1, wz = (p["hidden"][:, i].T for i in range(3))
    b2, b1, by, bz = p["bias"]
    y, z = s["y"], s["z"]
    fast = dt * sigmoid(w1 @ y + v1 @ u + b1)
    slow = dt * sigmoid(w2 @ y + v2 @ u + b2)
    z = (1 - fast) * z + fast * np.tanh(wz @ y + vz @ u + bz)
    y = (1 - slow) * y + slow * np.tanh(p["memory"].T @ z + vy @ u + by)
    return y, {"y": y, "z": z}


def test_is_the_papers_recurrence():
    agrees(LEM(6, inputs=5, dt=DT), cell)


def test_bfloat16_stays_near():
    half(LEM(16, dt=DT), cell)


@pytest.mark.parametrize(("m", "d", "weights"), [(16, 1, 1152), (32, 6, 4992), (128, 1, 66560)])
def test_counts_of_the_paper(m, d, weights):
    assert count(LEM(m, inputs=d)) == 4 * m * (m + d) + 4 * m == weights


def test_starts_uniform_in_the_published_range():
    params = jax.jit(lambda: init(LEM(64), jax.random.key(0)))()
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf).max() <= 1 / 8
        assert abs(np.std(leaf) * 8 * np.sqrt(3) - 1) < 0.1


def test_the_codes_weights_fold_into_the_papers():
    """The authors' code gives each of its three maps a bias, 8m in all (1,216 weights at m = 16, d = 1)."""
    m, d = 16, 1
    mixer = LEM(m, inputs=d, dt=DT)
    _, x, state, _ = example(mixer)
    draw = np.random.default_rng(0)
    shapes = {"inp2hid": (4 * m, d), "hid2hid": (3 * m, m), "transform_z": (m, m)}
    weights = {f"{name}.weight": draw.normal(size=s).astype(np.float32) / 4 for name, s in shapes.items()}
    weights |= {f"{name}.bias": draw.normal(size=s[0]).astype(np.float32) for name, s in shapes.items()}
    assert sum(w.size for w in weights.values()) == 1216 == count(mixer) + 4 * m

    def code(p, u, s):
        """The loop body of the authors' plain version."""
        of = lambda name, v: p[f"{name}.weight"] @ v + p[f"{name}.bias"]  # noqa: E731
        slow_u, fast_u, y_u, z_u = np.split(of("inp2hid", u), 4)
        slow_y, fast_y, z_y = np.split(of("hid2hid", s["y"]), 3)
        slow, fast = DT * sigmoid(slow_u + slow_y), DT * sigmoid(fast_u + fast_y)
        z = (1 - fast) * s["z"] + fast * np.tanh(z_u + z_y)
        y = (1 - slow) * s["y"] + slow * np.tanh(of("transform_z", z) + y_u)
        return y, {"y": y, "z": z}

    close(apply(mixer, from_code(weights), x, state), single(loop(code, weights, x, state)))


def test_no_time_passes_as_dt_goes_to_zero():
    params, x, state, _ = example(LEM(6))
    close(apply(LEM(6, dt=1e-7), params, x, state)[1], state)


def test_first_order_in_dt(x64):
    """At a fixed time and a held input, halving the step halves the error."""
    params = jax.tree.map(lambda p: 3 * np.float64(p), noisy(LEM(6)))
    u = np.random.default_rng(0).normal(size=(1, 1, 6))
    zero = np.zeros((1, 6))
    state = {"y": zero, "z": zero}
    ends = [apply(LEM(6, dt=1 / n), params, u.repeat(n, axis=1), state)[1]["y"] for n in (64, 128, 256)]
    coarse, fine = (np.linalg.norm(np.subtract(a, b)) for a, b in ((ends[0], ends[1]), (ends[1], ends[2])))
    assert 1.9 < coarse / fine < 2.1


def test_bounds_hold_for_any_input():
    mixer = LEM(6, dt=0.1)
    params = jax.tree.map(lambda p: 30 * np.asarray(p), noisy(mixer))
    ys, state = apply(mixer, params, 100 * np.random.default_rng(0).normal(size=(2, 20, 6)).astype(np.float32))
    assert np.abs(ys).max() <= 1 and np.abs(state["z"]).max() <= 1
    elapsed = 0.1 * np.arange(1, 21)[None, :, None]
    assert (np.abs(ys) <= elapsed + 1e-6).all()


def test_jacobian_bound():
    """|J| <= 1 + 1.5 eta (1 + eta dt) dt in the largest row sum, for states in the unit box."""
    dt = 0.1
    mixer = LEM(6, dt=dt)

    @jax.jit
    def jacobian(params, x, box):
        def step(s):
            s = mixer.step(params, x, {"y": s[:1], "z": s[1:]})[1]
            return jnp.concatenate([s["y"], s["z"]])

        return jax.jacobian(step)(box).reshape(12, 12)

    for seed, scale in enumerate([0.3, 1.0, 10.0]):
        params = jax.tree.map(lambda p, scale=scale: scale * np.asarray(p), noisy(mixer, seed))
        eta = max(np.abs(params["hidden"]).sum(0).max(), np.abs(params["memory"]).sum(0).max())
        rng = np.random.default_rng(seed)
        x, box = rng.normal(size=(1, 6)).astype(np.float32), rng.uniform(-1, 1, size=(2, 6)).astype(np.float32)
        assert np.abs(jacobian(params, x, box)).sum(1).max() <= 1 + 1.5 * eta * (1 + eta * dt) * dt


def test_open_gates_are_a_tanh_network_and_closed_gates_freeze():
    mixer = LEM(6)
    params, x, state, _ = example(mixer)

    def tanh_network(p, u, s):
        z = np.tanh(p["hidden"][:, 2].T @ s["y"] + p["input"][:, 3].T @ u + p["bias"][3])
        y = np.tanh(p["memory"].T @ z + p["input"][:, 2].T @ u + p["bias"][2])
        return y, {"y": y, "z": z}

    params["bias"][:2] = 1e4
    close(apply(mixer, params, x, state), single(loop(tanh_network, params, x, state)))
    params["bias"][:2] = -1e4
    jax.tree.map(np.testing.assert_array_equal, apply(mixer, params, x, state)[1], state)


def test_without_recurrent_gates_z_is_a_linear_scan():
    """Then the gates read the input alone, and z is a sum over the past, each term decayed by the gates after it."""
    mixer = LEM(6, dt=DT)
    params, x, state, _ = example(mixer)
    params["hidden"] = np.zeros_like(params["hidden"])
    drive = np.einsum("bti,ign->btgn", np.float64(x), np.float64(params["input"])) + np.float64(params["bias"])
    fast = DT * sigmoid(drive[:, :, 1])
    decay = np.cumsum(np.log1p(-fast), axis=1)
    terms = np.exp(decay[:, -1:] - decay) * fast * np.tanh(drive[:, :, 3])
    z = np.exp(decay[:, -1]) * state["z"] + terms.sum(1)
    close(apply(mixer, params, x, state)[1]["z"], np.float32(z))


def test_the_input_has_a_gradient():
    """The authors' fused kernel drops it, which would freeze everything below a layer."""
    mixer = LEM(6, dt=DT)
    params, x, _, _ = example(mixer)
    grad = jax.jit(jax.grad(lambda x: mixer.apply(params, x)[0][:, -1].sum()))(x)
    assert (np.abs(grad) > 0).all()


@pytest.mark.parametrize("dt", [0.0, -1.0, 1.5])
def test_a_bad_step_is_named(dt):
    with pytest.raises(ConfigError, match=r"LEM\.dt"):
        LEM(4, dt=dt)
