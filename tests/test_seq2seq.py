"""Encoder and decoder with attention: Luong's equations in numpy, padding, cutting, causality, greedy decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.mixers.gru import GRU
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.seq2seq import BEGIN, END, Seq2Seq
from jaxlm.module import init
from jaxlm.papers import deep_regex

BODY = LSTM(6)
MODEL = Seq2Seq(11, 9, BODY, BODY)
APPLY, DECODE, ENCODE = jax.jit(MODEL.apply), jax.jit(MODEL.decode), jax.jit(MODEL.encode)


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    params = init(MODEL, jax.random.key(0))
    params = jax.tree.map(lambda p: 1.5 * p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
    source = rng.integers(3, 11, (3, 7)).astype(np.int32)
    source[1, :3] = source[2, :5] = 0
    target = rng.integers(3, 9, (3, 5)).astype(np.int32)
    target[0, 4], target[1, 2], target[1, 3:], target[2, 3], target[2, 4:] = END, END, 0, END, 0
    return params, jnp.asarray(source), jnp.asarray(target)


def test_attention_is_luongs(example):
    params, source, target = example
    p = jax.tree.map(np.float64, params)
    got = np.asarray(APPLY(params, source, target))
    run = jax.jit(BODY.apply)
    for row in range(3):  # each sentence alone, without what fills it up
        x = params["source"][source[row][source[row] > 0]][None]
        m, state = run(params["encoder"], x)
        before = [BEGIN, *target[row, :-1].tolist()]
        h, _ = run(params["decoder"], params["target"][jnp.asarray(before)][None], state)
        m, h = np.float64(m[0]), np.float64(h[0])
        for t in range(5):
            score = h[t] @ p["score"] @ m.T
            a = np.exp(score - score.max())
            c = a / a.sum() @ m
            want = np.tanh(c @ p["seen"] + h[t] @ p["own"]) @ p["readout"]
            close(got[row, t], np.float32(want))


def test_what_fills_up_a_row_changes_nothing(example):
    params, source, target = example
    want, more = APPLY(params, source, target), jnp.pad(source, ((0, 0), (4, 0)))
    close(APPLY(params, more, target), want)
    total, count = jax.jit(MODEL.loss)(params, source, target)
    longer = jax.jit(MODEL.loss)(params, more, jnp.pad(target, ((0, 0), (0, 3))))
    close(longer, (total, count))
    logs = np.asarray(jax.nn.log_softmax(want))
    by_hand = sum(-logs[b, t, target[b, t]] for b in range(3) for t in range(5) if target[b, t] > 0)
    close((total, count), (np.float32(by_hand), np.float32(5 + 3 + 4)))


def test_no_logit_sees_its_own_or_later_tokens(example):
    params, source, target = example
    want = np.asarray(APPLY(params, source, target))
    for t in (1, 4):
        got = np.asarray(APPLY(params, source, target.at[:, t].set(7)))
        assert np.array_equal(got[:, : t + 1], want[:, : t + 1])
        assert t == 4 or np.abs(got[:, t + 1] - want[:, t + 1]).max() > 1e-4


def test_decoding_may_be_cut_anywhere(example):
    params, source, target = example
    read, state, parts = ENCODE(params, source), None, []
    tokens = jnp.pad(target, ((0, 0), (1, 0)), constant_values=BEGIN)
    for cut in (tokens[:, :1], tokens[:, 1:2], tokens[:, 2:5]):
        logits, state = DECODE(params, read, cut, state)
        parts.append(logits)
    close(jnp.concatenate(parts, axis=1), APPLY(params, source, target))


def test_greedy_writes_the_most_probable_until_the_end(example):
    params, source, _ = example
    greedy = jax.jit(MODEL.greedy, static_argnums=2)
    ended = set()
    for seed in range(3):
        own = {**params, "readout": params["readout"] + jax.random.normal(jax.random.key(seed), (6, 9))}
        out = np.asarray(greedy(own, source, 5))
        best = np.asarray(jnp.argmax(APPLY(own, source, jnp.asarray(out)), axis=-1))
        for row, want in zip(out, best, strict=True):
            n = list(row).index(END) + 1 if END in row else 5
            ended.add(n)
            assert np.array_equal(row[:n], want[:n]) and not row[n:].any()
    assert len(ended) > 1


def test_every_weight_gets_a_gradient(example):
    params, source, target = example
    grads = jax.jit(jax.grad(lambda p: MODEL.loss(p, source, target)[0]))(params)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    assert not np.any(grads["source"][0])  # nothing is no word


def test_answers_are_judged_by_what_they_mean():
    truth = ".*(a|[0-9]).*"
    kinds = [deep_regex.judge(answer, truth) for answer in (truth, ".*([0-9]|a).*", ".*(a).*", ".*(a", "")]
    assert kinds == ["same", "equal", "unlike", "broken", "broken"]
    assert deep_regex.judge(".*a" + "." * 15, truth) == "broken"
    s = deep_regex.Settings(20, 5)
    pairs = deep_regex.regex_text.distinct(0, 20)
    source, target = deep_regex.arrays_of(s, pairs)
    assert (source[:, -1] > END).all() and ((target == END).sum(1) == 1).all()
    assert [deep_regex.text_of(row) for row in target] == [p.expression for p in pairs]
    assert deep_regex.text_of(target[0][: len(pairs[0].signs)]) == ""  # without an end nothing was said


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"decoder = "):
        Seq2Seq(11, 9, LSTM(6), GRU(6))
    with pytest.raises(ConfigError, match=r"writes = 3|reads = 2"):
        Seq2Seq(2, 9, BODY, BODY)
    with pytest.raises(ShapeError, match="source"):
        MODEL.encode({}, jnp.zeros((2, 3)))
