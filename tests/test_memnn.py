"""Memory Networks against their formulas in plain numpy: scores, losses, the selection pass; then trained."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerance import close

from jaxlm.data.babi import Vocabulary, encode
from jaxlm.data.bags import bags, facts, neighbours
from jaxlm.data.world import World, stories
from jaxlm.memory.hashing import Index, buckets, candidates, cluster_hash, word_hash
from jaxlm.memory.memnn import FACT, MemNN, Stories
from jaxlm.memory.memnn_rnn import RNNResponse
from jaxlm.memory.segmenter import Segmenter
from jaxlm.module import ConfigError, ShapeError, count, init
from jaxlm.train.fit import fit

V, N, B, S = 7, 5, 3, 6
PLAIN = MemNN(V, N, hops=2)
VARIANTS = {
    "plain": PLAIN,
    "time": dataclasses.replace(PLAIN, time=True),
    "context": dataclasses.replace(PLAIN, context=True),
    "fixed": dataclasses.replace(PLAIN, match="fixed", lam=0.3),
    "learned": dataclasses.replace(PLAIN, match="learned", lam=0.2),
    "features": dataclasses.replace(PLAIN, match="features"),
    "all": MemNN(V, N, 3, time=True, context=True, match="features"),
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def case(request):
    return example(request.param)


def example(model, seed=0):
    """(model, params, stories, wrong facts, wrong answers, known), all numpy but the model."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.asarray, init(model, jax.random.key(seed)))
    question, memory = rng.integers(0, 3, (B, V)), rng.integers(0, 3, (B, S, V))
    sides = rng.dirichlet(np.ones(V), (2, V)).astype(np.float32)
    question, memory = (np.asarray(model.read(x.astype(np.float32), sides)) for x in (question, memory))
    count = np.array([S, 4, 2], np.int32)
    slots = (rng.random((2, B, model.hops)) * count[None, :, None]).astype(np.int32)
    words = rng.permuted(np.tile(np.arange(V, dtype=np.int32), (B, 1)), axis=1)
    known = (rng.random((B, V)) < 0.7).astype(np.float32)
    return model, params, Stories(question, memory, count, slots[0], words[:, 0]), slots[1], words[:, 1], known


class Formula:
    """The paper's Φ and U, one row at a time, in float64: U is n x D, Φ has one block of D per slot of a word."""

    def __init__(self, model, table, known=None):
        self.model, self.known = model, np.ones(V) if known is None else known
        blocks = [*table["slots"]] + [table[k] for k in ("context", "time", "match") if k in table]
        self.u = np.concatenate(blocks).astype(np.float64).T
        self.sizes = [len(b) for b in blocks]
        self.names = ["y", "x", "m"] + [k for k in ("context", "time", "match") if k in table]
        self.lam = float(table.get("lam", model.lam)) if model.match in ("fixed", "learned") else 0.0

    def phi(self, **parts):
        return np.concatenate([parts.get(n, np.zeros(s)) for n, s in zip(self.names, self.sizes, strict=True)])

    def x(self, question, found):
        past = np.sum([np.zeros_like(question), *found], 0)
        self.bag = (question + past)[:V]
        return self.phi(x=question[:V] * self.known, m=past[:V] * self.known, context=(question + past)[V:])

    def y(self, fact):
        return self.phi(y=fact[:V] * self.known, context=fact[V:], match=np.minimum(self.bag, fact[:V]))

    def s(self, x, fact):
        return x @ self.u.T @ self.u @ self.y(fact) + self.lam * self.bag @ fact[:V]

    def s_time(self, x, y, other, memory, age):
        after = np.array([age > y, age > other, y > other], float)
        time = x @ self.u.T @ self.u @ self.phi(time=after)
        return self.s(x, memory[y]) - self.s(x, memory[other]) + time


def words_of(model):
    return np.asarray(model.read(np.eye(V, dtype=np.float32)))


def gaps(model, params, told, wrong, wrong_answer, known):
    """What must reach the margin, row by row: equations 6 to 8, with time the two a fact of section 3.4."""
    out = []
    for b in range(B):
        x, memory, right = told.question[b], told.memory[b], told.facts[b]
        o, r = (Formula(model, params[part], known[b]) for part in ("output", "response"))
        found = []
        for hop in range(model.hops):
            i, j = right[hop], wrong[b, hop]
            phi = o.x(x, memory[right[:hop]])
            age = right[hop - 1] if hop else S
            if i != j and model.time:
                found += [o.s_time(phi, i, j, memory, age), -o.s_time(phi, j, i, memory, age)]
            elif i != j:
                found.append(o.s(phi, memory[i]) - o.s(phi, memory[j]))
        phi, words = r.x(x, memory[right]), words_of(model)
        out.append([*found, r.s(phi, words[told.answer[b]]) - r.s(phi, words[wrong_answer[b]])])
    return out


def looked_up(model, params, told, known):
    """The hops by algorithm 1, or by the argmax."""
    out = []
    for b in range(B):
        memory, found, o = told.memory[b], [], Formula(model, params["output"], known[b])
        for hop in range(model.hops):
            phi, age = o.x(told.question[b], memory[found]), found[-1] if hop else S
            if not model.time:
                found.append(int(np.argmax([o.s(phi, memory[i]) for i in range(told.count[b])])))
                continue
            t = 0
            for i in range(1, told.count[b]):
                t = i if o.s_time(phi, i, t, memory, age) > 0 else t
            found.append(t)
        out.append(found)
    return np.array(out)


def test_the_margin_loss_is_the_papers(case):
    model, params, told, wrong, wrong_answer, known = case
    rows = gaps(model, params, told, wrong, wrong_answer, known)
    want = np.float32([sum(max(0, model.margin - gap) for gap in row) for row in rows])
    close(jax.jit(model.loss)(params, told, wrong, wrong_answer, known), want)
    assert (want > 0).any()


def test_lookup_and_response_are_the_papers(case):
    model, params, told, _, _, known = case
    reply = jax.jit(model.apply)(params, told.question, told.memory, told.count, known)
    np.testing.assert_array_equal(reply.facts, looked_up(model, params, told, known))
    want = []
    for b in range(B):
        r = Formula(model, params["response"], known[b])
        phi = r.x(told.question[b], told.memory[b][np.asarray(reply.facts[b])])
        want.append([r.s(phi, w) for w in words_of(model)])
    close(reply.scores, np.float32(want))


def test_dimensions_of_the_paper():
    assert count(PLAIN) == 2 * N * 3 * V
    assert count(VARIANTS["context"]) == 2 * N * 5 * V
    assert count(VARIANTS["time"]) == 2 * N * 3 * V + 3 * N
    assert count(VARIANTS["features"]) == 2 * N * 4 * V


def test_without_time_features_the_pass_is_the_argmax():
    """Law 8: s_Ot is a difference of scores then; the first of equals wins."""
    model, params, told, *_ = example(VARIANTS["time"])
    none = {**params, "output": {**params["output"], "time": np.zeros((3, N), np.float32)}}
    memory = told.memory[:, [0, 0, 1, 2, 1, 0]]  # with ties
    full = np.full(B, S, np.int32)
    plain = {"output": {"slots": params["output"]["slots"]}}
    want = PLAIN.output(plain, told.question, memory, full)
    np.testing.assert_array_equal(model.output(none, told.question, memory, full), want)
    assert set(np.ravel(want)) <= {0, 2, 3}


@pytest.mark.parametrize("name", ["plain", "time"])
def test_the_loss_is_zero_exactly_when_every_margin_holds(name):
    """Law 9."""
    model, params, *drawn, _ = example(VARIANTS[name])
    rows = [min(row) for row in gaps(model, params, *drawn, np.ones((B, V)))]
    below, above = (dataclasses.replace(model, margin=min(rows) + d) for d in (-1e-3, 1e-3))
    np.testing.assert_array_equal(below.loss(params, *drawn), 0)
    loss = np.asarray(above.loss(params, *drawn))
    assert loss[np.argmin(rows)] > 0 and (loss > 0).sum() == 1


def test_the_terms_of_lookup_leave_the_response_alone():
    """Law 9: U_R has no gradient where the terms of O alone are active."""
    model, params, told, wrong, _, _ = example(PLAIN)
    sure = np.zeros((3, V, N), np.float32)
    sure[1:, :, 0] = 1  # any bag of x points one way, and so do the answers
    sure[0, told.answer, 0] = 1
    others = np.array([w for w in range(V) if w not in told.answer])[:1].repeat(B)
    params = {**params, "response": {"slots": sure}}
    value, grads = jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.loss(p, told, wrong, others))))(params)
    assert value > 0 and np.abs(grads["output"]["slots"]).max() > 0
    np.testing.assert_array_equal(grads["response"]["slots"], 0)


def test_a_wrong_sample_is_never_right_and_covers_the_rest():
    told = example(PLAIN)[2]._replace(count=np.array([S, 4, 1], np.int32))
    told = told._replace(facts=np.minimum(told.facts, told.count[:, None] - 1))
    draw = jax.jit(jax.vmap(lambda k: PLAIN.sample(k, told)))
    slots, words = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 500)))
    for b in range(B):
        for hop in range(2):
            others = set(range(told.count[b])) - {told.facts[b, hop]}
            assert set(slots[:, b, hop]) == (others or {told.facts[b, hop]})
        assert set(words[:, b]) == set(range(V)) - {told.answer[b]}


def test_facts_are_written_in_order_and_read_back():
    model, _, told, *_ = example(PLAIN)
    memory = model.start(B, S)
    for slot in range(S):
        memory = model.write(memory, told.memory[:, slot])
    np.testing.assert_array_equal(memory["facts"], told.memory)
    np.testing.assert_array_equal(memory["count"], S)
    assert np.isnan(model.write(memory, told.memory[:, 0])["facts"]).all()  # never a silent loss


def test_facts_behind_the_count_are_not_seen(case):
    model, params, told, _, _, known = case
    noise = np.where(np.arange(S)[None, :, None] < told.count[:, None, None], told.memory, 50)
    one, two = (jax.jit(model.output)(params, told.question, m, told.count, known) for m in (told.memory, noise))
    np.testing.assert_array_equal(one, two)


def test_an_unseen_word_is_its_context_alone():
    model, params, told, *_ = example(VARIANTS["context"])
    known = np.ones(V, np.float32)
    known[2] = 0
    other = jax.tree.map(np.array, params)
    for table in other.values():
        table["slots"][:, 2] += 1
    reply = [model.apply(p, told.question, told.memory, told.count, known) for p in (params, other)]
    jax.tree.map(np.testing.assert_array_equal, *reply)
    share = np.mean(model.forget(jax.random.key(0), 500, 0.2))
    assert 0.75 < share < 0.85


def test_errors_name_the_field():
    with pytest.raises(ConfigError, match=r"MemNN\.hops"):
        MemNN(4, hops=0)
    with pytest.raises(ConfigError, match=r"MemNN\.match"):
        MemNN(4, match="some")
    with pytest.raises(ShapeError, match=r"MemNN\.words"):
        PLAIN.read(np.zeros((2, V + 1), np.float32))
    with pytest.raises(ConfigError, match="clusters"):
        cluster_hash(jax.random.key(0), np.zeros((3, 2), np.float32), 4)


# hashing


def test_one_cluster_is_exhaustive_search():
    """Law 11."""
    for name in ("plain", "time"):
        model, params, told, *_ = example(VARIANTS[name])
        labels = cluster_hash(jax.random.key(0), params["output"]["slots"][FACT], 1)
        assert set(np.asarray(labels)) == {0}
        found = candidates(labels, 1, told.question, told.memory)
        got = model.apply(params, told.question, told.memory, told.count, candidates=found)
        want = model.apply(params, told.question, told.memory, told.count)
        jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", ["plain", "time"])
def test_only_candidates_are_looked_up(name):
    model, params, told, *_ = example(dataclasses.replace(VARIANTS[name], hops=1))
    open_ = np.zeros((B, S), bool)
    open_[0, [1, 3]] = open_[1, 2] = True  # none in the last row: then all
    found = np.asarray(model.output(params, told.question, told.memory, told.count, candidates=open_))[:, 0]
    assert found[0] in (1, 3) and found[1] == 2
    assert found[2] == model.output(params, told.question, told.memory, told.count)[2, 0]


def test_buckets_share_words_or_clusters():
    rng = np.random.default_rng(0)
    words = rng.integers(1, 30, (40, 3))
    sentences = bags(words, 30)
    for labels in (word_hash(30), jnp.asarray(rng.integers(0, 6, 30))):
        size = int(labels.max()) + 1
        mask = np.asarray(candidates(labels, size, sentences[:1], sentences[None]))[0]
        own = {int(labels[w]) for w in words[0]}
        np.testing.assert_array_equal(mask, [bool(own & {int(labels[w]) for w in s}) for s in words])
        index = Index.of(labels, list(words))
        np.testing.assert_array_equal(index.candidates(words[0]), np.flatnonzero(mask))
        assert mask.sum() < 40 and buckets(labels, sentences, size).shape == (40, size)


def test_clusters_gather_what_lies_together():
    rng = np.random.default_rng(0)
    group = np.arange(24) % 3
    points = (10 * np.eye(3)[group] + rng.normal(size=(24, 3))).astype(np.float32)
    labels = np.asarray(jax.jit(cluster_hash, static_argnums=2)(jax.random.key(0), points, 3))
    assert len({(g, c) for g, c in zip(group, labels, strict=True)}) == 3
    same = cluster_hash(jax.random.key(0), np.zeros((5, 2), np.float32), 2)  # no distance at all
    assert set(np.asarray(same)) == {0}


# the segmenter


def test_segmenter_scores_and_losses():
    model = Segmenter(6, 4, margin=0.3)
    params = jax.tree.map(np.asarray, init(model, jax.random.key(0)))
    tokens = np.array([[1, 2, 3, 4, 5], [5, 5, 2, 0, 0], [3, 0, 0, 0, 0]], np.int32)
    truth = np.array([True, False, True])

    def seg(words):
        return params["weight"].astype(float) @ params["embed"].astype(float).T @ bags(np.array([words]), 6)[0]

    rows = [[int(w) for w in row if w] for row in tokens]
    best = [max(seg(r[i:j]) for i in range(len(r)) for j in range(i + 1, len(r) + 1)) for r in rows]
    close(model.best(params, tokens), np.float32(best))
    whole = np.array([seg(r) for r in rows])
    for got, scores in ((model.loss, np.array(best)), (model.exact_loss, whole)):
        want = np.maximum(0, 0.3 + np.where(truth, -scores, scores))
        close(got(params, tokens, truth), np.float32(want))


def test_segmenter_cuts_and_writes():
    model = Segmenter(4, 1)
    params = {"embed": np.float32([[9], [-1], [1.5], [0.05]]), "weight": np.ones(1, np.float32)}
    tokens = np.array([[2, 1, 2, 2, 3, 3, 2, 1]], np.int32)
    cuts = np.asarray(model.cuts(params, tokens))[0]
    assert cuts.tolist() == [True, False, True, True, False, False, True, False]
    written, segments = model.bags(params, tokens, 5)
    assert segments[0] == 4
    np.testing.assert_array_equal(written[0], [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 2], [0, 0, 0, 0]])
    np.testing.assert_array_equal(model.bags(params, tokens, 2)[0], written[:, :2])


# trained


WORLD = World(actors=("fred", "mary"), things=("milk",), rooms=("kitchen", "office", "garden"))


@pytest.fixture(scope="module")
def small():
    """(vocabulary, arrays, facts): 400 questions to train on, 200 to test, 200 with joe in place of fred."""
    asked = [
        q
        for seed, actors, count in ((0, WORLD.actors, 150), (1, ("joe", "mary"), 50))
        for q in stories(dataclasses.replace(WORLD, actors=actors), seed, count, 8, 4, ("before", "object"), delta=3)
    ]
    vocabulary = Vocabulary.of(asked)
    return vocabulary, encode(asked, vocabulary, 8), facts(asked, 2, 8)


def told(model, small, rows, sides=None):
    vocabulary, arrays, slots = small
    read = partial(model.read, neighbours=sides)
    table = read(bags(arrays.sentences, len(vocabulary)))
    question = read(bags(arrays.questions, len(vocabulary)))
    slots = jnp.asarray(slots[:, : model.hops])
    return jax.tree.map(
        lambda x: jnp.asarray(x)[rows],
        Stories(question, table[arrays.stories], arrays.lengths, slots, arrays.answers),
    )


def train(model, stories, steps, rate=0.02, drop=0.0, words=None):
    def loss(params, key, step):
        rows, wrong, forget = jax.random.split(key, 3)
        drawn = jax.random.randint(rows, (10,), 0, len(stories.count))
        batch = jax.tree.map(lambda x: x[drawn], stories)
        known = model.forget(forget, 10, drop) if drop else None
        return jnp.sum(model.loss(params, batch, *model.sample(wrong, batch), known, words))

    found = fit(jax.random.key(0)[None], partial(init, model), loss, optax.sgd(rate), steps=steps, every=steps)
    return jax.tree.map(lambda x: x[0], found.params)


def accuracy(model, params, asked, known=None, words=None):
    reply = jax.jit(model.apply)(params, asked.question, asked.memory, asked.count, known, words)
    return float(np.mean(np.argmax(reply.scores, -1) == asked.answer))


def test_two_facts_need_two_hops(small):
    found = {}
    for hops in (1, 2):
        model = MemNN(len(small[0]), 24, hops, time=True)
        params = train(model, told(model, small, np.arange(400)), 1500)
        found[hops] = accuracy(model, params, told(model, small, np.arange(400, 600)))
    assert found[2] > 0.9 and found[1] < 0.7, found


def test_facts_about_a_name_never_seen_are_found(small):
    """Joe occurs in no training story; trained with words left out at random, the model reads joe by his neighbours."""
    vocabulary, arrays, _ = small
    sides = neighbours(np.concatenate([arrays.sentences, arrays.questions]), len(vocabulary))
    model = MemNN(len(vocabulary), 24, 2, time=True, context=True)
    words = model.read(np.eye(len(vocabulary), dtype=np.float32), sides)
    known = np.float32(np.arange(len(vocabulary)) != vocabulary.ids["joe"])
    params = train(model, told(model, small, np.arange(400), sides), 1500, 0.004, 0.2, words)
    asked = told(model, small, np.arange(600, 800), sides)
    found = jax.jit(model.output)(params, asked.question, asked.memory, asked.count, known)
    assert np.mean(found == asked.facts) > 0.7  # one fact of up to eight, by chance below 0.3


def test_segmenter_learns_where_statements_end(small):
    """Whole statements are facts, their beginnings are not; then a stream without stops is cut as it was written."""
    vocabulary, arrays, _ = small
    whole = arrays.sentences[1:]
    begun = np.concatenate([np.where(np.arange(whole.shape[1]) < j, whole, 0) for j in range(1, whole.shape[1])])
    begun = np.unique(begun[~(begun[:, None] == whole[None]).all(-1).any(1)], axis=0)
    tokens = jnp.asarray(np.concatenate([whole, begun]))
    truth = jnp.arange(len(tokens)) < len(whole)
    model = Segmenter(len(vocabulary), 20)

    def loss(params, key, step):
        return jnp.mean(model.exact_loss(params, tokens, truth))

    found = fit(jax.random.key(1)[None], partial(init, model), loss, optax.adam(0.01), steps=300, every=300)
    params = jax.tree.map(lambda x: x[0], found.params)
    story = arrays.sentences[arrays.stories[0][: arrays.lengths[0]]]
    stream = np.array([w for sentence in story for w in sentence if w], np.int32)
    written, segments = model.bags(params, stream[None], len(story))
    assert segments[0] == len(story)
    np.testing.assert_array_equal(written[0], bags(story, len(vocabulary)))


# R as a recurrent net


def lstm_logits(params, tokens):
    """Logits after each word of one row, gate by gate."""
    p = jax.tree.map(np.float64, params)
    h = c = np.zeros(p["embed"].shape[1])
    out = []
    for word in tokens:
        u = np.einsum("i,ign->gn", p["embed"][word], p["body"]["input"])
        gates = u + np.einsum("i,ign->gn", h, p["body"]["hidden"]) + p["body"]["bias"]
        i, f, _, o = 1 / (1 + np.exp(-gates))
        c = f * c + i * np.tanh(gates[2])
        h = o * np.tanh(c)
        out.append(h @ p["readout"])
    return np.stack(out)


def test_the_recurrent_response_reads_then_writes():
    model = RNNResponse(6, 5)
    params = jax.tree.map(lambda x: 3 * np.asarray(x), init(model, jax.random.key(2)))
    context = np.array([[0, 1, 2, 3], [4, 5, 1, 2]], np.int32)
    answer = np.array([[3, 0, 0], [2, 5, 0]], np.int32)
    want, written = [], []
    for x, a in zip(context, answer, strict=True):
        logits = lstm_logits(params, [*x, *a])[len(x) - 1 : -1]
        nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), a]
        want.append(nats[: np.argmax(a == 0) + 1].sum())  # what follows the end is not counted
        said = []
        for _ in range(4):
            ended = 0 in said
            said.append(0 if ended else int(lstm_logits(params, [*x, *said])[-1].argmax()))
        written.append(said)
    close(jax.jit(model.loss)(params, context, answer), np.float32(want))
    close(jax.jit(model.apply)(params, context), np.float32([lstm_logits(params, x)[-1] for x in context]))
    np.testing.assert_array_equal(jax.jit(model.write, static_argnums=2)(params, context, 4), written)
    assert np.any(written)
