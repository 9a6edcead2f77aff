"""Word problems of finite groups: the product of all elements so far."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.tasks.base import Sample, Task, below
from jaxlm.tasks.chains import visits
from jaxlm.typing import Array

MOVES = ("all", "swaps", "three")


def cycle(points: int, *moved: int) -> tuple[int, ...]:
    """The permutation that sends each point of `moved` to the next, the last to the first."""
    to = dict(zip(moved, moved[1:] + moved[:1], strict=True))
    return tuple(to.get(i, i) for i in range(points))


GENERATORS: dict[str, tuple[tuple[int, ...], ...]] = {
    "S3": (cycle(3, 0, 1), cycle(3, 0, 1, 2)),
    "S4": (cycle(4, 0, 1), cycle(4, 0, 1, 2, 3)),
    "S5": (cycle(5, 0, 1), cycle(5, 0, 1, 2, 3, 4)),
    "A4": (cycle(4, 0, 1, 2), cycle(4, 1, 2, 3)),
    "A5": (cycle(5, 0, 1, 2), cycle(5, 0, 1, 2, 3, 4)),
    "A4xZ5": (cycle(9, 0, 1, 2), cycle(9, 1, 2, 3), cycle(9, 4, 5, 6, 7, 8)),
    "Z60": (cycle(12, 0, 1, 2), cycle(12, 3, 4, 5, 6), cycle(12, 7, 8, 9, 10, 11)),
}


@cache
def elements(group: str) -> np.ndarray:
    """The permutations of a group in lexicographic order, the identity first.   (n, points): row g holds g(i)"""
    one = tuple(range(len(GENERATORS[group][0])))
    found, new = {one}, {one}
    while new:
        new = {tuple(g[i] for i in s) for g, s in itertools.product(new, GENERATORS[group])} - found
        found |= new
    return np.array(sorted(found), np.int32)


@cache
def table(group: str) -> np.ndarray:
    """Products as places in `elements`: (g h)(i) = g(h(i)).   (n, n) int32"""
    g = elements(group)
    place = {tuple(row): i for i, row in enumerate(g.tolist())}
    return np.array([[place[tuple(row)] for row in rows] for rows in g[:, g].tolist()], np.int32)


class WordProblem(Task):
    """g_1 g_2 ... g_t, with (g h)(i) = g(h(i)), for elements drawn uniformly from the allowed moves.

    group     a name of GENERATORS; A5 is the smallest that is not solvable, A4xZ5 and Z60 are of its size and solvable
    moves     'all' elements, 'swaps': transpositions and the identity, 'three': what moves at most three points
    spread    tokens per element: the element, then blanks; the product is asked at the last of them

    Tokens are places in the list of moves, the blank comes after; answers are places in the group, 0 the identity.
    Source: Liu et al. 2023; the moves and the spread from Grazzi et al. 2025.
    """

    group: str = "S5"
    moves: str = "all"
    spread: int = 1

    paper = "Merrill et al. 2024"

    def __post_init__(self):
        self.check(self.group in GENERATORS, "group", f"one of {', '.join(GENERATORS)}")
        self.check(self.moves in MOVES, "moves", f"one of {', '.join(MOVES)}")
        self.check(len(self.allowed) > 1, "moves", f"moves that {self.group} has beside the identity")
        self.check(self.spread > 0, "spread", "at least 1")

    @property
    def allowed(self) -> np.ndarray:
        """The elements that occur, as places in the group."""
        g = elements(self.group)
        moved = (g != np.arange(g.shape[1])[None]).sum(axis=1)
        most = {"all": g.shape[1], "swaps": 2, "three": 3}[self.moves]
        return np.flatnonzero(moved <= most).astype(np.int32)

    @property
    def vocab(self) -> int:
        return len(self.allowed) + (self.spread > 1)

    @property
    def classes(self) -> int:
        return len(elements(self.group))

    @property
    def shortest(self) -> int:
        return self.spread

    def draw(self, key: Array, length: int) -> Sample:
        words, times = below(key, len(self.allowed), (-(-length // self.spread),)), jnp.asarray(table(self.group))
        products = jax.lax.associative_scan(lambda g, h: times[g, h], jnp.asarray(self.allowed)[words])
        place = jnp.arange(length) % self.spread
        each = jnp.arange(length) // self.spread
        last = place == self.spread - 1
        tokens = jnp.where(place == 0, words[each], len(self.allowed))
        return Sample(tokens, jnp.where(last, products[each], 0), last.astype(jnp.float32))

    def shares(self, length: int) -> np.ndarray:
        step = np.zeros((self.classes, self.classes))
        for h in self.allowed:
            step[np.arange(self.classes), table(self.group)[:, h]] += 1 / len(self.allowed)
        return visits(step, step[0], length // self.spread)
