"""The MemN2N language model against its paper's formula in numpy, its limits, and the treebank that it reads."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, noisy, wide_numpy
from tolerance import close

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder
from jaxlm.data.ptb import characters, number, penn_treebank, words
from jaxlm.memory.memn2n_lm import MemN2NLM
from jaxlm.module import ConfigError, ShapeError, count
from jaxlm.ops.losses import nats

MODEL = MemN2NLM(vocab=11, width=6, hops=3, memory=5, linear=2)
T = 79  # several blocks of 32 and an odd rest


def formula(model, p, seen):
    """Logits after the words `seen` of one document, word by word; slots count from the oldest of `memory`."""
    last = seen[-model.memory :]
    slots = range(model.memory - len(last), model.memory)
    m = np.stack([p["key"][w] + p["key_time"][i] for w, i in zip(last, slots, strict=True)])
    c = np.stack([p["value"][w] + p["value_time"][i] for w, i in zip(last, slots, strict=True)])
    u = np.full(model.width, 0.1)
    for _ in range(model.hops):
        e = np.exp(m @ u - np.max(m @ u))
        u = p["hidden"].T @ u + (e / e.sum()) @ c
        u[model.straight :] = np.maximum(u[model.straight :], 0)
    return p["readout"].T @ u


def document(model, params, tokens):
    return np.stack([formula(model, wide_numpy(params), tokens[: i + 1]) for i in range(len(tokens))]).astype(
        np.float32
    )


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, MODEL.vocab, shape).astype(np.int32)


def test_is_the_papers_formula():
    params, tokens = noisy(MODEL), draw(2, T)
    starts = np.zeros((2, T), bool)
    starts[1, [3, 40]] = True
    want = document(MODEL, params, tokens[0]), [document(MODEL, params, d) for d in np.split(tokens[1], [3, 40])]
    got, state = apply(MODEL, params, tokens, None, starts)
    close(got, np.stack([want[0], np.concatenate(want[1])]))
    np.testing.assert_array_equal(state["words"], tokens[:, -4:])
    np.testing.assert_array_equal(state["length"], [T, T - 40])


def test_the_papers_windows_are_places_of_a_text():
    params, text = noisy(MODEL), draw(1, 20)
    logits = apply(MODEL, params, text)[0][0]
    at = np.array([0, 7, 14])
    got = jax.jit(MODEL.window_loss)(params, text[0][at[:, None] + np.arange(MODEL.memory + 1)])
    last = at + MODEL.memory - 1
    close(got, jnp.sum(nats(logits[last], text[0][last + 1])))


def test_words_older_than_the_memory_are_forgotten():
    params, tokens = noisy(MODEL), draw(1, T)
    logits = np.asarray(apply(MODEL, params, tokens)[0])
    for age, same in ((MODEL.memory, True), (MODEL.memory - 1, False)):
        other = tokens.copy()
        other[0, T - 1 - age] = (other[0, T - 1 - age] + 1) % MODEL.vocab
        assert np.array_equal(np.asarray(apply(MODEL, params, other)[0])[0, -1], logits[0, -1]) == same


def test_one_slot_is_read_whole():
    """With one memory p = 1, whatever u: o is the word's own value."""
    model = MemN2NLM(vocab=11, width=6, hops=1, memory=1, linear=6)
    params, tokens = noisy(model), draw(2, 9)
    p = wide_numpy(params)
    u = 0.1 * p["hidden"].sum(0) + p["value"][tokens] + p["value_time"][0]
    close(apply(model, params, tokens)[0], (u @ p["readout"]).astype(np.float32))


def test_a_linear_state_is_a_linear_map_of_what_is_read():
    """lindim = d: one hop is affine in the values; with a rectifier it is not."""

    def logits(linear, scale):
        model = MemN2NLM(vocab=11, width=6, hops=1, memory=5, linear=linear)
        params = noisy(model)
        params |= {n: scale * params[n] for n in ("value", "value_time")}
        return np.asarray(apply(model, params, draw(2, 9))[0])

    def bend(linear):
        return np.abs(logits(linear, 3) - 3 * logits(linear, 1) + 2 * logits(linear, 0)).max()

    assert bend(6) < 1e-5 < 1e-2 < bend(0)


def test_without_values_a_hop_is_the_hidden_map():
    model = MemN2NLM(vocab=11, width=6, hops=3, memory=5, linear=6)
    params = noisy(model)
    params |= {n: 0 * params[n] for n in ("value", "value_time")}
    p = wide_numpy(params)
    want = 0.1 * np.ones(6) @ np.linalg.matrix_power(p["hidden"], 3) @ p["readout"]
    close(apply(model, params, draw(1, 7))[0], np.broadcast_to(want, (1, 7, 11)).astype(np.float32))


def test_counts_of_the_paper():
    """Two tables of words and times, H and W: no matrix for a question."""
    v, d, m = 10_000, 150, 100
    assert count(MemN2NLM(v)) == 2 * d * (v + m) + d * v + d * d


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"MemN2NLM\.linear"):
        MemN2NLM(11, 6, linear=7)
    with pytest.raises(ShapeError, match=r"windows \(2, 5\)"):
        MODEL.window_loss(noisy(MODEL), draw(2, 5))
    with pytest.raises(ShapeError, match="integers"):
        MODEL.apply(noisy(MODEL), np.zeros((2, 5), np.float32))


def test_lines_become_words_and_characters():
    text = " no it \n a <unk> N \n"
    assert words(text) == ["no", "it", "<eos>", "a", "<unk>", "N", "<eos>"]
    assert characters(text) == [*"no_it", "<eos>", *"a_<unk>_N", "<eos>"]
    bank = number({"train": "b a\na\n", "valid": "a\n", "test": "b\n"}, words)
    assert bank.vocabulary == ("<eos>", "a", "b")
    assert bank.train.tolist() == [2, 1, 0, 1, 0] and bank.test.dtype == np.int32
    assert bank.text(bank.test) == "b <eos>"
    with pytest.raises(DataError, match="valid: 'c'"):
        number({"train": "a\n", "valid": "c\n", "test": "a\n"}, words)


def test_only_the_published_treebank_is_taken(tmp_path):
    (tmp_path / "ptb").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / f"ptb/ptb.{split}.txt.gz").write_bytes(gzip.compress(b" the end \n"))
    with pytest.raises(DataError, match="train: 3 words, expected the 929589"):
        penn_treebank(DataFolder(tmp_path))
    with pytest.raises(DataError, match="level = 'byte'"):
        penn_treebank(DataFolder(tmp_path), "byte")


@pytest.mark.data
@pytest.mark.parametrize(("level", "kinds"), [("word", 10_000), ("character", 50)])
def test_reads_the_treebank(data_folder, level, kinds):
    bank = penn_treebank(data_folder, level)
    assert len(bank.vocabulary) == kinds == bank.train.max() + 1
    assert max(bank.valid.max(), bank.test.max()) < kinds
    assert bank.vocabulary[bank.test[-1]] == "<eos>"
