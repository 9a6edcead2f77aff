"""What attention does in small worlds: topics, sinks."""

from itertools import combinations, pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm import taps
from jaxlm.analysis.ranks import rank_correlation
from jaxlm.analysis.regions import general_position, hull_regions, loop_crossings, loop_length, sum_dimension
from jaxlm.analysis.topics import best_attention, block_matrix, block_optimum, long_optimum, optimum
from jaxlm.data.errors import DataError
from jaxlm.data.topics import Masking, Topics, counts
from jaxlm.errors import ShapeError
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.theory import attention_regions, first_token_sinks, topic_structure


def test_documents_hold_the_words_of_their_topics():
    topics, rng = Topics(4, 3, 2), np.random.default_rng(0)
    found = topics.documents(rng, 3000, 20)
    assert all(len(set(topics.of[row])) <= 2 for row in found)
    np.testing.assert_allclose(np.bincount(found.ravel(), minlength=12) / found.size, 1 / 12, atol=0.004)
    pairs = {tuple(sorted(set(topics.of[row]))) for row in found}
    assert pairs >= set(combinations(range(4), 2))
    for field, value in (("topics", 0), ("words", 0), ("taken", 5)):
        with pytest.raises(DataError, match=f"Topics.{field} = {value}"):
            Topics(**{"topics": 4, "words": 3, "taken": 2, field: value})


def test_masks_have_their_shares():
    rng, masking = np.random.default_rng(0), Masking(0.5, 0.2, 0.3)
    words = np.full((400, 500), 3)
    shown, asked = masking.hide(rng, words, 5)
    assert (shown[~asked] == 3).all()
    told = np.bincount(shown[asked], minlength=6) / asked.sum()
    np.testing.assert_allclose(asked.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(told, [0.06, 0.06, 0.06, 0.26, 0.06, 0.5], atol=0.01)
    np.testing.assert_array_equal(counts(np.array([[2, 0, 2]]), 4), [[1, 0, 2, 0]])
    np.testing.assert_array_equal(counts(np.array([[2, 0, 2]]), 4, np.array([[True, True, False]])), [[1, 0, 1, 0]])
    with pytest.raises(DataError, match="expected a share"):
        Masking(share=1.5)
    with pytest.raises(DataError, match="expected at most"):
        Masking(kept=0.6, random=0.6)


def test_blocks_of_long_documents():
    topics, masking = Topics(10, 10, 4), Masking()
    a, b, c = block_optimum(topics, masking)
    np.testing.assert_allclose([a, b, a - b, c], [0.108020, -0.007587, 1 / 8.65, 0.0542], atol=5e-5)
    np.testing.assert_allclose(long_optimum(topics, masking), block_matrix(topics, a, b, c), atol=1e-10)


def test_the_best_map_of_short_documents_is_the_mean_over_all_of_them():
    """Every document of three words, every mask and every random word, weighed one by one."""
    topics, masking, n = Topics(2, 2, 1), Masking(0.4, 0.2, 0.3), 3
    size, moment, answer = 4, np.zeros((5, 5)), np.zeros((4, 5))
    hidden = (1 - masking.kept - masking.random) * np.eye(5)[4]
    even = masking.random * np.append(np.full(4, 0.25), 0)

    def shown(word: int, asked: bool) -> np.ndarray:
        own = masking.kept * np.eye(5)[word] + hidden + even
        return own if asked else (1 - masking.share) * np.eye(5)[word] + masking.share * own

    for z in range(2):
        for words in product((2 * z, 2 * z + 1), repeat=n):
            for seen in product(range(5), repeat=n):
                p = np.prod([shown(w, i == 0)[x] for i, (w, x) in enumerate(zip(words, seen, strict=True))]) / 16
                m = np.eye(5)[list(seen)].mean(0)
                moment += p * np.outer(m, m)
                answer += p * np.outer(np.eye(size)[words[0]], m)
    np.testing.assert_allclose(optimum(topics, masking, n), answer @ np.linalg.inv(moment), atol=1e-10)


def test_the_best_attention_pays_least_over_all_documents_and_queries():
    topics, masking = Topics(4, 2, 2), Masking(0.3, 0.3, 0.2)
    best, w = best_attention(topics, masking), block_matrix(topics, *block_optimum(topics, masking))
    truth, right = 1 - masking.share * (1 - masking.kept), masking.kept / (masking.kept + masking.random)

    def paid(ratio: float, mask: float) -> float:
        total = 0.0
        for chosen in combinations(range(4), 2):
            there = np.isin(topics.of, chosen) / 4
            words = truth * there + masking.share * masking.random / 8
            m = np.append(words, masking.share * (1 - masking.kept - masking.random) * mask)
            for query in range(8):
                mass = m * np.where(np.append(topics.of, -1) == topics.of[query], ratio, 1.0)
                out = w @ (mass / mass.sum())
                known, guessed = right * there[query], (1 - right) / 8
                total += known * (out @ out - 2 * out[query]) + guessed * (out @ out - 2 * there @ out)
        return total

    masks = np.exp(np.linspace(-4, 3, 141))
    less, least, more = (min(paid(best * f, x) for x in masks) for f in (0.8, 1.0, 1.25))
    assert least < less and least < more


def test_attention_of_bags_is_attention_of_words(x64):
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=(5, 3))) for k in ("query", "key")}
    words = rng.integers(5, size=(2, 7))
    got = topic_structure.attended(params, jnp.asarray(counts(words, 5), jnp.float64) / 7, jnp.asarray(words))
    q, k = np.asarray(params["query"])[words], np.asarray(params["key"])[words]
    weights = np.exp(np.einsum("bqd,bkd->bqk", q, k) / np.sqrt(3))
    want = weights / weights.sum(-1, keepdims=True) @ np.eye(5)[words]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_kinds_of_pairs():
    topics = Topics(2, 2, 1)
    matrix = np.arange(16.0).reshape(4, 4)
    np.testing.assert_allclose(topic_structure.kinds(matrix, topics), [[2.5, 2.5, 4.5], [12.5, 12.5, 10.5]])
    np.testing.assert_allclose(topic_structure.sigmas(matrix, topics), 0.0, atol=1e-12)


def test_influence_under_a_sink():
    for tokens, layers in ((7, 1), (7, 4), (64, 6)):
        for s in (0.0, 0.3, 0.95):
            m = first_token_sinks.mixing(tokens, layers, s)
            got = first_token_sinks.influence(tokens, layers, s)
            np.testing.assert_allclose(got, (m.sum() - np.trace(m)) / (tokens - 1), rtol=1e-10)
    sinks = (0.0, 0.5, 0.8, 0.95)
    rounded = lambda xs, digits: [round(float(x), n) for x, n in zip(xs, digits, strict=True)]  # noqa: E731
    found = first_token_sinks.influence(64, 6, np.array(sinks))
    assert rounded(found, (1, 1, 2, 2)) == [40.4, 7.9, 1.66, 0.3]
    diagonal = [(np.trace(first_token_sinks.mixing(64, 6, s)) - 1) / 63 for s in sinks]
    assert rounded(diagonal, (2, 2, 2, 2)) == [1.59, 1.23, 1.08, 1.02]


def test_mixing_is_a_sum_over_paths():
    tokens, layers, s = 4, 3, 0.4
    want = np.zeros((tokens, tokens))
    for path in product(range(tokens), repeat=layers + 1):  # the token whose value each layer reads, last layer first
        weight = 1.0
        for i, j in pairwise(path):
            weight *= (i == j) + ((1 - s) / (i + 1) if 0 < j <= i else 0.0)
        want[path[0], path[-1]] += weight
    np.testing.assert_allclose(first_token_sinks.mixing(tokens, layers, s), want, atol=1e-12)


def test_documents_side_by_side_are_looked_at_as_each_alone():
    rng, model = np.random.default_rng(0), first_token_sinks.decoder(first_token_sinks.BUDGETS["smoke"], 5)
    params, chars = init(model, jax.random.key(0)), rng.integers(5, size=(2, 9)).astype(np.int32)
    other = (chars + rng.integers(1, 5, size=(2, 9)).astype(np.int32)) % 5
    look = jax.jit(lambda p, c, o: first_token_sinks.look(model, p, c, o, jnp.int32(4), 0.3))
    got = look(params, jnp.asarray(chars), jnp.asarray(other))
    documents = [c[d : d + 5].copy() for c in chars for d in (0, 4)]
    changed = [x.copy() for x in documents]
    for x, o in zip(changed, [o[d : d + 5] for o in other for d in (0, 4)], strict=True):
        x[1] = o[1]
    alone = jax.jit(taps.capture(lambda x: model.apply(params, x)[0], ("resid", "attn.probs")))
    kept, kept_new = (alone(jnp.asarray(np.stack([[5, *x[1:4]] for x in docs]))) for docs in (documents, changed))
    dropped, dropped_new = (alone(jnp.asarray(np.stack([x[1:] for x in docs]))) for docs in (documents, changed))
    weight = np.asarray(kept[1]["attn.probs"][0])[..., 0].mean(axis=(1, -1)).reshape(1, -1)
    close(got["weight"], weight)
    assert float(got["rate"]) == np.mean(weight > 0.3)
    for name, old, new, at in (("kept", kept, kept_new, [2, 3]), ("dropped", dropped, dropped_new, [1, 2])):
        before, after = (np.asarray(x[1]["resid"][-1])[:, :, at] for x in (old, new))
        moved = np.linalg.norm(after - before, axis=-1) / np.linalg.norm(before, axis=-1)
        close(got[name], moved.mean(axis=(1, 2)))
    targets = jnp.asarray(np.stack(documents)[:, 2:])
    close(got["known"], jnp.mean(nats(kept[0][:, 1:], targets)))
    close(got["lost"], jnp.mean(nats(dropped[0][:, :-1], targets)))


def test_attention_is_put_together_from_its_blocks():
    model = first_token_sinks.decoder(first_token_sinks.BUDGETS["smoke"], 5)
    params, tokens = init(model, jax.random.key(0)), jnp.arange(300, dtype=jnp.int32)[None] * 7 % 5
    seen = jax.jit(taps.capture(lambda x: model.apply(params, x)[0], ("attn.probs",)))
    sites = [seen(x)[1]["attn.probs"] for x in (tokens, tokens[:, :100])]
    far, near = (np.asarray(first_token_sinks.whole(x, t)) for x, t in zip(sites, (300, 100), strict=True))
    assert far.shape == (1, 1, 1, 300, 300) and not np.triu(far[0, 0, 0], 1).any()
    close(far.sum(-1), np.ones((1, 1, 1, 300)))
    close(far[..., :100, :100], near)


def test_regions_of_units_in_hulls():
    rng, up, bias = np.random.default_rng(0), np.eye(2), np.array([-0.5, -0.5])
    segment = np.array([[0.0, 0.2], [1.0, 0.2]])
    assert sorted(hull_regions([segment], up, bias).tolist()) == [[False, False], [True, False]]
    both = hull_regions([segment, np.array([[0.0, 0.0], [0.0, 0.4]])], up, bias)  # a square over both lines
    assert sorted(both.tolist()) == sorted(map(list, product((False, True), repeat=2)))
    for d, units in ((1, 4), (2, 5), (3, 5)):  # a simplex so large that every crossing of units is inside
        up, bias = rng.normal(size=(d, units)), rng.normal(size=units)
        large = 1e4 * np.concatenate([np.eye(d), -np.ones((1, d))])
        assert len(hull_regions([large], up, bias)) == general_position(units, d)
    with pytest.raises(ShapeError, match="hulls"):
        hull_regions([segment], np.eye(3), bias)


def test_regions_are_those_that_sampled_points_find():
    rng = np.random.default_rng(1)
    hulls, up, bias = [rng.normal(size=(t, 5)) for t in (2, 3)], rng.normal(size=(5, 6)), rng.normal(size=6)
    points = sum(rng.dirichlet(np.full(len(x), 0.6), size=200_000) @ x for x in hulls)
    found = {tuple(p) for p in hull_regions(hulls, up, bias).tolist()}
    assert found == {tuple(p) for p in np.unique(points @ up + bias > 0, axis=0).tolist()}
    assert 6 < len(found) <= general_position(6, sum_dimension(hulls)) == 42


def test_crossings_of_a_loop():
    angle, rng = 2 * np.pi * np.arange(2000) / 2000, np.random.default_rng(0)
    z = 3 * np.column_stack([np.cos(angle), np.sin(angle)])
    up, bias = rng.normal(size=(2, 50)), rng.normal(size=50)
    assert loop_crossings(z @ up > 0) == 100  # lines through the centre
    assert loop_crossings(z @ up + bias > 0) == 2 * np.sum(np.abs(bias) < 3 * np.linalg.norm(up, axis=0))
    np.testing.assert_allclose(loop_length(z, 0.0), 2 * np.pi, rtol=1e-12)
    np.testing.assert_allclose(loop_length(z, 4.0), 2 * np.pi * 3 / 5, rtol=1e-6)  # a parallel


def test_attention_stays_in_the_sum_of_hulls(x64):
    s, rng = attention_regions.BUDGETS["smoke"], np.random.default_rng(0)
    params = jax.tree.map(lambda w: w.astype(jnp.float64), init(attention_regions.layer(s, 2), jax.random.key(0)))
    x = rng.normal(size=(2, s.width))
    got = attention_regions.loop(s, params, x, 3.0)
    for i, angle in enumerate(2 * np.pi * np.arange(s.grid) / s.grid):
        last = np.sqrt(s.width) * np.array([np.cos(angle), np.sin(angle), *np.zeros(s.width - 2)])
        tokens = np.concatenate([x, last[None]])
        want = np.zeros(s.width)
        for h, values in enumerate(attention_regions.corners(params, tokens)):
            q, k = last @ np.asarray(params["query"])[:, h], tokens @ np.asarray(params["key"])[:, h]
            weights = np.exp(3 * k @ q / np.sqrt(s.head))
            want += weights @ values / weights.sum()
        np.testing.assert_allclose(got[i], want / np.sqrt(np.mean(want**2)), atol=1e-10)


def test_rank_correlation():
    a = np.array([1.0, 5.0, 2.0, 9.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1) and rank_correlation(a, -(a**3)) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(1.5 * 2))  # ties share their rank
    with pytest.raises(ShapeError, match="b: shape"):
        rank_correlation(a, a[:2])


def test_dimension_of_attention():
    s, rng = attention_regions.Settings(head=3, width=10), np.random.default_rng(0)
    for h, t, want in ((1, 2, 1), (1, 6, 3), (3, 3, 6), (4, 5, 10)):
        params = init(attention_regions.layer(s, h), jax.random.key(0))
        found = sum_dimension(attention_regions.corners(params, rng.normal(size=(t, 10))))
        assert found == want == attention_regions.dimensions(s, (h,), (t,))[0, 0]
