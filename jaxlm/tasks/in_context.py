"""In-context language learning: strings of a random automaton that no other sequence shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.tasks.base import Sample, Task, below, distinct, over
from jaxlm.tasks.chains import before, follow
from jaxlm.typing import Array

FEWEST = 4  # states, and symbols, of a language


class Automaton(NamedTuple):
    """A deterministic automaton; all states accept, state 0 begins. Edges i >= degree are none.

    symbols    (n, e) int32      read along edge i of a state
    targets    (n, e) int32      the state it leads to
    degree     (n,) int32        edges of a state
    """

    symbols: Array
    targets: Array
    degree: Array


class Walk(NamedTuple):
    """One sequence with its automaton.   tokens (t + 1,); states (t + 1,), before each token"""

    automaton: Automaton
    tokens: Array
    states: Array


class InContextLanguages(Task):
    """Strings of one random regular language, joined by a separator: the next symbol is asked, the separator is not.

    A language has U{4..states} states and a random alphabet of U{4..symbols}; a state has U{1..edges} edges with
    distinct symbols to distinct other states. A string has U{1..longest} symbols, each edge equally likely.

    Every sequence draws its own language, so that none is met twice. Where a state has several edges the target is one
    of several right answers: `legal` gives them all. Neither unreachable nor equivalent states are removed: they
    change no string and no probability. Tokens: the symbols, then the separator.
    Source: Akyürek et al. 2024, RegBench.
    """

    symbols: int = 18
    states: int = 12
    edges: int = 3
    longest: int = 49

    paper = "Akyürek et al. 2024"

    def __post_init__(self):
        self.check(self.symbols >= FEWEST, "symbols", f"at least {FEWEST}")
        self.check(self.states >= FEWEST, "states", f"at least {FEWEST}")
        self.check(0 < self.edges < FEWEST, "edges", f"1 to {FEWEST - 1}: one per other state of the smallest language")
        self.check(self.longest > 0, "longest", "at least 1")

    @property
    def vocab(self) -> int:
        return self.symbols + 1

    @property
    def classes(self) -> int:
        return self.symbols

    @property
    def shortest(self) -> int:
        return 2  # at length 1 the one thing asked may be the separator

    def automaton(self, key: Array) -> Automaton:
        """A random language; states beyond its number are never reached."""
        keys, n, e = jax.random.split(key, 6), self.states, self.edges
        size = FEWEST + below(keys[0], n - FEWEST + 1)
        letters = FEWEST + below(keys[1], self.symbols - FEWEST + 1)
        alphabet = distinct(keys[2], self.symbols, self.symbols)
        places = self.choose(keys[3], jnp.broadcast_to(jnp.arange(self.symbols)[None] < letters, (n, self.symbols)))
        state = jnp.arange(n)
        to = self.choose(keys[4], (state[None] < size) & (state[None] != state[:, None]))
        return Automaton(alphabet[places], to, 1 + below(keys[5], e, (n,)))

    def choose(self, key: Array, allowed: Array) -> Array:
        """`edges` different allowed columns per row.   (n, c) bool -> (n, e) int32"""
        score = jnp.where(allowed, jax.random.uniform(key, allowed.shape, jnp.float32), -1.0)
        return jax.lax.top_k(score, self.edges)[1]

    def walk(self, key: Array, length: int) -> Walk:
        """One sequence of length + 1 tokens, which `draw` cuts into tokens and targets."""
        of_language, of_lengths, of_edges = jax.random.split(key, 3)
        automaton, t = self.automaton(of_language), length + 1
        ends = jnp.cumsum(2 + below(of_lengths, self.longest, (t // 2 + 1,)), dtype=jnp.int32) - 1
        apart = jnp.zeros(t, jnp.bool_).at[ends].set(True, mode="drop")
        edge = jax.random.randint(of_edges, (t, self.states), 0, automaton.degree[None], jnp.int32)
        state = jnp.arange(self.states)[None]
        goes = jnp.where(apart[:, None], 0, automaton.targets[state, edge])
        met = before(follow(goes))
        symbols = jnp.take_along_axis(automaton.symbols[state, edge], met[:, None], axis=1)[:, 0]
        return Walk(automaton, jnp.where(apart, self.symbols, symbols), met)

    def draw(self, key: Array, length: int) -> Sample:
        tokens = self.walk(key, length).tokens
        asked = tokens[1:] != self.symbols
        return Sample(tokens[:-1], jnp.where(asked, tokens[1:], 0), asked.astype(jnp.float32))

    def legal(self, key: Array, batch: int, length: int) -> Array:
        """The symbols on the edges of the state that each prefix leads to."""

        def one(key: Array) -> Array:
            automaton, _, states = self.walk(key, length)
            real = jnp.arange(self.edges)[None] < automaton.degree[:, None]
            hot = jax.nn.one_hot(automaton.symbols, self.symbols, dtype=jnp.bool_)
            return (hot & real[..., None]).any(axis=1)[states[1:]]

        return jax.vmap(one)(jax.random.split(key, batch))

    def shares(self, length: int) -> np.ndarray:
        return over(self.classes, 0, self.classes)  # no symbol is special, whatever the walk
