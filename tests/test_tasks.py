"""The synthetic tasks: every answer recomputed from the tokens, the stated shares measured, the sources' facts."""

from functools import cache
from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import ANSWERS, accepted, expressions, star_free, value

from jaxlm.errors import ConfigError
from jaxlm.tasks import TASKS, Sample, accuracy, final, make, scaled
from jaxlm.tasks.formal import LANGUAGES, Dyck, FlipFlop, StarFree
from jaxlm.tasks.groups import GENERATORS, WordProblem, elements, table
from jaxlm.tasks.in_context import InContextLanguages
from jaxlm.tasks.passkey import Passkey, encode
from jaxlm.tasks.recall import MQAR, AssociativeRecall, Induction, SelectiveCopying
from jaxlm.tasks.regular import CycleNavigation, EvenPairs, ModularArithmetic, Sum

DEFAULTS = [make(name) for name in TASKS]
# Other fields; what differs by a table alone is tested on the table.
OTHERS = [
    FlipFlop(ignore=0.1),
    Dyck(kinds=2, depth=3),
    WordProblem("S3", "swaps", spread=4),
    MQAR(vocab=20, pairs=4, random=True),
    SelectiveCopying(items=4, selective=False),
    Passkey(digits=2, depth=1.0),
]
PASSKEYS = {None: DEFAULTS[list(TASKS).index("Passkey")], 1.0: OTHERS[-1]}
ROWS = 128
KEYS = (0, 1)
every_task = pytest.mark.parametrize("task", DEFAULTS + OTHERS, ids=lambda t: str(t).partition("(")[0])


def length_of(task):
    """Odd and even ones, with room to spare."""
    return task.shortest + 16 + (task in OTHERS)


@cache
def program(task):
    """Under jit and vmap: one batch per key, rows of all keys together."""
    many = jax.jit(jax.vmap(lambda key: task.sample(key, ROWS, length_of(task))))

    def draw(*seeds):
        keys = jnp.stack([jax.random.key(s) for s in seeds])
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, leaf.shape[-1]), many(keys))

    return draw


@cache
def drawn(task):
    return program(task)(*KEYS)


def agrees(task, sample, rows):
    for tokens, targets, weights in zip(*(leaf[:rows].tolist() for leaf in sample), strict=True):
        answers = ANSWERS[type(task).__name__](task, tokens)
        n = len(tokens) - isinstance(task, InContextLanguages)  # there the last answer is a token that is not shown
        assert len(answers) == n
        assert [float(a is not None) for a in answers] == weights[:n]
        assert [a or 0 for a in answers] == targets[:n]


def near(happened, trials, odds):
    """So many of so many, within five standard errors."""
    assert abs(happened - trials * odds) < 5 * np.sqrt(trials * odds * (1 - odds)), (happened, trials, odds)


def test_every_task_has_a_checker():
    assert set(ANSWERS) == set(TASKS)


@every_task
def test_answers_are_those_of_brute_force(task):
    sample = drawn(task)
    agrees(task, sample, 32)
    for leaf, top in zip(sample, (task.vocab, task.classes, 2), strict=True):
        assert leaf.shape == (len(KEYS) * ROWS, length_of(task))
        assert leaf.min() >= 0 and leaf.max() < top
    assert [leaf.dtype.name for leaf in sample] == ["int32", "int32", "float32"]
    assert set(np.unique(sample.weights)) <= {0.0, 1.0} and (sample.weights.sum(axis=1) > 0).all()
    assert len(np.unique(sample.tokens, axis=0)) > len(sample.tokens) / 3


@every_task
def test_a_batch_is_its_keys(task):
    """Under vmap too: two keys that change places change batches."""
    there, back = drawn(task), program(task)(*KEYS[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.roll(b, ROWS, axis=0)), there, back)
    assert (there.tokens[:ROWS] != there.tokens[ROWS:]).any()


@every_task
def test_answers_have_the_stated_shares(task):
    """So chance, the share of the likeliest, is what a constant answer scores: scaled, it is 0."""
    sample, length = drawn(task), length_of(task)
    shares = task.shares(length)
    assert shares.shape == (task.classes,) and abs(shares.sum() - 1) < 1e-9
    hits = (sample.targets[..., None] == np.arange(task.classes)) * sample.weights[..., None]
    assert not hits.sum(axis=(0, 1))[shares == 0].any()
    asked = sample.weights.sum(axis=1)
    off = hits.sum(axis=1) - shares * asked[:, None]  # answers of one row depend on each other, rows do not
    error = np.sqrt(np.maximum((off**2).sum(axis=0), shares * (1 - shares) * asked.sum()))
    assert (np.abs(off.sum(axis=0)) <= 5 * error).all()
    assert task.chance(length) == shares.max() < 1


@pytest.mark.parametrize("task", DEFAULTS, ids=lambda t: type(t).__name__)
def test_lengths_extrapolate(task):
    longer = 4 * length_of(task)
    sample = jax.jit(lambda key: task.sample(key, 4, longer))(jax.random.key(2))
    assert sample.tokens.shape == (4, longer)
    agrees(task, jax.tree.map(np.asarray, sample), 4)


def test_all_expressions_of_five_numbers():
    task, strings = ModularArithmetic(modulus=3), expressions(3, 5)
    values = np.asarray(jax.jit(jax.vmap(task.value))(jnp.asarray(strings, jnp.int32)))
    assert len(strings) == 3**5 * 3**4
    assert [value(task, tokens) for tokens in strings] == values[:, -1].tolist()


@pytest.mark.parametrize("group", GENERATORS)
def test_groups(group):
    times, size = table(group), len(elements(group))
    assert size == {"S3": 6, "S4": 24, "S5": 120, "A4": 12}.get(group, 60)
    one = np.arange(size)
    np.testing.assert_array_equal(times[0], one)
    assert (np.sort(times, axis=0) == one[:, None]).all() and (np.sort(times, axis=1) == one).all()
    a, b, c = np.random.default_rng(0).integers(0, size, (3, 200))
    np.testing.assert_array_equal(times[times[a, b], c], times[a, times[b, c]])
    # What distinguishes groups of one size: how much of them are commutators, all of A5 (it is not solvable).
    back = np.argmin(times, axis=1)
    commutators = np.unique(times[times, times[back[:, None], back[None]]])
    assert len(commutators) == {"S3": 3, "S4": 12, "S5": 60, "A4": 4, "A4xZ5": 4, "A5": 60, "Z60": 1}[group]


def test_the_right_factor_moves_first():
    place = {tuple(g): i for i, g in enumerate(elements("S3").tolist())}
    swap, turn = place[1, 0, 2], place[1, 2, 0]
    assert table("S3")[swap, turn] == place[0, 2, 1] != table("S3")[turn, swap]
    assert [len(WordProblem("S5", moves).allowed) for moves in ("all", "swaps", "three")] == [120, 11, 31]


@pytest.mark.parametrize("name", LANGUAGES)
def test_languages(name):
    """Their tables are their regular expressions, and they are star-free: no power of a word cycles through states."""
    task, draw = StarFree(name), np.random.default_rng(0)
    for _ in range(4):
        state, tokens, answers = 0, [], []
        for _ in range(40):
            tokens.append(int(draw.choice(task.vocab, p=task.odds[state])))
            state = task.goes[state, tokens[-1]]
            answers.append(task.answers[state])
        assert star_free(task, tokens) == answers
    assert 1 < task.classes <= len(task.answers)
    dead = len(task.answers)
    rows = [tuple(dead if to == "." else int(to, 16) for to in row) for row in LANGUAGES[name].table]
    assert aperiodic([(*column, dead) for column in zip(*rows, strict=True)])


def aperiodic(letters):
    """Every word w of the transition monoid has w^n = w^(n+1) for some n (Schützenberger 1965)."""
    found, new = set(letters), set(letters)
    while new:
        new = {tuple(g[i] for i in f) for f, g in product(new, letters)} - found
        found |= new

    def settles(f):
        power = f
        for _ in range(len(f)):
            power = tuple(f[i] for i in power)
        return power == tuple(f[i] for i in power)

    return all(settles(f) for f in found)


def test_parity_is_not_star_free():
    assert not aperiodic([(0, 1), (1, 0)])


def test_flip_flop_ignores_as_often_as_told():
    for task in (FlipFlop(), FlipFlop(ignore=0.1)):
        middle = drawn(task).tokens[:, ::2][:, 1:-1]
        near((middle == 2).sum(), middle.size, task.ignore)
        near((middle == 1).sum(), middle.size, (1 - task.ignore) / 2)


def test_dyck_is_the_published_process():
    for task in (Dyck(), Dyck(kinds=2, depth=3)):
        sample = drawn(task)
        held, then = sample.targets[:, :-1], sample.tokens[:, 1:]
        empty, full = held == 0, held > task.kinds
        between = ~empty & ~full
        near((then[empty] == 2 * task.kinds).sum(), empty.sum(), 1 / 2)
        near((then[between] == task.kinds + held[between] - 1).sum(), between.sum(), 1 / 2)
        np.testing.assert_array_equal(then[full], held[full] - 1)
        opened = sample.tokens[sample.tokens < task.kinds]
        near((opened == 0).sum(), opened.size, 1 / task.kinds)


def test_mqar_asks_early_as_often_as_a_power_law():
    """Inclusion of each slot, by going through all orders in which slots can be drawn."""
    task = MQAR(vocab=20, pairs=4, random=True)
    start, rows = 2 * task.pairs, drawn(task).weights
    slots = (length_of(task) - start) // 2
    odds = np.arange(1, slots + 1) ** (task.power - 1.0)
    orders = np.array(list(permutations(range(slots), task.pairs)))
    drawn_odds = odds[orders]
    left = odds.sum() - np.cumsum(drawn_odds, axis=1) + drawn_odds
    want = np.bincount(orders.reshape(-1), np.repeat(np.prod(drawn_odds / left, axis=1), task.pairs))
    assert (np.diff(want) < 0).all()
    for got, share in zip(rows[:, start::2].sum(axis=0), want, strict=False):
        near(got, len(rows), share)


def test_where_things_stand():
    """Uniform places: of the trigger, of the data; the depth of the passkey."""
    rows = drawn(Induction()).tokens
    first = (rows == 15).argmax(axis=1)
    near((first < 8).sum(), len(rows), 8 / (length_of(Induction()) - 2))
    task = SelectiveCopying()
    room = length_of(task) - task.items
    data = drawn(task).tokens[:, :room] < 14
    near(data[:, 0].sum(), len(data), task.items / room)
    near(data[:, -1].sum(), len(data), task.items / room)
    told = {depth: (drawn(task).tokens == encode("pass")).argmax(axis=1) - 1 for depth, task in PASSKEYS.items()}
    near((told[None] == 5).sum(), len(rows), 1 / 4)  # after each of three sentences, or at the front
    assert set(told[None]) == {0, 5, 10, 15} and set(told[1.0]) == {15}


def test_random_languages():
    task, length = InContextLanguages(symbols=6, states=5, longest=7), 40

    @jax.jit
    def everything(key):
        walks = jax.vmap(lambda k: task.walk(k, length))(jax.random.split(key, 64))
        return walks, task.sample(key, 64, length), task.legal(key, 64, length)

    walks, sample, legal = jax.tree.map(np.asarray, everything(jax.random.key(0)))
    np.testing.assert_array_equal(sample.tokens, walks.tokens[:, :-1])
    hits = np.take_along_axis(legal, sample.targets[..., None], axis=2)[..., 0]
    assert hits[sample.weights > 0].all()
    for row in range(64):
        symbols, targets, degree = (leaf[row] for leaf in walks.automaton)
        want = accepted(task, sample.tokens[row].tolist(), (symbols, targets, degree))
        assert [set(np.flatnonzero(x).tolist()) for x in legal[row]] == want
        for state in set(walks.states[row].tolist()):
            edges = targets[state, : degree[state]].tolist()
            assert state not in edges and len(set(edges)) == len(edges)
            assert len(set(symbols[state, : degree[state]].tolist())) == degree[state] <= 3
    assert set(np.take_along_axis(walks.automaton.degree, walks.states, axis=1).flat) == {1, 2, 3}


def test_legal_is_the_target_where_no_more_is_said():
    both = jax.jit(lambda key: (Sum().legal(key, 3, 4), Sum().sample(key, 3, 4).targets))(jax.random.key(0))
    legal, targets = map(np.asarray, both)
    assert (legal.sum(axis=2) == 1).all() and (legal.argmax(axis=2) == targets).all()


def test_scores():
    sample = Sample(
        jnp.zeros((2, 3), jnp.int32), jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([[1.0, 1, 1], [0, 1, 0]])
    )
    assert accuracy(sample.targets, sample) == 1
    assert accuracy(jnp.full((2, 3), 5, jnp.int32), sample) == 0.25
    np.testing.assert_array_equal(final(sample).weights, [[0, 0, 1], [0, 1, 0]])
    assert scaled(0.2, 0.2) == 0 and scaled(1.0, 0.2) == 1 and abs(scaled(0.6, 0.2) - 0.5) < 1e-12


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (lambda: EvenPairs(symbols=1), "symbols"),
        (lambda: Sum(modulus=1), "modulus"),
        (lambda: ModularArithmetic(modulus=1), "modulus"),
        (lambda: CycleNavigation(states=2), "states"),
        (lambda: WordProblem(group="M11"), "group"),
        (lambda: WordProblem(moves="few"), "moves"),
        (lambda: WordProblem(group="A5", moves="swaps"), "moves"),
        (lambda: WordProblem(spread=0), "spread"),
        (lambda: FlipFlop(ignore=1.5), "ignore"),
        (lambda: Dyck(kinds=0), "kinds"),
        (lambda: Dyck(depth=0), "depth"),
        (lambda: StarFree(language="tomita5"), "language"),
        (lambda: StarFree(stop=0.0), "stop"),
        (lambda: MQAR(pairs=0), "pairs"),
        (lambda: MQAR(vocab=17, pairs=8), "vocab"),
        (lambda: MQAR(power=0.0), "power"),
        (lambda: AssociativeRecall(keys=1), "keys"),
        (lambda: Induction(vocab=2), "vocab"),
        (lambda: SelectiveCopying(vocab=3), "vocab"),
        (lambda: SelectiveCopying(items=0), "items"),
        (lambda: Passkey(digits=0), "digits"),
        (lambda: Passkey(depth=1.1), "depth"),
        (lambda: InContextLanguages(symbols=3), "symbols"),
        (lambda: InContextLanguages(states=3), "states"),
        (lambda: InContextLanguages(edges=4), "edges"),
        (lambda: InContextLanguages(longest=0), "longest"),
        (lambda: MQAR().sample(jax.random.key(0), 1, 31), "length"),
        (lambda: make("Sums"), "task"),
    ],
)
def test_what_cannot_be_is_named(bad, field):
    with pytest.raises(ConfigError, match=rf"{field} = "):
        bad()
