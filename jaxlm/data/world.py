"""The simulated world of Memory Networks (Weston et al. 2015, section 5.2): actors move things between rooms.

A simulation makes events, `jaxlm.data.world_text` says them in words, questions come with their supporting facts.

    where is ACTOR                one fact    the last go of the actor
    where was ACTOR before ROOM   two facts   the last go of the actor to ROOM, the actor's go before that
    where is THING                two facts   what last moved the thing, where its mover was or now is; in boxes, more
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxlm.data.babi import Question
from jaxlm.data.errors import DataError
from jaxlm.data.world_text import Asked, Event, render, render_question

KINDS = ("actor", "before", "object")  # a question's `task` is its kind's place here
SIMPLE = ("go", "get", "drop")
ACTIONS = ("go", "get", "get from", "put in", "put on", "give", "drop", "look", "inventory", "examine")
MOVES = ("get", "get from", "put in", "put on", "give", "drop")  # actions that change a thing's place
TRIES = 1000  # stories begun before a setting is said to have no questions

Places = dict[str, str]  # the room of an actor; the room, the holder or the container of a thing


@dataclass(frozen=True)
class World:
    """Who and what there is, and what may be done.

    boxes, tables   the things that others can be put in, and on
    actions         of ACTIONS; by default those of the published experiments
    """

    actors: tuple[str, ...] = ("joe", "fred", "bill", "mary")
    things: tuple[str, ...] = ("milk", "football", "apple")
    rooms: tuple[str, ...] = ("kitchen", "office", "bathroom", "garden", "bedroom")
    boxes: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    actions: tuple[str, ...] = SIMPLE

    def __post_init__(self):
        names = self.actors + self.things + self.rooms
        if len(set(names)) < len(names) or not self.actors or len(self.rooms) < 2:
            raise DataError(f"World names {names}: expected distinct ones, an actor and two rooms at least")
        if not set(self.boxes + self.tables) <= set(self.things):
            raise DataError(f"World.boxes, tables = {self.boxes}, {self.tables}: expected some of things {self.things}")
        if not self.actions or not set(self.actions) <= set(ACTIONS):
            raise DataError(f"World.actions = {self.actions}: expected some of {ACTIONS}")

    def start(self, rng: np.random.Generator) -> Places:
        """Everybody and everything in a room of their own draw; nobody is told."""
        return {name: str(rng.choice(self.rooms)) for name in self.actors + self.things}

    def room(self, places: Places, name: str) -> str:
        """The room of an actor or a thing, through holders and containers."""
        while name not in self.rooms:
            name = places[name]
        return name

    def _reaches(self, places: Places, actor: str, thing: str) -> bool:
        """In the actor's own hands, or lying openly in the room."""
        return places[thing] in (actor, places[actor])

    def _within(self, places: Places, thing: str, other: str) -> bool:
        """Whether `other` is the thing, or lies inside it however deep."""
        while other in self.things and other != thing:
            other = places[other]
        return other == thing

    def allowed(self, places: Places, event: Event) -> bool:
        """Whether the event's preconditions hold."""
        action, actor, thing, other = event
        here = places[actor]
        match action:
            case "go":
                return other in self.rooms and other != here
            case "get":
                return places[thing] == here
            case "get from":
                return places[thing] == other and other in self.things and self._reaches(places, actor, other)
            case "put in" | "put on":
                fits = other in (self.boxes if action == "put in" else self.tables)
                free = fits and not self._within(places, thing, other)
                return free and places[thing] == actor and self._reaches(places, actor, other)
            case "give":
                return other in self.actors and other != actor and places[thing] == actor and places[other] == here
            case "drop":
                return places[thing] == actor
            case "look" | "inventory":
                return True
            case "examine":
                return self._reaches(places, actor, thing)
        raise DataError(f"action = {action!r}: expected one of {ACTIONS}")

    def possible(self, places: Places, actor: str) -> dict[str, list[Event]]:
        """Everything that an actor can do now, by action; actions without any are left out."""
        others = {"go": self.rooms, "get from": self.things, "give": self.actors}
        others |= {"put in": self.boxes, "put on": self.tables}
        found = {}
        for action in self.actions:
            things = self.things if action in (*MOVES, "examine") else ("",)
            events = [Event(action, actor, t, o) for t in things for o in others.get(action, ("",))]
            if events := [e for e in events if self.allowed(places, e)]:
                found[action] = events
        return found

    def after(self, places: Places, event: Event) -> Places:
        """The places once the event has happened. Raises DataError where its preconditions do not hold."""
        if not self.allowed(places, event):
            raise DataError(f"event = {tuple(event)}: its preconditions do not hold in {places}")
        action, actor, thing, other = event
        match action:
            case "go":
                return {**places, actor: other}
            case "get" | "get from":
                return {**places, thing: actor}
            case "put in" | "put on" | "give":
                return {**places, thing: other}
            case "drop":
                return {**places, thing: places[actor]}
        return places

    def run(self, rng: np.random.Generator, statements: int) -> tuple[list[Event], Places]:
        """A history of so many events, and where it ends: a random actor does something of a random possible action."""
        places, events = self.start(rng), []
        while len(events) < statements:
            if can := self.possible(places, str(rng.choice(self.actors))):
                options = list(can.values())[rng.integers(len(can))]
                events.append(options[rng.integers(len(options))])
                places = self.after(places, events[-1])
        return events, places


class Solved(NamedTuple):
    """answer   a room;   facts   places of the supporting events, in the order in which they are looked up"""

    answer: str
    facts: tuple[int, ...]


def solve(events: Sequence[Event], asked: Asked) -> Solved | None:
    """Answer a question by what was told alone, not by the simulation; None where that does not suffice."""
    match asked.kind:
        case "actor":
            return _went(events, asked.about)
        case "before":
            gone = _last(events, lambda e: e.action == "go" and e.actor == asked.about and e.other == asked.room)
            sooner = None if gone is None else _went(events[:gone], asked.about)
            return None if gone is None or sooner is None else Solved(sooner.answer, (gone, *sooner.facts))
        case "object":
            return _trace(events, asked.about)
    raise DataError(f"kind = {asked.kind!r}: expected one of {KINDS}")


def _last(events, holds) -> int | None:
    return next((i for i in reversed(range(len(events))) if holds(events[i])), None)


def _went(events: Sequence[Event], actor: str) -> Solved | None:
    at = _last(events, lambda e: e.action == "go" and e.actor == actor)
    return None if at is None else Solved(events[at].other, (at,))


def _trace(events: Sequence[Event], thing: str) -> Solved | None:
    at = _last(events, lambda e: e.action in MOVES and e.thing == thing)
    if at is None:
        return None
    action, actor, _, other = events[at]
    if action.startswith("put"):
        # A container that was never moved still stands where the actor stood.
        found = _trace(events, other) or _went(events[:at], actor)
    elif action == "drop":
        found = _went(events[:at], actor)
    else:
        found = _went(events, other if action == "give" else actor)
    return found and Solved(found.answer, (at, *found.facts))


def askable(events: Sequence[Event], kind: str, delta: int) -> list[tuple[Asked, Solved]]:
    """Questions of a kind whose first supporting fact is one of the last `delta` events."""
    found = []
    for at in range(max(0, len(events) - delta), len(events)):
        action, actor, thing, other = events[at]
        if kind == "object" and action in MOVES:
            asked = Asked(kind, thing)
        elif kind != "object" and action == "go":
            asked = Asked(kind, actor, other if kind == "before" else "")
        else:
            continue
        solved = solve(events, asked)
        if solved is not None and solved.facts[0] == at:
            found.append((asked, solved))
    return found


def story(
    world: World,
    rng: np.random.Generator,
    statements: int,
    questions: int,
    kinds: Sequence[str] = KINDS,
    delta: int = 1,
) -> list[Question]:
    """One story with several questions, each asked at some point of it about what was told up to there.

    delta    difficulty: how many statements back the first supporting fact may lie; 1 is the last statement
    ->       `support` in the order of the hops; `task` the kind's place in KINDS. Raises DataError if none can be asked
    """
    for _ in range(TRIES):
        events, _ = world.run(rng, statements)
        told = tuple(render(event, rng) for event in events)
        asked = [_ask(rng, events, str(kind), delta) for kind in rng.choice(kinds, questions)]
        if all(asked):
            break
    else:
        raise DataError(f"kinds = {tuple(kinds)}: no such questions within {statements} statements, {TRIES} stories")
    return [
        Question(told[:upto], render_question(q, rng), solved.answer, solved.facts, KINDS.index(q.kind))
        for upto, q, solved in filter(None, asked)
    ]


def _ask(rng, events, kind: str, delta: int) -> tuple[int, Asked, Solved] | None:
    for upto in 1 + rng.permutation(len(events)):
        if options := askable(events[:upto], kind, delta):
            return int(upto), *options[rng.integers(len(options))]
    return None


def stories(
    world: World,
    seed: int,
    count: int,
    statements: int = 14,
    questions: int = 6,
    kinds: Sequence[str] = KINDS,
    delta: int = 1,
) -> list[Question]:
    """Questions of many stories, all from one seed; by default 500 of them hold the published 7,000 statements."""
    rng = np.random.default_rng(seed)

    def each() -> Iterator[Question]:
        for _ in range(count):
            yield from story(world, rng, statements, questions, kinds, delta)

    return list(each())
