"""kNN-LM and MLP memory: search and vote in numpy, the limits that link them to their base, and step by step."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import noisy
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.generate import Sampling, generate, score
from jaxlm.layers.mlp import MLP, SwiGLU
from jaxlm.layers.norm import rms_norm
from jaxlm.memory import knn_lm
from jaxlm.memory.knn_lm import KNNLM, Approximate, Exact
from jaxlm.memory.mlp_memory import MLPMemory, MLPMemoryLM, imitation
from jaxlm.mixers.lstm import LSTM
from jaxlm.models import LM
from jaxlm.module import ConfigError, ShapeError

VOCAB, D, T = 11, 8, 8
PATTERN = (Block(LSTM(D), MLP(D, 12)), Block(LSTM(D), SwiGLU(D, 8)))
BASE = LM(VOCAB, D, Stack(PATTERN, 4))
ROWS = np.random.default_rng(0).integers(0, VOCAB, (5, T + 1)).astype(np.int32)
N = 5 * T
MODEL = KNNLM(BASE, weight=0.4, entries=N, neighbours=6, temperature=2.0, search=Exact(chunk=10))
apply = jax.jit(lambda model, *a: model.apply(*a), static_argnums=0)
read = jax.jit(lambda tap, at, p, z: knn_lm.activation(BASE, tap, at)(p, z, None, None), static_argnums=(0, 1))


@cache
def whole():
    """Weights of the base and its store: made at the first use, for every worker imports this file."""
    params = noisy(BASE)
    return {"base": params, "store": knn_lm.memorise(BASE, params, ROWS, batch=5)}


def test_keys_are_what_the_last_feed_forward_layer_reads():
    """Worked out from the residual stream: the norm of the last block's stream before its feed-forward layer."""
    (logits, _), stream = read("resid", -2, whole()["base"], ROWS[:, :-1])
    gain = whole()["base"]["body"]["block1"]["mlp_norm"]["gain"][1]
    close(whole()["store"]["keys"].reshape(5, T, D), rms_norm(stream, gain))
    np.testing.assert_array_equal(whole()["store"]["tokens"], ROWS[:, 1:].ravel())
    after = read("resid", 7, whole()["base"], ROWS[:, :-1])[1]
    close(rms_norm(after, whole()["base"]["norm"]["gain"]) @ whole()["base"]["embed"].T, logits)
    assert knn_lm.width_of(BASE, "mlp.hidden") == 8


def test_no_key_tells_across_documents():
    starts = np.zeros(ROWS.shape, bool)
    starts[1, 3] = True
    store = knn_lm.memorise(BASE, whole()["base"], ROWS, starts, batch=5)
    kept = ~starts[:, 1:].ravel()
    np.testing.assert_array_equal(store["tokens"], ROWS[:, 1:].ravel()[kept])
    alone = knn_lm.memorise(BASE, whole()["base"], np.pad(ROWS[1:, 3:], [(0, 1), (0, 3)]), batch=5)
    close(store["keys"][T + 2], alone["keys"][0])


def twin(x, logits, weight, temperature, k):
    """p of one token in float64."""
    keys, tokens = np.float64(whole()["store"]["keys"]), np.asarray(whole()["store"]["tokens"])
    far = np.square(keys - np.float64(x)).sum(1)
    near = np.argsort(far, kind="stable")[:k]
    share, p = np.exp(-(far[near] - far.min()) / temperature), np.zeros(VOCAB)
    for i, s in zip(near, share, strict=True):
        p[tokens[i]] += s / share.sum()
    base = np.exp(np.float64(logits) - np.float64(logits).max())
    return weight * p + (1 - weight) * base / base.sum()


def test_is_the_papers_formula():
    tokens = np.random.default_rng(1).integers(0, VOCAB, (5, T)).astype(np.int32)
    (logits, _), x = read("mlp.in", -1, whole()["base"], tokens)
    got, end = apply(MODEL, whole(), tokens)
    want = [[twin(x[b, t], logits[b, t], 0.4, 2.0, 6) for t in range(T)] for b in range(5)]
    close(jnp.exp(got), np.float32(want))
    head, middle = apply(MODEL, whole(), tokens[:, :4], MODEL.start(whole(), 5, T))
    tail, last = apply(MODEL, whole(), tokens[:, 4:], middle)
    close(jnp.concatenate([head, tail], 1), got)
    close(last, end)


def test_without_weight_it_is_the_base_to_the_bit():
    same = dataclasses.replace(MODEL, weight=0.0)
    np.testing.assert_array_equal(apply(same, whole(), ROWS[:, :-1])[0], apply(BASE, whole()["base"], ROWS[:, :-1])[0])


def test_votes_have_their_limits():
    far, tokens = jnp.array([[0.5, 1.0, 1.0, 3.0]]), jnp.array([[2, 4, 4, 1]])
    close(knn_lm.vote(far, tokens, 5, 1e-3), np.float32([[0, 0, 1, 0, 0]]))  # the nearest neighbour's token
    close(knn_lm.vote(far, tokens, 5, 1e6), np.float32([[0, 0.25, 0.25, 0, 0.5]]))  # the tokens' frequencies
    e = np.exp([-0.5, -1, -1, -3])
    close(knn_lm.vote(far, tokens, 5, 1.0), np.float32([np.bincount([2, 4, 4, 1], e / e.sum(), 5)]))


@pytest.mark.parametrize("search", [Exact(), Exact(100), Exact(33), Exact(1), Approximate()], ids=str)
def test_search_finds_the_nearest(search):
    draw = np.random.default_rng(2)
    keys, queries = draw.normal(size=(301, 4)).astype(np.float32), draw.normal(size=(9, 4)).astype(np.float32)
    got = jax.jit(lambda q, k: search.nearest(q, k, 5))(queries, keys)
    far = np.square(queries[:, None] - keys[None]).sum(-1)
    np.testing.assert_array_equal(got, np.argsort(far, axis=1)[:, :5])
    close(knn_lm.distances(queries, keys, got), np.sort(far, axis=1)[:, :5])
    assert np.isinf(knn_lm.distances(queries, keys, jnp.full((9, 1), -1))).all()


def test_faiss_finds_the_nearest():
    pytest.importorskip("faiss", reason="the extra `faiss`")
    draw = np.random.default_rng(2)
    keys, queries = draw.normal(size=(2000, 4)), draw.normal(size=(9, 4))
    want = np.argsort(np.square(queries[:, None] - keys[None]).sum(-1), axis=1)[:, :5]
    np.testing.assert_array_equal(knn_lm.faiss_nearest(queries, keys, 5), want)
    np.testing.assert_array_equal(knn_lm.faiss_nearest(queries, keys, 5, clusters=8, probes=8), want)
    near = knn_lm.faiss_nearest(queries, keys, 5, clusters=8, probes=2)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(near, want, strict=True)]) > 0.5


def test_it_is_scored_and_sampled_from_as_any_model():
    logits = apply(MODEL, whole(), ROWS[:, :-1])[0]
    want = -np.take_along_axis(np.asarray(logits), ROWS[:, 1:, None], -1)[..., 0]
    close(score(MODEL, whole(), ROWS)[:, 1:], want)
    (total, weight), _ = jax.jit(MODEL.loss)(whole(), ROWS[:, :-1], ROWS[:, 1:], jnp.ones((5, T)))
    close(total / weight, want.mean())
    one = dataclasses.replace(MODEL, weight=1.0, neighbours=1)  # copies what follows the nearest key: its own text
    text, _ = generate(one, whole(), ROWS[:1, :1], 4, sampling=Sampling(temperature=0))
    np.testing.assert_array_equal(text[0], ROWS[0, 1:5])


def test_mlp_memory_is_its_formula():
    memory = MLPMemory(D, VOCAB, depth=2, hidden=5, activation="relu")
    model = MLPMemoryLM(BASE, weight=0.3, at=5, memory=memory)
    params = {"base": whole()["base"], "memory": noisy(memory, 3)}
    (logits, _), x = read("resid", 5, whole()["base"], ROWS[:, :-1])
    x, p = np.float64(x), jax.tree.map(np.float64, params["memory"])
    norm = lambda x, g: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * g  # noqa: E731
    for n in ("layer0", "layer1"):
        m = p[n]["mlp"]
        x = x + np.maximum(norm(x, p[n]["norm"]["gain"]) @ m["up"] + m["up_bias"], 0) @ m["down"] + m["down_bias"]
    own, base = np.exp(norm(x, p["norm"]["gain"]) @ p["readout"]), np.exp(np.float64(logits))
    want = 0.3 * own / own.sum(-1, keepdims=True) + 0.7 * base / base.sum(-1, keepdims=True)
    close(jnp.exp(apply(model, params, ROWS[:, :-1])[0]), np.float32(want))


def test_imitation_is_divergence_and_cross_entropy():
    draw = np.random.default_rng(4)
    logits, tokens, targets = draw.normal(size=(3, VOCAB)), draw.integers(0, VOCAB, (3, 4)), np.array([1, 5, 0])
    shares = draw.dirichlet(np.ones(4), 3)
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = np.stack([np.bincount(t, s, VOCAB) for t, s in zip(tokens, shares, strict=True)])
    want = 0.7 * -(p * np.log(q)).sum(1) + 0.3 * -np.log(q[range(3), targets])
    args = jnp.float32(logits), jnp.float32(shares), jnp.asarray(tokens), jnp.asarray(targets)
    close(imitation(*args, 0.7), np.float32(want))


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"KNNLM\.neighbours = 41"):
        dataclasses.replace(MODEL, neighbours=41)
    with pytest.raises(ConfigError, match=r"KNNLM\.weight = 1.5"):
        dataclasses.replace(MODEL, weight=1.5)
    with pytest.raises(ConfigError, match=r"KNNLM\.temperature = 0"):
        dataclasses.replace(MODEL, temperature=0)
    with pytest.raises(ConfigError, match=r"MLPMemoryLM\.memory"):
        MLPMemoryLM(BASE, memory=MLPMemory(D, VOCAB + 1))
    with pytest.raises(ShapeError, match=r"rows \(5, 1\)"):
        knn_lm.memorise(BASE, whole()["base"], ROWS[:, :1])
