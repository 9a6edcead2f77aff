"""Fenwick levels: the rule of the paper; chunked, token by token and as a masked product; one memory if all weigh 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_state import B, H, K, T, V, inputs, program, random_starts
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.cache import positions
from jaxlm.ops.decay import decay
from jaxlm.ops.delta import delta
from jaxlm.ops.fenwick import fenwick, fenwick_naive, level

PREFIX = np.array([37, 6], np.int32)  # tokens of the two rows before the start state: clocks that differ


@functools.cache
def placed(op):
    """`op` with the places of documents that go on from PREFIX."""

    def run(starts, fresh=False, **d):
        return op(**d, place=positions(starts, None if fresh else jnp.asarray(PREFIX), T), starts=starts)

    return run


def given(kind, levels, rate, dtype=np.float32):
    """Random inputs, and the state after a prefix, made by the twin."""
    r = np.random.default_rng(7)
    d = inputs(kind, rate=rate, dtype=dtype)
    d["weights"] = r.random((B, T, H, levels)).astype(dtype)
    before = {n: x for n, x in d.items() if n != "state"}
    starts = np.zeros((B, T), bool)
    starts[np.arange(B), T - PREFIX] = True
    state = jax.jit(placed(fenwick_naive))(**before, starts=starts)[1]
    return d | {"state": np.asarray(state)}


def rule(t, s):
    """The level as the paper finds it: peel the largest power of two off t."""
    if s == t:
        return 0
    top = 1 << (t.bit_length() - 1)
    return top.bit_length() if s < top else rule(t - top, s - top)


def test_level_is_the_rule_and_buckets_are_powers_of_two():
    place = jnp.arange(100, dtype=jnp.int32)
    of = np.asarray(level(place[:, None], place[None], 31))
    for t in range(100):
        assert [rule(t, s) for s in range(t + 1)] == of[t, : t + 1].tolist()
        sizes = np.bincount(of[t, :t], minlength=8)
        assert [n for n in sizes if n] == [1 << i for i in range(7) if t >> i & 1]
    assert np.asarray(level(place[:, None], place[None], 3)).max() == 2


@pytest.mark.parametrize(("kind", "rate", "levels"), [("scalar", False, 8), ("vector", True, 4)])
def test_chunked_is_naive(kind, rate, levels):
    """Outputs, last states and gradients; with enough levels, and with too few."""
    d, starts = given(kind, levels, rate), random_starts()
    close(program(placed(fenwick))(d, starts), program(placed(fenwick_naive))(d, starts))


@pytest.mark.parametrize("rate", [False, True])
def test_formula_float64(rate, x64):
    """sum_s w_t,level(t,s) q_t A_t ... A_{s+1} B_s, with the products of transitions built as matrices."""
    d, n = inputs("scalar", t=21, rate=rate, dtype=np.float64), 6
    del d["state"]
    d["weights"] = np.random.default_rng(7).random((B, 21, H, n))
    y, state = jax.jit(fenwick)(**d, place=jnp.arange(21, dtype=jnp.int32)[None])
    want, last = np.zeros((B, 21, H, V)), np.zeros((B, n, H, K, V))
    for b, h, t in np.ndindex(B, H, 21):
        through = np.eye(K)
        for s in range(t, -1, -1):
            beta = d["beta"][b, s, h] if rate else 1.0
            held = through @ np.outer(beta * d["k"][b, s, h], d["v"][b, s, h])
            want[b, t, h] += d["weights"][b, t, h, rule(t, s)] * d["q"][b, t, h] @ held
            if t == 20:
                last[b, rule(t, s), h] += held
            erase = beta * np.outer(d["k"][b, s, h], d["k"][b, s, h]) if rate else 0.0
            through = through @ (np.exp(d["g"][b, s, h]) * (np.eye(K) - erase))
    close((y, state), (want, last), jnp.float64)


@pytest.mark.parametrize(("rate", "plain"), [(False, decay), (True, delta)])
def test_weights_of_1_are_one_memory(rate, plain):
    d, starts = given("scalar", 8, rate), random_starts()
    d["weights"] = np.ones_like(d["weights"])
    y, state = jax.jit(placed(fenwick))(**d, starts=starts)
    whole = {n: x for n, x in d.items() if n != "weights"} | {"state": d["state"].sum(axis=1)}
    close((y, jnp.sum(state, axis=1)), jax.jit(plain)(**whole, starts=starts))


def test_live_states_token_by_token():
    """After token t one memory for each bit of t, and one for t itself: at most log2 of the tokens, and one."""
    d = given("scalar", 8, True)
    step, state = jax.jit(fenwick), jnp.zeros((B, 8, H, K, V))
    for t in range(T):
        one = {n: x[:, t : t + 1] for n, x in d.items() if n != "state"}
        _, state = step(**one, state=state, place=jnp.full((1, 1), t, jnp.int32))
        live = int(jnp.sum(jnp.any(state != 0, axis=(0, 2, 3, 4))))
        assert live == bin(t).count("1") + 1 <= np.log2(t + 1) + 1
    whole = {n: x for n, x in d.items() if n != "state"}
    close(state, jax.jit(fenwick)(**whole, place=jnp.arange(T, dtype=jnp.int32)[None])[1])


def test_refuses():
    d = inputs("none", t=3)
    del d["state"]
    place = jnp.arange(3, dtype=jnp.int32)[None]
    for bad, error in (((B, 3, H, 32), ConfigError), ((B, 3, H), ShapeError), ((B, 2, H, 4), ShapeError)):
        with pytest.raises(error, match="weights"):
            fenwick(**d, weights=jnp.zeros(bad), place=place)
    with pytest.raises(ShapeError, match="place"):
        fenwick(**d, weights=jnp.zeros((B, 3, H, 4)), place=place[:, :2])
