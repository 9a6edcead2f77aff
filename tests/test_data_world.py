"""The simulated world: preconditions, grammar, questions with their facts, and the solver that knows only the text."""

from collections import Counter

import numpy as np
import pytest

from jaxlm.data.babi import Vocabulary, encode, longest_story
from jaxlm.data.bags import bags, facts, neighbours
from jaxlm.data.errors import DataError
from jaxlm.data.world import ACTIONS, KINDS, SIMPLE, World, askable, solve, stories
from jaxlm.data.world_text import QUESTIONS, STATEMENTS, Asked, Event, parse, parse_question, render, render_question

FULL = World(things=("milk", "apple", "box", "table"), boxes=("box",), tables=("table",), actions=ACTIONS)
PLACES = {
    "joe": "office",
    "fred": "office",
    "bill": "garden",
    "mary": "garden",
    "milk": "joe",
    "apple": "box",
    "box": "office",
    "table": "garden",
}


@pytest.mark.parametrize(
    ("allowed", "event"),
    [
        (True, Event("go", "joe", "", "garden")),
        (False, Event("go", "joe", "", "office")),  # is there
        (False, Event("go", "joe", "", "box")),  # no room
        (True, Event("get", "joe", "box")),
        (False, Event("get", "bill", "box")),  # another room
        (False, Event("get", "fred", "milk")),  # in another's hands
        (False, Event("get", "fred", "apple")),  # within the box
        (True, Event("get from", "fred", "apple", "box")),
        (False, Event("get from", "bill", "apple", "box")),  # the box is elsewhere
        (False, Event("get from", "fred", "milk", "box")),  # not in there
        (False, Event("get from", "fred", "milk", "joe")),  # nobody takes from hands
        (True, Event("put in", "joe", "milk", "box")),
        (False, Event("put in", "fred", "milk", "box")),  # does not hold it
        (False, Event("put in", "joe", "milk", "table")),  # no box
        (False, Event("put on", "joe", "milk", "table")),  # the table is elsewhere
        (True, Event("give", "joe", "milk", "fred")),
        (False, Event("give", "joe", "milk", "bill")),  # is elsewhere
        (False, Event("give", "joe", "milk", "joe")),
        (False, Event("give", "joe", "box", "fred")),  # does not hold it
        (True, Event("drop", "joe", "milk")),
        (False, Event("drop", "fred", "milk")),
        (True, Event("look", "mary")),
        (True, Event("inventory", "mary")),
        (True, Event("examine", "fred", "box")),
        (False, Event("examine", "fred", "apple")),
    ],
)
def test_preconditions(allowed, event):
    assert FULL.allowed(PLACES, event) == allowed
    listed = event in FULL.possible(PLACES, event.actor).get(event.action, [])
    assert listed == allowed
    if not allowed:
        with pytest.raises(DataError, match="preconditions"):
            FULL.after(PLACES, event)


def test_what_actions_change():
    def place(event, name, places=PLACES):
        after = FULL.after(places, event)
        assert {k for k in places if places[k] != after[k]} <= {name}
        return after[name]

    assert place(Event("go", "joe", "", "garden"), "joe") == "garden"
    assert place(Event("get", "joe", "box"), "box") == "joe"
    assert place(Event("get from", "fred", "apple", "box"), "apple") == "fred"
    assert place(Event("put in", "joe", "milk", "box"), "milk") == "box"
    assert place(Event("put on", "joe", "milk", "table"), "milk", PLACES | {"table": "office"}) == "table"
    assert place(Event("give", "joe", "milk", "fred"), "milk") == "fred"
    assert place(Event("drop", "joe", "milk"), "milk") == "office"
    for event in (Event("look", "joe"), Event("inventory", "joe"), Event("examine", "joe", "milk")):
        assert FULL.after(PLACES, event) == PLACES


def test_a_box_never_goes_into_itself():
    places = PLACES | {"box": "joe", "table": "box"}
    both = World(things=FULL.things, boxes=("box", "table"), actions=ACTIONS)
    assert not both.allowed(places, Event("put in", "joe", "box", "box"))
    assert not both.allowed(places | {"table": "joe", "box": "table"}, Event("put in", "joe", "table", "box"))
    assert FULL.room(places, "table") == "office"  # in a box, in hands, in the office


@pytest.mark.parametrize("phrase", [(a, p) for a, group in STATEMENTS.items() for p in group])
def test_every_phrase_is_read_back(phrase):
    action, text = phrase
    used = {name: name in text for name in ("thing", "other")}
    event = Event(action, "joe", "milk" if used["thing"] else "", "box" if used["other"] else "")
    assert parse(tuple(text.format(**event._asdict()).split())) == event


def test_synonyms_are_used_and_questions_read_back():
    rng = np.random.default_rng(0)
    event = Event("get", "joe", "milk")
    assert len({render(event, rng) for _ in range(100)}) == len(STATEMENTS["get"])
    for kind, about, room in (("actor", "joe", ""), ("before", "joe", "office"), ("object", "milk", "")):
        asked = Asked(kind, about, room)
        said = {render_question(asked, rng) for _ in range(50)}
        assert len(said) == len(QUESTIONS[kind]) and {parse_question(words) for words in said} == {asked}
    with pytest.raises(DataError, match="grammar"):
        parse(("joe", "ate", "the", "milk"))


@pytest.mark.parametrize("world", [World(), FULL], ids=["simple", "full"])
def test_the_solver_agrees_with_the_simulation(world):
    """It reads the statements alone; the simulation knows where everything is."""
    solved, actions = Counter(), set()
    for seed in range(150):
        events, places = world.run(np.random.default_rng(seed), 25)
        actions |= {e.action for e in events}
        for name in world.actors + world.things:
            kind = "actor" if name in world.actors else "object"
            found = solve(events, Asked(kind, name))
            if found is not None:
                assert found.answer == world.room(places, name)
                solved[kind, len(found.facts)] += 1
        for asked, found in askable(events, "before", 25):
            rooms = [e.other for e in events if e.action == "go" and e.actor == asked.about]
            last = len(rooms) - 1 - rooms[::-1].index(asked.room)
            assert rooms[last - 1] == found.answer != asked.room
    assert actions == set(world.actions)
    assert solved["actor", 1] > 300 and solved["object", 2] > 150
    assert (solved["object", 3] > 5) == (world is FULL)  # containers make longer chains


@pytest.mark.parametrize("world", [World(), FULL], ids=["simple", "full"])
@pytest.mark.parametrize("delta", [1, 5])
def test_questions_come_with_facts_that_suffice(world, delta):
    back = Counter()
    for q in stories(world, 3, 40, 14, 6, delta=delta):
        events, asked = [parse(s) for s in q.story], parse_question(q.words)
        assert KINDS[q.task] == asked.kind
        found = solve(events, asked)
        assert found is not None and (found.answer, found.facts) == (q.answer, q.support)
        alone = solve([events[i] for i in sorted(q.support)], asked)
        assert alone is not None and alone.answer == q.answer
        back[len(events) - q.support[0]] += 1
    assert set(back) == set(range(1, delta + 1))


def test_where_a_thing_is_takes_the_mover_then_its_room():
    go, get, drop = (Event("go", "joe", "", room) for room in ("office", "garden", "kitchen")), "get", "drop"
    office, garden, kitchen = go
    thing = Asked("object", "milk")
    events = [office, Event(get, "joe", "milk"), garden, Event(drop, "joe", "milk"), kitchen]
    assert solve(events[:2], thing) == ("office", (1, 0))
    assert solve(events[:3], thing) == ("garden", (1, 2))  # carried on: the later fact lies behind the first
    assert solve(events, thing) == ("garden", (3, 2))
    assert solve(events[1:2], thing) is None  # nobody said where joe was
    assert solve(events, Asked("before", "joe", "garden")) == ("office", (2, 0))
    assert solve(events, Asked("before", "joe", "office")) is None


def test_published_size_kinds_and_seeds():
    one = stories(World(), 0, 100)
    assert len(one) == 600 and one == stories(World(), 0, 100) != stories(World(), 1, 100)
    assert min(Counter(q.task for q in one).values()) > 150
    assert {q.task for q in stories(World(), 0, 20, kinds=("actor",))} == {0}
    assert {parse(s).action for q in one for s in q.story} == set(SIMPLE)
    assert longest_story(one) <= 14


def test_errors_name_the_field():
    with pytest.raises(DataError, match=r"World\.actions"):
        World(actions=("fly",))
    with pytest.raises(DataError, match="boxes"):
        World(boxes=("box",))
    with pytest.raises(DataError, match="names"):
        World(actors=("milk",))
    with pytest.raises(DataError, match="no such questions"):
        stories(World(), 0, 1, statements=1, questions=1, kinds=("before",))
    with pytest.raises(DataError, match="kind"):
        solve([], Asked("why", "joe"))


def test_bags_neighbours_and_facts():
    ids = np.array([[1, 2, 1], [3, 2, 0]])
    np.testing.assert_array_equal(bags(ids, 4), [[0, 2, 1, 0], [0, 0, 1, 1]])
    left, right = neighbours(ids, 4)
    np.testing.assert_array_equal(left[2], [0, 0.5, 0, 0.5])
    np.testing.assert_array_equal(right[2], [0, 1, 0, 0])  # what is no word is no neighbour
    np.testing.assert_array_equal(left[1], [0, 0, 1, 0])
    asked = stories(World(), 0, 10, delta=5)
    arrays = encode(asked, Vocabulary.of(asked), 14)
    slots = facts(asked, 2, 14)
    for q, row, held in zip(asked, slots, arrays.support, strict=True):
        assert tuple(row) == (q.support * 2)[:2] and set(np.flatnonzero(held)) == set(row)
    assert (facts(asked, 1, 3)[:, 0] == [q.support[0] - max(0, len(q.story) - 3) for q in asked]).all()
