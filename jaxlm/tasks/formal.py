"""A register, nested brackets and star-free languages: what must be kept of the past, and what may follow it."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.tasks.base import Sample, Task, below, prefixes
from jaxlm.tasks.chains import before, follow, latest, visits
from jaxlm.typing import Array


class FlipFlop(Task):
    """Pairs of an instruction and a bit; after a read stands the bit of the last write, asked at the read.

    ignore    probability of 'ignore'; write and read share the rest. The first instruction writes, the last reads

    Tokens: 0 write, 1 read, 2 ignore, then the bits 3 and 4. Source: Liu et al. 2023, FFL(T, p_i).
    """

    ignore: float = 0.8

    paper = "Liu et al. 2023"
    vocab = 5
    classes = 2

    def __post_init__(self):
        self.check(0 <= self.ignore <= 1, "ignore", "a probability")

    @property
    def shortest(self) -> int:
        return 3

    def draw(self, key: Array, length: int) -> Sample:
        of_kind, of_side, of_bit = jax.random.split(key, 3)
        pairs = (length + 1) // 2  # an odd length ends at the read, whose bit nobody needs
        ignored = jax.random.uniform(of_kind, (pairs,)) < self.ignore
        told = jnp.where(ignored, 2, below(of_side, 2, (pairs,))).at[0].set(0).at[-1].set(1)
        drawn, read = below(of_bit, 2, (pairs,)), told == 1
        bits = jnp.where(read, drawn[latest(told == 0)], drawn)
        tokens = jnp.stack([told, 3 + bits], axis=1).reshape(-1)
        targets = jnp.stack([jnp.where(read, bits, 0), jnp.zeros_like(bits)], axis=1).reshape(-1)
        weights = jnp.stack([read, jnp.zeros_like(read)], axis=1).reshape(-1).astype(jnp.float32)
        return Sample(tokens[:length], targets[:length], weights[:length])


class Dyck(Task):
    """Well-nested brackets of k kinds, at most m deep, words joined by END: what may follow is asked at every prefix.

    Empty: END with 1/2, else an opener. At depth m: the closer. Otherwise the matching closer with 1/2, else an opener.

    kinds    k; openers are tokens 0 .. k-1, closers k .. 2k-1, END 2k
    depth    m

    Answers: 0 nothing is open (an opener or END may follow); 1 + j kind j is open and there is room (its closer or an
    opener); 1 + k + j kind j is open at depth m (its closer alone). Source: Hewitt et al. 2020.
    """

    kinds: int = 8
    depth: int = 10

    paper = "Hewitt et al. 2020"

    def __post_init__(self):
        self.check(self.kinds > 0, "kinds", "at least 1")
        self.check(self.depth > 0, "depth", "at least 1")

    @property
    def vocab(self) -> int:
        return 2 * self.kinds + 1

    @property
    def classes(self) -> int:
        return 2 * self.kinds + 1

    def draw(self, key: Array, length: int) -> Sample:
        of_turn, of_kind = jax.random.split(key)
        up = jax.random.bernoulli(of_turn, 0.5, (length,)).astype(jnp.int32)[:, None]
        depth = jnp.arange(self.depth + 1, dtype=jnp.int32)[None]
        walk = jnp.where(depth == 0, up, jnp.where(depth == self.depth, depth - 1, depth + 2 * up - 1))
        after = follow(walk)
        opened, closed = after > before(after), after < before(after)
        kinds = below(of_kind, self.kinds, (length,))
        # What is on top at a depth is what was opened last among all that was opened to that depth.
        opener = jnp.take_along_axis(latest(opened[:, None] & (after[:, None] == depth)), after[:, None], axis=1)
        top = jnp.where(after > 0, kinds[opener[:, 0]], -1)
        tokens = jnp.where(opened, kinds, jnp.where(closed, self.kinds + before(top, -1), 2 * self.kinds))
        return prefixes(tokens, 1 + top + jnp.where(after == self.depth, self.kinds, 0))

    def shares(self, length: int) -> np.ndarray:
        step = (np.eye(self.depth + 1, k=1) + np.eye(self.depth + 1, k=-1)) / 2
        step[0, 0], step[-1, -2] = 0.5, 1
        held = visits(step, step[0], length)
        shares = np.repeat([held[1:-1].sum() / self.kinds, held[-1] / self.kinds], self.kinds)
        return np.concatenate([held[:1], shares])


class Language(NamedTuple):
    """A deterministic automaton that starts in state 0; every state can still reach an accepting one.

    symbols    its alphabet
    table      per state a string: the next state per symbol in base 16, '.' where the symbol may not follow
    accepts    the states in which a word may end
    """

    symbols: str
    table: tuple[str, ...]
    accepts: tuple[int, ...]


def nested(n: int) -> Language:
    """D_n = (a D_{n-1} b)*, D_0 empty: brackets of one kind, at most n deep."""
    up, down = [f"{i + 1:x}" for i in range(n)] + ["."], ["."] + [f"{i:x}" for i in range(n)]
    return Language("ab", tuple(u + d for u, d in zip(up, down, strict=True)), (0,))


LANGUAGES = {
    **{f"D{n}": nested(n) for n in (2, 3, 4, 12)},
    "aa*bb*cc*dd*ee*": Language("abcde", ("1....", "12...", ".23..", "..34.", "...45", "....5"), (5,)),
    "{a,b}*d{b,c}*": Language("abcd", ("00.1", ".11."), (1,)),
    "{0,1,2}*02*": Language("012", ("100", "101"), (1,)),
    "tomita2": Language("01", (".1", "0."), (0,)),  # (10)*
    "tomita4": Language("01", ("10", "20", ".0"), (0, 1, 2)),  # no 000
    "tomita7": Language("01", ("01", "21", "23", ".3"), (0, 1, 2, 3)),  # 0*1*0*1*
}


class StarFree(Task):
    """Words of a star-free language joined by END: the set of symbols that may follow is asked at every prefix.

    language    a name of LANGUAGES
    stop        probability that a word ends where it may; else all symbols that may follow are equally likely

    Tokens: the symbols in their order, then END. Answers: places in `sets`. Source: Sarrof et al. 2024, whose suite
    this is but for Tomita 1, after which the same may always follow.
    """

    language: str = "D4"
    stop: float = 0.1

    paper: ClassVar[str] = "Sarrof et al. 2024"

    def __post_init__(self):
        self.check(self.language in LANGUAGES, "language", f"one of {', '.join(LANGUAGES)}")
        self.check(0 < self.stop < 1, "stop", "a probability above 0 and below 1")

    @property
    def vocab(self) -> int:
        return len(LANGUAGES[self.language].symbols) + 1

    @property
    def follows(self) -> tuple[tuple[int, ...], ...]:
        """Per state the tokens that may follow, END among them."""
        symbols, table, accepts = LANGUAGES[self.language]
        legal = [tuple(i for i, to in enumerate(row) if to != ".") for row in table]
        return tuple(l + (len(symbols),) * (s in accepts) for s, l in enumerate(legal))

    @property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The sets of tokens that may follow a prefix, as answers number them."""
        return tuple(dict.fromkeys(self.follows))

    @property
    def classes(self) -> int:
        return len(self.sets)

    @property
    def odds(self) -> np.ndarray:
        """Probability of each token in each state.   (states, vocab)"""
        odds, end = np.zeros((len(self.follows), self.vocab)), self.vocab - 1
        for state, tokens in enumerate(self.follows):
            odds[state, list(tokens)] = (1 - self.stop * (end in tokens)) / (len(tokens) - (end in tokens))
            odds[state, end] = self.stop * (end in tokens)
        return odds

    @property
    def goes(self) -> np.ndarray:
        """The state after each token in each state, 0 where it may not follow.   (states, vocab) int32"""
        rows = LANGUAGES[self.language].table
        return np.array([[int(to.replace(".", "0"), 16) for to in row + "0"] for row in rows], np.int32)

    @property
    def answers(self) -> np.ndarray:
        return np.array([self.sets.index(tokens) for tokens in self.follows], np.int32)

    def draw(self, key: Array, length: int) -> Sample:
        # One draw per place and state: which token would follow there. The walk then picks among them.
        odds, goes = jnp.asarray(self.odds, jnp.float32), jnp.asarray(self.goes)
        choice = jax.random.categorical(key, jnp.log(odds), axis=-1, shape=(length, len(odds))).astype(jnp.int32)
        states = follow(goes[jnp.arange(len(odds))[None], choice])
        tokens = jnp.take_along_axis(choice, before(states)[:, None], axis=1)[:, 0]
        return prefixes(tokens, jnp.asarray(self.answers)[states])

    def shares(self, length: int) -> np.ndarray:
        states = len(self.follows)
        step = np.zeros((states, states))
        np.add.at(step, (np.arange(states)[:, None], self.goes), self.odds)
        held = visits(step, step[0], length)
        return np.array([held[self.answers == c].sum() for c in range(self.classes)])
