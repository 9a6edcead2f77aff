"""Sums and walks over a cycle: the regular level of the Chomsky hierarchy, answered at every prefix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.tasks.base import Sample, Task, below, prefixes
from jaxlm.tasks.chains import visits
from jaxlm.typing import Array


class Parity(Task):
    """Σ_{i<=t} x_i mod 2 of bits."""

    paper = "Deletang et al. 2023"
    vocab = 2
    classes = 2

    def draw(self, key: Array, length: int) -> Sample:
        bits = below(key, 2, (length,))
        return prefixes(bits, jnp.cumsum(bits, dtype=jnp.int32) % 2)


class EvenPairs(Task):
    """1[x_1 != x_t]; of bits, the parity of the number of neighbours that differ. Not asked at x_1 itself.

    symbols    of the alphabet
    """

    symbols: int = 2

    paper = "Deletang et al. 2023"
    classes = 2

    def __post_init__(self):
        self.check(self.symbols > 1, "symbols", "at least 2")

    @property
    def vocab(self) -> int:
        return self.symbols

    @property
    def shortest(self) -> int:
        return 2

    def draw(self, key: Array, length: int) -> Sample:
        x = below(key, self.symbols, (length,))
        return Sample(x, (x != x[:1]).astype(jnp.int32), jnp.ones(length, jnp.float32).at[0].set(0.0))

    def shares(self, length: int) -> np.ndarray:
        return np.array([1, self.symbols - 1]) / self.symbols


class Sum(Task):
    """Σ_{i<=t} x_i mod m.

    modulus    m
    """

    modulus: int = 5

    paper = "Fan et al. 2024"

    def __post_init__(self):
        self.check(self.modulus > 1, "modulus", "at least 2")

    @property
    def vocab(self) -> int:
        return self.modulus

    @property
    def classes(self) -> int:
        return self.modulus

    def draw(self, key: Array, length: int) -> Sample:
        x = below(key, self.modulus, (length,))
        return prefixes(x, jnp.cumsum(x, dtype=jnp.int32) % self.modulus)


class CycleNavigation(Task):
    """Σ_{i<=t} (x_i - 1) mod n: where a walk on a cycle stands; tokens 0, 1, 2 are a step back, none, a step on.

    states    n
    """

    states: int = 5

    paper = "Deletang et al. 2023"
    vocab = 3

    def __post_init__(self):
        self.check(self.states > 2, "states", "at least 3, so that the three moves differ")

    @property
    def classes(self) -> int:
        return self.states

    def draw(self, key: Array, length: int) -> Sample:
        moves = below(key, 3, (length,))
        return prefixes(moves, jnp.cumsum(moves - 1, dtype=jnp.int32) % self.states)

    def shares(self, length: int) -> np.ndarray:
        here = np.eye(self.states)
        step = (np.roll(here, -1, axis=1) + here + np.roll(here, 1, axis=1)) / 3
        return visits(step, step[0], length)


class ModularArithmetic(Task):
    """a_0 o_1 a_1 o_2 a_2 ... mod m with + - and a tighter *; the value so far is asked at every number.

    modulus    m; tokens 0 .. m-1 are numbers, then come +, -, *
    """

    modulus: int = 5

    paper = "Deletang et al. 2023"

    def __post_init__(self):
        self.check(self.modulus > 1, "modulus", "at least 2")

    @property
    def vocab(self) -> int:
        return self.modulus + 3

    @property
    def classes(self) -> int:
        return self.modulus

    def draw(self, key: Array, length: int) -> Sample:
        of_numbers, of_signs = jax.random.split(key)
        number = jnp.arange(length) % 2 == 0
        numbers, signs = below(of_numbers, self.modulus, (length,)), below(of_signs, 3, (length,))
        tokens = jnp.where(number, numbers, self.modulus + signs)
        return Sample(tokens, self.value(tokens), number.astype(jnp.float32))

    def value(self, tokens: Array) -> Array:
        """The value of the expression that ends at each number; 0 at operators.   (t,) -> (t,)"""
        m = self.modulus
        numbers, signs = tokens[::2], tokens[1::2][: (len(tokens) - 1) // 2] - m
        signs = jnp.concatenate([jnp.zeros(1, jnp.int32), signs])
        # A product is a scan that begins anew at every + and -; what it began anew from is settled, and adds up.
        opens, factors = signs < 2, jnp.where(signs == 1, -numbers, numbers) % m

        def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
            return a[0] | b[0], jnp.where(b[0], b[1], a[1] * b[1] % m)

        _, product = jax.lax.associative_scan(join, (opens, factors))
        settled = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.where(opens[1:], product[:-1], 0)])
        values = (jnp.cumsum(settled, dtype=jnp.int32) + product) % m
        return jnp.zeros(len(tokens), jnp.int32).at[::2].set(values)

    def shares(self, length: int) -> np.ndarray:
        """A walk over (l, r), the settled sum and the product under way: the factor 0 makes some values likelier."""
        m, each = self.modulus, range(self.modulus)
        step = np.zeros((m, m, m, m))
        for l, r, a in itertools.product(each, each, each):
            for to in ((l + r) % m, a), ((l + r) % m, -a % m), (l, r * a % m):
                step[(l, r, *to)] += 1 / (3 * m)
        first = np.zeros((m, m))
        first[0] = 1 / m
        held = visits(step.reshape(m * m, m * m), first.reshape(-1), (length + 1) // 2).reshape(m, m)
        value = np.add.outer(np.arange(m), np.arange(m)) % m
        return np.array([held[value == v].sum() for v in each])
