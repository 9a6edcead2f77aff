"""The elementwise linear recurrence: three forms against a Python loop, gradients, cuts, packing, nan and memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.recurrence import recurrence, recurrence_associative, recurrence_chunked, recurrence_sequential

B, N = 2, 3
FORMS = {
    "sequential": jax.jit(recurrence_sequential),
    "associative": jax.jit(recurrence_associative),
    "chunked": jax.jit(partial(recurrence_chunked, chunk=4)),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@jax.jit
def naive(a, u, state, starts=None):
    """The formula, token by token."""
    h, out = state, []
    for i in range(a.shape[1]):
        if starts is not None:
            h = jnp.where(starts[:, i, None], 0, h)
        h = a[:, i] * h + u[:, i]
        out.append(h)
    return jnp.stack(out, 1), h


def example(t, kind="real", seed=0):
    ks = jax.random.split(jax.random.key(seed), 7)
    draw = lambda k, *shape: jax.random.normal(k, (B, *shape, N))  # noqa: E731
    a, u, s = jnp.tanh(draw(ks[0], t)), draw(ks[1], t), draw(ks[2])
    if kind == "complex":
        angle = draw(ks[3], t)
        a = jax.lax.complex(a * jnp.cos(angle), a * jnp.sin(angle))
        u, s = jax.lax.complex(u, draw(ks[4], t)), jax.lax.complex(s, draw(ks[5]))
    return a, u, s, jax.random.bernoulli(ks[6], 0.25, (B, t))


def loss(form, starts):
    def f(a, u, s):
        h, last = form(a, u, s, starts)
        return jnp.sum(jnp.sin(h.real) + jnp.cos(h.imag)) + jnp.sum(jnp.abs(last) ** 2), (h, last)

    return jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))


@forms
@pytest.mark.parametrize(("t", "kind"), [(1, "real"), (3, "complex"), (8, "real"), (11, "complex")])
def test_equals_the_formula_with_gradients(form, t, kind):
    a, u, s, starts = example(t, kind)
    close(loss(form, starts)(a, u, s), loss(naive, starts)(a, u, s))


@forms
def test_without_starts_and_without_a_state(form):
    a, u, s, _ = example(7)
    close(form(a, u, s), naive(a, u, s))
    close(form(a, u, None), naive(a, u, jnp.zeros_like(s)))


@forms
def test_real_transition_with_a_complex_input(form):
    a, _, _, starts = example(7)
    _, u, s, _ = example(7, "complex")
    close(form(a, u, s, starts), naive(a.astype(u.dtype), u, s, starts))


@forms
def test_cut_anywhere(form):
    a, u, s, starts = example(9)
    whole = form(a, u, s, starts)
    for cut in (1, 8):
        h1, mid = form(a[:, :cut], u[:, :cut], s, starts[:, :cut])
        h2, last = form(a[:, cut:], u[:, cut:], mid, starts[:, cut:])
        close((jnp.concatenate([h1, h2], 1), last), whole)


@forms
def test_products_beyond_the_range_of_floats_stop_at_a_start(form):
    a = jnp.full((1, 40, 1), 1e3)
    u = jnp.ones((1, 40, 1))
    starts = (jnp.arange(40) % 10 == 0)[None]
    close(form(a, u, None, starts), naive(a, u, jnp.zeros((1, 1)), starts))


@forms
def test_nan_stays_in_its_document_and_crosses_a_cut(form):
    a, u, s, _ = example(12)
    starts = jnp.zeros((B, 12), bool).at[0, jnp.array([3, 9])].set(True)
    ill = u.at[0, 5, 1].set(jnp.nan)
    want = np.zeros((B, 12), bool)
    want[0, 5:9] = True
    h, last = form(a, ill, s, starts)
    np.testing.assert_array_equal(np.isnan(h), np.broadcast_to(want[..., None], h.shape))
    well, end = form(a, u, s, starts)
    close((jnp.where(want[..., None], 0, h), last), (jnp.where(want[..., None], 0, well), end))
    _, mid = form(a[:, :7], ill[:, :7], s, starts[:, :7])
    assert jnp.isnan(mid[0]).all() and jnp.isfinite(mid[1]).all()
    rest, end = form(a[:, 7:], ill[:, 7:], mid, starts[:, 7:])
    close((rest, end), (h[:, 7:], last))
    grads = jax.jit(jax.grad(lambda u: jnp.where(want[..., None], 0, form(a, u, s, starts)[0]).sum()))(ill)
    assert jnp.isfinite(grads).all()


@forms
def test_float64_derivatives(form, x64):
    ks = jax.random.split(jax.random.key(1), 3)
    a, u = (jax.random.normal(k, (1, 5, 2)) for k in ks[:2])
    s = jax.random.normal(ks[2], (1, 2))
    starts = jnp.zeros((1, 5), bool).at[0, 3].set(True)
    assert a.dtype == jnp.float64
    order = 2 if form is FORMS["sequential"] else 1  # the rule is one for all forms
    check_grads(jax.jit(lambda a, u, s: form(a, u, s, starts)), (a, u, s), order, modes=["fwd", "rev"])


@forms
def test_low_precision_goes_out_as_it_came_and_the_state_is_wide(form):
    a, u, s, starts = example(9)
    a, u = a.astype(jnp.bfloat16), u.astype(jnp.bfloat16)
    h, last = form(a, u, s, starts)
    assert (h.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    want, end = naive(a.astype(jnp.float32), u.astype(jnp.float32), s, starts)
    close(last, end)
    close(h.astype(jnp.float32), want, jnp.bfloat16)


def test_one_step_builds_no_scan_and_the_default_needs_least_memory():
    a, u, s, starts = example(1)
    assert "scan" not in str(jax.make_jaxpr(lambda: recurrence(a, u, s, starts))())
    x, s = jnp.ones((2, 256, 64)), jnp.ones((2, 64))

    def memory(form):
        f = jax.jit(jax.grad(lambda a, u, s: jnp.sum(form(a, u, s)[0] ** 2), (0, 1, 2)))
        stats = f.lower(x, x, s).compile().memory_analysis()
        assert stats is not None
        return stats.temp_size_in_bytes

    assert memory(recurrence) <= memory(recurrence_chunked) < memory(recurrence_associative)
    assert memory(recurrence) <= 4 * x.nbytes


@forms
def test_8192_steps_stay_finite(form):
    pole = 2.0**-13 - 1  # exact in float32
    a, u = jnp.full((1, 8192, 1), pole), jnp.ones((1, 8192, 1))
    h, last = form(a, u, None)
    want = ((1 - pole ** np.arange(1, 8193)) / (1 - pole)).astype(np.float32)
    close((h[0, :, 0], last[0, 0]), (want, want[-1]))


def test_bad_arguments_are_named():
    a, u, s, starts = example(4)
    with pytest.raises(ShapeError, match="a, u"):
        recurrence(a[:, :2], u, s)
    with pytest.raises(ShapeError, match="state"):
        recurrence(a, u, s[:1])
    with pytest.raises(ShapeError, match="starts"):
        recurrence(a, u, s, starts[:, :1])
    with pytest.raises(ConfigError, match="chunk"):
        recurrence_chunked(a, u, s, chunk=3)
