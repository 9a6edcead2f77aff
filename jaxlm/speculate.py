"""Speculative decoding: a quick model guesses a tree of tokens, the model itself checks the whole tree in one pass.

    found = speculate(model, params, draft, its_params, prompt, 100, tree=(3, 2, 1))
    found.tokens, found.session, found.passes

The tokens are those of `generate` at temperature 0, whatever the draft: a poor one only costs time. A recurrent state
cannot be taken back, so each path of the tree is checked from a copy of the state, all of them as one batch.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.generate import prefill
from jaxlm.models.lm import LM
from jaxlm.session import Session, fork, rows
from jaxlm.typing import Array, Params, State


class Speculation(NamedTuple):
    """tokens   (b, n) int32
    session  of the model, after them: `generate` goes on from it
    passes   trees that the model has checked; without a draft there would be one pass a token
    """

    tokens: Array
    session: Session
    passes: int


def speculate(
    model: LM,
    params: Params,
    draft: LM,
    draft_params: Params,
    prompt: Any,
    tokens: int,
    tree: tuple[int, ...] = (3, 2, 1),
    starts: Any = None,
) -> Speculation:
    """Read a prompt, then write the likeliest tokens, several at a pass where the draft foresees them.

    draft    another model of the same vocabulary
    prompt   (b, t) int
    tokens   how many to write, n
    tree     the draft's likeliest tokens that are tried after each token, level by level: (1, 1, 1) is a chain
    starts   (b, t) bool, see `left_pad`

    Rows keep step: a pass keeps as many tokens as its least lucky row has right, and one more.
    Leviathan et al. 2023 (drafts); Miao et al. 2024 (trees); You et al. 2024 (trees and linear attention).
    """
    if draft.vocab != model.vocab:
        raise ConfigError(f"draft.vocab = {draft.vocab}: expected {model.vocab}, that of the model")
    if not tree or not all(isinstance(n, int) and 0 < n <= model.vocab for n in tree):
        raise ConfigError(f"tree = {tree!r}: expected at least one level, each of 1 to {model.vocab} tokens")
    # Checked paths reach beyond the last token written.
    target = prefill(model, params, prompt, None, starts, tokens + len(tree))
    guide = prefill(draft, draft_params, prompt, None, starts, tokens + len(tree))
    written, left, passes = [], tokens, 0
    while left:
        paths = _guess(draft, tree, draft_params, guide.state, jnp.argmax(target.logits, axis=-1).astype(jnp.int32))
        right, leaf, after = _check(model, params, target.state, paths)
        count = min(left, 1 + int(jnp.min(right)))
        new = jnp.take_along_axis(paths, leaf[:, None, None], axis=1)[:, 0, :count]
        guide = prefill(draft, draft_params, new, guide)
        if count == paths.shape[2]:  # a whole path: its copy of the state has read just these tokens
            chosen = np.asarray(leaf) + np.arange(len(leaf)) * paths.shape[1]
            target = dataclasses.replace(rows(model, after, chosen), used=target.used + count)
        else:
            target = prefill(model, params, new, target)
        written.append(new)
        left, passes = left - count, passes + 1
    out = jnp.concatenate(written, axis=1) if written else jnp.zeros((len(target.logits), 0), jnp.int32)
    target = dataclasses.replace(target, drawn=jnp.full_like(target.drawn, tokens))
    return Speculation(out, target, passes)


@partial(jax.jit, static_argnums=(0, 1))
def _guess(draft: LM, tree: tuple[int, ...], params: Params, state: State, first: Array) -> Array:
    """Paths from the token that is known to come next.   first (b,) -> (b, leaves, 1 + levels), copies side by side"""
    paths = first[:, None]
    for width in tree:
        logits, state = draft.apply(params, paths[:, -1:], state)
        likeliest = jax.lax.top_k(logits[:, 0], width)[1].astype(jnp.int32)
        paths = jnp.concatenate([jnp.repeat(paths, width, axis=0), likeliest.reshape(-1, 1)], axis=1)
        state = fork(draft, state, width)
    return paths.reshape(len(first), -1, 1 + len(tree))


@partial(jax.jit, static_argnums=0)
def _check(model: LM, params: Params, state: State, paths: Array) -> tuple[Array, Array, Session]:
    """Follow every path as far as it is the model's own choice.

    ->      right (b,): guesses of the best path that hold; leaf (b,): its number; a session at the end of each path
    """
    b, leaves, n = paths.shape
    logits, state = model.apply(params, paths.reshape(b * leaves, n), fork(model, state, leaves))
    choice = jnp.argmax(logits, axis=-1).reshape(paths.shape)
    holds = jnp.cumprod((paths[:, :, 1:] == choice[:, :, :-1]).astype(jnp.int32), axis=2)
    right = jnp.sum(holds, axis=2)
    none = jnp.zeros((b * leaves,), jnp.int32)
    after = Session(state, logits[:, -1], none, none, none > 0)
    return jnp.max(right, axis=1), jnp.argmax(right, axis=1), after
