"""RMT against the base model composed by hand, cut anywhere, without memory, and where its gradients end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, begin, noisy
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import SwiGLU
from jaxlm.memory.rmt import RMT
from jaxlm.mixers.attention import Attention
from jaxlm.models import LM
from jaxlm.module import ConfigError

VOCAB, D, M, SIZE, T = 11, 8, 2, 5, 13  # two whole segments and an odd rest
STACK = Stack(Block(Attention(D, heads=2), SwiGLU(D)), 2)
MIXER = RMT(STACK, M, SIZE)
BASE, MODEL = LM(VOCAB, D, STACK), LM(VOCAB, D, MIXER)


@pytest.fixture(scope="module")
def example():
    return noisy(MODEL), np.random.default_rng(0).integers(0, VOCAB, (2, T)).astype(np.int32)


def by_hand(params, text):
    """Logits of the base model, segment by segment, with memory tokens put around each; the last memory."""
    rms = lambda x, gain: x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * gain  # noqa: E731
    memory, out = np.repeat(params["body"]["memory"][None], len(text), 0), []
    for first in range(0, text.shape[1], SIZE):
        x = params["embed"][text[:, first : first + SIZE]] * np.float32(np.sqrt(D))
        x = np.concatenate([memory, x, memory], axis=1)
        y = np.asarray(apply(STACK, params["body"]["body"], x)[0])
        out.append(rms(y[:, M:-M], params["norm"]["gain"]) @ params["embed"].T)
        if y.shape[1] == SIZE + 2 * M:
            memory = rms(y[:, -M:], params["body"]["norm"]["gain"])
    return np.concatenate(out, axis=1), memory


def test_reads_before_and_writes_behind_each_segment(example):
    params, text = example
    got, state = apply(MODEL, params, text)
    close((got, state["memory"]), by_hand(params, text))
    np.testing.assert_array_equal(state["place"], [T % SIZE] * 2)


@pytest.mark.parametrize("pieces", [(10, 3), (3, 10)])
def test_can_be_cut_anywhere(example, pieces):
    params, text = example
    logits, state = apply(MODEL, params, text[:, : pieces[0]])
    more, state = apply(MODEL, params, text[:, pieces[0] :], state)
    close((np.concatenate([logits, more], axis=1), state), apply(MODEL, params, text))


def test_documents_of_a_row_have_memories_of_their_own(example):
    params, text = example
    starts = np.zeros((2, T), bool)
    starts[1, 6] = True  # inside a segment: the second document's own begins there
    got = apply(MODEL, params, text, None, starts)[0]
    close(got[:1], by_hand(params, text[:1])[0])
    close(got[1:], np.concatenate([by_hand(params, part)[0] for part in (text[1:, :6], text[1:, 6:])], axis=1))


def test_without_memory_it_is_the_base_model_on_each_segment(example):
    params, text = example
    bare = LM(VOCAB, D, RMT(STACK, 0, SIZE))
    got, _ = apply(bare, {**params, "body": {"body": params["body"]["body"]}}, text)
    base = {**params, "body": params["body"]["body"]}
    close(got, np.concatenate([apply(BASE, base, text[:, i : i + SIZE])[0] for i in range(0, T, SIZE)], axis=1))


def test_gradients_reach_as_many_segments_as_are_asked_for():
    small = RMT(Attention(D, heads=1), M, SIZE)
    params = noisy(small)
    x = np.random.default_rng(1).normal(size=(1, 3 * SIZE, D)).astype(np.float32)

    def reached(bptt):
        """Sizes of the gradients of the last output in the start memory and in the three segments."""
        mixer = dataclasses.replace(small, bptt=bptt)

        def last(memory, x):
            state = {**begin(mixer, params, 1), "memory": memory}
            return jnp.sum(mixer.apply(params, x, state)[0][:, -1] ** 2)

        memory, x_grad = jax.jit(jax.grad(last, (0, 1)))(params["memory"][None], x)
        return [float(np.abs(g).max()) for g in (memory, *np.split(np.asarray(x_grad), 3, axis=1))]

    assert min(reached(None)) > 1e-6
    start, *segments = reached(2)
    assert start == segments[0] == 0 and min(segments[1:]) > 1e-6


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"RMT\.memory = -1: expected at least 0"):
        RMT(STACK, -1)
    with pytest.raises(ConfigError, match=r"RMT\.bptt = 0"):
        RMT(STACK, 2, bptt=0)
    with pytest.raises(ConfigError, match=r"RMT\.segment"):
        RMT(STACK, 2, 0)
