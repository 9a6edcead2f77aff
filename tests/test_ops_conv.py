"""The short convolution against the token by token form and against numpy; cuts, packing, nan, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tolerance import close

from jaxlm.errors import ShapeError
from jaxlm.ops.conv import conv, conv_naive

B, N = 2, 3
run, naive = jax.jit(conv), jax.jit(conv_naive)


def example(t, width=4, seed=0):
    ks = jax.random.split(jax.random.key(seed), 5)
    x, w = jax.random.normal(ks[0], (B, t, N)), jax.random.normal(ks[1], (width, N))
    state, bias = jax.random.normal(ks[2], (B, width - 1, N)), jax.random.normal(ks[3], (N,))
    return x, w, state, jax.random.bernoulli(ks[4], 0.25, (B, t)), bias


@pytest.mark.parametrize(
    ("t", "width", "with_starts"), [(1, 4, True), (2, 4, True), (11, 4, True), (11, 4, False), (5, 1, True)]
)
def test_equals_the_token_by_token_form_with_gradients(t, width, with_starts):
    x, w, state, starts, bias = example(t, width)
    starts = starts if with_starts else None

    def loss(form):
        def f(x, w, state, bias):
            y, last = form(x, w, state, starts, bias)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(last)), (y, last)

        return jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))(x, w, state, bias)

    close(loss(conv), loss(conv_naive))


def test_a_fresh_start_is_numpys_convolution():
    x, w, state, _, _ = example(11)
    y, last = run(x, w, jnp.zeros_like(state))
    want = np.stack([np.convolve(x[0, :, i], w[::-1, i])[:11] for i in range(N)], axis=1)
    close(y[0], want)
    close(last, x[:, -3:])


def test_cut_anywhere():
    x, w, state, starts, bias = example(9)
    whole = run(x, w, state, starts, bias)
    for cut in (1, 2, 8):
        y1, mid = run(x[:, :cut], w, state, starts[:, :cut], bias)
        y2, last = run(x[:, cut:], w, mid, starts[:, cut:], bias)
        close((jnp.concatenate([y1, y2], 1), last), whole)


def test_equal_histories_give_equal_states():
    x, w, state, _, _ = example(9)
    starts = jnp.zeros((B, 9), bool).at[:, 7].set(True)
    _, packed = run(x, w, state, starts)
    _, alone = run(x[:, 7:], w, jnp.zeros_like(state))
    np.testing.assert_array_equal(packed, alone)
    assert (packed[:, 0] == 0).all() and (packed[:, 1:] != 0).all()


def test_nan_stays_in_its_document_and_crosses_a_cut():
    x, w, state, _, bias = example(12)
    starts = jnp.zeros((B, 12), bool).at[0, jnp.array([3, 9])].set(True)
    ill = x.at[0, 4, 1].set(jnp.inf)
    want = np.zeros((B, 12), bool)
    want[0, 4:9] = True
    y, last = run(ill, w, state, starts, bias)
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(want[..., None], y.shape))
    well, end = run(x, w, state, starts, bias)
    close((jnp.where(want[..., None], 0, y), last), (jnp.where(want[..., None], 0, well), end))
    _, mid = run(ill[:, :8], w, state, starts[:, :8], bias)  # the bad token has left the taps
    assert jnp.isnan(mid[0]).all() and jnp.isfinite(mid[1]).all()
    close(run(ill[:, 8:], w, mid, starts[:, 8:], bias), (y[:, 8:], last))
    grads = jax.jit(jax.grad(lambda w: jnp.where(want[..., None], 0, conv(ill, w, state, starts)[0]).sum()))(w)
    assert jnp.isfinite(grads).all()


def test_float64_gradients_match_finite_differences(x64):
    x, w, state, starts, bias = example(5)
    assert x.dtype == jnp.float64
    check_grads(jax.jit(lambda *a: conv(a[0], a[1], a[2], starts, a[3])), (x, w, state, bias), 1)


def test_low_precision_keeps_its_dtypes():
    x, w, state, starts, bias = example(9)
    x = x.astype(jnp.bfloat16)
    y, last = run(x, w, state, starts, bias)
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    want, _ = naive(x.astype(jnp.float32), w, state, starts, bias)
    close(y.astype(jnp.float32), want, jnp.bfloat16)


def test_bad_shapes_are_named():
    x, w, state, starts, bias = example(4)
    for bad, word in [
        ((x[0], w, state), "x"),
        ((x, w[:, :2], state), "w"),
        ((x, w, state[:, :2]), "state"),
        ((x, w, state, starts[:, :3]), "starts"),
        ((x, w, state, starts, bias[:2]), "bias"),
    ]:
        with pytest.raises(ShapeError, match=f"^{word}:"):
            conv(*bad)
