"""The bAbI recipe: padding and cutting change nothing, errors are counted by hand, steps are the published ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.data import babi
from jaxlm.memory.memn2n import MemN2N, ages
from jaxlm.module import init
from jaxlm.papers import _babi
from jaxlm.papers._babi import Set, Settings, batch_loss, clip_each, evaluate, groups, schedule, take
from jaxlm.papers._babi_report import chosen

S = Settings(tasks=(1, 2), width=6, hops=2)
PLACES = ("kitchen", "garden", "hall", "attic", "cellar")


def made_up(task, count, longest, words):
    """Questions of unlike stories: where is NAME, who went about."""
    rng = np.random.default_rng(task)
    questions = []
    for _ in range(count):
        n = 1 + int(rng.integers(longest))
        story = tuple(
            (f"p{rng.integers(3)}", *("went",) * int(rng.integers(1, words)), PLACES[rng.integers(5)]) for _ in range(n)
        )
        questions.append(babi.Question(story, ("where", story[-1][0]), story[-1][-1], (n - 1,), task))
    return Set(questions, np.repeat([0, 1, 2], [count // 2, count // 4, count - count // 2 - count // 4]))


@pytest.fixture(scope="module")
def two():
    """A group of two tasks of unlike sizes, with weights, and each task's own model with the same weights."""
    sets = [made_up(1, 40, 5, 2), made_up(2, 40, 12, 4)]
    (g,) = groups(sets, S)
    params = jax.tree.map(lambda p: 3 * p, jax.vmap(lambda k: init(g.model, k))(jax.random.split(jax.random.key(0), 2)))
    owns = []
    for t, one in enumerate(sets):
        vocabulary = babi.Vocabulary.of(one.questions)
        memory = babi.longest_story([q for q, c in zip(*one, strict=True) if c < 2])
        a = babi.encode(one.questions, vocabulary, memory)
        own = MemN2N(len(vocabulary), S.width, S.hops, memory, a.questions.shape[1])
        rows = np.r_[: own.vocab, g.model.vocab : g.model.vocab + memory]
        owns.append((own, {"tables": params["tables"][t][:, rows]}, a))
    return sets, g, params, owns


def test_a_padded_task_is_the_task_alone(two):
    """Errors, cross-entropy and what attention finds, cell by cell, from each task's own unpadded model."""
    sets, g, params, owns = two
    got = jax.jit(lambda p: evaluate(g, p, 3))(params)
    for t, (own, p, a) in enumerate(owns):
        logits, attention = jax.jit(own.apply)(p, a.sentences[a.stories], a.questions)
        logs, q = np.asarray(jax.nn.log_softmax(logits)), np.arange(len(a.answers))
        attention = np.where(a.stories > 0, attention, -1)
        most = (attention == attention.max(-1, keepdims=True)).any(0)
        each = {
            "error": logs.argmax(1) != a.answers,
            "nats": -logs[q, a.answers],
            "found": (most & a.support).sum(1) / np.maximum(1, a.support.sum(1)),
        }
        for cell in range(3):
            here = sets[t].cells == cell
            for name, x in each.items():
                close(got[name][t, cell], np.float32(x[here].mean()))


def test_fewer_slots_read_the_same(two):
    _, g, params, _ = two
    one, p = (jax.tree.map(lambda x: x[1], x) for x in (g.stack, params))
    rows = jnp.flatnonzero(one.lengths < 7)[-5:]
    assert one.lengths[rows].max() == 6 and one.memory == 12

    def logits(slots):
        x = take(one, rows, slots, ages(one.lengths[rows], slots), False)
        return g.model.read(p, x)[0]

    few, more, every = jax.jit(lambda: [logits(slots) for slots in (7, 9, 12)])()
    close(few, every)
    close(more, every)


def test_a_cut_batch_has_the_same_loss(two):
    _, g, params, _ = two
    one, p = (jax.tree.map(lambda x: x[1], x) for x in (g.stack, params))
    cut = g._replace(batch=((12, 12), (20, 11)))

    def loss(g, key):
        return batch_loss(g, p, one, key, False, 0.0)

    few = g._replace(batch=((1, 12), (31, 4)))
    keys = jax.random.split(jax.random.key(3), 4)
    whole, parts, left_out = jax.jit(jax.vmap(lambda k: [loss(one, k) for one in (g, cut, few)]))(keys)
    close(parts, whole)
    assert np.std(whole) > 0.1 and (left_out < 0.9 * whole).all()


def test_matrices_are_clipped_one_by_one():
    grads = {"tables": jnp.ones((2, 3, 4, 5)).at[0, 1].mul(30.0), "hop": jnp.full((2, 2, 2), 0.1)}
    got, _ = clip_each(10.0).update(grads, clip_each(10.0).init(grads))
    norms = np.sqrt(np.square(got["tables"]).sum((-2, -1)))
    np.testing.assert_allclose(norms[0], [np.sqrt(20), 10, np.sqrt(20)], rtol=1e-6)
    close(got["hop"], grads["hop"])


def test_the_rate_halves_behind_the_linear_start():
    s = Settings()
    rates = [float(schedule(s, 28)(28 * epoch)) for epoch in (0, 19, 20, 43, 44, 68, 69, 94, 119)]
    np.testing.assert_allclose(rates, 0.005 * 0.5 ** np.array([0, 0, 0, 0, 1, 1, 2, 3, 4]))


def test_the_lowest_training_error_is_chosen():
    error = np.zeros((2, 3, 2, 3))
    error[1, :, :, 0] = [[0.2, 0.0], [0.1, 0.0], [0.3, 0.1]]
    error[:, :, :, 2] = [[0.0, 0.9], [0.9, 0.0], [0.5, 0.5]]  # the test error has no say
    nats = np.zeros_like(error)
    nats[1, :, 1, 0] = [0.3, 0.2, 0.1]
    assert chosen(S, {"error": error, "nats": nats}).tolist() == [1, 1]
    error[1, :, :, 0] = [[0.0, 0.2], [0.3, 0.0], [0.1, 0.0]]
    assert chosen(replace(S, joint=True), {"error": error, "nats": nats}).tolist() == [2, 2]


def test_a_joint_batch_is_cut_in_whole():
    for s in (S, replace(S, joint=True)):
        assert sum(n for n, _ in _babi.plan(s, 50)) == _babi.BATCH and _babi.plan(s, 50)[0][1] == 50
