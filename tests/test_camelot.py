"""CAMELoT against its READ and WRITE in plain numpy, the limits of its novelty threshold, and the model without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, noisy, wide_numpy
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import SwiGLU
from jaxlm.memory.camelot import CamelotAttention, memory_specs, write, write_all
from jaxlm.mixers.attention import Attention
from jaxlm.models import LM
from jaxlm.module import ConfigError, init, materialize

BASE = Attention(8, heads=4, kv_heads=2, head=4)
MIXER = CamelotAttention(BASE, slots=5, segment=6, novelty=0.5, nearest=1, behind=3)
SLOTS, T = 5, 23  # three whole segments of six and an odd rest


def empty(batch=1, k=3, v=2):
    return materialize(memory_specs(batch, SLOTS, 1, k, v), jax.random.key(0))


def tokens(t=T, batch=1, k=3, v=2, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(batch, t, 1, k)).astype(np.float32), draw.normal(size=(batch, t, 1, v)).astype(np.float32)


write_all = jax.jit(write_all, static_argnames="novelty")


class Modes:
    """The memory of one head as a list of modes in their slots."""

    def __init__(self, slots, novelty):
        self.slots, self.novelty, self.modes = slots, novelty, {}

    def write(self, k, v):
        near = {j: k @ m["key"] / np.linalg.norm(k) / np.linalg.norm(m["key"]) for j, m in self.modes.items()}
        best = max(near, key=near.get, default=None)
        for m in self.modes.values():
            m["age"] += 1
        if best is not None and near[best] >= self.novelty:
            m = self.modes[best]
            m["all"].append((k, v))
            m["key"], m["value"] = (np.mean(x, axis=0) for x in zip(*m["all"], strict=True))
            m["age"] = 0
            return
        free = [j for j in range(self.slots) if j not in self.modes]
        j = free[0] if free else max(self.modes, key=lambda j: self.modes[j]["age"])
        self.modes[j] = {"key": k, "value": v, "age": 0, "all": [(k, v)]}


@pytest.mark.parametrize("novelty", [-1.0, 0.0, 0.6, 2.0])
def test_write_is_the_papers_rule(novelty):
    keys, values = tokens()
    got, twin = write_all(empty(), keys, values, novelty=novelty), Modes(SLOTS, novelty)
    for k, v in zip(np.float64(keys[0, :, 0]), np.float64(values[0, :, 0]), strict=True):
        twin.write(k, v)
    for j in range(SLOTS):
        m = twin.modes.get(j)
        assert got["count"][0, j, 0] == (len(m["all"]) if m else 0)
        if m:
            assert got["age"][0, j, 0] == m["age"]
            close((got["key"][0, j, 0], got["value"][0, j, 0]), (np.float32(m["key"]), np.float32(m["value"])))


def test_a_threshold_above_one_keeps_the_last_tokens():
    keys, values = tokens()
    got = write_all(empty(), keys, values, novelty=1.1)
    order = np.argsort(-np.asarray(got["age"][0, :, 0]))  # oldest first
    np.testing.assert_array_equal(got["key"][0, order, 0], keys[0, -SLOTS:, 0])
    np.testing.assert_array_equal(got["value"][0, order, 0], values[0, -SLOTS:, 0])
    np.testing.assert_array_equal(got["count"], np.ones((1, SLOTS, 1)))


def test_a_threshold_of_minus_one_keeps_one_running_mean():
    keys, values = tokens()
    got = write_all(empty(), keys, values, novelty=-1.0)
    np.testing.assert_array_equal(got["count"][0, :, 0], [T, 0, 0, 0, 0])
    close((got["key"][0, 0], got["value"][0, 0]), (keys[0].mean(0), values[0].mean(0)))


def test_counts_are_the_tokens_written_less_those_evicted():
    keys, values = tokens(t=60)
    one, memory, evicted = jax.jit(write, static_argnums=3), empty(), 0
    for t in range(60):
        before, memory = memory, one(memory, keys[:, t], values[:, t], 0.8)
        replaced = (np.asarray(memory["count"]) == 1) & (np.asarray(memory["age"]) == 0)
        evicted += int(np.asarray(before["count"])[replaced].sum())
        assert int(memory["count"].sum()) == t + 1 - evicted
    assert 0 < evicted < 60 - SLOTS  # some were evicted, some were merged


def document(mixer, params, x):
    """One document x (t, d), token by token and head by head; y and the modes of each key head."""
    p, a = wide_numpy(params), mixer.attention
    memory, y = [Modes(mixer.slots, mixer.novelty) for _ in range(a.g)], []

    def turn(z, place):
        half = a.k // 2
        w = place * 10000.0 ** (-2 * np.arange(half) / a.k)
        return np.concatenate(
            [z[:half] * np.cos(w) - z[half:] * np.sin(w), z[half:] * np.cos(w) + z[:half] * np.sin(w)]
        )

    for first in range(0, len(x), mixer.segment):
        segment = x[first : first + mixer.segment]
        k, v = (np.einsum("td,dgk->tgk", segment, p[n]) for n in ("key", "value"))
        called = [set() for _ in range(a.g)]
        for t, q in enumerate(np.einsum("td,dhk->thk", segment, p["query"])):
            q = [turn(z, t) / np.sqrt(a.k) for z in q]
            far = [{j: turn(m["key"], -mixer.behind) for j, m in one.modes.items()} for one in memory]
            for h, z in enumerate(q):
                g = h // (a.h // a.g)
                called[g] |= set(sorted(far[g], key=lambda j, g=g, z=z: -(z @ far[g][j]))[: mixer.nearest])
            heads = []
            for h, z in enumerate(q):
                g = h // (a.h // a.g)
                pairs = [(far[g][j], memory[g].modes[j]["value"]) for j in called[g]]
                pairs += [(turn(k[s, g], s), v[s, g]) for s in range(t + 1)]
                e = np.exp([z @ key for key, _ in pairs])
                heads.append(e / e.sum() @ np.array([value for _, value in pairs]))
            y.append(np.einsum("hk,hkd->d", np.array(heads), p["out"]))
        if len(segment) == mixer.segment:
            for g, one in enumerate(memory):
                for s in range(mixer.segment):
                    one.write(k[s, g], v[s, g])
    return np.array(y), memory


@pytest.fixture(scope="module")
def example():
    x = np.random.default_rng(1).normal(size=(2, T, 8)).astype(np.float32)
    return jax.tree.map(lambda p: 2 * p, noisy(MIXER)), x


@pytest.mark.parametrize("nearest", [1, 3])
def test_reads_and_writes_as_the_paper_says(example, nearest):
    params, x = example
    mixer = CamelotAttention(BASE, SLOTS, MIXER.segment, MIXER.novelty, nearest, MIXER.behind)
    y, state = apply(mixer, params, x)
    for b in range(2):
        want, memory = document(mixer, params, np.float64(x[b]))
        close(y[b], np.float32(want))
        counts = [[len(one.modes[j]["all"]) if j in one.modes else 0 for one in memory] for j in range(SLOTS)]
        np.testing.assert_array_equal(state["memory"]["count"][b], counts)
    assert int(state["memory"]["count"].max()) > 1  # something was consolidated
    np.testing.assert_array_equal(state["place"], [T % MIXER.segment] * 2)


@pytest.mark.parametrize("pieces", [(1, 5, 17), (9, 14), (6, 12, 5)])
def test_can_be_cut_anywhere(example, pieces):
    params, x = example
    whole, ys, state = apply(MIXER, params, x), [], None
    for end, n in zip(np.cumsum(pieces), pieces, strict=True):
        state = jax.tree.map(np.asarray, jax.jit(MIXER.start, static_argnums=1)(params, 2)) if state is None else state
        y, state = apply(MIXER, params, x[:, end - n : end], state)
        ys.append(y)
    close((np.concatenate(ys, axis=1), state), whole)


def test_documents_of_a_row_do_not_know_of_each_other(example):
    params, x = example
    starts = np.zeros((2, T), bool)
    starts[1, [8, 15]] = True
    y, state = apply(MIXER, params, x, None, starts)
    close(y[0], document(MIXER, params, np.float64(x[0]))[0].astype(np.float32))
    close(
        y[1], np.concatenate([document(MIXER, params, d)[0] for d in np.split(np.float64(x[1]), [8, 15])]).astype("f4")
    )
    close(jax.tree.map(lambda s: s[:1], state), apply(MIXER, params, x[:1])[1])  # rows in different places of a segment
    y = apply(MIXER, params, x[1:, :4], jax.tree.map(lambda s: s[1:], state))[0]
    want = document(MIXER, params, np.float64(np.concatenate([x[1, 15:], x[1, :4]])))[0]
    close(y[0], want[-4:].astype(np.float32))


def test_a_frozen_model_keeps_its_weights_and_with_an_empty_memory_its_outputs():
    def model(mixer):
        return LM(13, 8, Stack(Block(mixer, SwiGLU(8)), 2))

    base, with_memory = model(BASE), model(MIXER)
    params = jax.jit(init, static_argnums=0)(base, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(with_memory.params(), is_leaf=lambda s: hasattr(s, "axes"))
    text = np.random.default_rng(0).integers(0, 13, (2, 2 * MIXER.segment)).astype(np.int32)
    got, want = (np.asarray(apply(m, params, text)[0]) for m in (with_memory, base))
    close(got[:, : MIXER.segment], want[:, : MIXER.segment])
    alone = np.asarray(apply(base, params, text[:, MIXER.segment :])[0])
    assert np.abs(got[:, MIXER.segment :] - alone).max() > 1e-3  # then the memory speaks


def test_gradients_pass_through_the_memory(example):
    params, x = example
    grad = jax.jit(jax.grad(lambda x: jnp.sum(MIXER.apply(params, x)[0][:, -1] ** 2)))(x)
    first = np.abs(grad[:, : MIXER.segment]).max(axis=2)
    assert np.isfinite(grad).all() and (first > 0).any()


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"CamelotAttention\.attention"):
        CamelotAttention(Attention(8, window=4))
    with pytest.raises(ConfigError, match=r"CamelotAttention\.nearest = 6: expected 1 to the 5 slots"):
        CamelotAttention(BASE, slots=5, nearest=6)
    with pytest.raises(ConfigError, match=r"CamelotAttention\.segment"):
        CamelotAttention(BASE, segment=0)
