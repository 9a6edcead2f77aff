"""MemN2N against its equations in numpy, word by word, and the laws of its attention (Sukhbaatar et al. 2015)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.memory.memn2n import MemN2N, ages, noisy_ages
from jaxlm.module import ConfigError, count, init

V, D, M, J = 9, 6, 5, 4


def model(**fields):
    return MemN2N(V, **{"width": D, "memory": M, "words": J, **fields})


def example(net, seed=0, b=3, n=M):
    """Weights, stories of unlike lengths with sentences of unlike lengths, questions."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: 3 * np.asarray(p), init(net, jax.random.key(seed)))
    story = rng.integers(1, V, (b, n, J))
    story[np.arange(J)[None, None] >= rng.integers(1, J + 1, (b, n))[..., None]] = 0
    story[np.arange(n)[None] >= np.arange(n, n - b, -1)[:, None]] = 0
    question = rng.integers(1, V, (b, J))
    question[0, 2:] = 0
    return params, story, question


@jax.jit(static_argnums=0)
def run(net, params, story, question, times=None, linear=False):
    return net.apply(params, story, question, times, linear)


def position_weights(encoding, d, j_count):
    """l (d, J) of section 4.1, and of the code, whose grid has a column more, for the time word."""
    k, j = np.arange(1, d + 1)[:, None], np.arange(1, j_count + 1)[None]
    if encoding == "bow":
        return np.ones((d, j_count))
    if encoding == "pe":
        return (1 - j / j_count) - (k / d) * (1 - 2 * j / j_count)
    return 1 + 4 * (k - (d + 1) / 2) * (j - (j_count + 1) / 2) / (d * j_count)


def sentence(net, table, words, time=0):
    """Σ_j l_j ⊙ A x_j + T(time), by a loop over the words."""
    grid = position_weights(net.encoding, net.width, J + 1)
    present = int((words != 0).sum())
    total = np.zeros(net.width)
    for j, word in enumerate(words):
        if word:
            l = grid[:, j] if net.encoding != "pe" else position_weights("pe", net.width, present)[:, j]
            total += l * table[word]
    if time and net.timed:
        total += (grid[:, -1] if net.encoding == "pe-code" else 1) * table[V + time - 1]
    return total


def formula(net, p, story, question, times, linear=False):
    """Sections 2 and 4.1, one story at a time."""
    logits, seen = [], []
    p = jax.tree.map(np.float64, p)
    for words, asked, time in zip(story, question, times, strict=True):
        if net.tying == "adjacent":
            hops = [(p["tables"][k], p["tables"][k + 1]) for k in range(net.hops)]
            b, h, w = p["tables"][0], np.eye(D), p["tables"][-1].T.copy()
            w[:, 0] = 0
        else:
            hops = [(p["tables"][0], p["tables"][1])] * net.hops
            b, h, w = p["question"], p["hop"], p["answer"]
        u, ps = sentence(net, b, asked), []
        for a, c in hops:
            m = np.stack([sentence(net, a, x, t) for x, t in zip(words, time, strict=True)])
            c = np.stack([sentence(net, c, x, t) for x, t in zip(words, time, strict=True)])
            score = m @ u
            e = np.exp(score - score.max()) * (words.any(-1) if net.mask_empty else 1)
            ps.append(score if linear else e / e.sum())
            u = u @ h + ps[-1] @ c
            u = np.maximum(u, 0) if net.relu else u
        logits.append(u @ w)
        seen.append(ps)
    return np.float32(logits), np.float32(seen).swapaxes(0, 1)


GRID = [
    *itertools.product(["adjacent", "layerwise"], ["bow", "pe", "pe-code"], [False], [False]),
    ("adjacent", "pe-code", True, False),
    ("adjacent", "pe-code", False, True),
    ("layerwise", "pe", True, True),
]


@pytest.mark.parametrize(("tying", "encoding", "relu", "mask"), GRID)
def test_is_the_papers_model(tying, encoding, relu, mask):
    net = model(tying=tying, encoding=encoding, relu=relu, mask_empty=mask, timed=encoding != "pe" or relu)
    params, story, question = example(net)
    times = np.asarray(ages(jnp.asarray([5, 4, 3]), M))
    for linear in (False, True):
        close(run(net, params, story, question, None, linear), formula(net, params, story, question, times, linear))
    later = np.minimum(M, times + (times > 2))
    close(run(net, params, story, question, later), formula(net, params, story, question, later))


def test_counts_of_the_paper():
    for k, m in ((1, 0), (3, 5)):
        timed = {"timed": m > 0, "hops": k}
        assert count(model(**timed)) == (k + 1) * D * (V + m)
        assert count(model(tying="layerwise", **timed)) == 2 * D * (V + m) + 2 * D * V + D * D


def test_one_memory_takes_all_attention():
    net = model(hops=1)
    params, story, question = example(net, n=1, b=1)
    logits, attention = run(net, params, story, question)
    close(attention, np.ones((1, 1, 1), np.float32))
    u = sentence(net, params["tables"][0], question[0]) + sentence(net, params["tables"][1], story[0, 0], 1)
    close(logits[0, 1:], np.float32(params["tables"][1][1:] @ u))


def test_order_counts_by_times_and_places_alone():
    """Memories are a set without time rows; words are one in a bag, and where a sentence has but one word."""
    turned, back = np.array([3, 0, 4, 2, 1]), slice(None, None, -1)
    for encoding in ("bow", "pe", "pe-code"):
        net = model(encoding=encoding, timed=False)
        params, story, question = example(net, b=1)
        story = np.where(story == 0, 1, story)
        here, there = run(net, params, story, question)[0], run(net, params, story[:, turned], question)[0]
        close(there, here)
        words = run(net, params, story[..., back], question)[0]
        assert (np.abs(words - here).max() < 1e-4) == (encoding == "bow")
        single = story * (np.arange(J) == 0)[None, None]
        close(run(net, params, single[:, turned], question)[0], run(net, params, single, question)[0])
        timed = model(encoding=encoding)
        params, *_ = example(timed)
        assert (
            np.abs(run(timed, params, story[:, turned], question)[0] - run(timed, params, story, question)[0]).max()
            > 1e-3
        )


def test_linear_start_scales():
    """Without the softmax the first read is bilinear; with it only values scale it, a constant moves nothing."""
    net = model(hops=1, tying="layerwise", encoding="bow")
    params, story, question = example(net)
    params["hop"] = np.zeros((D, D), np.float32)

    def scaled(a, c):
        return {**params, "tables": params["tables"] * np.float32([a, c])[:, None, None]}

    times = np.asarray(ages(jnp.asarray([5, 4, 3]), M))

    def read(p, linear):
        return run(net, p, story, question, times, linear)[0]

    close(read(scaled(2, 1), True), 2 * read(params, True))
    close(read(scaled(1, 2), True), 2 * read(params, True))
    close(read(scaled(1, 2), False), 2 * read(params, False))
    assert np.abs(read(scaled(2, 1), False) - 2 * read(params, False)).max() > 1e-3
    # Every memory has the same number of words here: one direction added to all words adds a constant to all scores.
    full = np.where(story == 0, 1, story)[:1]
    moved = scaled(1, 1)
    moved["tables"][0, 1:V] += 0.3
    at = run(net, params, full, question[:1])[1]
    close(run(net, moved, full, question[:1])[1], at)


def test_without_values_the_question_stays():
    params, story, question = example(model(tying="layerwise"))
    params["tables"][1] = 0
    net = model(tying="layerwise")
    u = sentence(net, params["question"], question[0]) @ np.linalg.matrix_power(params["hop"], 3)
    close(run(net, params, story, question)[0][0], np.float32(u @ params["answer"]))
    net = model(hops=1)
    params, *_ = example(net)
    params["tables"][1] = 0
    assert not np.any(run(net, params, story, question)[0])  # W is the zero C


def test_what_is_nil_adds_nothing():
    """Words: never. Memories: nothing in the linear start or under mask_empty; else each takes exp(0) of the mass."""

    def fill(x, axis):
        return np.concatenate([x, np.zeros_like(np.take(x, [0, 1], axis))], axis)

    for net in (model(encoding="bow", memory=8), model(encoding="pe", memory=8)):
        wide_net = MemN2N(V, **{**{f: getattr(net, f) for f in ("width", "memory", "encoding")}, "words": J + 2})
        params, story, question = example(net)
        close(run(wide_net, params, fill(story, 2), fill(question, 1)), run(net, params, story, question))
        close(
            run(net, params, fill(story, 1), question, None, True)[0], run(net, params, story, question, None, True)[0]
        )
        masked = MemN2N(V, width=D, memory=8, words=J, encoding=net.encoding, mask_empty=True)
        close(run(masked, params, fill(story, 1), question)[0], run(masked, params, story, question)[0])
        p, q = (run(net, params, x, question)[1][0] for x in (story, fill(story, 1)))
        score = run(net, params, story, question, None, True)[1][0]
        mass = np.exp(score).sum(-1, keepdims=True)
        close(q[:, :M], p * mass / (mass + 2))
        close(q[:, M:], np.broadcast_to(1 / (mass + 2), (3, 2)))


def test_one_slot_stands_for_many_empty_ones():
    net = model(memory=9)
    params, story, question = example(net)
    x = net.inputs(jnp.asarray(np.concatenate([story, np.zeros((3, 4, J), int)], 1)), jnp.asarray(question))
    weight = jnp.zeros((3, 6)).at[:, 5].set(jnp.log(4.0))
    short = x._replace(story=x.story[:, :6], times=x.times[:, :6], weight=weight)
    (want, p), (got, q) = (jax.jit(net.read)(params, one) for one in (x, short))
    close(got, want)
    close(q[..., :5], p[..., :5])
    close(q[..., 5], p[..., 5:].sum(-1))


def test_nil_stays_zero():
    """No gradient reaches its rows, and no value of theirs is read."""
    for tying in ("adjacent", "layerwise"):
        net = model(tying=tying)
        params, story, question = example(net)
        loss = jax.jit(jax.grad(lambda *args, net=net: jnp.square(net.apply(*args)[0]).sum()))
        grads = loss(params, story, question)
        assert not np.any(grads["tables"][:, 0]) and all(np.any(g) for g in jax.tree.leaves(grads))
        spoiled = {**params, "tables": params["tables"].copy()}
        spoiled["tables"][:, 0] = 1e6
        close(run(net, spoiled, story, question), run(net, params, story, question))


def test_codes_weights_are_the_papers_up_to_an_identity():
    d, j_count = 20, 12
    k, j = np.arange(1, d + 1)[:, None], np.arange(1, j_count + 1)[None]
    paper, code = (position_weights(e, d, j_count) for e in ("pe", "pe-code"))
    rest = (1 - 2 * k / d) / j_count + (1 - 2 * j / j_count) / d + 1 / (d * j_count)
    np.testing.assert_allclose(code, 2 * paper + rest, atol=1e-12)
    net = MemN2N(V, width=d, words=j_count - 1, timed=False)
    base, slope = net.weights()
    places = np.append(net.places(jnp.ones((1, j_count - 1), int))[0], net.place)
    np.testing.assert_allclose(base[:, None] + slope[:, None] * places, code, atol=1e-6)
    np.testing.assert_allclose(code.mean(), 1, atol=1e-12)


def test_ages_and_their_noise():
    lengths = jnp.asarray([4, 0, 20, 7], jnp.int32)
    plain = np.asarray(ages(lengths, 20))
    assert plain[0].tolist() == [4, 3, 2, 1] + [0] * 16 and plain[2].tolist() == list(range(20, 0, -1))
    draw = jax.jit(jax.vmap(lambda k: noisy_ages(k, lengths, 20, 21)))
    noisy = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    assert ((noisy > 0) == (plain > 0)[None]).all() and noisy.max() == 21  # 22 counts as 21
    assert (np.diff(noisy[:, 3, :7]) < 0).all()
    # Of 1..7 or 1..8 seven are kept: all with chance 1/2, else 7/8 of the time the oldest is 8.
    assert abs((noisy[:, 3, 0] == 8).mean() - 7 / 16) < 0.05
    close(noisy_ages(jax.random.key(0), lengths, 20, 20, noise=0.0), plain)


@pytest.mark.parametrize("field", [{"tying": "both"}, {"encoding": "sum"}, {"hops": 0}])
def test_a_bad_field_is_named(field):
    with pytest.raises(ConfigError, match=rf"MemN2N\.{next(iter(field))}"):
        model(**field)
