"""The two-layer model of Bietti et al. 2023: its data by law, its formulas in numpy, its memories written by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.data.bigrams import count_bigrams, random_bigrams, shakespeare_bigrams
from jaxlm.data.errors import DataError
from jaxlm.memory.bigram_task import BigramTask
from jaxlm.memory.induction import InductionTransformer
from jaxlm.memory.induction_steps import STEPS, first_step, last_loss, memory_gradient, three_steps
from jaxlm.module import ConfigError, ShapeError, init
from jaxlm.papers.birth import optimizer
from jaxlm.taps import capture

N, T, D = 6, 20, 64
TEXT = random_bigrams(0, N, 1.0)


@partial(jax.jit, static_argnums=(0, 4))
def draw(task, key, unigram, follow, batch):
    return task.draw(key, unigram, follow, batch)


def episodes(task, text=TEXT, batch=64, seed=0):
    found = draw(task, jax.random.key(seed), np.float32(text.unigram), np.float32(text.follow), batch)
    return type(found)(*(np.asarray(a) for a in found))


def orthonormal(model, seed=0):
    key = jax.random.key(seed)
    return {k: np.asarray(v) for k, v in model.orthonormal(init(model, key), key).items()}


# The text


def test_statistics_of_a_text():
    text = "abracadabra!"
    found = count_bigrams(text)
    assert found.symbols == ("!", "a", "b", "c", "d", "r")
    np.testing.assert_allclose(found.unigram, [text.count(c) / 12 for c in found.symbols])
    pairs = [text[i : i + 2] for i in range(len(text) - 1)]
    for i, a in enumerate(found.symbols[1:], 1):
        want = [pairs.count(a + b) / sum(p[0] == a for p in pairs) for b in found.symbols]
        np.testing.assert_allclose(found.follow[i], want)
    np.testing.assert_allclose(found.follow[0], found.unigram)  # nothing follows the last character
    assert found.frequent(2) == (1, 2)  # b and r are equally frequent
    with pytest.raises(DataError, match="at least 2"):
        count_bigrams("a")


def test_tiny_shakespeare_has_the_papers_entropies(data_folder):
    found = shakespeare_bigrams(data_folder)
    assert found.vocab == 65 and [found.symbols[i] for i in found.frequent(5)] == [" ", "e", "t", "o", "a"]
    np.testing.assert_allclose(found.entropies, (3.3128, 2.4526), atol=5e-5)


def test_random_bigrams_are_stationary():
    text = random_bigrams(3, 20, 0.2)
    np.testing.assert_allclose(text.unigram @ text.follow, text.unigram, atol=1e-12)
    np.testing.assert_allclose(text.follow.sum(1), 1)
    with pytest.raises(DataError, match="concentration"):
        random_bigrams(0, 20, 0.0)


# The sequences


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("outputs", ["uniform", "bigram", "other"])
def test_every_trigger_is_followed_by_its_output(fixed, outputs):
    text = count_bigrams("the cat sat on the mat and that was that")  # many pairs never occur
    found = episodes(BigramTask(30, 3, fixed, outputs), text)
    assert found.tokens.shape == (64, 31) and found.count.shape == (64, 30)
    for z, count, q, o in zip(*found, strict=True):
        answer = dict(zip(q.tolist(), o.tolist(), strict=True))
        assert len(answer) == 3  # drawn without replacement
        seen = dict.fromkeys(answer, 0)
        for t in range(30):
            if z[t] in answer:
                seen[z[t]] += 1
                assert z[t + 1] == answer[z[t]] and count[t] == seen[z[t]]
            else:
                assert count[t] == 0 and text.follow[z[t], z[t + 1]] > 0
        if fixed:
            assert sorted(answer) == sorted(text.frequent(3))
        if outputs == "other":
            assert all(a != b for a, b in answer.items())
        if outputs == "bigram":
            assert all(text.follow[a, b] > 0 for a, b in answer.items())


def test_tokens_follow_the_languages_bigrams():
    found = episodes(BigramTask(200, 2), batch=200)
    z, free = found.tokens, found.count == 0
    pairs = np.zeros((N, N))
    np.add.at(pairs, (z[:, :-1][free], z[:, 1:][free]), 1)
    assert (pairs.sum(1)[list(TEXT.frequent(2))] == 0).all()
    for i in set(range(N)) - set(TEXT.frequent(2)):
        total = pairs[i].sum()
        sigma = np.sqrt(TEXT.follow[i] * (1 - TEXT.follow[i]) / total)
        assert total > 1000 and (np.abs(pairs[i] / total - TEXT.follow[i]) < 4.5 * sigma + 1e-9).all()


def test_starts_triggers_and_outputs_have_their_distributions():
    found = episodes(BigramTask(2, 1, fixed=False), batch=20000)
    near = partial(np.testing.assert_allclose, atol=0.02)
    near(np.bincount(found.tokens[:, 0], minlength=N) / 20000, TEXT.unigram)
    near(np.bincount(found.triggers[:, 0], minlength=N) / 20000, TEXT.unigram)
    near(np.bincount(found.outputs[:, 0], minlength=N) / 20000, np.full(N, 1 / N))


def test_a_bad_task_is_named():
    with pytest.raises(ConfigError, match=r"BigramTask\.outputs = 'none'"):
        BigramTask(outputs="none")
    with pytest.raises(ConfigError, match=r"BigramTask\.triggers"):
        BigramTask(triggers=0)


# The model


def forward(p, tokens, feed):
    """One sequence, token by token, matrices on columns; float64."""
    p = {k: np.float64(v) for k, v in p.items()}
    d = p["embed"].shape[1]
    xs = [p["embed"][z] + p["position"][t] for t, z in enumerate(tokens)]
    for key, out, value in (("key1", "out1", "value1"), ("key2", "out2", "value2")):
        after = []
        for t, x in enumerate(xs):
            e = np.exp([x @ p[key] @ y / np.sqrt(d) for y in xs[: t + 1]])
            after.append(x + p[out] @ p[value] @ sum(a * y for a, y in zip(e / e.sum(), xs, strict=False)))
        xs = after
    return np.stack([p["unembed"] @ (x + p["feed"] @ x if feed else x) for x in xs])


@pytest.mark.parametrize("feed", [False, True])
def test_is_the_papers_model(feed):
    model = InductionTransformer(N, 16, 9, feed)
    params = init(model, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, N, (2, 7))
    got = jax.jit(model.apply)(params, tokens)
    close(got, np.float32([forward(params, row, feed) for row in tokens]))
    with pytest.raises(ShapeError, match="at most 9"):
        model.apply(params, np.zeros((1, 10), int))


def test_starts_as_published():
    params = init(InductionTransformer(65, 64, 256, feed=True), jax.random.key(0))
    for name, value in params.items():
        if name in ("embed", "position"):
            assert abs(np.std(value) - 1) < 0.03
        else:
            assert np.abs(value).max() <= 1 / 8 and abs(np.std(value) * 8 * np.sqrt(3) - 1) < 0.03
    small = init(InductionTransformer(65, 64, 256, unit=True), jax.random.key(0))
    assert abs(np.mean(np.sum(np.square(small["embed"]), -1)) - 1) < 0.05


@pytest.fixture(scope="module")
def written():
    """A model with its memories written by hand, orthonormal embeddings; sequences; the measures, compiled once."""
    model = InductionTransformer(N, D, T)
    params = orthonormal(model)
    found = episodes(BigramTask(T, 2), batch=512)
    measure = jax.jit(model.measure)
    return model, model.ideal(params, jnp.arange(N), 40.0), found, measure


def fair(found):
    """Those sequences that do not begin with a trigger: the first token can only look at itself."""
    keep = found.count[:, 0] == 0
    return type(found)(*(a[keep] for a in found))


def test_written_memories_solve_the_task(written):
    model, params, found, measure = written
    vectors = np.concatenate([params["embed"], params["position"]])
    vectors = np.concatenate([vectors, vectors @ (params["out1"] @ params["value1"]).T, params["unembed"]])
    close(vectors @ vectors.T, np.eye(len(vectors), dtype=np.float32))
    scores = measure(params, fair(found))
    assert scores["accuracy"] == scores["previous"] == scores["copied"] == 1
    assert scores["in_context_loss"] < 1e-3
    assert all(v == 1 for v in model.recall(params, early=8).values())
    assert all(v == 1 for v in model.recall(params, np.array([0, 3])).values())


def test_each_memory_is_needed(written):
    model, params, found, measure = written
    for name in model.trained:
        without = {**params, name: jnp.zeros_like(params[name])}
        assert measure(without, fair(found))["accuracy"] < 0.75, name
        recalled = model.recall(without, early=8)
        assert recalled[name] < 0.2 and all(v == 1 for k, v in recalled.items() if not k.startswith(name)), name


def test_a_trigger_at_the_start_is_taken_for_its_own_output(written):
    """The first token looks at itself, so that it seems to follow itself: half of the weight goes astray at count 2."""
    model, params, found, _ = written
    begins = np.flatnonzero((found.count[:, 0] == 1) & (found.triggers[:, 0] != found.outputs[:, 0]))
    z, count = found.tokens[begins], found.count[begins]
    rows, places = np.nonzero((count == 2) & (z[:, :-1] == z[:, :1]))
    assert len(rows) > 20
    _, taps = jax.jit(capture(model.apply, ["attn.probs"]))(params, z[:, :-1])
    second = np.asarray(taps["attn.probs"][1])[rows, places]
    np.testing.assert_allclose(second[:, 0], 0.5, atol=1e-3)
    np.testing.assert_allclose(second[np.arange(len(rows)), 1], 0.5, atol=1e-3)


def test_written_bigrams_are_the_languages():
    model = InductionTransformer(N, D, T, feed=True)
    params = model.ideal(orthonormal(model), jnp.arange(2), follow=np.float32(TEXT.follow), least=1e-9)
    recalled = model.recall(params, jnp.arange(2), follow=np.float32(TEXT.follow))
    assert abs(recalled["feed"]) < 1e-5
    logits = params["embed"] @ params["feed"].T @ params["unembed"].T
    close(jax.nn.softmax(logits), np.float32(TEXT.follow))
    with pytest.raises(ShapeError, match="follow"):
        model.ideal(params, jnp.arange(2))


def test_loss_on_heads_and_everywhere():
    model = InductionTransformer(N, 16, T)
    params, found = init(model, jax.random.key(0)), episodes(BigramTask(T, 2), batch=3)
    logits = np.stack([forward(params, row, False) for row in found.tokens[:, :-1]])
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, found.tokens[:, 1:, None], -1)[..., 0]
    close(model.loss(params, found), np.float32(each[found.count >= 2].mean()))
    close(model.loss(params, found, head_only=False), np.float32(each.mean()))
    scores = jax.jit(model.measure)(params, found)
    right = (logits.argmax(-1) == found.tokens[:, 1:])[found.count >= 2].mean()
    close(
        [scores[k] for k in ("accuracy", "in_context_loss", "global_loss")],
        [np.float32(x) for x in (right, each[found.count >= 2].mean(), each[found.count == 0].mean())],
    )


# The gradients


def test_a_gradient_is_a_sum_of_class_means(x64):
    rng = np.random.default_rng(0)
    u, w, x = rng.normal(size=(N, 8)), rng.normal(size=(8, 8)), rng.normal(size=(30, 8))
    y = rng.integers(0, N, 30)

    def loss(w):
        return -jnp.mean(jax.nn.log_softmax(x @ w.T @ u.T)[jnp.arange(30), y])

    guess = np.asarray(jax.nn.softmax(x @ w.T @ u.T))
    want = np.asarray(jax.grad(loss)(jnp.asarray(w)))
    close(memory_gradient(jnp.asarray(u), jnp.asarray(x), jnp.asarray(guess), jnp.asarray(y)), want, jnp.float64)
    means = np.zeros((8, 8))
    for k in range(N):
        share = np.mean(y == k)
        means += share * np.outer(u[k], (guess[:, k, None] * x).mean(0) / share - x[y == k].mean(0))
    close(means, want, jnp.float64)


def test_the_first_step_writes_outer_products(x64):
    rng = np.random.default_rng(1)
    e, u, joint = rng.normal(size=(5, 8)), rng.normal(size=(N, 8)), rng.dirichlet(np.ones(5 * N)).reshape(5, N)

    def loss(w):
        return -jnp.sum(joint * jax.nn.log_softmax(e @ w.T @ u.T))

    step = -0.3 * jax.grad(loss)(jnp.zeros((8, 8)))
    close(first_step(jnp.asarray(e), jnp.asarray(u), jnp.asarray(joint), 0.3), np.asarray(step), jnp.float64)


def test_last_loss_asks_for_the_output_of_a_trigger_seen_before():
    model = InductionTransformer(N, 16, 8)
    params, found = init(model, jax.random.key(0)), episodes(BigramTask(8, 1, fixed=False), batch=40)
    losses = []
    for z, q, o in zip(found.tokens[:, :-1], found.triggers[:, 0], found.outputs[:, 0], strict=True):
        if q in z[:-1] and z[-2] != q:
            logits = forward(params, [*z[:-1], q], False)[-1]
            losses.append(np.log(np.exp(logits).sum()) - logits[o])
    assert 5 < len(losses) < 40
    close(last_loss(model, params, found), np.float32(np.mean(losses)))


def test_three_gradient_steps_write_the_memories_in_their_order():
    """From zero, one step each: its own associations then are far above chance, 1 / 16 and 1 / 15."""
    n = t = 16
    model = InductionTransformer(n, 3 * n + 2 * t, t)
    uniform = jnp.full(n, 1 / n, jnp.float32), jnp.full((n, n), 1 / n, jnp.float32)
    task = BigramTask(t, 2, fixed=False, outputs="other")

    def loss(params, key):
        return model.loss(params, task.draw(key, *uniform, 256))

    steps = three_steps(orthonormal(model), loss, jax.random.key(1), (200.0, 3e6, 3e6), 8)
    for i, (name, params) in enumerate(steps):
        assert name == STEPS[i]
        assert [bool(np.any(params[k])) for k in STEPS] == [j <= i for j in range(3)]
        assert model.recall(params, early=t)[name] > (0.95, 0.3, 0.13)[i]


def test_a_matrix_is_trained_from_its_step_on():
    model = InductionTransformer(N, 8, 4, feed=True)
    params = init(model, jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, params)
    tx = optimizer(model, 0.1, 0.9, 0.01, (0, 2, 1, 9))
    now, state = params, tx.init(params)
    for step in range(3):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = jax.jit(tx.update)(ones, state, now)
        now = {k: now[k] + updates[k] for k in now}
        moved = {k for k in now if (np.asarray(now[k]) != np.asarray(params[k])).any()}
        assert moved == [{"out2"}, {"out2", "key1"}, {"out2", "key1", "key2"}][step]
    close(now["key2"], params["key2"] - 0.1 * (1 + 0.01 * params["key2"]))  # no momentum, no decay from before
