"""Resona against its reading in numpy, its limits, cuts where chunks must be chosen, and its room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, begin, noisy, wide_numpy
from tolerance import close
from twin import sigmoid

from jaxlm.mixers.linear_attention import LinearAttention
from jaxlm.mixers.resona import Resona
from jaxlm.mixers.rglru import RGLRU
from jaxlm.module import ConfigError, ShapeError, count

BASE = LinearAttention(8)
MIXER = Resona(8, BASE, chunk=3, top=2)
T = 17


@pytest.fixture(scope="module")
def example():
    x = np.random.default_rng(1).normal(size=(2, T, 8)).astype(np.float32)
    starts = np.zeros((2, T), bool)
    starts[1, 5] = True
    return jax.tree.map(lambda p: 2 * p, noisy(MIXER)), x, starts


def document(mixer, p, x, o):
    """One document: x and the base's outputs (t, d) -> y, token by token, head by head, chunk by chunk."""
    p, x, o = wide_numpy(p), np.float64(x), np.float64(o)
    q, k, v = (np.einsum("td,dhk->htk", a, p[n]) for a, n in ((o, "query"), (x, "key"), (x, "value")))
    ys = []
    for t in range(len(x)):
        heads = []
        for qh, kh, vh in zip(q, k, v, strict=True):
            whole = [range(c, c + mixer.chunk) for c in range(0, t - mixer.chunk + 1, mixer.chunk)]
            whole.sort(key=lambda c, qh=qh, kh=kh, t=t: -(qh[t] @ kh[list(c)].mean(0)))
            read = [s for c in whole[: mixer.top] for s in c]
            e = np.exp(kh[read] @ qh[t] / np.sqrt(len(qh[t])))
            heads.append(e / e.sum() @ vh[read] if read else None)
        rho = sigmoid(o[t] @ p["gate"] + p["gate_bias"])
        found = heads[0] is not None
        ys.append((1 - rho) * o[t] + rho * np.einsum("hv,hvd->d", heads, p["out"]) if found else o[t])
    return np.array(ys)


def test_reads_the_chunks_whose_mean_keys_score_highest(example):
    params, x, starts = example
    y, o = apply(MIXER, params, x, None, starts)[0], apply(BASE, params["base"], x, None, starts)[0]
    close(y[0], document(MIXER, params, x[0], o[0]).astype(np.float32))
    parts = zip(np.split(x[1], [5]), np.split(np.asarray(o[1]), [5]), strict=True)
    close(y[1], np.concatenate([document(MIXER, params, *part) for part in parts]).astype(np.float32))
    np.testing.assert_array_equal(y[:, :3], o[:, :3])  # nothing has ended yet
    assert np.abs(y[:, 4:] - o[:, 4:]).max() > 0.1


@pytest.mark.parametrize("pieces", [(4, 12, 1), (1, 7, 9)])
def test_can_be_cut_where_there_are_more_chunks_than_are_read(example, pieces):
    params, x, starts = example
    state, ys = jax.tree.map(np.asarray, begin(MIXER, params, 2)), []
    state = {**state, **{n: np.zeros((2, 18, 2, 4), np.float32) for n in "kv"}}
    for end, n in zip(np.cumsum(pieces), pieces, strict=True):
        y, state = apply(MIXER, params, x[:, end - n : end], state, starts[:, end - n : end])
        ys.append(y)
    close((np.concatenate(ys, axis=1), state), apply(MIXER, params, x, None, starts))


def test_a_shut_gate_gives_the_base_exactly(example):
    params, x, starts = example
    shut = {**params, "gate": 0 * params["gate"], "gate_bias": np.full(8, -1e4, np.float32)}
    np.testing.assert_array_equal(
        apply(MIXER, shut, x, None, starts)[0], apply(BASE, params["base"], x, None, starts)[0]
    )


def test_with_chunks_of_one_token_that_are_all_read_it_is_attention_to_the_strict_past(example):
    params, x, _ = example
    mixer = Resona(8, BASE, chunk=1, top=T)
    p, o = wide_numpy(params), np.float64(apply(BASE, params["base"], x)[0])
    q, k, v = (np.einsum("btd,dhk->bhtk", a, p[n]) for a, n in ((o, "query"), (x, "key"), (x, "value")))
    e = np.tril(np.exp(np.einsum("bhtk,bhsk->bhts", q, k) / 2.0), -1)[:, :, 1:]
    c = np.einsum("bhts,bhsv,hvd->btd", e / e.sum(-1, keepdims=True), v, p["out"])
    rho = sigmoid(o @ p["gate"] + p["gate_bias"])[:, 1:]
    close(apply(mixer, params, x)[0][:, 1:], np.float32((1 - rho) * o[:, 1:] + rho * c))


def test_room_is_kept_in_whole_chunks_and_never_silently_passed(example):
    params, x, starts = example
    assert MIXER.state(2, 7)["k"].shape == (2, 9, 2, 4)
    state = {**begin(MIXER, params, 2), **{n: jnp.zeros((2, 9, 2, 4)) for n in "kv"}}
    y, state = apply(MIXER, params, x[:, :7], state, starts[:, :7])
    y, state = apply(MIXER, params, x[:, 7:14], state, starts[:, 7:14])
    assert np.isfinite(y[0, :2]).all() and np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1]).all()  # its document is shorter: it began later
    with pytest.raises(ShapeError, match="9 slots"):
        MIXER.apply(params, x, state)


def test_shapes_and_fields():
    assert Resona(16).inner == RGLRU(16) and Resona(16).growth == "quadratic"
    assert count(Resona(16)) == count(RGLRU(16)) + 5 * 16 * 16 + 16
    for bad, word in [({"chunk": 0}, "chunk = 0"), ({"top": 0}, "top = 0"), ({"heads": 3}, "heads = 3")]:
        with pytest.raises(ConfigError, match=word):
            Resona(8, **bad)
    with pytest.raises(ConfigError, match="base"):
        Resona(8, RGLRU(16))
