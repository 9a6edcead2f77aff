"""What optimizers read off the declaration of weights, and the schedule of the main job."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlm
from jaxlm import GRU, LM, Attention, Block, Stack, SwiGLU
from jaxlm.train.optimizers import clipped, matrix_view, muon, trapezoid

MODEL = LM(32, 16, Stack((Block(GRU(16), SwiGLU(16)), Block(Attention(16), SwiGLU(16))), 4))


@pytest.fixture(scope="module")
def update():
    params = jaxlm.init(MODEL, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    grads = tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    optimizer = muon(MODEL, 1.0, 0.5)

    @jax.jit
    def first(grads, params):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(grads, optimizer.init(params), params)[0]

    return first(grads, params)


def test_matrices_are_seen_through_their_contracted_axes():
    view = matrix_view(MODEL)["body"]
    assert view["block1"]["mixer"]["out"].reduction_axis == (1, 2), "heads and head together, beside the layers"
    assert view["block1"]["mixer"]["out"].output_axis == (3,)
    assert view["block0"]["mlp"]["gate"].reduction_axis == (1,)
    assert view["block0"]["norm"]["gain"] is None and matrix_view(MODEL)["embed"] is None


def test_updates_of_matrices_are_nearly_orthogonal_layer_by_layer(update):
    """Singular values in [0.6, 1.3] for Gaussian gradients, up to the factor sqrt(max(1, outs / ins))."""
    out = np.asarray(update["body"]["block1"]["mixer"]["out"])  # (layers, h, v, d)
    gate = np.asarray(update["body"]["block0"]["mlp"]["gate"])  # (layers, d, f)
    for w in [*out.reshape(2, 16, 16), *(g / np.sqrt(g.shape[1] / g.shape[0]) for g in gate)]:
        s = np.linalg.svd(w, compute_uv=False)
        assert s.min() > 0.6 and s.max() < 1.3, s


def test_the_rest_learns_by_adam(update):
    """Adam with Nesterov momentum 0.9: the first step is one multiple of the rate, whatever the gradient's size."""
    first = 0.5 * (0.9 * 0.1 / (1 - 0.9**2) + 1)
    for leaf in (update["embed"], update["norm"]["gain"]):
        np.testing.assert_allclose(np.abs(np.asarray(leaf)), first, rtol=1e-4)


def test_the_schedule_rises_holds_and_falls_to_zero():
    rate = trapezoid(2.0, 100, warmup=10, cooldown=0.4)
    values = np.array([rate(jnp.asarray(i)) for i in range(101)])
    assert values[0] == 0 and values[10] == 2 and (values[10:61] == 2).all() and values[100] == 0
    assert (np.diff(values[:11]) > 0).all() and (np.diff(values[60:]) < 0).all()
    assert trapezoid(1.0, 1)(jnp.asarray(0)) == 0, "one step is a schedule too"


def test_gradients_are_clipped_first():
    optimizer = clipped(optax.sgd(1.0), 0.5)
    g = {"a": jnp.full((4,), 3.0)}
    update, _ = optimizer.update(g, optimizer.init(g), g)
    assert float(optax.tree.norm(update)) == pytest.approx(0.5)
