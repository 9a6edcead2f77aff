"""Two directions against two explicit passes, document by document, with gradients (Schuster & Paliwal 1997)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import noisy
from tolerance import close

from jaxlm.codec import decode, encode
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.gru import GRU
from jaxlm.mixers.rnn import RNN
from jaxlm.models.bidirectional import Bidirectional
from jaxlm.module import ConfigError, count

CONCAT = Bidirectional(RNN(4, inputs=3), GRU(5, inputs=3))
SUM = Bidirectional(RNN(4, inputs=3), RNN(4, inputs=3, activation="sigmoid"), join="sum")
# Documents by row and place; those of one length are run together.
DOCUMENTS = (((0, 0, 3), (1, 6, 9)), ((0, 3, 9), (1, 0, 6)))


def example(model):
    x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    starts = np.zeros((2, 9), bool)
    starts[0, [0, 3]] = starts[1, 6] = True
    return noisy(model), x, starts


@partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(read, model, params, x, starts):
    """<back, y> with fixed cotangents, y, and the gradients by params and x."""

    def value(params, x):
        y = read(model, params, x, starts)
        return jnp.sum(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) * y), y

    return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, x)


def explicit(model, params, x, starts):
    """Every document by itself, twice, its tokens in an order that is written out."""
    y = jnp.zeros((*x.shape[:2], model.width))
    for same in DOCUMENTS:
        documents = jnp.stack([x[row, first:last] for row, first, last in same])
        order = np.arange(documents.shape[1])[::-1]
        one = model.forward.apply(params["forward"], documents)[0]
        other = model.backward.apply(params["backward"], documents[:, order])[0][:, order]
        both = jnp.concatenate([one, other], axis=-1)
        for i, (row, first, last) in enumerate(same):
            y = y.at[row, first:last].set(both[i])
    return y


def test_is_two_passes_over_each_document_and_so_are_the_gradients():
    given = example(CONCAT)
    close(value_and_gradients(Bidirectional.apply, CONCAT, *given), value_and_gradients(explicit, CONCAT, *given))


@jax.jit
def summed(params, x, starts=None):
    return SUM.apply(params, x, starts)


def test_sum_is_two_passes_over_the_row():
    params, x, starts = example(SUM)
    y = summed(params, x)
    one, other = (jax.jit(m.apply) for m in (SUM.forward, SUM.backward))
    close(y, one(params["forward"], x)[0] + other(params["backward"], x[:, ::-1].copy())[0][:, ::-1])
    close(summed(params, x, starts & False), y)


def test_tokens_see_their_whole_document_and_no_other():
    params, x, starts = example(SUM)
    moved, lost = x.copy(), x.copy()
    moved[0, 7] += 1
    gap = np.abs(summed(params, moved, starts) - summed(params, x, starts)).max(-1)
    assert (gap[0, 3:] > 0).all() and (gap[0, :3] == 0).all() and (gap[1] == 0).all()
    lost[0, 7] = np.nan
    y = np.asarray(summed(params, lost, starts))
    assert np.isnan(y[0, 3:]).all() and np.isfinite(y[0, :3]).all() and np.isfinite(y[1]).all()


def test_is_no_mixer_but_a_value_of_its_parts():
    assert not isinstance(CONCAT, Mixer) and not hasattr(CONCAT, "state")
    assert (CONCAT.reads, CONCAT.width, SUM.width, CONCAT.growth) == (3, 9, 4, "linear")
    assert count(CONCAT) == count(CONCAT.forward) + count(CONCAT.backward)
    assert decode(encode(CONCAT)) == CONCAT


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("forward", lambda: Bidirectional(CONCAT, GRU(4))),  # type: ignore[arg-type]
        ("backward", lambda: Bidirectional(GRU(4), GRU(4, inputs=3))),
        ("backward", lambda: Bidirectional(GRU(4, inputs=3), GRU(5, inputs=3), join="sum")),
        ("join", lambda: Bidirectional(GRU(4), GRU(4), join="mean")),
    ],
)
def test_bad_fields_are_named(field, bad):
    with pytest.raises(ConfigError, match=rf"Bidirectional\.{field}"):
        bad()
