"""What a synthetic task is: sequences with exact answers, drawn from a key inside any compiled program."""

from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError
from jaxlm.module import Module
from jaxlm.typing import Array


class Sample(NamedTuple):
    """Sequences and what is asked at each place; (t,) leaves of one sequence, (b, t) of a batch.

    tokens     (b, t) int32      below `vocab`
    targets    (b, t) int32      the answer, below `classes`; 0 where nothing is asked
    weights    (b, t) float32    1 where an answer is scored, else 0
    """

    tokens: Array
    targets: Array
    weights: Array


class Task(Module):
    """A frozen description of sequences; `sample` is a pure function of the key, batch and length are static.

    The answer at a place never depends on tokens after it. A subclass writes `draw`, one sequence.
    """

    paper: ClassVar[str] = ""  # 'Author et al. year'

    vocab: ClassVar[int]  # said here for readers; a field, a property or a constant of each task
    classes: ClassVar[int]

    @property
    def shortest(self) -> int:
        """The smallest length in which something is asked."""
        return 1

    def draw(self, key: Array, length: int) -> Sample:
        """One sequence, leaves (t,)."""
        raise ConfigError(f"{type(self).__name__} defines no draw(key, length)")

    def sample(self, key: Array, batch: int, length: int) -> Sample:
        """A batch of sequences by key.

        ->       leaves (batch, length)
        Raises ConfigError if the length is below `shortest`.
        """
        if length < self.shortest:
            raise ConfigError(f"{type(self).__name__}: length = {length}: expected at least {self.shortest}")
        return jax.vmap(partial(self.draw, length=length))(jax.random.split(key, batch))

    def legal(self, key: Array, batch: int, length: int) -> Array:
        """The answers that are right in sample(key, batch, length): the target, unless several are.

        ->       (b, t, classes) bool
        """
        return jax.nn.one_hot(self.sample(key, batch, length).targets, self.classes, dtype=jnp.bool_)

    def shares(self, length: int) -> np.ndarray:
        """Expected share of each class among the answers scored at a length.   (classes,) float64, sum 1"""
        return np.full(self.classes, 1 / self.classes)

    def chance(self, length: int) -> float:
        """Accuracy of the best constant answer."""
        return float(self.shares(length).max())


def accuracy(guesses: Array, sample: Sample) -> Array:
    """Share of the scored answers that are right.   guesses (b, t) int -> ()"""
    right = (guesses == sample.targets).astype(jnp.float32)
    return jnp.sum(sample.weights * right) / jnp.sum(sample.weights)


def scaled(accuracy: float, chance: float) -> float:
    """0 at chance, 1 if all is right (Beck et al. 2024, appendix on formal languages)."""
    return (accuracy - chance) / (1 - chance)


def final(sample: Sample) -> Sample:
    """Only the last scored answer of each sequence is asked (Deletang et al. 2023)."""
    left = jnp.cumsum(sample.weights[..., ::-1], axis=-1)[..., ::-1]
    return sample._replace(weights=jnp.where(left == 1, sample.weights, 0))


def prefixes(tokens: Array, targets: Array) -> Sample:
    """One sequence that is asked at every place.   (t,)"""
    return Sample(tokens, targets, jnp.ones(tokens.shape, jnp.float32))


def ask_last(tokens: Array, answer: Array) -> Sample:
    """One sequence that is asked at its end.   tokens (t,), answer ()"""
    zeros = jnp.zeros(tokens.shape, jnp.int32)
    return Sample(tokens, zeros.at[-1].set(answer), zeros.astype(jnp.float32).at[-1].set(1.0))


def below(key: Array, n: int, shape: tuple[int, ...] = ()) -> Array:
    """Uniform numbers 0 .. n-1.   int32"""
    return jax.random.randint(key, shape, 0, n, jnp.int32)


def distinct(key: Array, n: int, count: int) -> Array:
    """`count` different numbers of 0 .. n-1, in random order.   (count,) int32"""
    return jax.lax.top_k(jax.random.uniform(key, (n,), jnp.float32), count)[1]


def over(n: int, first: int, last: int) -> np.ndarray:
    """Equal shares of the classes first .. last-1, none of the others.   (n,) float64"""
    return np.where((np.arange(n) >= first) & (np.arange(n) < last), 1 / (last - first), 0.0)
