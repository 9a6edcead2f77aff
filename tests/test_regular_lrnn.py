"""RegularLRNN against its recurrence in numpy, the norm of its transitions, and the permutations that it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, weights

from jaxlm.mixers.regular_lrnn import RegularLRNN
from jaxlm.module import ConfigError, count, decay_mask, init

MIXER = RegularLRNN(12, block=4)


def relu(x):
    return np.maximum(x, 0)


class Row:
    """h = A h + v block by block, A's columns centred and over the largest of their 1.2-norms; h_0 learned."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        self.state = {"h": self.p["start"]}

    def transition(self, x):
        p, blocks = self.p["turn"], []
        for Z in np.einsum("f,fnij->nij", relu(x @ p["up"] + p["up_bias"]), p["down"]) + p["down_bias"]:
            columns = [column - column.mean() for column in Z.T]
            largest = max(np.sum(np.abs(c) ** 1.2) ** (1 / 1.2) for c in columns)
            blocks.append(np.stack([c / largest for c in columns], axis=1))
        return blocks

    def token(self, x):
        w = self.p["write"]
        v = relu(x @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]
        h = [A @ h for A, h in zip(self.transition(x), self.state["h"], strict=True)]
        self.state = {"h": np.stack(h) + v.reshape(len(h), -1)}
        return self.state["h"].reshape(-1)


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_columns_are_centred_and_the_largest_of_a_block_has_norm_1():
    A = float64(MIXER.transitions(weights(MIXER), packed(MIXER)[0]))
    assert A.shape == (2, 7, 3, 4, 4) and np.abs(A.sum(axis=-2)).max() < 1e-6
    close(np.max(np.sum(np.abs(A) ** 1.2, axis=-2) ** (1 / 1.2), axis=-1), np.ones((2, 7, 3)))


def test_nothing_read_is_nothing_kept():
    """A token of zeros, at the first weights: no transition, no 0 / 0, and finite gradients."""
    params, x = init(MIXER, jax.random.key(0)), jnp.zeros((1, 2, 12))
    assert (apply(MIXER, params, x)[0] == 0).all()
    grads = jax.jit(jax.grad(lambda p: jnp.sum(MIXER.apply(p, x)[0] ** 2)))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("p", [1.0, 1.2])
def test_a_token_that_flips_a_block_of_two(p):
    """Columns (-1, 1) and (1, -1) at norm 1: h changes sign, to the same length with p = 1, to a greater one beyond."""
    mixer = RegularLRNN(2, block=2, p=p)
    params = jax.tree.map(jnp.zeros_like, init(mixer, jax.random.key(0)))
    params["turn"]["down_bias"] = jnp.array([[[-3.0, 3.0], [3.0, -3.0]]])
    params["start"] = jnp.array([[1.0, -1.0]])
    y = apply(mixer, params, jnp.ones((1, 9, 2)))[0][0, :, 0]
    close(y, (-(2.0 ** (1 - 1 / p))) ** np.arange(1, 10))


def test_shapes_and_names():
    d, m = 64, 8
    published = RegularLRNN(d)
    assert published.m == 8
    assert count(published) == (d * d * m + d * m) + (d * m * d * m + d * m) + 2 * (d * d + d) + d
    assert published.state(1)["h"].size == d
    mask = decay_mask(published)
    assert mask["turn"]["down"] and not mask["start"]
    for bad, word in [({"block": 3}, "block = 3"), ({"block": 1}, "block = 1"), ({"p": 0.5}, "p = 0.5")]:
        with pytest.raises(ConfigError, match=word):
            RegularLRNN(16, **bad)
