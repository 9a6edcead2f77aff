"""Sampled softmax: draws with exactly known probabilities, the formulas in numpy, and the limit of all classes."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.errors import ConfigError
from jaxlm.ops.losses import nats
from jaxlm.ops.sampled import LogUniform, corrected, nce_nats, sampled_nats

N, D = 40, 6
RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(3, 5, D)).astype(np.float32), RNG.normal(size=(N, D)).astype(np.float32)
TARGETS = RNG.integers(0, N, (3, 5)).astype(np.int32)
KEYS = jax.random.split(jax.random.key(1), 2000)


def rows(w):
    return lambda ids: jnp.take(w, ids, axis=0)


def logsumexp(x):
    return x.max(-1) + np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))


@pytest.mark.parametrize(("n", "k"), [(N, 1), (N, 17), (N, N - 1), (50_000, 300)])
def test_classes_are_drawn_as_often_as_is_said(n, k):
    draw = LogUniform(n, k)
    counts = draw.stretches / draw.unit
    np.testing.assert_allclose(draw.log_counts, np.log(counts), rtol=1e-6, atol=1e-7)
    assert draw.stretches.min() > 0 and draw.stretches.max() <= draw.unit and draw.stretches.sum() == k * draw.unit
    p = np.log((np.arange(n) + 2.0) / (np.arange(n) + 1))
    rare = draw.stretches < draw.unit
    c = (counts / p)[rare][0]
    assert (np.abs(counts - np.minimum(1, c * p)) * draw.unit <= 2).all()  # to the tick
    seen = np.asarray(jax.vmap(draw.draw)(KEYS))
    assert (np.diff(seen, axis=1) > 0).all() and seen.min() >= 0 and seen.max() < n  # distinct
    often = np.bincount(seen.ravel(), minlength=n) / len(KEYS)
    spread = np.sqrt(counts * (1 - counts) / len(KEYS))
    assert (np.abs(often - counts) <= 6 * spread + 2 / len(KEYS)).all()


def test_losses_are_their_formulas():
    draw, key = LogUniform(N, 9), jax.random.key(5)
    ids, logits = np.asarray(draw.draw(key)), np.float64(X) @ np.float64(W).T
    assert np.isin(TARGETS, ids).any() and not np.isin(TARGETS, ids).all()
    soft, nce = np.zeros((2, *TARGETS.shape))
    for at, t in np.ndenumerate(TARGETS):
        score = {w: logits[at][w] - draw.log_counts[w] for w in {*ids.tolist(), int(t)}}
        soft[at] = np.log(sum(map(np.exp, score.values()))) - score[t]
        nce[at] = np.log1p(np.exp(-score[t])) + sum(np.log1p(np.exp(score[w])) for w in ids.tolist())
    close(sampled_nats(X, rows(W), TARGETS, draw, key), np.float32(soft))
    close(nce_nats(X, rows(W), TARGETS, draw, key), np.float32(nce))


def full(w):
    return jnp.mean(nats(X @ w.T, jnp.asarray(TARGETS)))


@pytest.fixture(scope="module")
def means():
    """Loss and gradient of the readout, over many draws, by number of samples; and the full softmax's."""

    def at(k):
        def loss(w, key):
            return jnp.mean(sampled_nats(X, rows(w), TARGETS, LogUniform(N, k), key))

        f = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))
        return jax.tree.map(np.asarray, f(W, KEYS))

    return {k: at(k) for k in (10, 30, 38, N)}, jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(full))(W))


def test_loss_and_gradient_become_those_of_the_full_softmax(means):
    found, (want, slope) = means
    loss = {k: abs(v.mean() - want) for k, (v, _) in found.items()}
    bias = {k: np.linalg.norm(g.mean(0) - slope) / np.linalg.norm(slope) for k, (_, g) in found.items()}
    order = list(found)
    assert all(loss[a] > loss[b] for a, b in pairwise(order)), loss
    assert all(bias[a] > bias[b] for a, b in pairwise(order)), bias
    values, grads = found[N]
    close(values, np.full_like(values, want))  # every class once: whatever the key
    close(grads, np.broadcast_to(slope, grads.shape))


def test_the_error_is_below_a_thousandth_before_every_class_is_drawn():
    """Targets as frequent as words are: what is missing is rare."""
    n = 2000
    x, w = RNG.normal(size=(256, D)).astype(np.float32), 0.3 * RNG.normal(size=(n, D)).astype(np.float32)
    p = 1 / np.arange(1, n + 1)
    targets = jnp.asarray(RNG.choice(n, 256, p=p / p.sum()))
    want = float(jnp.mean(nats(x @ w.T, targets)))
    gaps = []
    for k in (500, 1990, n):
        f = jax.jit(lambda key, k=k: jnp.mean(sampled_nats(x, rows(w), targets, LogUniform(n, k), key)))
        gaps.append(abs(np.mean([f(key) for key in KEYS[:8]]) - want))
    assert gaps[0] > 0.1 and gaps[1] < 1e-3 and gaps[2] < 1e-5, gaps


def test_the_sum_over_drawn_classes_estimates_the_partition_function():
    """E Σ exp(s_w) / P(w is drawn) over a draw = Σ exp(s_w) over all: what the correction is for."""
    draw, target = LogUniform(N, 12), jnp.zeros((1,), jnp.int32)

    def estimate(key):
        return jnp.sum(jnp.exp(corrected(X[0, :1], rows(W), target, draw, key)[1]))

    got = np.asarray(jax.jit(jax.vmap(estimate))(KEYS))
    want = np.exp(X[0, 0] @ W.T).sum()
    error = got.std() / np.sqrt(len(got))
    assert abs(got.mean() - want) < 4 * error < 0.1 * want


def test_nce_stands_still_at_the_true_log_probabilities_alone():
    """Of the loss expected over targets and noise, the gradient by the logits is zero there, and not beside."""
    p = np.float32(RNG.dirichlet(np.ones(N)))
    draw, eye = LogUniform(N, 10), jnp.eye(N)

    @jax.jit
    def slope(logits):
        def loss(logits, key):
            every = nce_nats(jnp.broadcast_to(logits, (N, N)), rows(eye), jnp.arange(N), draw, key)
            return jnp.sum(jnp.asarray(p) * every)

        return jax.vmap(jax.grad(loss), (None, 0))(logits, KEYS)

    at, beside = (np.asarray(slope(jnp.log(p) + shift)) for shift in (0.0, 0.5))
    error = at.std(0) / np.sqrt(len(KEYS))
    assert (np.abs(at.mean(0)) < 5 * error + 1e-6).all()
    assert np.linalg.norm(beside.mean(0)) > 10 * np.linalg.norm(error)


def test_bad_numbers_are_named():
    for k in (0, 5):
        with pytest.raises(ConfigError, match=f"samples = {k}"):
            LogUniform(4, k)
    with pytest.raises(ConfigError, match="classes"):
        LogUniform(2**25, 4)
