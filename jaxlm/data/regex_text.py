"""Regular expressions and their descriptions in English, drawn from one grammar (after NL-RX, Locascio et al. 2016).

    lines that both contain dog , 3 or more times and do not end with a vowel
    (.*((dog){3,}).*)&(~((.*([AEIOUaeiou]))))

Reduced: descriptions can be read in one way only ('both', 'either' and 'do not' come first, times belong to the word
before them), words are few, and there are no word boundaries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.errors import DataError

Words = tuple[str, ...]


class Pair(NamedTuple):
    """words    of the description;   signs    of the expression, which is these in one"""

    words: Words
    signs: Words

    @property
    def expression(self) -> str:
        return "".join(self.signs)


# A phrase, and the expression's signs; X, Y are drawn by further rules, N is a number.
ATOMS = (
    ("a vowel", "[AEIOUaeiou]"),
    ("a number", "[0-9]"),
    ("a letter", "[A-Za-z]"),
    ("a capital letter", "[A-Z]"),
    ("a small letter", "[a-z]"),
    ("a character", "."),
    *((word, word) for word in ("dog", "truck", "ring", "lake", "tree", "cat")),
)
TIMES = (
    ("X , at least once", "( X ) +"),
    ("X , one or more times", "( X ) +"),
    ("X , any number of times", "( X ) *"),
    ("X , zero or more times", "( X ) *"),
    ("X , N or more times", "( X ) {N,}"),
    ("X , at least N times", "( X ) {N,}"),
    ("X , N times", "( X ) {N}"),
    ("X , at most N times", "( X ) {1,N}"),
)
CHOICES = (("either X or Y", "( X | Y )"),)
FOLLOWED = (("X followed by Y", "X .* Y"), ("X before Y", "X .* Y"), ("X and then Y", "X .* Y"))
LINES = (
    ("contain X", ".* ( X ) .*"),
    ("have X", ".* ( X ) .*"),
    ("start with X", "( X ) .*"),
    ("begin with X", "( X ) .*"),
    ("end with X", ".* ( X )"),
    ("are only X", "( X )"),
)
LOGIC = (
    ("both X and Y", "( X ) & ( Y )"),
    ("either X or Y", "( X ) | ( Y )"),
    ("do not X", "~ ( X )"),
)
NUMBERS = ("2", "3", "4", "5")


def draw(rng: np.random.Generator, depth: int = 1) -> Pair:
    """One expression with its description.

    depth   of 'both', 'either' and 'do not' inside each other, at most
    """
    pair = _line(rng, depth)
    return Pair(("lines", "that", *pair.words), pair.signs)


def distinct(seed: int, count: int, depth: int = 1, longest: int = 32) -> list[Pair]:
    """Pairs of which no two have the same expression.

    longest    words of a description, and signs of an expression; what is longer is not kept
    """
    rng, found = np.random.default_rng(seed), {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        pair = draw(rng, depth)
        if max(map(len, pair)) <= longest:
            found.setdefault(pair.signs, pair)
    if len(found) < count:
        raise DataError(f"count = {count}: expected at most {len(found)}, as many expressions were found")
    return list(found.values())


def vocabulary(side: int) -> Words:
    """All words of descriptions (side 0) or all signs of expressions (side 1), sorted."""
    rules = [rule for table in (ATOMS, TIMES, CHOICES, FOLLOWED, LINES, LOGIC) for rule in table]
    words = {w.replace("N", n) for rule in rules for w in rule[side].split() for n in NUMBERS if w not in ("X", "Y")}
    return tuple(sorted(words | ({"lines", "that"} if side == 0 else set())))


def encode(sequences: Sequence[Words], words: Words, first: int, room: int, left: bool) -> np.ndarray:
    """Ids of words, first + its place in `words`, in rows filled up with 0.   (n, room) int32

    left    fill up before the words, not behind them
    """
    ids = {word: first + i for i, word in enumerate(words)}
    out = np.zeros((len(sequences), room), np.int32)
    for row, sequence in zip(out, sequences, strict=True):
        if len(sequence) > room:
            raise DataError(f"room = {room}: expected at least {len(sequence)}, the words of {' '.join(sequence)!r}")
        row[room - len(sequence) if left else 0 :][: len(sequence)] = [ids[word] for word in sequence]
    return out


def _fill(rng: np.random.Generator, rules: Sequence[tuple[str, str]], *parts: Pair) -> Pair:
    """One of the rules at random, with the parts in place of X and Y."""
    number, rule = NUMBERS[int(rng.integers(len(NUMBERS)))], rules[int(rng.integers(len(rules)))]

    def side(which: int) -> Words:
        known = dict(zip("XY", (part[which] for part in parts), strict=False))
        return tuple(w for sign in rule[which].split() for w in known.get(sign, (sign.replace("N", number),)))

    return Pair(side(0), side(1))


def _atom(rng: np.random.Generator) -> Pair:
    atom = _fill(rng, ATOMS)
    return atom if rng.random() < 0.5 else _fill(rng, TIMES, atom)


def _unit(rng: np.random.Generator) -> Pair:
    return _atom(rng) if rng.random() < 0.7 else _fill(rng, CHOICES, _atom(rng), _atom(rng))


def _line(rng: np.random.Generator, depth: int) -> Pair:
    if depth and rng.random() < 0.5:
        return _fill(rng, LOGIC, _line(rng, depth - 1), _line(rng, depth - 1))
    unit = _unit(rng)
    return _fill(rng, LINES, unit if rng.random() < 0.6 else _fill(rng, FOLLOWED, unit, _unit(rng)))
