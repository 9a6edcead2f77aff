"""The checkpointed scan against a Python loop, its packing, its cut, its gradients and its memory."""

import jax
import jax.numpy as jnp
import pytest
from tolerance import close

from jaxlm.errors import ShapeError
from jaxlm.ops.scan import scan, scan_naive

B, N = 3, 5


def step_with(w):
    """A nonlinear cell with a tree of state; closes over its weights."""

    def step(x, state):
        h = jnp.tanh(x["in"] + state["h"] @ w)
        c = 0.5 * state["c"] + h * x["gate"]
        return {"out": h + c, "flag": x["gate"] > 0}, {"h": h, "c": c}

    return step


def example(t, seed=0):
    ks = jax.random.split(jax.random.key(seed), 8)
    xs = {"in": jax.random.normal(ks[0], (B, t, N)), "gate": jax.random.normal(ks[1], (B, t, N))}
    state = {"h": jax.random.normal(ks[2], (B, N)), "c": jax.random.normal(ks[3], (B, N))}
    fresh = {"h": jax.random.normal(ks[4], (B, N)), "c": jax.random.normal(ks[5], (B, N))}
    starts = jax.random.bernoulli(ks[6], 0.2, (B, t))
    return xs, state, starts, fresh, 0.5 * jax.random.normal(ks[7], (N, N))


@pytest.mark.parametrize(("t", "every"), [(1, 4), (3, 4), (4, 4), (8, 4), (11, 4), (7, 1)])
def test_equals_the_loop_with_gradients(t, every):
    args = example(t)

    def run(form):
        def loss(xs, state, fresh, w):
            ys, last = form(step_with(w), xs, state, args[2], fresh, every)
            return jnp.sum(jnp.sin(ys["out"])) + jnp.sum(last["h"] * last["c"]), (ys, last)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(args[0], args[1], args[3], args[4])

    close(run(scan), run(scan_naive))


def test_fresh_is_zero_by_default_and_starts_may_be_absent():
    xs, state, starts, _, w = example(9)
    zeros = jax.tree.map(jnp.zeros_like, state)
    close(scan(step_with(w), xs, state, starts, every=4), scan_naive(step_with(w), xs, state, starts, zeros))
    close(scan(step_with(w), xs, state, every=4), scan_naive(step_with(w), xs, state))


def test_cut_anywhere_and_rows_alone():
    xs, state, starts, fresh, w = example(9)
    whole = scan(step_with(w), xs, state, starts, fresh, every=4)
    for cut in (1, 4, 8):
        piece = lambda a, b: (jax.tree.map(lambda x: x[:, a:b], xs), starts[:, a:b])  # noqa: E731
        (x1, s1), (x2, s2) = piece(0, cut), piece(cut, 9)
        y1, mid = scan(step_with(w), x1, state, s1, fresh, every=4)
        y2, last = scan(step_with(w), x2, mid, s2, fresh, every=4)
        close((jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), y1, y2), last), whole)
    row = jax.tree.map(lambda x: x[1:2], (xs, state, starts, fresh))
    close(scan(step_with(w), *row, every=4), jax.tree.map(lambda x: x[1:2], whole))


def test_a_start_shuts_the_past_out_even_when_it_is_nan():
    xs, state, _, fresh, w = example(9)
    starts = jnp.zeros((B, 9), bool).at[:, 5].set(True)
    ill = jax.tree.map(lambda s: s.at[0].set(jnp.nan), state)
    ys, last = scan(step_with(w), xs, ill, starts, fresh, every=4)
    alone, last_alone = scan_naive(step_with(w), jax.tree.map(lambda x: x[:, 5:], xs), fresh)
    assert jnp.isnan(ys["out"][0, :5]).all()
    close((ys["out"][:, 5:], last), (alone["out"], last_alone))
    grad = jax.grad(lambda s: scan(step_with(w), xs, s, starts, fresh, every=4)[0]["out"][:, 5:].sum())(state)
    close(grad, jax.tree.map(jnp.zeros_like, state))


def test_float64_gradients_match_finite_differences(x64):
    from jax.test_util import check_grads

    xs, state, starts, fresh, w = jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, example(5)
    )
    f = jax.jit(lambda xs, s, f, w: scan(step_with(w), xs, s, starts, f, 2)[0]["out"])
    check_grads(f, (xs, state, fresh, w), 1, modes=["fwd", "rev"])


def test_one_step_builds_no_scan_and_long_ones_one_state_a_segment():
    xs, state, starts, fresh, w = example(1)
    assert "scan" not in str(jax.make_jaxpr(lambda: scan(step_with(w), xs, state, starts, fresh))())
    t, n = 1024, 64
    x, s = jnp.zeros((1, t, n)), jnp.zeros((1, n, n))

    def matrix(x, s):  # a matrix state: t of them would be 16 MiB
        s = jnp.tanh(s + x[:, :, None] * x[:, None, :])
        return jnp.sum(s, 1), s

    def memory(form):
        f = jax.jit(jax.grad(lambda x, s: form(x, s)[0].sum(), (0, 1)))
        stats = f.lower(x, s).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    kept = memory(lambda x, s: scan(matrix, x, s))
    whole = memory(lambda x, s: scan(matrix, x, s, every=t))
    assert kept < 4 * 2**20 < 16 * 2**20 < whole


def test_bad_shapes_are_named():
    xs, state, starts, fresh, w = example(4)
    for bad, word in [
        ((xs, state, starts[:, :3]), "starts"),
        ((xs, jax.tree.map(lambda s: s[:2], state)), "state"),
        (({**xs, "in": xs["in"][:, :2]}, state), "xs"),
        (({}, state), "xs"),
        ((xs, state, starts, {"h": fresh["h"]}), "fresh"),
        ((xs, state, starts, fresh, 0), "every"),
    ]:
        with pytest.raises(ShapeError, match=word):
            scan(step_with(w), *bad)
