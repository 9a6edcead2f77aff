"""Expressions, their automata and their descriptions: against Python's re, and against plain sets of short texts."""

import itertools
import re

import numpy as np
import pytest

from jaxlm.data import regex_text
from jaxlm.data.automata import automaton, blocks, equivalent, minimal
from jaxlm.data.errors import DataError
from jaxlm.data.regex import ALPHABET, parse

TEXTS = ["".join(t) for n in range(7) for t in itertools.product("abc", repeat=n)]  # 1,093: all up to length 6
EVERY = frozenset(TEXTS)
PAIRS = regex_text.distinct(3, 200, depth=2, longest=60)


def random_expression(rng, depth):
    """An expression that Python's re reads as we do."""
    if depth == 0:
        return rng.choice(["a", "b", "c", ".", "[ab]", "[a-c]", "[bc]"])
    one, two = random_expression(rng, depth - 1), random_expression(rng, rng.integers(depth))
    again = rng.choice(["*", "+", "?", "{2}", "{2,}", "{1,3}"])
    return rng.choice([f"({one}|{two})", f"{one}{two}", f"({one}){again}", f"({two}){again}{one}"])


@pytest.mark.parametrize("seed", range(30))
def test_automata_match_what_python_matches(seed):
    text = str(random_expression(np.random.default_rng(seed), 1 + seed % 4))
    whole, known = automaton(parse(text)), re.compile(text)
    small = minimal(whole)
    assert len(small.moves) <= len(whole.moves)
    for t in TEXTS:
        want = known.fullmatch(t) is not None
        assert whole.matches(t) == small.matches(t) == want, (text, t)


def joined(x, y):
    return frozenset(u + v for u in x for v in y if len(u + v) <= 6)


def random_language(rng, depth):
    """An expression with & and ~, and its texts up to length 6 by operations on sets."""
    if depth == 0:
        kind = rng.choice(["a", "b", "c", "."])
        return kind, frozenset("abc") if kind == "." else frozenset(kind)
    (x, left), (y, right) = random_language(rng, depth - 1), random_language(rng, rng.integers(depth))
    kind = rng.integers(5)
    if kind == 4:
        found = step = frozenset([""])
        while step:
            step = joined(step, left) - found
            found |= step
        return f"({x})*", found
    ways = (
        (f"({x}|{y})", left | right),
        (f"({x})&({y})", left & right),
        (f"~({x})", EVERY - left),
        (f"({x})({y})", joined(left, right)),
    )
    text, language = ways[kind]
    return f"({text})", language


def test_intersection_and_complement_are_those_of_sets():
    """Everywhere inside an expression, and equal automata mean equal sets."""
    rng, seen = np.random.default_rng(0), []
    for n in range(40):
        text, language = random_language(rng, 1 + n % 4)
        small = minimal(automaton(parse(text)))
        assert {t for t in TEXTS if small.matches(t)} == language, text
        seen.append((text, language))
    for (x, left), (y, right) in itertools.pairwise(seen):
        assert not equivalent(parse(x), parse(y)) or left == right, (x, y)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("(a|b)*", "(a*b*)*"),
        ("~(~(a.*)|~(.*b))", "a.*&.*b"),
        ("a(ba)*", "(ab)*a"),
        ("(a|b)c", "ac|bc"),
        ("a{2,4}", "aa|aaa|aaaa"),
        ("a{2,}", "aaa*"),
        ("(a+)?", "a*"),
        ("~(.*a.*)&[ab]+", "bb*"),
        ("[0-9]|[1-5]", "[0-9]"),
        (".*(a|.).*", ".+"),
        (".*&~(.{3,})", "(.?){2}"),
        (r"\.\*", r"[.][*]"),
    ],
)
def test_known_identities(one, two):
    assert equivalent(parse(one), parse(two))
    assert not equivalent(parse(one), parse(f"({two})z"))


def test_the_smallest_automaton_has_as_many_states_as_it_must():
    assert len(minimal(automaton(parse(".*"))).moves) == 1
    assert len(minimal(automaton(parse("a"))).moves) == 3
    assert len(minimal(automaton(parse(".*(dog){3,}.*"))).moves) == 10
    for n in range(1, 6):  # the letter n before the last is an a: all of the last n must be known
        assert len(minimal(automaton(parse(".*a" + "." * (n - 1)))).moves) == 2**n
    with pytest.raises(DataError, match="most = 60"):
        automaton(parse(".*a......"), most=60)


def test_blocks_split_the_alphabet_as_the_expression_does():
    found = blocks(parse("[a-z]x|[0-9]&~(5)"))
    assert frozenset().union(*found) == ALPHABET and sum(map(len, found)) == len(ALPHABET)
    assert frozenset("5") in found and frozenset("x") in found and frozenset("012346789") in found and len(found) == 5


@pytest.mark.parametrize("text", ["", "(a", "a)", "a|", "&a", "*", "a{2", "a{3,2}", "[ab", "a&*", "é", "a\\", "~"])
def test_what_is_no_expression_is_said(text):
    with pytest.raises(DataError, match=r"place \d: expected"):
        parse(text)


def test_descriptions_are_of_the_vocabulary():
    words, signs = regex_text.vocabulary(0), regex_text.vocabulary(1)
    for pair in PAIRS:
        assert set(pair.words) <= set(words) and set(pair.signs) <= set(signs)
        parse(pair.expression)
    many = regex_text.distinct(0, 1500)
    assert {w for p in many for w in p.words} == set(words) and {w for p in many for w in p.signs} == set(signs)
    assert len(many) == len({p.signs for p in many}) and max(max(map(len, p)) for p in many) <= 32


CLASSES = {"vowel": "[AEIOUaeiou]", "number": "[0-9]", "letter": "[A-Za-z]", "character": "."}
CASES = {"capital": "[A-Z]", "small": "[a-z]"}
FORMS = {
    "contain": ".*({}).*",
    "have": ".*({}).*",
    "start": "({}).*",
    "begin": "({}).*",
    "end": ".*({})",
    "are": "({})",
}


def read_atom(w):
    """One atom with its times; what is read is taken away from the words."""
    word = w.pop(0)
    if word == "a":
        word = CASES[w.pop(0)] if w[0] in CASES else CLASSES[w[0]]
        del w[0]
    if not w or w[0] != ",":
        return word
    del w[0]
    phrase = []
    while not phrase or phrase[-1] not in ("once", "times"):
        phrase.append(w.pop(0))
    number = next((p for p in phrase if p.isdigit()), None)
    if "zero" in phrase or "any" in phrase:
        return f"({word})*"
    if number is None:
        return f"({word})+"
    if "most" in phrase:
        return f"({word}){{1,{number}}}"
    return f"({word}){{{number}}}" if len(phrase) == 2 else f"({word}){{{number},}}"


def read_unit(w):
    if w[0] != "either":
        return read_atom(w)
    del w[0]
    left = read_atom(w)
    assert w.pop(0) == "or"
    return f"({left}|{read_atom(w)})"


def read_line(w):
    first = w.pop(0)
    if first in ("both", "either"):
        left = read_line(w)
        assert w.pop(0) == {"both": "and", "either": "or"}[first]
        return f"({left}){'&' if first == 'both' else '|'}({read_line(w)})"
    if first == "do":
        assert w.pop(0) == "not"
        return f"~({read_line(w)})"
    if first in ("start", "begin", "end", "are"):
        assert w.pop(0) in ("with", "only")
    thing = read_unit(w)
    if w and (w[0] in ("followed", "before") or w[:2] == ["and", "then"]):
        del w[: 1 if w[0] == "before" else 2]
        thing += ".*" + read_unit(w)
    return FORMS[first].format(thing)


def test_descriptions_mean_their_expressions():
    """Read word by word with no way back, by rules written a second time."""
    for pair in PAIRS:
        words = list(pair.words)
        assert (words.pop(0), words.pop(0)) == ("lines", "that")
        assert read_line(words) == pair.expression, pair
        assert not words


def test_encoding():
    sequences, words = [("a", "b"), ("b",)], ("a", "b")
    assert regex_text.encode(sequences, words, 3, 3, left=True).tolist() == [[0, 3, 4], [0, 0, 4]]
    assert regex_text.encode(sequences, words, 3, 3, left=False).tolist() == [[3, 4, 0], [4, 0, 0]]
    with pytest.raises(DataError, match="room = 1"):
        regex_text.encode(sequences, words, 3, 1, left=True)
    with pytest.raises(DataError, match="count = 2: expected at most 0"):
        regex_text.distinct(0, 2, longest=4)
