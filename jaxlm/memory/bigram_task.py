"""Sequences with two kinds of bigrams: those of the language, and some that hold in one sequence only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.module import Module
from jaxlm.typing import Array

OUTPUTS = ("uniform", "bigram", "other")


class Episodes(NamedTuple):
    """A batch of sequences.

    tokens     (b, t + 1)    inputs are the first t, targets the last t
    count      (b, t)        how often the trigger at this input has occurred, itself included; 0: it is no trigger
    triggers   (b, n)        q
    outputs    (b, n)        o, what follows each trigger in this sequence
    """

    tokens: Array
    count: Array
    triggers: Array
    outputs: Array

    @property
    def inputs(self) -> Array:
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Array:
        return self.tokens[:, 1:]


class BigramTask(Module):
    """In-context bigrams among global ones (Bietti et al. 2023, section 3).

    z_1 ~ π_u,   z_{t+1} = o_k if z_t = q_k, else z_{t+1} ~ π_b(. | z_t)

    length     t, inputs of a sequence
    triggers   n of a sequence
    fixed      the triggers are the most frequent tokens; else they are drawn from π_u without replacement
    outputs    of a trigger q: 'uniform' over all tokens, 'bigram' ~ π_b(. | q), 'other': uniform over all but q
    """

    length: int = 256
    triggers: int = 5
    fixed: bool = True
    outputs: str = "uniform"

    def __post_init__(self):
        self.check(self.length > 1, "length", "at least 2 tokens")
        self.check(self.triggers > 0, "triggers", "at least 1")
        self.check(self.outputs in OUTPUTS, "outputs", f"one of {', '.join(OUTPUTS)}")

    def draw(self, key: Array, unigram: Array, follow: Array, batch: int) -> Episodes:
        """Sequences by key.

        unigram   (n,)      π_u
        follow    (n, n)    π_b, a row per token
        """
        n = unigram.shape[0]
        keys = jax.random.split(key, 4)
        q = self.choose(keys[0], unigram, batch)
        o = self.answer(keys[1], q, follow)
        answers = jnp.full((batch, n), -1, jnp.int32).at[jnp.arange(batch)[:, None], q].set(o)
        rows = _cumulated(follow)
        first = _pick(_cumulated(unigram)[None], jax.random.uniform(keys[2], (batch,)))

        def step(z: Array, u: Array) -> tuple[Array, Array]:
            forced = jnp.take_along_axis(answers, z[:, None], axis=1)[:, 0]
            z = jnp.where(forced >= 0, forced, _pick(rows[z], u))
            return z, z

        _, rest = jax.lax.scan(step, first, jax.random.uniform(keys[3], (self.length, batch)))
        tokens = jnp.concatenate([first[None], rest]).T
        here = (tokens[:, :-1, None] == q[:, None]).astype(jnp.int32)
        return Episodes(tokens, jnp.sum(here * jnp.cumsum(here, axis=1), axis=-1), q, o)

    def choose(self, key: Array, unigram: Array, batch: int) -> Array:
        """The triggers of each sequence.   (b, n)"""
        if self.fixed:
            return jnp.broadcast_to(jax.lax.top_k(unigram, self.triggers)[1][None], (batch, self.triggers))
        # Largest log-probability plus Gumbel noise = draws without replacement, one after the other.
        noise = jax.random.gumbel(key, (batch, unigram.shape[0]), unigram.dtype)
        return jax.lax.top_k(jnp.log(unigram)[None] + noise, self.triggers)[1]

    def answer(self, key: Array, q: Array, follow: Array) -> Array:
        """The output of each trigger.   q (b, n) -> (b, n)"""
        n = follow.shape[0]
        if self.outputs == "bigram":
            return _pick(_cumulated(follow)[q], jax.random.uniform(key, q.shape))
        if self.outputs == "other":
            return (q + jax.random.randint(key, q.shape, 1, n, jnp.int32)) % n
        return jax.random.randint(key, q.shape, 0, n, jnp.int32)


def _cumulated(p: Array) -> Array:
    """Cumulated probabilities that end at exactly 1, so that an impossible token is never picked."""
    c = jnp.cumsum(p, axis=-1)
    return c / c[..., -1:]


def _pick(cumulated: Array, u: Array) -> Array:
    """The token whose share of [0, 1) holds u.   (..., n), (...) -> (...) int32"""
    return jnp.sum(cumulated <= u[..., None], axis=-1, dtype=jnp.int32)
