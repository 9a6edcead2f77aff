"""Set-based prompting: parts of a prompt without an order among them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.blocks import Block, Chain, Stack
from jaxlm.errors import ConfigError
from jaxlm.layers.position import Sets
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models.lm import LM
from jaxlm.module import rebuild

Tokens = Sequence[int] | np.ndarray


def set_prompt(model: LM, before: Tokens, sets: Sequence[Tokens], after: Tokens) -> tuple[LM, np.ndarray]:
    """The model that reads this prompt's sets without their order, with the same weights, and the prompt.

        reader, tokens = set_prompt(model, question, options, rest)
        nats = score(reader, params, tokens)                    or generate(reader, params, tokens, 20, key)

    before, sets, after    the parts A, {B_1 ... B_n}, D of token ids; see `layers.position.Sets`
    ->                     a model;  tokens (1, t) int32

    What it gives for D, and what it writes then, is the same for any order of the sets (to rounding); with one set it
    is the plain prompt's. ConfigError for a mixer that has no other way to see the past than in order.
    McIlroy-Young et al. 2024.
    """
    parts = [np.asarray(p, np.int32).reshape(-1) for p in (before, *sets, after)]
    layout = Sets(len(parts[0]), tuple(len(p) for p in parts[1:-1]))

    def unordered(m: Any) -> Any:
        if type(m) in (Attention, LearnedPositions):
            return dataclasses.replace(m, sets=layout)
        if isinstance(m, Mixer) and not isinstance(m, Block | Chain | Stack):
            raise ConfigError(f"model: {type(m).__name__} reads in order: expected Attention in its place")
        return m

    return rebuild(model, unordered), np.concatenate(parts)[None]
