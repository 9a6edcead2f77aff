"""LTM against its equations in numpy, its bounds, and what reaches the first token (Nugaliyadde et al. 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
from cells import agrees, apply, example, noisy, wide_numpy
from tolerance import close

from jaxlm.mixers.ltm import LTM
from jaxlm.module import count, init


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def cell(p, u, s):
    """x and h are added, not joined; matrices on columns."""
    one, two, three = (sigmoid(p["gates"][:, g].T @ (s["h"] + u) + p["gates_bias"][g]) for g in range(3))
    c = sigmoid(p["memory"].T @ (one * two + s["C"]) + p["memory_bias"])
    h = c * three
    return h, {"h": h, "C": c}


def test_is_the_papers_recurrence():
    agrees(LTM(6), cell)


def test_the_cell_stays_in_its_bound():
    """10,000 tokens, from loud weights and inputs: 0 <= h <= C <= 1, though nothing is ever forgotten by a gate."""
    mixer = LTM(4)
    params = jax.tree.map(lambda p: 3 * p, noisy(mixer))
    x = 30 * np.random.default_rng(0).normal(size=(1, 10_000, 4)).astype(np.float32)
    h, last = apply(mixer, params, x, {"h": np.zeros((1, 4), np.float32), "C": np.zeros((1, 4), np.float32)})
    assert np.min(h) >= 0 and np.max(h) <= 1 and np.ptp(h) > 0.5
    assert (last["h"] <= last["C"]).all() and np.max(last["C"]) <= 1


def test_the_first_of_500_tokens_has_a_gradient(x64):
    """By the map of the cell alone: with W_4 as small as the others nothing is left, to the last bit of float64."""
    mixer = LTM(4)
    params = wide_numpy(jax.jit(lambda: init(mixer, jax.random.key(0)))())
    x, zero = np.random.default_rng(0).normal(size=(1, 500, 4)), np.zeros((1, 4))
    grad = jax.jit(jax.grad(lambda x, p: mixer.apply(p, x, {"h": zero, "C": zero})[0][0, -1].sum()))
    assert (np.abs(grad(x, params)[0, 0]) > 0).all()
    small = params | {"memory": params["memory"] / 8, "gates": params["gates"] / 2}
    assert (np.asarray(grad(x, small)[0, 0]) == 0).all()


def test_a_cell_at_rest_stays_and_hands_on_what_it_is_told():
    """At the first weights of the cell, with gates at 1/2: C = 1/2 is a fixed point, and its slope is 1."""
    mixer = LTM(4)
    params = example(mixer)[0]
    params["gates"][:], params["gates_bias"][:] = 0, 0
    params["memory"], params["memory_bias"] = 4 * np.eye(4, dtype=np.float32), np.full(4, -3, np.float32)
    rest = np.full((1, 4), 0.5, np.float32)
    x = np.zeros((1, 7, 4), np.float32)
    close(apply(mixer, params, x, {"h": rest, "C": rest})[1]["C"], rest)
    x = jnp.asarray(x)
    slope = jax.jit(jax.jacobian(lambda c: mixer.apply(params, x, {"h": rest, "C": c})[1]["C"][0]))(rest)
    close(slope[:, 0], np.eye(4, dtype=np.float32))


def test_counts_and_init():
    params = jax.jit(lambda: init(LTM(64), jax.random.key(0)))()
    assert count(LTM(64)) == 4 * 64 * 64 + 4 * 64
    np.testing.assert_array_equal(params["memory"], 4 * np.eye(64))
    assert (params["memory_bias"] == -3).all()
    for name in ("gates", "gates_bias"):
        assert np.abs(params[name]).max() <= 1 / 8 and abs(np.std(params[name]) * 8 * np.sqrt(3) - 1) < 0.2
