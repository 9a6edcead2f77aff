"""The count of operations against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm.cost import flops
from jaxlm.errors import ConfigError

A, B = jnp.ones((4, 8)), jnp.ones((8, 16))
DOT = 2 * 4 * 8 * 16


def test_products_sums_and_free_moves():
    assert flops(jnp.dot, A, B) == DOT
    assert flops(lambda a: a.T.reshape(2, 16)[None].astype(jnp.bfloat16), A) == 0
    assert flops(lambda a: jnp.sum(jnp.tanh(a)), A) == 32 + 32
    many = jax.ShapeDtypeStruct((3, 5, 5), jnp.float32)
    assert flops(lambda a: jnp.einsum("bij,bjk->bik", a, a), many) == 2 * 3 * 125
    form = dict(window_strides=(1,), padding=[(2, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=8)
    kernel = lambda x: jax.lax.conv_general_dilated(x, jnp.ones((3, 1, 8)), **form)  # noqa: E731
    assert flops(kernel, jnp.ones((2, 10, 8))) == 2 * 2 * 10 * 8 * 3


def test_loops_count_their_turns():
    turn = lambda c, _: (jnp.tanh(c @ B.T @ B), None)  # noqa: E731
    scan = lambda c: jax.lax.scan(turn, c, None, length=7)[0]  # noqa: E731
    one = DOT + 2 * 4 * 16 * 8 + 64
    assert flops(scan, jnp.ones((4, 16))) == 7 * one
    assert flops(lambda c: jax.lax.fori_loop(0, 5, lambda i, c: jnp.tanh(c), c), A) == 5 * (32 + 1)  # and i + 1
    nested = lambda c: jax.lax.scan(lambda c, _: (scan(c), None), c, None, length=3)[0]  # noqa: E731
    assert flops(nested, jnp.ones((4, 16))) == 21 * one


def test_wrappers_are_seen_through():
    @jax.custom_vjp
    def own(x):
        return jnp.tanh(x)

    own.defvjp(lambda x: (own(x), x), lambda x, g: (g * 2,))
    for wrap in (jax.jit, jax.checkpoint):
        assert flops(wrap(lambda a: a @ B), A) == DOT, wrap
    assert flops(lambda a: jax.nn.relu(a @ B), A) == DOT + 64  # relu has a custom JVP
    assert flops(own, A) == 32
    assert flops(jax.vmap(jax.jit(jnp.dot), (0, None)), jnp.ones((3, 4, 8)), B) == 3 * DOT
    forward, both = flops(lambda a: jnp.sum(a @ B), A), flops(jax.grad(lambda a: jnp.sum(jnp.tanh(a @ B))), A)
    assert both > 2 * DOT > forward


def test_branches_count_the_dearest_and_while_is_refused():
    f = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ B, lambda a: jnp.zeros((4, 16)), a)  # noqa: E731
    assert DOT <= flops(f, A) <= DOT + 2
    with pytest.raises(ConfigError, match="static trip count"):
        flops(lambda x: jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, x), 0)
