"""n-gram heads against their definition in numpy, and what they are for: copying what followed before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import running
from laws.subject import Subject
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.mixers import LEM
from jaxlm.mixers.ngram_head import NGramHead
from jaxlm.models import NGramLM
from jaxlm.module import init, materialize
from jaxlm.ops.ngram import ngram_mean

D, KINDS = 3, 3
mean = jax.jit(ngram_mean, static_argnames=("n", "block"))


def matrix(ids, n):
    """A of one document, entry by entry."""
    t = len(ids)
    a = np.zeros((t, t))
    for i in range(t):
        for j in range(i):
            valid = j - n >= 0 and i - n + 1 >= 0
            a[i, j] = valid and all(ids[i - r] == ids[j - 1 - r] for r in range(n))
    return a / np.maximum(a.sum(1, keepdims=True), 1)


def example(t, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, KINDS, (2, t)), jnp.int32), jnp.asarray(rng.normal(size=(2, t, D)), jnp.float32)


def fresh(n, room):
    return materialize(NGramHead(D, n).state(2, room), jax.random.key(0))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_equals_the_definition_cut_and_packed(n):
    ids, x = example(23)
    starts = jnp.zeros((2, 23), bool).at[1, jnp.array([6, 15])].set(True)
    want = np.zeros((2, 23, D))
    want[0] = matrix(np.asarray(ids[0]), n) @ np.asarray(x[0], np.float64)
    for low, high in ((0, 6), (6, 15), (15, 23)):
        want[1, low:high] = matrix(np.asarray(ids[1, low:high]), n) @ np.asarray(x[1, low:high], np.float64)
    whole, end = mean(ids, x, n, fresh(n, 23), starts, block=5)
    close(whole, want)
    state, ys = fresh(n, 23), []
    for low, high in ((0, 2), (2, 12), (12, 23)):
        y, state = mean(ids[:, low:high], x[:, low:high], n, state, starts[:, low:high], block=5)
        ys.append(y)
    close((jnp.concatenate(ys, axis=1), state), (want, end))


def test_rows_sum_to_one_or_nothing_and_look_at_the_tokens_alone():
    ids, x = example(40)
    ones = mean(ids, jnp.ones_like(x), 2, fresh(2, 40))[0]
    np.testing.assert_allclose(np.unique(np.round(np.asarray(ones), 6)), [0, 1])
    close(mean(ids, 3 * x, 2, fresh(2, 40))[0], 3 * mean(ids, x, 2, fresh(2, 40))[0])
    other = mean((ids + 1) % KINDS, x, 2, fresh(2, 40))[0]  # the same pattern under other names
    close(other, mean(ids, x, 2, fresh(2, 40))[0])


def test_a_periodic_text_is_copied():
    """With h one-hot of the tokens, the head gives the next one's distribution: exact after one period."""
    ids = jnp.tile(jnp.array([[0, 1, 2, 1]], jnp.int32), (2, 7))  # pairs tell what follows, 1 alone does not
    hot = jax.nn.one_hot(ids, D)
    copied = mean(ids, hot, 2, fresh(2, 28))[0][:, 5:-1]
    np.testing.assert_array_equal(copied, hot[:, 6:])
    one = mean(ids, hot, 1, fresh(1, 28))[0][:, 9]  # a 1: two times 2 followed, two times 0
    np.testing.assert_allclose(one, [[0.5, 0, 0.5]] * 2)


def test_more_tokens_than_room():
    ids, x = example(6)
    with pytest.raises(ShapeError, match="6 tokens"):
        mean(ids, x, 1, fresh(1, 5))
    _, state = mean(ids, x, 1, fresh(1, 8))
    y, state = mean(ids, x, 1, state)
    assert np.isnan(y).all(axis=2).tolist() == [[False, False, True, True, True, True]] * 2
    assert np.isfinite(mean(ids[:, :1], x[:, :1], 1, state, jnp.ones((2, 1), bool))[0]).all()


def test_the_head_is_two_affine_maps():
    head = NGramHead(D, 1)
    params, (ids, x) = init(head, jax.random.key(0)), example(9)
    params = {n: p + 0.1 for n, p in params.items()}
    y, _ = head.apply(params, x, ids, fresh(1, 9))
    seen = np.stack([matrix(np.asarray(i), 1) @ np.asarray(v, np.float64) for i, v in zip(ids, x, strict=True)])
    want = seen @ np.asarray(params["followed"]) + np.asarray(x) @ np.asarray(params["own"])
    close(y, want + np.asarray(params["followed_bias"] + params["own_bias"]))


def test_a_model_of_them_can_be_cut_and_packed():
    subject = Subject(NGramLM(24, 16, LEM(16), below=LEM(16), orders=(1, 2)), 24)
    running.cut(subject)
    running.packing(subject)


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match="order = 0"):
        NGramHead(16, 0)
    with pytest.raises(ConfigError, match="orders = "):
        NGramLM(24, 16, LEM(16), orders=())
    with pytest.raises(ConfigError, match="below"):
        NGramLM(24, 16, LEM(16), below=LEM(8))
