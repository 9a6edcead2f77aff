"""LM2 against its equations in plain numpy, and the limits of its three gates."""

import numpy as np
import pytest
from cells import apply, begin, noisy, wide_numpy
from tolerance import close

from jaxlm.memory.lm2 import LM2
from jaxlm.mixers.attention import Attention
from jaxlm.module import ConfigError

D, N, SIZE, T = 6, 9, 4, 11  # more slots than entries of one; two whole segments and an odd rest
BASE = Attention(D, heads=1)
MIXER = LM2(BASE, N, SIZE)
ALWAYS, NEVER = np.full(D, 200, np.float32), np.full(D, -200, np.float32)  # gates of exactly 1 and 0


@pytest.fixture(scope="module")
def example():
    return noisy(MIXER), np.random.default_rng(0).normal(size=(2, T, D)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def formula(params, x, bank):
    """One row x (t, d): what the bank adds to each token, token by token, and the banks between segments."""
    p, banks, added = wide_numpy(params), [np.asarray(bank, np.float64)], []
    for first in range(0, len(x), SIZE):
        e, m = np.asarray(x[first : first + SIZE], np.float64), banks[-1]
        scores = (e @ p["query"]) @ (m @ p["key"]).T / np.sqrt(D)
        a = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        read = a @ (m @ p["value"])
        added.append(sigmoid(read @ p["out"] + p["out_bias"]) * read)
        if len(e) < SIZE:
            break
        b = np.array([[a[t, n] / a[:, n].sum() for t in range(SIZE)] for n in range(len(m))])
        into = sigmoid(b @ e @ p["input"] + p["input_bias"])
        kept = sigmoid(b @ read @ p["forget"] + p["forget_bias"])
        banks.append(into * np.tanh(b @ read) + kept * m)
    return np.concatenate(added), banks


def alone(params, x):
    """The base mixer on each segment."""
    return np.concatenate([apply(BASE, params["attention"], x[:, i : i + SIZE])[0] for i in range(0, T, SIZE)], axis=1)


def test_reads_and_writes_as_the_paper_says(example):
    params, x = example
    y, state = apply(MIXER, params, x)
    want = [formula(params, row, np.resize(np.eye(D), (N, D))) for row in x]
    close(y, alone(params, x) + np.stack([added for added, _ in want]).astype(np.float32))
    close(state["memory"], np.stack([banks[-1] for _, banks in want]).astype(np.float32))
    assert np.abs(want[0][1][0] - want[0][1][-1]).max() > 0.1  # something was written


def test_where_tokens_and_slots_go_one_to_one_it_is_the_papers_update(example):
    params = example[0]
    order = np.random.default_rng(1).permutation(SIZE)
    bank = 40 * np.eye(SIZE, D, dtype=np.float32)
    p = {**params, "key": np.eye(D, dtype=np.float32), "query": np.eye(D, dtype=np.float32)}
    e = 30 * bank[order] / 40  # token t meets slot order[t] alone
    state = {**begin(LM2(BASE, SIZE, SIZE), p, 1), "memory": bank[None]}
    got = apply(LM2(BASE, SIZE, SIZE), p, e[None], state)[1]["memory"][0]
    read = (bank @ p["value"])[order]  # E_mem, token by token
    into, kept = sigmoid(e @ p["input"] + p["input_bias"]), sigmoid(read @ p["forget"] + p["forget_bias"])
    close(got[order], (into * np.tanh(read) + kept * bank[order]).astype(np.float32))


def test_a_closed_output_gate_leaves_the_base_mixer(example):
    params, x = example[0], example[1][:, : 2 * SIZE]
    base = apply(BASE, params["attention"], np.concatenate(np.split(x, 2, axis=1)))[0]  # the segments as rows
    y = apply(MIXER, {**params, "out_bias": NEVER}, x)[0]
    np.testing.assert_array_equal(y, np.concatenate(np.split(base, 2), axis=1))
    assert np.abs(y - apply(MIXER, params, x)[0]).max() > 0.01


def test_the_bank_starts_at_identity_and_closed_gates_keep_it(example):
    params, x = example
    start = begin(MIXER, params, 2)["memory"]
    np.testing.assert_array_equal(start, np.stack([np.resize(np.eye(D, dtype=np.float32), (N, D))] * 2))
    kept = apply(MIXER, {**params, "input_bias": NEVER, "forget_bias": ALWAYS}, x)[1]["memory"]
    np.testing.assert_array_equal(kept, start)


def test_can_be_cut_anywhere(example):
    params, x = example
    y, state = apply(MIXER, params, x[:, :7])
    more, state = apply(MIXER, params, x[:, 7:], state)
    close((np.concatenate([y, more], axis=1), state), apply(MIXER, params, x))


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"LM2\.slots = 0: expected at least 1"):
        LM2(BASE, 0)
    with pytest.raises(ConfigError, match=r"LM2\.segment"):
        LM2(BASE, 4, 0)
