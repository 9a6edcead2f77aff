"""Boolean functions to be learned in context: points of {-1, 1}^n with their labels, and lessons that teach a function.

Bhattamishra et al. 2023, "Understanding in-context learning in transformers and LLMs by learning to learn discrete
functions", section 3 and appendix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.module import Module
from jaxlm.tasks.base import distinct
from jaxlm.typing import Array

# An or of ands, or an and of ors: clauses, P(a variable is absent), share of points forced (to satisfy / to falsify).
ANDS = {"conjunction": (1, 0.7, 0.3), "DNF": (3, 0.8, 0.35)}
ORS = {"disjunction": (1, 0.7, 0.3), "CNF": (3, 0.8, 0.35), "sparse disjunction": (1, None, 0.3)}
LINEAR = ("sparse majority", "half-space", "sparse threshold")
PARITY = ("parity", "sparse parity")
COPY = "nearest neighbour"
FAMILIES = (*ANDS, *ORS, *LINEAR, *PARITY, COPY)


class Prompt(NamedTuple):
    """Points and labels of one function, in order.

    x      (m, n) float32     of -1, 1
    y      (m,) int32         of 0, 1
    w      (c, n) float32     the function: literals -1, 0, 1 of each clause; weights; members
    """

    x: Array
    y: Array
    w: Array


class BooleanFunctions(Module):
    """A family of Boolean functions over n variables.

    family       one of FAMILIES
    n            variables
    random       of the family 'nearest neighbour': labels that are drawn; each later one copies that of the first of
                 the most similar earlier points
    """

    family: str = "conjunction"
    n: int = 28
    random: int = 10

    def __post_init__(self):
        self.check(self.family in FAMILIES, "family", f"one of {', '.join(FAMILIES)}")
        least = 4 if self.family == "sparse disjunction" else 2
        self.check(self.n >= least, "n", f"at least {least} variables")

    def draw(self, key: Array, points: int) -> Prompt:
        """A function and points, some of them forced so that both labels are common."""
        of_rule, of_points, of_bias, of_force = jax.random.split(key, 4)
        x = jax.random.rademacher(of_points, (points, self.n), jnp.float32)
        if self.family == COPY:
            return Prompt(x, self.copied(of_rule, x), jnp.zeros((1, self.n), jnp.float32))
        w = self.rule(of_rule)
        if self.clauses is not None:
            forced = jax.random.bernoulli(of_force, self.clauses[2], (points, 1))
            target = self.sign * w[jax.random.randint(of_bias, (), 0, len(w), jnp.int32)][None]
            x = jnp.where(forced & (target != 0), target, x)
        bias = jnp.float32(0.5)
        if self.family == "sparse threshold":
            bias = jax.random.randint(of_bias, (), -3, 3, jnp.int32).astype(jnp.float32) + 0.5
        return Prompt(x, self.value(w, x, bias), w)

    @property
    def clauses(self) -> tuple[int, float | None, float] | None:
        return (ANDS | ORS).get(self.family)

    @property
    def sign(self) -> float:
        """A clause is met, or fails, where x = sign * w on its literals."""
        return 1.0 if self.family in ANDS else -1.0

    def rule(self, key: Array) -> Array:
        """A function of the family.   (c, n)"""
        n = self.n
        if self.family == "sparse disjunction" or self.family == "sparse parity":
            chosen = distinct(key, n, 4 if self.family == "sparse disjunction" else 2)
            return jnp.zeros((1, n), jnp.float32).at[0, chosen].set(1.0)
        if self.family == "half-space":
            return jax.random.randint(key, (1, n), -3, 4, jnp.int32).astype(jnp.float32)
        if self.family in ("sparse majority", "parity"):
            share = 0.3 if self.family == "sparse majority" else 0.5
            return jax.random.bernoulli(key, share, (1, n)).astype(jnp.float32)
        count, absent, _ = self.clauses or (1, 0.7, 0.0)
        return jax.vmap(lambda k: literals(k, n, absent or 0.7))(jax.random.split(key, count))

    def value(self, w: Array, x: Array, bias: Array | float = 0.5) -> Array:
        """Labels of points.   (c, n), (m, n) -> (m,) int32"""
        if self.family in LINEAR:
            return (x @ w[0] > bias).astype(jnp.int32)
        if self.family in PARITY:
            return jnp.sum((x > 0) & (w > 0), axis=1, dtype=jnp.int32) % 2
        target = self.sign * w[None]
        some = ((target == 0) | (x[:, None] == target)).all(-1).any(-1)
        return (some if self.family in ANDS else ~some).astype(jnp.int32)

    def copied(self, key: Array, x: Array) -> Array:
        """Labels where each but the first copies that of the most similar earlier point.   (m, n) -> (m,) int32"""
        t = jnp.arange(len(x), dtype=jnp.int32)
        nearest = jnp.argmax(jnp.where(t[None] < t[:, None], x @ x.T, -jnp.inf), axis=1)
        y = jax.random.bernoulli(key, shape=x.shape[:1]).astype(jnp.int32)

        def step(y: Array, i: Array) -> tuple[Array, None]:
            return y.at[i].set(jnp.where(i < self.random, y[i], y[nearest[i]])), None

        return jax.lax.scan(step, y, t)[0]

    def lesson(self, w: Array) -> Array:
        """Points of the teaching sequence: per clause, its literals all met with the other variables all -1, all met
        with them all 1, then each literal alone broken. (Where a clause must fail: all failed, then each met.)

        w (c, n) -> ()
        """
        return jnp.sum((w != 0).sum(-1) + 2)

    def teach(self, prompt: Prompt) -> Prompt:
        """The prompt with its first points replaced by the function's teaching sequence, as far as there is room."""
        self.check(self.clauses is not None, "family", "one made of clauses, for others have no teaching sequence")
        x, first = prompt.x, jnp.int32(0)
        for clause in self.sign * prompt.w:
            i = (jnp.arange(len(x), dtype=jnp.int32) - first)[:, None]
            literal = clause != 0
            rank, size = jnp.cumsum(literal, dtype=jnp.int32) - 1, jnp.sum(literal, dtype=jnp.int32) + 2
            broken = (i - 2 == rank[None]) & literal[None]
            row = jnp.where(literal[None], jnp.where(broken, -clause[None], clause[None]), jnp.where(i == 0, -1.0, 1.0))
            x = jnp.where((i >= 0) & (i < size), row, x)
            first = first + size
        return Prompt(x, self.value(prompt.w, x), prompt.w)


def literals(key: Array, n: int, absent: float) -> Array:
    """Each variable is absent, or one of -1, 1 alike; all absent is left out, the others keep their ratios.

    ->   (n,) float32
    """
    of_first, of_rest, of_signs = jax.random.split(key, 3)
    place = jnp.arange(n, dtype=jnp.int32)
    # The first that is present, given that one is: then what follows is free.
    first = jax.random.categorical(of_first, place.astype(jnp.float32) * math.log(absent))
    present = (place == first) | ((place > first) & jax.random.bernoulli(of_rest, 1 - absent, (n,)))
    return jnp.where(present, jax.random.rademacher(of_signs, (n,), jnp.float32), 0.0)
