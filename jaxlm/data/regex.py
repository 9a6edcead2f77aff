"""Regular expressions with intersection and complement: written as text, parsed, and derived character by character.

An expression is a nested tuple; the functions below keep it in a normal form under which derivatives
are finitely many (Brzozowski 1964): unions and intersections are sets, whatever follows from 'nothing' is simplified.
    ("chars", set)   ("cat", parts)   ("star", x)   ("or", set of x)   ("and", set of x)   ("not", x)
"""

from functools import lru_cache

from jaxlm.data.errors import DataError

Expression = tuple
ALPHABET = frozenset(map(chr, range(32, 127)))  # what `.` is, and what ~ is taken in: the printable ones

NEVER: Expression = ("chars", frozenset())  # no text
EMPTY: Expression = ("cat", ())  # the empty text
ALWAYS: Expression = ("not", NEVER)  # every text


def chars(which: frozenset[str]) -> Expression:
    """One character of these."""
    return ("chars", which)


def cat(*parts: Expression) -> Expression:
    """One after the other."""
    flat = [q for p in parts for q in (p[1] if p[0] == "cat" else (p,))]
    if NEVER in flat:
        return NEVER
    return flat[0] if len(flat) == 1 else ("cat", tuple(flat))


def star(x: Expression) -> Expression:
    """Any number of times."""
    if x in (NEVER, EMPTY):
        return EMPTY
    if x in (ALWAYS, ("chars", ALPHABET)):
        return ALWAYS
    return x if x[0] == "star" else ("star", x)


def either(*parts: Expression) -> Expression:
    """Any of them."""
    flat = {q for p in parts for q in (p[1] if p[0] == "or" else (p,))}
    if ALWAYS in flat:
        return ALWAYS
    sets = [p for p in flat if p[0] == "chars"]
    joined = chars(frozenset().union(*(s[1] for s in sets)))
    flat = flat.difference(sets) | ({joined} - {NEVER})
    return NEVER if not flat else flat.pop() if len(flat) == 1 else ("or", frozenset(flat))


def both(*parts: Expression) -> Expression:
    """All of them."""
    flat = {q for p in parts for q in (p[1] if p[0] == "and" else (p,))} - {ALWAYS}
    if NEVER in flat:
        return NEVER
    return ALWAYS if not flat else flat.pop() if len(flat) == 1 else ("and", frozenset(flat))


def no(x: Expression) -> Expression:
    """Every text but these."""
    return x[1] if x[0] == "not" else ("not", x)


def times(x: Expression, low: int, high: int | None) -> Expression:
    """low to high times; None: or more."""
    if high is None:
        return cat(*[x] * low, star(x))
    tail = EMPTY
    for _ in range(high - low):
        tail = either(EMPTY, cat(x, tail))
    return cat(*[x] * low, tail)


@lru_cache(1 << 16)
def ends(x: Expression) -> bool:
    """Is the empty text among them?"""
    kind, of = x
    if kind in ("cat", "and"):
        return all(map(ends, of))
    if kind == "or":
        return any(map(ends, of))
    return kind == "star" or (kind == "not" and not ends(of))


@lru_cache(1 << 16)
def after(x: Expression, c: str) -> Expression:
    """What may follow the character: the derivative."""
    kind, of = x
    if kind == "chars":
        return EMPTY if c in of else NEVER
    if kind == "star":
        return cat(after(of, c), x)
    if kind == "not":
        return no(after(of, c))
    if kind != "cat":
        return (either if kind == "or" else both)(*(after(p, c) for p in of))
    ways = []
    for i, part in enumerate(of):
        ways.append(cat(after(part, c), *of[i + 1 :]))
        if not ends(part):
            break
    return either(*ways)


def parse(text: str) -> Expression:
    """The expression that a text writes: | & ~ ( ) . [a-z] * + ? {n} {n,} {n,m}, backslash before a sign that is meant.

    From loosest to tightest: | & juxtaposition, then * + ? {}, before them ~, which takes the one atom behind it.
    Raises DataError with the place where it is wrong.
    """
    reader = _Reader(text)
    found = reader.union()
    if reader.at < len(text):
        reader.wrong("the end")
    return found


class _Reader:
    """Recursive descent over a text."""

    def __init__(self, text: str):
        self.text, self.at = text, 0

    def wrong(self, expected: str) -> None:
        raise DataError(f"expression {self.text!r}, place {self.at}: expected {expected}")

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, sign: str) -> bool:
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) * found
        return found

    def must(self, sign: str) -> None:
        if not self.take(sign):
            self.wrong(sign)

    def union(self) -> Expression:
        found = self.intersection()
        while self.take("|"):
            found = either(found, self.intersection())
        return found

    def intersection(self) -> Expression:
        found = self.sequence()
        while self.take("&"):
            found = both(found, self.sequence())
        return found

    def sequence(self) -> Expression:
        parts = [self.repeated()]
        while self.next() and self.next() not in "|&)":
            parts.append(self.repeated())
        return cat(*parts)

    def repeated(self) -> Expression:
        found = self.atom()
        while self.next() and self.next() in "*+?{":
            if self.take("{"):
                low = self.number()
                high = low if not self.take(",") else None if self.next() == "}" else self.number()
                self.must("}")
                if high is not None and high < low:
                    self.wrong(f"at least {low}")
                found = times(found, low, high)
            else:
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.next()]
                found, self.at = times(found, low, high), self.at + 1
        return found

    def number(self) -> int:
        begin = self.at
        while self.next().isdigit():
            self.at += 1
        if begin == self.at:
            self.wrong("a number")
        return int(self.text[begin : self.at])

    def atom(self) -> Expression:
        if self.take("~"):
            return no(self.atom())
        if self.take("("):
            found = self.union()
            self.must(")")
            return found
        if self.take("["):
            return chars(self.members())
        if self.take("."):
            return chars(ALPHABET)
        if self.next() and self.next() in "|&)*+?{}]":
            self.wrong("an atom")
        return chars(frozenset(self.character()))

    def character(self) -> str:
        self.take("\\")
        c = self.next()
        if c not in ALPHABET:
            self.wrong("a printable character")
        self.at += 1
        return c

    def members(self) -> frozenset[str]:
        found: set[str] = set()
        while not self.take("]"):
            first = last = self.character()
            if self.take("-"):
                last = self.character()
            found |= set(map(chr, range(ord(first), ord(last) + 1)))
        return frozenset(found)
