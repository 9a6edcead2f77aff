"""What LEM promises of its gradients and of its step (Rusch et al. 2022, sections 3 and 4, propositions 4.1 to 4.3)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import noisy

from jaxlm.mixers.lem import LEM

WIDTH, STEPS = 6, 40


def largest_row(matrices):
    """The maximum norm of linear maps.   (..., out, in) -> (...)"""
    return np.abs(matrices).sum(-1).max(-1)


def eta(params):
    """The greatest maximum norm of the four recurrent matrices."""
    maps = [params["hidden"][:, g].T for g in range(3)] + [params["memory"].T]
    return max(float(largest_row(m)) for m in maps)


@partial(jax.jit, static_argnums=0)
def products(mixer, params, x):
    """d state_n / d state_0 for every n: by the chain of one-step Jacobians.   (steps, 2m, 2m)"""

    def step(state, u):
        packed = mixer.step(params, u[None], {"y": state[None, :WIDTH], "z": state[None, WIDTH:]})[1]
        return jnp.concatenate([packed["y"][0], packed["z"][0]])

    def along(carry, u):
        state, product = carry
        product = jax.jacrev(step)(state, u) @ product
        return (step(state, u), product), product

    zero = jnp.zeros(2 * WIDTH)
    return jax.lax.scan(along, (zero, jnp.eye(2 * WIDTH)), x)[1]


@pytest.fixture(scope="module")
def chains():
    """By (scale of the weights, dt): the products of Jacobians over a random input, and the weights."""
    found = {}
    for dt in (0.3, 0.03):
        mixer = LEM(WIDTH, dt=dt)
        for scale in (0.3, 1.0, 4.0):
            params = jax.tree.map(lambda p, scale=scale: scale * p, noisy(mixer))
            x = np.random.default_rng(1).normal(size=(STEPS, WIDTH)).astype(np.float32)
            found[scale, dt] = np.asarray(products(mixer, params, x)), params
    return found


def test_gradients_grow_no_faster_than_the_bound(chains):
    """The product over n steps is at most exp(1.5 eta (1 + eta dt) n dt) in the largest row sum, for every n."""
    n = np.arange(1, STEPS + 1)
    for (_, dt), (chain, params) in chains.items():
        bound = 1.5 * eta(params) * (1 + eta(params) * dt) * n * dt
        assert (np.log(largest_row(chain)) <= bound + 1e-5).all()


def test_a_small_step_is_what_bounds_them():
    """At rest, with weights of three times the identity: a step of 1 lets gradients explode, one of 0.03 does not."""
    params = jax.tree.map(np.zeros_like, noisy(LEM(WIDTH)))
    params["memory"] = params["hidden"][:, 2] = 3 * np.eye(WIDTH, dtype=np.float32)
    rest = np.zeros((STEPS, WIDTH), np.float32)
    large, small = (
        np.log(largest_row(np.asarray(products(LEM(WIDTH, dt=dt), params, rest)))[-1]) for dt in (1.0, 0.03)
    )
    bound = 1.5 * 3 * (1 + 3 * 0.03) * 0.03 * STEPS
    assert 0.15 * bound < small < bound < large / 5


def test_gradients_do_not_vanish(chains):
    """With z fed by the input alone, what z_0 leaves in z_n is a product of n factors in [1 - dt, 1)."""
    for dt in (0.3, 0.03):
        params = noisy(LEM(WIDTH, dt=dt))
        params["hidden"] = np.zeros_like(params["hidden"])
        x = 10 * np.random.default_rng(2).normal(size=(STEPS, WIDTH)).astype(np.float32)
        chain = np.asarray(products(LEM(WIDTH, dt=dt), params, x))
        kept = np.diagonal(chain[:, WIDTH:, WIDTH:], axis1=1, axis2=2)
        n = np.arange(1, STEPS + 1)[:, None]
        assert (kept >= (1 - dt) ** n * (1 - 1e-5)).all() and (kept <= 1).all()
        assert (kept < 1).any()


def test_what_a_step_back_leaves_does_not_fade_with_the_distance():
    """For a small dt the gradient of y_n by the input k steps back is of the order of dt, whatever k is (prop. 4.3)."""
    mixer, steps = LEM(WIDTH, dt=1e-3), 60
    params = noisy(mixer)
    x = np.random.default_rng(3).normal(size=(1, steps, WIDTH)).astype(np.float32)
    grad = jax.jit(jax.grad(lambda x: mixer.apply(params, x)[0][0, -1].sum()))(x)
    sizes = np.abs(np.asarray(grad)[0]).sum(-1)
    assert sizes.min() > 0.1 * mixer.dt and sizes.max() < 10 * mixer.dt
    assert sizes[:20].mean() > 0.5 * sizes[-20:].mean()
