"""Speculative decoding equals greedy decoding token for token, whatever the draft; a good one saves passes."""

import jax
import numpy as np
import pytest
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError
from jaxlm.generate import Sampling, generate, left_pad
from jaxlm.mixers import Attention, ConvLinearAttention, LinearAttention
from jaxlm.models import LM
from jaxlm.module import init
from jaxlm.speculate import speculate

VOCAB, N, TREE = 13, 12, (2, 1)
MODEL = LM(VOCAB, 8, Stack((Block(ConvLinearAttention(8)), Block(Attention(8))), 2), tied=False)
SMALL = LM(VOCAB, 4, Block(LinearAttention(4)))
PROMPT, STARTS = left_pad([[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]])


def noisy(params, size, seed=1):
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [p + size * draw.normal(size=p.shape).astype(np.float32) for p in leaves])


@pytest.fixture(scope="module")
def greedy():
    # Louder than at the start of training, so that choices depend on the whole past.
    params = jax.tree.map(lambda w: 2.0 * w, init(MODEL, jax.random.key(0)))
    tokens, session = generate(MODEL, params, PROMPT, N, None, Sampling(temperature=0), starts=STARTS)
    assert len(np.unique(np.asarray(tokens))) > 5  # not one token over and over
    return params, tokens, session


def test_writes_the_greedy_tokens_with_a_perturbed_copy_as_draft(greedy):
    params, tokens, session = greedy
    found = speculate(MODEL, params, MODEL, noisy(params, 0.1), PROMPT, N, TREE, STARTS)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert N / 3 < found.passes < N  # some guesses held, some did not
    for name in ("drawn", "used", "done"):
        np.testing.assert_array_equal(getattr(found.session, name), getattr(session, name))
    close(found.session.logits, session.logits)
    close(found.session.state["block0"], session.state["block0"])


def test_a_perfect_draft_takes_one_pass_for_a_whole_path(greedy):
    params, tokens, session = greedy
    found = speculate(MODEL, params, MODEL, params, PROMPT, N, TREE, STARTS)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.passes == N // 3
    np.testing.assert_array_equal(found.session.used, session.used)
    close(found.session.logits, session.logits)
    close(found.session.state["block0"], session.state["block0"])


def test_a_draft_that_knows_nothing_changes_nothing(greedy):
    params, tokens, _ = greedy
    found = speculate(MODEL, params, SMALL, init(SMALL, jax.random.key(5)), PROMPT, N, TREE, STARTS)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.passes > N // 2


def test_says_what_is_wrong(greedy):
    params = greedy[0]
    other = LM(VOCAB + 1, 4, Block(LinearAttention(4)))
    with pytest.raises(ConfigError, match=r"draft.vocab = 14"):
        speculate(MODEL, params, other, params, PROMPT, 1)
    for tree in ((), (2, 0), (VOCAB + 1,)):
        with pytest.raises(ConfigError, match="tree = "):
            speculate(MODEL, params, MODEL, params, PROMPT, 1, tree)
