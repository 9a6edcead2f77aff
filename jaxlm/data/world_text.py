"""The grammar of the simulated world: events and questions as words, with synonyms, and words back to events."""

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from jaxlm.data.errors import DataError

Words = tuple[str, ...]


class Event(NamedTuple):
    """One action.   other   the room, container, or actor that it is done to"""

    action: str
    actor: str
    thing: str = ""
    other: str = ""


class Asked(NamedTuple):
    """One question.   about   an actor or a thing;   room   of 'before'"""

    kind: str
    about: str
    room: str = ""


def _each(pattern: str, *verbs: str) -> tuple[str, ...]:
    return tuple(pattern.replace("VERB", verb) for verb in verbs)


STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "go": _each("{actor} VERB to the {other}", "went", "travelled", "journeyed", "moved"),
    "get": _each("{actor} VERB the {thing}", "picked up", "got", "took", "grabbed"),
    "get from": _each("{actor} VERB the {thing} from the {other}", "picked up", "got", "took", "grabbed"),
    "put in": _each("{actor} VERB the {thing} in the {other}", "put", "placed"),
    "put on": _each("{actor} VERB the {thing} on the {other}", "put", "placed"),
    "give": _each("{actor} VERB the {thing} to {other}", "gave", "handed", "passed"),
    "drop": _each("{actor} VERB the {thing}", "put down", "dropped", "left", "discarded"),
    "look": _each("{actor} VERB around", "looked", "gazed"),
    "inventory": _each("{actor} VERB the inventory", "checked", "listed"),
    "examine": _each("{actor} VERB the {thing}", "examined", "inspected", "looked at"),
}
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "actor": ("where is {about}", "where is {about} now"),
    "before": ("where was {about} before the {room}",),
    "object": ("where is the {about}", "where is the {about} now"),
}


def render(event: Event, rng: np.random.Generator) -> Words:
    """The words of an event, one of its phrases at random."""
    return _say(STATEMENTS[event.action], event._asdict(), rng)


def render_question(asked: Asked, rng: np.random.Generator) -> Words:
    """The words of a question, one of its phrases at random."""
    return _say(QUESTIONS[asked.kind], asked._asdict(), rng)


def _say(phrases: tuple[str, ...], parts: dict[str, str], rng: np.random.Generator) -> Words:
    return tuple(phrases[rng.integers(len(phrases))].format(**parts).split())


def parse(words: Words) -> Event:
    """The event that a sentence tells. Raises DataError for a sentence that is none of the grammar's."""
    return Event(*_match(words, "statement"))


def parse_question(words: Words) -> Asked:
    """What a question asks."""
    return Asked(*_match(words, "question"))


@cache
def _patterns(what: str) -> tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...]:
    table, fields = (STATEMENTS, Event._fields) if what == "statement" else (QUESTIONS, Asked._fields)
    phrases = [(name, phrase) for name, group in table.items() for phrase in group]
    # The most words of its own first: 'looked at the milk' is no thing named 'at', 'where is the milk' nobody 'the'.
    phrases.sort(key=lambda entry: -len(re.sub(r"{\w+}", "", entry[1]).split()))
    return tuple((name, fields[1:], re.compile(re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", p))) for name, p in phrases)


def _match(words: Words, what: str) -> tuple[str, ...]:
    text = " ".join(words)
    for name, fields, pattern in _patterns(what):
        if found := pattern.fullmatch(text):
            parts = found.groupdict()
            return (name, *(parts.get(field, "") for field in fields))
    raise DataError(f"{what} = {text!r}: expected one of the world's grammar")
