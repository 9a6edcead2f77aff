"""Set-based prompting: no order among the sets, the plain prompt for one; and what a layout does to a formula."""

import itertools

import jax
import numpy as np
import pytest
from tolerance import close

from jaxlm.blocks import Block, Chain, Stack
from jaxlm.errors import ConfigError
from jaxlm.generate import Sampling, generate
from jaxlm.layers.mlp import MLP
from jaxlm.layers.position import ALiBi
from jaxlm.layers.rope import Rope
from jaxlm.mixers import LEM, Attention
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models import LM
from jaxlm.models.sets import set_prompt
from jaxlm.module import init

VOCAB, WIDTH = 24, 16
A, B, D = [3, 1], ([5, 9, 2], [7], [4, 4]), [8, 6, 1, 2]


def model(position, learned=False):
    blocks = Stack(Block(Attention(WIDTH, position=position), MLP(WIDTH)), 2)
    body = Chain((LearnedPositions(WIDTH, 32), blocks)) if learned else blocks
    lm = LM(VOCAB, WIDTH, body, tied=False)
    return lm, jax.tree.map(lambda w: 2 * w, init(lm, jax.random.key(0)))  # loud, so that places matter


MODELS = {"rope": (Rope(100.0), False), "alibi": (ALiBi(), False), "learned": (None, True)}


def last(model, params, tokens):
    """Logits of D."""
    return jax.jit(model.apply)(params, np.asarray(tokens, np.int32))[0][:, -len(D) :]


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_sets_does_not_matter(name):
    lm, params = model(*MODELS[name])
    first, other = (last(*read(lm, params, sets)) for sets in (B, B[::-1]))
    close(first, other)
    plain = last(lm, params, [[*A, *itertools.chain(*B), *D], [*A, *itertools.chain(*B[::-1]), *D]])
    assert np.abs(np.asarray(plain[0] - plain[1])).max() > 5e-3  # far beyond rounding
    close(last(*read(lm, params, [B[0]])), last(lm, params, [[*A, *B[0], *D]]))  # one set: the plain prompt


def read(lm, params, sets):
    reader, tokens = set_prompt(lm, A, sets, D)
    return reader, params, tokens


def test_writing_goes_on_from_the_sets():
    lm, params = model(*MODELS["rope"])
    reader, _, tokens = read(lm, params, B)
    assert reader != lm and tokens.tolist() == [[*A, *itertools.chain(*B), *D]]
    more = generate(reader, params, tokens, 4, None, Sampling(temperature=0))[0]
    whole = np.concatenate([tokens, np.asarray(more)[:, :3]], axis=1)
    np.testing.assert_array_equal(last(reader, params, whole).argmax(-1), more)


def test_a_mixer_that_reads_in_order_is_named():
    lm = LM(VOCAB, WIDTH, Stack((Block(Attention(WIDTH)), Block(LEM(WIDTH))), 2))
    with pytest.raises(ConfigError, match="LEM reads in order"):
        set_prompt(lm, A, B, D)
    with pytest.raises(ConfigError, match="window"):
        set_prompt(LM(VOCAB, WIDTH, Attention(WIDTH, window=3)), A, B, D)
