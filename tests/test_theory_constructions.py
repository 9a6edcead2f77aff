"""Constructions of theory: each exact statement at 1e-10 in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.analysis.ngram_compiler import attending, compile_ngrams
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.simplex import hardmax, sparsemax, sparsemax_naive
from jaxlm.theory import ngram_transformer

EXACT = 1e-10


def far(got, want) -> float:
    return float(np.abs(np.asarray(got) - np.asarray(want)).max())


def test_sparsemax_is_the_nearest_point_of_the_simplex(x64):
    z = jax.random.normal(jax.random.key(0), (5, 7), jnp.float64) / 2
    p = jax.jit(sparsemax)(z)
    close(p, jax.jit(sparsemax_naive)(z), jnp.float64)
    assert far(p.sum(axis=-1), 1) < EXACT and (p == 0).any() and (p > 0).sum() > len(z)
    apart = jnp.full_like(z, -jnp.inf).at[:, 1:3].set(jnp.array([1.5, 0.5]))
    assert (jax.jit(sparsemax)(apart) == hardmax(apart)).all()  # a lead of 1 takes all


class TestNgramTransformer:
    @pytest.mark.parametrize(("layers", "how"), [(False, "sparse"), (True, "hard")])
    def test_every_conditional(self, layers, how, x64):
        """A trigram model with impossible events, by hand from the table."""
        table = ngram_transformer.random_table(np.random.default_rng(0), 3, 2)
        table[0, 1] = (1.0, 0.0, 0.0)
        tokens = ngram_transformer.padded(np.array([[0, 1, 1, 0, 1], [1, 0, 1, 0, 0]]), 3, mark=2)
        model, params = compile_ngrams(table, tokens.shape[1], layers=layers)
        out = ngram_transformer.compiled(model, params, jnp.asarray(tokens), how)
        want = [[table[r[i - 1], r[i]] for i in range(1, len(r))] for r in tokens]
        assert far(out[:, 1:], want) < EXACT and far(ngram_transformer.conditionals(table, tokens), want) == 0
        assert (out[0, 3] == jnp.array([1.0, 0, 0])).all()  # p = 0 is 0

    def test_refusals(self):
        with pytest.raises(ShapeError, match="equal axes"):
            compile_ngrams(np.ones((2, 3)), 4)
        with pytest.raises(ConfigError, match="beta"):
            compile_ngrams(np.ones((2, 2)), 4, beta=0.0)
        with pytest.raises(ConfigError, match="how"):
            attending(lambda x: x, "none")
