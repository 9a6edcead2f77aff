"""DocNADE against its conditionals in plain numpy, ctx-DocNADE's limits, the tree as a distribution, and the data."""

import gzip
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import noisy, wide_numpy
from tolerance import close

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder
from jaxlm.data.newsgroups import newsgroups_short, padded
from jaxlm.models.docnade import DocNADE, paths
from jaxlm.module import ConfigError, count

VOCAB, D, T = 11, 6, 9
PLAIN = DocNADE(VOCAB, D)
CONTEXT = DocNADE(VOCAB, D, mix=0.7, given=True, activation="tanh")
WORDS = np.random.default_rng(0).integers(0, VOCAB, (2, T)).astype(np.int32)
log_p = jax.jit(lambda model, params, words: model.conditionals(params, words), static_argnums=0)


@partial(jax.jit, static_argnums=0)
def everything(model, params):
    """Conditionals, nats of documents, and their mean without the first words by `loss`."""
    (total, size), _ = model.loss(params, WORDS[:, :-1], WORDS[:, 1:], jnp.ones((2, T - 1)))
    return model.conditionals(params, WORDS), model.document_nats(params, WORDS), total / size


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(p, words, width):
    """State after reading some vectors, one after the other."""
    h = c = np.zeros(width)
    for x in words:
        i, f, z, o = np.einsum("i,igm->gm", x, p["input"]) + np.einsum("i,igm->gm", h, p["hidden"]) + p["bias"]
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        h = sigmoid(o) * np.tanh(c)
    return h


def formula(model, p, document):
    """log p(v_i = w | v_<i), each place from all words before it: O(t^2)."""
    rows = []
    for i in range(len(document)):
        before = document[:i]
        a = p["bias"] + sum((p["embed"][w] for w in before), np.zeros(model.width))
        if model.mix:
            given = p["given"] if model.given else np.zeros_like(p["embed"])
            a = a + model.mix * lstm(p["lstm"], [p["embed"][w] + given[w] for w in before], model.width)
        h = sigmoid(a) if model.activation == "sigmoid" else np.tanh(a)
        score = h @ p["readout"] + p["readout_bias"]
        rows.append(score - np.log(np.exp(score).sum()) if not model.tree else tree(score, model.vocab))
    return np.stack(rows)


def tree(score, vocab):
    """log p of the words by walking down from the root; node n has the children 2n and 2n + 1."""

    def down(node, p):
        if node >= vocab:
            out[node - vocab] = p
        else:
            down(2 * node, p + np.log(sigmoid(-score[node - 1])))
            down(2 * node + 1, p + np.log(sigmoid(score[node - 1])))

    out = np.zeros(vocab)
    down(1, 0.0)
    return out


@pytest.mark.parametrize("model", [PLAIN, CONTEXT, DocNADE(VOCAB, D, tree=True)], ids=["plain", "context", "tree"])
def test_is_the_papers_formula(model):
    params = noisy(model)
    want = np.float32([formula(model, wide_numpy(params), d) for d in WORDS])
    told = -np.take_along_axis(want, WORDS[..., None], -1)[..., 0]
    got = everything(model, params)
    close(got, (want, told, told[:, 1:].mean()))
    close(np.exp(got[0]).sum(-1), np.ones((2, T), np.float32))


def test_without_context_it_is_docnade():
    """The weights of ctx-DocNADE with mix 0 are DocNADE's, and a mix that goes to 0 leads there."""
    params = noisy(CONTEXT)
    plain = DocNADE(VOCAB, D, activation="tanh")
    want = log_p(plain, {n: params[n] for n in plain.params()}, WORDS)
    got = log_p(DocNADE(VOCAB, D, mix=1e-8, activation="tanh"), params, WORDS)
    assert np.abs(np.asarray(got) - np.asarray(want)).max() <= 1e-6
    assert DocNADE(VOCAB, D, mix=0.0, activation="tanh") == plain
    assert np.abs(np.asarray(log_p(CONTEXT, params, WORDS)) - np.asarray(want)).max() > 1e-3


def test_only_context_knows_the_order():
    turned = WORDS.copy()
    turned[:, :-1] = turned[:, -2::-1]
    for model, knows in ((PLAIN, False), (CONTEXT, True)):
        params = noisy(model)
        a, b = (np.asarray(log_p(model, params, w))[:, -1] for w in (WORDS, turned))
        assert (np.abs(a - b).max() > 1e-3) == knows


def test_documents_are_cut_and_packed():
    params = noisy(CONTEXT)
    starts = np.zeros((2, T), bool)
    starts[0, 4] = True
    run = jax.jit(CONTEXT.apply)
    whole, last = run(params, WORDS, CONTEXT.start(params, 2), starts)
    close(whole[:1, 4:], run(params, WORDS[:1, 4:])[0])
    state, out = CONTEXT.start(params, 2), []
    for i in range(T):
        y, state = run(params, WORDS[:, i : i + 1], state, starts[:, i : i + 1])
        out.append(y)
    close((jnp.concatenate(out, 1), state), (whole, last))


def test_given_embeddings_are_not_trained():
    params = noisy(CONTEXT)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(CONTEXT.document_nats(p, WORDS))))(params)
    assert not np.any(grads["given"])
    assert all(np.any(g) for n in ("embed", "readout", "lstm") for g in jax.tree.leaves(grads[n]))


def test_a_tree_has_a_choice_less_than_words():
    for vocab in (2, 3, 8, 11, 1448):
        nodes, signs = paths(vocab)
        assert nodes.shape == (vocab, (2 * vocab - 1).bit_length() - 1)
        assert set(nodes[signs != 0].tolist()) == set(range(vocab - 1))
    assert count(DocNADE(VOCAB, D)) == 2 * VOCAB * D + VOCAB + D
    assert count(DocNADE(VOCAB, D, tree=True)) == VOCAB * D + (VOCAB - 1) * D + VOCAB - 1 + D


def test_what_cannot_be_is_named():
    for change, field in (
        ({"mix": -0.1}, "mix"),
        ({"given": True}, "given"),
        ({"activation": "relu"}, "activation"),
        ({"vocab": 1}, "vocab"),
    ):
        with pytest.raises(ConfigError, match=rf"DocNADE\.{field}"):
            DocNADE(**{"vocab": VOCAB, "width": D, **change})


def test_only_the_published_documents_are_taken(tmp_path):
    folder = tmp_path / "20newsgroups-short"
    folder.mkdir()
    for name, text in {"vocab_docnade.vocab": "a\nb\n", "training.csv": "x,a c b\nx,c\n"}.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DataError, match="train: 1 documents of 2 words, expected 1245 of 1448"):
        newsgroups_short(DataFolder(tmp_path))
    rows, there = padded((np.array([3]), np.array([1, 2])))
    assert rows.tolist() == [[3, 0], [1, 2]] and there.tolist() == [[True, False], [True, True]]


@pytest.mark.data
def test_reads_the_documents_in_their_order(data_folder):
    groups = newsgroups_short(data_folder)
    assert [groups.vocabulary[i] for i in groups.train[0]] == ["forsale", "pair", "sale", "brand", "opened", "rpi"]
    assert max(map(len, groups.train)) < 20 and max(d.max() for d in groups.test) < 1448
