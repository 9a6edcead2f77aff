"""Picard sweeps of SRWM: a second exact form of its recurrence (Irie et al. 2022; the sheet's law 7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, example
from tolerance import close, distance

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.mixers.srwm import SRWM
from jaxlm.ops.self_reference import picard, sequential

T = 13


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def given(rates=4, t=T, b=2, h=2, k=4, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    n = 3 * k + rates
    shapes = {"x": (b, t, h, k), "learned": (h, k, n), "shift": (b, h, k, n)}
    return {name: np.float32(scale * rng.normal(size=shape) / 2) for name, shape in shapes.items()}


def formula(x, learned, shift, starts=None):
    """The recurrence in float64, W of one head (k, n) at a time."""
    rates, k = learned.shape[-1] - 3 * x.shape[-1], x.shape[-1]
    ys, last = np.zeros(x.shape), np.float64(shift)
    for b, h in np.ndindex(x.shape[0], x.shape[2]):
        w0 = np.float64(learned[h])
        w = w0 + last[b, h]
        for n in range(x.shape[1]):
            w = w0 if starts is not None and starts[b, n] else w
            y, q, key, beta = np.split(x[b, n, h] @ w, (k, 2 * k, 3 * k))
            ys[b, n, h] = y
            rate = np.repeat(1 / (1 + np.exp(-beta)), [k, k, k, 4] if rates == 4 else [3 * k + 1])
            w = w + np.outer(softmax(key), rate * ((softmax(q) - softmax(key)) @ w))
        last[b, h] = w - w0
    return np.float32(ys), np.float32(last)


def some_starts():
    starts = np.zeros((2, T), bool)
    starts[0, [0, 5, 9]] = starts[1, T - 1] = True
    return starts


@pytest.mark.parametrize("rates", [1, 4])
@pytest.mark.parametrize("form", [sequential, lambda *a: picard(*a, chunk=8)], ids=["sequential", "picard"])
def test_both_forms_are_the_formula(form, rates):
    d = given(rates)
    starts = some_starts()
    close(jax.jit(form)(*d.values(), starts), formula(**d, starts=starts))


def test_float64(x64):
    d = {name: np.float64(a) for name, a in given().items()}
    swept = jax.jit(lambda d: picard(**d, chunk=8))(d)
    close(swept, jax.jit(lambda d: sequential(**d))(d), jnp.float64)


@pytest.mark.parametrize("chunk", [1, 16])
def test_any_chunk_gives_the_same_values_and_gradients(chunk):
    d, starts = given(), some_starts()

    def gradients(form):
        def loss(d):
            y, last = form(**d, starts=starts)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.square(last)), (y, last)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(d)

    close(gradients(lambda **d: picard(**d, chunk=chunk)), gradients(sequential))


def test_each_sweep_makes_one_more_token_right():
    """A prefix of n is exact after n sweeps (in fact n + 1), and the error beyond it falls with each."""
    d = given(t=8)
    want = formula(**d)[0]
    errors = []
    for sweeps in (1, 3, 5, 7):
        y = np.asarray(jax.jit(lambda d, n=sweeps: picard(**d, sweeps=n, chunk=8))(d)[0])
        close(y[:, : sweeps + 1], want[:, : sweeps + 1])
        errors.append(np.abs(y - want).max())
        if sweeps == 1:
            assert max(distance(y[:, 2], want[:, 2]).values()) > 1e-3
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_given_keys_changes_and_rates_the_triangular_system_is_the_product_of_transitions():
    """W_t = P_t W_0 with P_t the product of (I + η κ' δ): the closed form that a sweep solves, written out in numpy."""
    rng = np.random.default_rng(1)
    keys, queries = softmax(rng.normal(size=(2, 6, 4)))
    rate, w0 = rng.uniform(size=6), rng.normal(size=(4, 5))
    change, product = queries - keys, np.eye(4)
    system = np.eye(6) - np.diag(rate) @ np.tril(change @ keys.T, -1)
    write = np.linalg.solve(system, np.diag(rate) @ change @ w0)
    for n in range(6):
        product = (np.eye(4) + rate[n] * np.outer(keys[n], change[n])) @ product
    np.testing.assert_allclose(w0 + keys.T @ write, product @ w0, atol=1e-12)


@pytest.mark.parametrize("rates", [1, 4])
def test_the_swept_mixer_is_the_mixer(rates):
    one, swept = (SRWM(12, heads=3, query_scale=1.0, rates=rates, every=4, sweeps=s) for s in (None, 4))
    params, x, state, starts = example(one)
    close(apply(swept, params, x, state, starts), apply(one, params, x, state, starts))


def test_bad_arguments_are_named():
    d = given()
    with pytest.raises(ConfigError, match="sweeps = 0"):
        picard(**d, sweeps=0)
    with pytest.raises(ConfigError, match="chunk"):
        picard(**d, chunk=12)
    with pytest.raises(ShapeError, match="learned"):
        sequential(d["x"], d["learned"][..., :-1], d["shift"])
    with pytest.raises(ConfigError, match=r"SRWM\.every"):
        SRWM(16, every=12, sweeps=2)
    with pytest.raises(ConfigError, match=r"SRWM\.rates"):
        SRWM(16, rates=2)
