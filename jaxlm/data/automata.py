"""Automata of regular expressions, the smallest one of a language, and whether two expressions mean the same.

equivalent(parse("~(.*a.*)&[ab]+"), parse("bb*"))      True
"""

from typing import NamedTuple

from jaxlm.data.errors import DataError
from jaxlm.data.regex import ALPHABET, Expression, after, ends


class Automaton(NamedTuple):
    """A complete deterministic automaton; state 0 is the first.

    blocks    characters that it does not tell apart, each set a column, by their least character
    moves     state and block -> state
    accepts   of each state
    """

    blocks: tuple[frozenset[str], ...]
    moves: tuple[tuple[int, ...], ...]
    accepts: tuple[bool, ...]

    def matches(self, text: str) -> bool:
        """Is the text among the expression's? Its characters must be of the alphabet."""
        state = 0
        for c in text:
            state = self.moves[state][next(i for i, block in enumerate(self.blocks) if c in block)]
        return self.accepts[state]


def blocks(*expressions: Expression) -> tuple[frozenset[str], ...]:
    """The coarsest split of the alphabet into characters that no expression tells apart."""
    sets: set[frozenset[str]] = set()
    todo = list(expressions)
    while todo:
        kind, of = todo.pop()
        if kind == "chars":
            sets.add(of)
        else:
            todo.extend([of] if kind in ("star", "not") else of)
    order = sorted(map(sorted, sets))
    found: dict[tuple[bool, ...], set[str]] = {}
    for c in sorted(ALPHABET):
        found.setdefault(tuple(c in s for s in order), set()).add(c)
    return tuple(map(frozenset, found.values()))


def automaton(x: Expression, split: tuple[frozenset[str], ...] | None = None, most: int = 4096) -> Automaton:
    """An expression's automaton, one state a derivative.

    split   of the alphabet, at least as fine as blocks(x), the default
    most    states; DataError beyond
    """
    split = blocks(x) if split is None else split
    letters = [min(block) for block in split]
    number, order, moves = {x: 0}, [x], []
    for state in order:  # it grows
        row = []
        for c in letters:
            then = after(state, c)
            if then not in number:
                number[then] = len(order)
                order.append(then)
            row.append(number[then])
        moves.append(tuple(row))
        if len(order) > most:
            raise DataError(f"most = {most}: the expression's automaton has more states")
    return Automaton(split, tuple(moves), tuple(map(ends, order)))


def minimal(a: Automaton) -> Automaton:
    """The smallest automaton of the same texts, states in the order in which they are met: one value a language.

    States are split until all of a part go, by each block, to the same part (Moore 1956).
    """
    part, count = [int(accepts) for accepts in a.accepts], 0
    while len(set(part)) > count:
        count = len(set(part))
        names: dict[tuple[int, ...], int] = {}
        part = [
            names.setdefault((p, *(part[q] for q in row)), len(names)) for p, row in zip(part, a.moves, strict=True)
        ]
    one = {p: state for state, p in reversed(list(enumerate(part)))}
    number, order, moves = {part[0]: 0}, [part[0]], []
    for p in order:
        for q in a.moves[one[p]]:
            if part[q] not in number:
                number[part[q]] = len(order)
                order.append(part[q])
        moves.append(tuple(number[part[q]] for q in a.moves[one[p]]))
    return Automaton(a.blocks, tuple(moves), tuple(a.accepts[one[p]] for p in order))


def equivalent(x: Expression, y: Expression, most: int = 4096) -> bool:
    """Do two expressions mean the same texts? Their minimal automata over a common split are then equal."""
    split = blocks(x, y)
    return x == y or minimal(automaton(x, split, most)) == minimal(automaton(y, split, most))
