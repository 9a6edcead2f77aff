"""Filters against a brute-force twin; generation against repeated full forwards; rows, cuts, forks, room."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.generate import (
    Sampling,
    _read,
    _score,
    _write,
    fork,
    generate,
    left_pad,
    prefill,
    room,
    row_keys,
    rows,
    score,
)
from jaxlm.initializers import FanIn
from jaxlm.mixers import LEM
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.models import LM
from jaxlm.module import Spec, init
from jaxlm.ops import sample as ops
from jaxlm.ops.dense import dense
from jaxlm.ops.losses import nats
from jaxlm.ops.scan import scan
from jaxlm.typing import wide

KEY = jax.random.key(7)
VOCAB, WIDTH = 13, 8


class Recall(Mixer):
    """Softmax attention over a store that grows with room; NaN beyond it: the smallest mixer with a room."""

    width: int

    def params(self):
        square = Spec((self.width, self.width), ("embed", "state"), FanIn(4.0), ins=("embed",))
        return {"map": square}

    def state(self, batch, room=0):
        store = leaf(batch, (room, self.width), (None, "state"))
        return {"x": store, "count": leaf(batch, (), (), "int32")}

    def apply(self, params, x, state=None, starts=None, key=None):
        state = self.start(params, *x.shape[:2]) if state is None else state
        y, state = scan(lambda x, s: self.step(params, x, s), wide(x), state, starts)
        return y.astype(x.dtype), state

    def step(self, params, x, state):
        slots = jnp.arange(state["x"].shape[1])[None]
        here = slots == state["count"][:, None]
        store = jnp.where(here[..., None], x[:, None], state["x"])
        scores = jnp.einsum("bd,bsd->bs", dense(x, params["map"]), store)
        scores = jnp.where(slots <= state["count"][:, None], scores, -1e9)
        y = jnp.einsum("bs,bsd->bd", jax.nn.softmax(scores, axis=-1), store)
        y = jnp.where((state["count"] < store.shape[1])[:, None], y, jnp.nan)
        return y, {"x": store, "count": state["count"] + 1}


def build(*mixers, depth=2):
    # Untied and louder than at the start of training, so that choices depend on the whole past.
    model = LM(VOCAB, WIDTH, Stack(tuple(Block(m) for m in mixers), depth), tied=False)
    return model, jax.tree.map(lambda w: 1.5 * w, init(model, jax.random.key(0)))


@pytest.fixture(scope="module")
def lem():
    return build(LEM(WIDTH))


@pytest.fixture(scope="module")
def hybrid():
    return build(LEM(WIDTH), Recall(WIDTH))


PROMPT = np.array([[1, 5, 2, 9], [3, 3, 12, 0], [7, 8, 11, 4]])


def kept(logits):
    return np.isfinite(np.asarray(logits))


def noise(shape=(40, 31), seed=0, scale=3.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


# Filters


def brute_top_p(row, p):
    weights = np.exp(np.float64(row) - np.max(row))
    weights /= weights.sum()
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    chosen, mass = set(), 0.0
    for i in order:
        if mass >= p and chosen:
            break
        chosen.add(i)
        mass += weights[i]
    return chosen


def brute_distribution(row, s, seen):
    """The distribution that is sampled, from the definitions, token by token."""
    row = [float(l) for l in row]
    row = [(l / s.repetition if l > 0 else l * s.repetition) if seen[i] else l for i, l in enumerate(row)]
    row = [l / s.temperature for l in row]
    allowed = set(range(len(row)))
    if s.top_k is not None:
        limit = sorted(row, reverse=True)[min(s.top_k, len(row)) - 1]
        allowed = {i for i in allowed if row[i] >= limit}
    if s.top_p is not None:
        masked = np.array([l if i in allowed else -np.inf for i, l in enumerate(row)])
        allowed &= brute_top_p(masked, s.top_p)
    if s.min_p is not None:
        top = max(np.exp(row[i]) for i in allowed)
        allowed = {i for i in allowed if np.exp(row[i]) >= s.min_p * top}
    p = np.array([np.exp(l) if i in allowed else 0.0 for i, l in enumerate(row)])
    return p / p.sum()


@pytest.mark.parametrize(
    "s",
    [
        Sampling(),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.6, top_p=0.8),
        Sampling(min_p=0.2, repetition=1.7),
        Sampling(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05, repetition=1.3),
        Sampling(temperature=0.5, top_k=20, top_p=0.5, min_p=0.3, repetition=0.6),
    ],
)
def test_transforms_equal_the_brute_force_twin(s):
    logits, seen = noise(), jax.random.bernoulli(KEY, 0.4, (40, 31))
    got = jax.nn.softmax(ops.transform(logits, s, seen), axis=-1)
    want = np.stack([brute_distribution(l, s, k) for l, k in zip(np.asarray(logits), np.asarray(seen), strict=True)])
    np.testing.assert_array_equal(np.asarray(got) > 0, want > 0)
    close(got, want.astype(np.float32))


def test_neutral_values_are_identities():
    logits = noise().at[:, 3].set(-200.0)  # a probability that underflows must stay, too
    for same in (ops.top_k(logits, 31), ops.top_k(logits, 99), ops.top_p(logits, 1.0), ops.min_p(logits, 0.0)):
        np.testing.assert_array_equal(same, logits)
    np.testing.assert_array_equal(ops.heat(logits, 1.0), logits)
    np.testing.assert_array_equal(ops.penalize(logits, logits > 0, 1.0), logits)


def test_kept_sets_are_monotone():
    logits = noise()
    for f, values in (
        (ops.top_p, (0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0)),
        (ops.top_k, (1, 2, 5, 17, 31)),
        (ops.min_p, (1.0, 0.6, 0.3, 0.1, 1e-3, 0.0)),
    ):
        sets = [kept(f(logits, v)) for v in values]
        assert all((small <= large).all() for small, large in itertools.pairwise(sets))
        assert (sets[0].sum(axis=1) == 1).all() and sets[-1].all()
        assert any((small != large).any() for small, large in itertools.pairwise(sets))


def test_ties_and_edges():
    logits = jnp.array([2.0, 1.0, 2.0, 1.0, 0.0])
    assert kept(ops.top_k(logits, 1)).tolist() == [True, False, True, False, False]  # ties at the k-th stay
    assert kept(ops.top_k(logits, 3)).tolist() == [True, True, True, True, False]
    halves = jnp.log(jnp.array([0.25, 0.5, 0.25]))
    assert kept(ops.top_p(halves, 0.5)).tolist() == [False, True, False]  # a set of mass exactly p is enough
    assert kept(ops.top_p(halves, 0.51)).tolist() == [True, True, False]  # the crossing token stays, lower index first
    assert kept(ops.top_p(jnp.zeros(4), 1e-9)).tolist() == [True, False, False, False]
    assert kept(ops.min_p(logits, 1.0)).tolist() == [True, False, True, False, False]
    assert ops.penalize(jnp.array([3.0, -3.0, 3.0]), jnp.array([True, True, False]), 1.5).tolist() == [2.0, -4.5, 3.0]


def test_temperature_zero_is_the_lowest_argmax_and_needs_no_key():
    logits = jnp.array([[1.0, 4.0, 4.0], [0.0, -1.0, 0.0]])
    assert ops.sample(None, logits, Sampling(temperature=0)).tolist() == [1, 0]
    keys = jax.random.split(KEY, 2)
    cold = ops.sample(keys, jnp.array([[1.0, 4.0, 3.0], [0.0, -1.0, 2.0]]), Sampling(temperature=1e-38))
    assert cold.tolist() == [1, 2]  # no overflow on the way to 0


def test_samples_follow_the_distribution():
    s = Sampling(temperature=1.4, top_p=0.9)
    row = noise((6,), seed=3, scale=1.0)
    draws = ops.sample(jax.random.split(KEY, 20_000), jnp.broadcast_to(row, (20_000, 6)), s)
    want = brute_distribution(np.asarray(row), s, [False] * 6)
    got = np.bincount(np.asarray(draws), minlength=6) / 20_000
    assert (got[want == 0] == 0).all()
    assert np.abs(got - want).max() < 4 * np.sqrt(0.25 / 20_000)  # four standard errors


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", 0),
        ("top_k", 2.0),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition", 0),
        ("repetition", float("inf")),
    ],
)
def test_sampling_names_the_bad_field(field, value):
    with pytest.raises(ConfigError, match=rf"Sampling\.{field} = .*: expected"):
        Sampling(**{field: value})


# Generation


def by_full_forwards(model, params, prompt, n):
    """Argmax of the full forward over the text so far, n times; zeros after it keep one shape for all tests."""
    text, first = np.zeros((len(prompt), 12), np.int32), prompt.shape[1]
    text[:, :first] = prompt
    for i in range(first, first + n):
        text[:, i] = np.argmax(forward(model, params, jnp.asarray(text))[0][:, i - 1], axis=-1)
    return text[:, first : first + n]


forward = jax.jit(lambda model, params, tokens: model.apply(params, tokens), static_argnums=0)


def test_greedy_equals_repeated_full_forwards(hybrid):
    model, params = hybrid
    tokens, session = generate(model, params, PROMPT, 8, sampling=Sampling(temperature=0))
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, by_full_forwards(model, params, PROMPT, 8))
    assert len({tuple(row) for row in tokens.tolist()}) == 3  # the rows differ, so the test can fail
    text = np.concatenate([PROMPT, tokens], axis=1)
    logits, _ = forward(model, params, jnp.asarray(text, jnp.int32))
    close(session.logits, logits[:, -1])  # the session has read all that it wrote
    assert session.drawn.tolist() == [8, 8, 8] and session.used.tolist() == [12, 12, 12]


HOT = Sampling(temperature=1.2, top_k=9, top_p=0.97, repetition=1.2)


def test_a_row_of_a_batch_equals_the_row_alone(hybrid):
    model, params = hybrid
    keys = row_keys(KEY, 3)
    together, session = generate(model, params, PROMPT, 8, KEY, HOT)
    for r in range(3):
        alone, own = generate(model, params, PROMPT[r : r + 1], 8, keys[r : r + 1], HOT)
        np.testing.assert_array_equal(together[r : r + 1], alone)
        close(rows(model, session, [r]), own)
    other, _ = generate(model, params, PROMPT, 8, jax.random.key(8), HOT)
    assert (np.asarray(other) != np.asarray(together)).any()
    again, _ = generate(model, params, PROMPT, 8, jax.random.wrap_key_data(jax.random.key_data(KEY)), HOT)
    np.testing.assert_array_equal(again, together)  # seeds reproduce
    raw, _ = generate(model, params, PROMPT, 8, jax.random.key_data(KEY), HOT)
    np.testing.assert_array_equal(raw, together)  # keys of the old kind are read as such


def test_equal_prompts_with_one_key_go_different_ways(lem):
    model, params = lem
    tokens, _ = generate(model, params, np.repeat(PROMPT[:1], 3, axis=0), 12, KEY)
    assert len({tuple(row) for row in tokens.tolist()}) == 3


@pytest.mark.parametrize("sampling", [HOT, Sampling(temperature=0)])
def test_generation_goes_on_as_if_it_had_not_stopped(hybrid, sampling):
    model, params = hybrid
    state = model.start(params, 3, 12)
    whole, last = generate(model, params, PROMPT, 8, KEY, sampling, state)
    head, session = generate(model, params, PROMPT, 5, KEY, sampling, state)
    kept = jax.tree.map(np.asarray, session)
    tail, end = generate(model, params, None, 3, KEY, sampling, session)
    np.testing.assert_array_equal(jnp.concatenate([head, tail], axis=1), whole)
    close(end, last)
    close(session, kept)  # the value that was gone on from is still there
    nothing, same = generate(model, params, None, 0, KEY, sampling, session)
    assert nothing.shape == (3, 0)
    close(same, session)


def test_a_second_prompt_follows_the_first_answer(hybrid):
    model, params = hybrid
    greedy = Sampling(temperature=0)
    first, session = generate(model, params, PROMPT, 3, sampling=greedy, state=model.start(params, 3, 12))
    second, _ = generate(model, params, PROMPT[:, :2], 3, sampling=greedy, state=session)
    text = np.concatenate([PROMPT, first, PROMPT[:, :2]], axis=1)
    np.testing.assert_array_equal(second, by_full_forwards(model, params, text, 3))


def test_goes_on_from_a_state_of_the_model(hybrid):
    model, params = hybrid
    greedy = Sampling(temperature=0)
    _, state = jax.jit(model.apply)(params, jnp.asarray(PROMPT[:, :2], jnp.int32), model.start(params, 3, 12))
    tokens, _ = generate(model, params, PROMPT[:, 2:], 5, sampling=greedy, state=state)
    np.testing.assert_array_equal(tokens, by_full_forwards(model, params, PROMPT, 5))


def test_fork_and_rows_find_the_batch_axis_by_name(hybrid):
    model, params = hybrid
    _, session = generate(model, params, PROMPT, 5, KEY, HOT, model.start(params, 3, 12))
    assert session.state["block1"]["x"].shape == (1, 3, 12, WIDTH)  # the layers come first
    forked = fork(model, session, 2)
    assert forked.state["block1"]["x"].shape == (1, 6, 12, WIDTH)
    for r in range(3):
        for copy in (2 * r, 2 * r + 1):
            close(rows(model, forked, [copy]), rows(model, session, [r]))
    greedy, _ = generate(model, params, None, 3, sampling=Sampling(temperature=0), state=session)
    both, _ = generate(model, params, None, 3, sampling=Sampling(temperature=0), state=forked)
    np.testing.assert_array_equal(both, np.repeat(greedy, 2, axis=0))
    ways, _ = generate(model, params, None, 3, KEY, HOT, forked)
    assert len({tuple(w) for w in ways.tolist()}) > 3
    close(rows(model, session.state, [2, 0, -1]), rows(model, session, [2, 0, 2]).state)
    close(fork(model, session.state, 2), forked.state)
    for index in ([3], [-4], 1, [0.5]):
        with pytest.raises(ConfigError, match=r"index = .*: expected"):
            rows(model, session, index)
    with pytest.raises(ConfigError, match=r"times = 0: expected"):
        fork(model, session, 0)
    with pytest.raises(ShapeError, match=r"state has the tree"):
        fork(model, session.state["block0"], 2)


def test_left_padded_ragged_prompts_equal_each_alone(hybrid):
    model, params = hybrid
    ragged = [[4, 9], [1, 2, 3, 4, 5], [7]]
    tokens, starts = left_pad(ragged)
    assert tokens.tolist() == [[0, 0, 0, 4, 9], [1, 2, 3, 4, 5], [0, 0, 0, 0, 7]]
    assert starts.astype(int).tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    for sampling in (Sampling(temperature=0), HOT):  # HOT has a penalty: padding must not count as seen
        got, session = generate(model, params, tokens, 8, KEY, sampling, starts=starts)
        for r, prompt in enumerate(ragged):
            state = model.start(params, 1, 13)
            alone, own = generate(model, params, [prompt], 8, row_keys(KEY, 3)[r : r + 1], sampling, state)
            np.testing.assert_array_equal(got[r : r + 1], alone)
            close(session.logits[r : r + 1], own.logits)
            if sampling.repetition != 1:
                np.testing.assert_array_equal(session.seen[r : r + 1], own.seen)
    shifted, _ = generate(model, params, tokens, 8, sampling=Sampling(temperature=0))
    padded, _ = generate(model, params, tokens, 8, sampling=Sampling(temperature=0), starts=starts)
    assert (np.asarray(shifted) != np.asarray(padded)).any()  # without the starts, padding is read
    for bad in ([], [[1], []], [[1.5]], [[[1]]]):
        with pytest.raises(ConfigError, match="sequences"):
            left_pad(bad)


def test_a_penalty_lowers_seen_tokens(lem):
    model, params = lem
    strong = Sampling(temperature=0, repetition=1e6)
    tokens, session = generate(model, params, PROMPT[:1], 8, sampling=strong)
    line = [*PROMPT[0].tolist(), *tokens[0].tolist()]
    np.testing.assert_array_equal(np.flatnonzero(session.seen[0]), sorted(set(line)))
    plain, bare = generate(model, params, PROMPT[:1], 8, sampling=Sampling(temperature=0))
    assert bare.seen is None and tokens.tolist() != plain.tolist()
    with pytest.raises(ConfigError, match=r"repetition = 1000000\.0: expected a Session that kept"):
        generate(model, params, None, 2, sampling=strong, state=bare)
    with pytest.raises(ConfigError, match=r"state\.seen = None: expected"):
        generate(model, params, PROMPT[:1], 2, sampling=strong, state=bare)
    kept = prefill(model, params, PROMPT[:1], seen=True)
    np.testing.assert_array_equal(generate(model, params, None, 8, sampling=strong, state=kept)[0], tokens)


def test_stop_ends_a_row_and_leaves_it_right_after_the_stop(hybrid):
    model, params = hybrid
    free, _ = generate(model, params, PROMPT, 8, KEY, HOT)
    free = np.asarray(free)
    stop = int(free[0, 3])
    tokens, session = generate(model, params, PROMPT, 8, KEY, HOT, stop=[stop, 12])
    for r in range(3):
        hits = np.flatnonzero((free[r] == stop) | (free[r] == 12))
        length = hits[0] + 1 if hits.size else 8
        assert session.drawn[r] == length and bool(session.done[r]) == bool(hits.size)
        np.testing.assert_array_equal(tokens[r], [*free[r, :length], *[stop] * (8 - length)])
        own = generate(model, params, PROMPT[r : r + 1], 8, row_keys(KEY, 3)[r : r + 1], HOT, stop=(stop, 12))
        np.testing.assert_array_equal(own[0][0], tokens[r])
        close(own[1], rows(model, session, [r]))
    assert session.done[0] and session.drawn[0] <= 4
    # Cut in two, a stopped row stays stopped; a new prompt wakes it.
    head, middle = generate(model, params, PROMPT, 5, KEY, HOT, model.start(params, 3, 12), stop=(stop, 12))
    tail, end = generate(model, params, None, 3, KEY, HOT, middle, stop=(stop, 12))
    np.testing.assert_array_equal(jnp.concatenate([head, tail], axis=1), tokens)
    close(end, session)
    assert middle.done.any() and not prefill(model, params, PROMPT[:, :2], middle).done.any()


def test_room_is_read_from_the_state_and_checked_first(hybrid, lem):
    model, params = hybrid
    for size in (0, 1, 7, 64):
        assert room(model, model.state(2, size) and model.start(params, 2, size)) == size
    assert room(lem[0], lem[0].start(lem[1], 2)) is None
    greedy = Sampling(temperature=0)
    _, session = generate(model, params, PROMPT, 8, sampling=greedy, state=model.start(params, 3, 12))
    assert not jnp.isnan(session.logits).any()
    with pytest.raises(ConfigError, match=r"room = 12: 0 tokens are used, expected room for 4 of prompt and 9 new"):
        generate(model, params, PROMPT, 9, sampling=greedy, state=model.start(params, 3, 12))
    with pytest.raises(ConfigError, match=r"room = 12: 12 tokens are used, expected room for 0 of prompt and 1 new"):
        generate(model, params, None, 1, sampling=greedy, state=session)
    with pytest.raises(ConfigError, match=r"room = 12: 12 tokens are used"):
        prefill(model, params, PROMPT[:, :1], session)
    _, used = jax.jit(model.apply)(params, jnp.asarray(PROMPT, jnp.int32), model.start(params, 3, 12))
    with pytest.raises(ConfigError, match=r"logits of row 0 are NaN"):  # its use is not known before: still not silent
        generate(model, params, PROMPT, 8, sampling=greedy, state=used)
    broken = {**model.start(params, 3, 12)}
    broken["block1"] = {**broken["block1"], "x": broken["block1"]["x"][..., :-1]}
    with pytest.raises(ShapeError, match=r"expected those of model\.state"):
        room(model, broken)


def test_bad_arguments_are_named(lem):
    model, params = lem
    go = Sampling(temperature=0)
    for prompt, match in (
        ([1, 2], "tokens have shape"),
        ([[]], "tokens have shape"),
        ([[1.5]], "tokens have shape"),
        ([[1, 13]], "token 13: expected 0 to 12"),
        ([[-1]], "token -1: expected"),
        (None, "prompt = None: expected"),
    ):
        with pytest.raises((ConfigError, ShapeError), match=match):
            generate(model, params, prompt, 2, sampling=go)
    for change, match in (
        ({"tokens": -1}, "tokens = -1: expected"),
        ({"tokens": 2.0}, r"tokens = 2\.0: expected"),
        ({"sampling": Sampling()}, "key = None: expected"),
        ({"sampling": Sampling(), "key": jax.random.split(KEY, 2)}, r"key has shape \(2,\), expected"),
        ({"starts": np.ones((3, 3), bool)}, "starts has shape"),
        ({"starts": np.ones((3, 4), int)}, "starts has shape"),
        ({"stop": 13}, "stop = 13: expected"),
        ({"stop": "a"}, "stop = 'a': expected"),
        ({"state": model.start(params, 2)}, "state has 2 rows, expected 3"),
    ):
        with pytest.raises((ConfigError, ShapeError), match=match):
            generate(model, params, PROMPT, **{"tokens": 2, "sampling": go, **change})


def test_equal_values_compile_once():
    model, params = build(LEM(WIDTH), depth=1)
    twin = dataclasses.replace(model)
    before = _write._cache_size(), _read._cache_size()
    for m, s, seed in ((model, Sampling(top_k=4), 0), (twin, Sampling(top_k=4), 1), (model, Sampling(top_k=4), 2)):
        generate(m, params, PROMPT, 4, jax.random.key(seed), s)
    assert (_write._cache_size(), _read._cache_size()) == (before[0] + 1, before[1] + 1)
    generate(model, params, PROMPT, 4, KEY, Sampling(top_k=3))
    assert (_write._cache_size(), _read._cache_size()) == (before[0] + 2, before[1] + 1)


def test_bfloat16_weights_generate(hybrid):
    model, params = hybrid
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    tokens, session = generate(model, half, PROMPT, 4, KEY, HOT)
    assert tokens.shape == (3, 4) and session.logits.dtype == jnp.float32


# Scores


def test_score_is_the_nats_of_each_token(hybrid):
    model, params = hybrid
    tokens = jax.random.randint(KEY, (3, 11), 0, VOCAB)
    logits, _ = forward(model, params, tokens)
    got = score(model, params, tokens)
    close(got[:, 1:], nats(logits[:, :-1], tokens[:, 1:]))
    assert (got[:, 0] == 0).all()
    close(_score(model, params, tokens, None, 3), got)  # however many logits are held at once
    assert score(model, params, tokens[:, :1]).tolist() == [[0.0]] * 3


def test_score_of_packed_and_padded_rows_is_that_of_each_document(hybrid):
    model, params = hybrid
    documents = [[1, 2, 3], [4, 5, 6], [8, 9]]
    alone = [score(model, params, [d])[0] for d in documents]
    packed, starts = jnp.array([[*itertools.chain(*documents)]]), jnp.array([[c == "x" for c in "x..x..x."]])
    want = jnp.concatenate(alone)
    close(score(model, params, packed, starts)[0], want)
    close(_score(model, params, packed, starts, 2)[0], want)
    tokens, starts = left_pad(documents)
    padded = score(model, params, tokens, starts)
    for row, own in zip(padded, alone, strict=True):
        close(row, jnp.concatenate([jnp.zeros(3 - len(own)), own]))
