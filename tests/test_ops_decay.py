"""Decay: the chunked form against its naive twin and the papers' recurrence; extremes; memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_state import (
    KINDS,
    B,
    T,
    check_spoiled,
    formula,
    inputs,
    program,
    random_starts,
    temporary_mebibytes,
)
from tolerance import close, distance
from walk import walk

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.decay import decay, decay_naive


def both(d, starts, **fixed):
    return program(decay, **fixed)(d, starts), program(decay_naive)(d, starts)


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_is_naive(kind):
    close(*both(inputs(kind), random_starts()))


@pytest.mark.parametrize(("kind", "t", "chunk"), [("vector", 1, 16), ("scalar", 37, 8), ("vector", 37, 32)])
def test_lengths_and_chunks(kind, t, chunk):
    close(*both(inputs(kind, t=t), None, chunk=chunk))


def test_many_models_at_once_have_no_product_of_seven_axes():
    """XLA for CPU crashes when it sums one with an axis of size 1 (jaxlib 0.10.2, 0.11.0; jax-ml/jax issue 40412)."""
    d = jax.tree.map(lambda x: x[None], inputs("vector", t=32))
    jaxpr = jax.make_jaxpr(jax.vmap(lambda d: program(decay, chunk=32)(d, None)))(d)
    assert max(eqn.outvars[0].aval.ndim for eqn in walk(jaxpr) if eqn.primitive.name == "mul") <= 6


@pytest.mark.parametrize("kind", KINDS)
def test_formula_float64(kind, x64):
    d, starts = inputs(kind, t=37, dtype=np.float64), random_starts(37)
    y, state = jax.jit(decay)(**d, starts=starts)
    assert y.dtype == state.dtype == jnp.float64
    close({"y": y, "state": state}, formula(**d, starts=starts), dtype=jnp.float64)


@pytest.mark.parametrize("kind", ["scalar", "vector"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_hard_gates(kind, share):
    """Gates near -30 among gates near 0: sums reach the thousands, while neighbours still need all their digits."""
    d = inputs(kind)
    r = np.random.default_rng(3)
    hard = r.random(d["g"].shape) < share
    d["g"] = np.where(hard, -30 - r.random(d["g"].shape), -0.01 * r.random(d["g"].shape)).astype(np.float32)
    starts = random_starts()
    got, want = both(d, starts)
    close(got, want)
    close(got["out"], jax.tree.map(np.float32, formula(**d, starts=starts)))


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_small_answers_keep_their_digits(kind):
    """After a hard gate nothing large is left to hide an error: what decays gently from there is judged by itself."""
    d = inputs(kind)
    d["g"] = np.full_like(d["g"], -31.7)
    d["g"][:, 40:] = -0.37
    d["v"][:, 40:] = 0
    got, want = jax.tree.map(np.asarray, program(decay)(d, np.zeros((B, T), bool))["out"]), formula(**d)
    for t in (40, 50, 60, 68):
        close(got["y"][:, t], want["y"][:, t].astype(np.float32))


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_endless_gate_is_a_start(kind):
    d, starts = inputs(kind), random_starts()
    cut = {**d, "g": np.where(starts.reshape(B, T, *[1] * (d["g"].ndim - 2)), -np.inf, d["g"]).astype(np.float32)}
    got, want = program(decay)(cut, np.zeros((B, T), bool)), program(decay)(d, starts)
    close(got["out"], want["out"])
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(got))


def test_large_keys():
    d = inputs("vector")
    d["k"] *= 30
    close(*both(d, random_starts()))


def test_equal_channels_are_a_scalar_gate():
    d = inputs("scalar")
    wide = {**d, "g": np.repeat(d["g"][..., None], d["k"].shape[-1], axis=-1)}
    got, want = program(decay)(wide, random_starts()), program(decay)(d, random_starts())
    got["grads"]["g"] = got["grads"]["g"].sum(-1)
    close(got, want)


def test_no_gate_is_a_gate_of_zero():
    d = inputs("none")
    gated = {**d, "g": np.zeros(d["q"].shape[:3], np.float32)}
    got, want = program(decay)(gated, random_starts()), program(decay)(d, random_starts())
    del got["grads"]["g"]
    close(got, want)


@pytest.mark.parametrize("kind", ["vector", "none"])
def test_bad_token_stays_in_its_document(kind):
    for got, want in check_spoiled(decay, kind, rate=False):
        close(got, want)


def test_cut_anywhere():
    d, starts = inputs("vector"), random_starts()
    run = jax.jit(decay)
    whole = run(**d, starts=starts)
    state, ys = d.pop("state"), []
    for part in (slice(0, 23), slice(23, 46), slice(46, 69)):
        y, state = run(**{name: x[:, part] for name, x in d.items()}, state=state, starts=starts[:, part])
        ys.append(y)
    close((jnp.concatenate(ys, axis=1), state), whole)


def test_overflow_stays_in_its_document():
    """A state beyond float32 reaches neither the outputs nor the gradients of the documents after it."""
    d, starts = inputs("scalar"), np.zeros((B, T), bool)
    starts[:, 66] = True  # in the second chunk
    clean = program(decay)(d, starts)
    d["state"][:] = 3e38
    d["k"][:, 0], d["v"][:, 0], d["g"][:, :5] = 1e20, 1e20, 0
    got = program(decay)(d, starts)
    assert not bool(jnp.isfinite(got["out"]["y"][:, :60]).all())

    def after(r):
        return r["out"]["y"][:, 66:], r["out"]["state"], r["grads"]["q"][:, 66:], r["grads"]["g"][:, 66:]

    close(after(got), after(clean))


def test_bfloat16_is_wide_inside():
    d = {name: jnp.asarray(x) for name, x in inputs("scalar").items()}
    d |= {name: d[name].astype(jnp.bfloat16) for name in "qkv"}
    got, want = (jax.jit(op)(**d, starts=random_starts()) for op in (decay, decay_naive))
    assert got[0].dtype == jnp.bfloat16 and got[1].dtype == jnp.float32
    close(got[1], want[1])
    close(got, want, dtype=jnp.bfloat16)


def test_state_defaults_to_zeros():
    d = inputs("none", t=5)
    zeros = {**d, "state": np.zeros_like(d["state"])}
    del d["state"]
    close(jax.jit(decay)(**d), jax.jit(decay)(**zeros))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_memory(kind):
    assert temporary_mebibytes(decay, kind, rate=False) <= 4


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("q", (2, 5, 3)),
        ("k", (2, 5, 2, 7)),
        ("v", (2, 4, 2, 6)),
        ("g", (2, 5)),
        ("state", (2, 2, 6, 8)),
        ("starts", (5, 2)),
    ],
)
def test_wrong_shapes(name, shape):
    d = inputs("scalar", t=5) | {"starts": np.zeros((2, 5), bool)}
    d[name] = np.zeros(shape, d[name].dtype)
    with pytest.raises(ShapeError, match=rf"^{name}: shape"):
        decay(**d)


def test_wrong_chunk_and_starts():
    d = inputs("none", t=5)
    with pytest.raises(ConfigError, match="chunk: 24, expected a power of two"):
        decay(**d, chunk=24)
    with pytest.raises(ShapeError, match="starts: dtype int32, expected bool"):
        decay(**d, starts=np.zeros((2, 5), np.int32))


@pytest.mark.parametrize("mutant", ["state", "starts", "shift"])
def test_the_comparison_can_fail(mutant):
    """The twin notices a dropped start state, dropped starts, and gates that are late by one."""

    @functools.wraps(decay)
    def wrong(**d):
        if mutant == "state":
            d["state"] = jnp.zeros_like(d["state"])
        if mutant == "starts":
            d["starts"] = None
        if mutant == "shift":
            d["g"] = jnp.roll(d["g"], 1, axis=1)
        return decay(**d)

    d, starts = inputs("scalar"), random_starts()
    gaps = distance(jax.jit(wrong)(**d, starts=starts), jax.jit(decay_naive)(**d, starts=starts))
    assert max(gaps.values()) > 1e-2
