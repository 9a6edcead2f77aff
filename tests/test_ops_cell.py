"""The loop of nonlinear cells against a Python loop: values, gradients, resets, second derivatives, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.errors import ShapeError
from jaxlm.ops.cell import Affine, cell, cell_naive

B, D, N, M = 3, 2, 4, 4


def step(state, mix):
    """Three stages, two of them read what another gives; the last is a product alone."""
    a, b = mix("first", state["h"])
    h = jax.nn.sigmoid(a) * state["h"] + jnp.tanh(b)
    (c,) = mix("second", h * state["c"])
    (d,) = mix("third", h)
    return d - c, {"h": h, "c": 0.5 * state["c"] + jnp.tanh(c)}


def example(t, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    normal = lambda *shape: draw.normal(size=shape).astype(dtype)  # noqa: E731
    maps = {
        "first": Affine(normal(D, 2, M), normal(2, M), 0.5 * normal(N, 2, M)),
        "second": Affine(normal(D, 1, M), normal(1, M), 0.5 * normal(N, 1, M)),
    }
    state, fresh = ({"h": normal(B, N), "c": normal(B, N)} for _ in range(2))
    x, starts = normal(B, t, D), draw.random((B, t)) < 0.2
    return maps | {"third": Affine(None, None, 0.5 * normal(N, 1, M))}, x, state, fresh, starts


def run(form, t, starts, every=None):
    more = {} if every is None else {"every": every}

    def loss(maps, x, state, fresh):
        ys, last = form(step, maps, x, state, starts, fresh, **more)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(last["h"] * last["c"]), (ys, last)

    maps, x, state, fresh, _ = example(t)
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(maps, x, state, fresh)


@pytest.mark.parametrize(("t", "every"), [(1, 4), (4, 4), (11, 2), (12, 4)])
def test_equals_the_loop_with_gradients(t, every):
    starts = example(t)[4]
    close(run(cell, t, starts, every), run(cell_naive, t, starts))


def test_without_starts_the_fresh_state_has_no_part():
    got = run(cell, 9, None, 4)
    close(got, run(cell_naive, 9, None))
    assert all((g == 0).all() for g in jax.tree.leaves(got[1][3]))


def test_a_start_shuts_the_past_out_even_when_it_is_nan():
    maps, x, state, fresh, _ = example(9)
    starts = np.zeros((B, 9), bool)
    starts[:, 5] = True
    ill = {"h": np.full_like(state["h"], np.nan), "c": state["c"]}

    def late(s):
        return cell(step, maps, x, s, starts, fresh, every=4)[0][:, 5:].sum()

    close(late(ill), cell_naive(step, maps, x[:, 5:], fresh)[0].sum())
    close(jax.grad(late)(state), jax.tree.map(np.zeros_like, state))


def test_both_modes_to_the_second_order_are_those_of_the_loop(x64):
    """Forward, and forward over reverse, reverse over reverse, reverse over forward: the kept sums must not stand still
    while the weights move."""
    maps, x, state, fresh, starts = example(5, dtype=np.float64)
    way = jax.tree.map(np.cos, (maps, x, state, fresh))

    def products(form):
        def loss(maps, x, state, fresh):
            return jnp.sum(form(step, maps, x, state, starts, fresh)[0] ** 2)

        def along(*args):
            return jax.jvp(loss, args, way)[1]

        def against(*args):
            grads = jax.grad(loss, (0, 1, 2, 3))(*args)
            return sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (grads, way)), strict=True))

        args = (maps, x, state, fresh)
        second = jax.jvp(jax.grad(loss, (0, 1, 2, 3)), args, way)[1]
        return along(*args), second, *(jax.grad(f, (0, 1, 2, 3))(*args) for f in (against, along))

    got, want = jax.jit(lambda: (products(lambda *a: cell(*a, every=2)), products(cell_naive)))()
    close(got, want, "float64")
    close(got[1], got[2], "float64")
    close(got[1], got[3], "float64")


def test_bfloat16_weights_beside_float32_biases():
    """As the trainer computes: products in bfloat16, gradients in the dtype of each weight, near those of float32."""
    maps, x, state, fresh, starts = example(20)
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), maps)
    low = {name: w._replace(bias=maps[name].bias) for name, w in low.items()}
    close_maps = {name: jax.tree.map(lambda w: w.astype(jnp.float32), w) for name, w in low.items()}

    def grads(maps, x):
        return jax.jit(jax.grad(lambda m: jnp.mean(cell(step, m, x, state, starts, fresh, 4)[0] ** 2)))(maps)

    got, want = grads(low, x.astype(jnp.bfloat16)), grads(close_maps, x)
    assert jax.tree.map(lambda g: g.dtype, got) == jax.tree.map(lambda w: w.dtype, low)
    close(jax.tree.map(lambda g: g.astype(jnp.float32), got), want, jnp.bfloat16)


def test_many_models_at_once():
    """Under vmap over weights each model is what it is alone."""
    maps, x, state, fresh, starts = example(9)
    many = jax.tree.map(lambda w: np.stack([w, -w]), maps)
    f = lambda maps: jax.value_and_grad(lambda m: jnp.sum(cell(step, m, x, state, starts, fresh, 4)[0] ** 2))(maps)  # noqa: E731
    both = jax.jit(jax.vmap(f))(many)
    close(jax.tree.map(lambda a: a[1], both), jax.jit(f)(jax.tree.map(lambda w: -w, maps)))


def test_weights_gradients_are_made_outside_of_the_step():
    """No product of the innermost backward loop has the shape of a weight."""
    maps, x, state, _, _ = example(64)
    jaxpr = jax.make_jaxpr(jax.grad(lambda m: cell(step, m, x, state)[0].sum()))(maps)

    def products(jaxpr, depth):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield depth, eqn.outvars[0].aval.shape
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if inner is not None:
                yield from products(getattr(inner, "jaxpr", inner), depth + (eqn.primitive.name == "scan"))

    shapes = list(products(jaxpr.jaxpr, 0))
    assert {depth for depth, shape in shapes if shape == (M, N + D + 1)} == {1}
    assert {shape[0] for depth, shape in shapes if depth == 2} == {B}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((B, D), np.float32)}, "x: got"),
        ({"x": np.zeros((B, 4, D + 1), np.float32)}, r"maps\['first'\]"),
        ({"state": {"h": np.zeros((B + 1, N), np.float32)}}, "state: got"),
        ({"starts": np.zeros((B, 3), bool)}, "starts: got"),
        ({"maps": {"half": Affine(None, np.zeros((1, M)), np.zeros((N, 1, M)))}}, r"maps\['half'\]"),
        ({"every": 0}, "every: got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    maps, x, state, _, _ = example(4)
    with pytest.raises(ShapeError, match=message):
        cell(step, **{"maps": maps, "x": x, "state": state, **change})
