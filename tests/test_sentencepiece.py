"""SentencePiece joins in the order of scores; folders with tokenizers of every kind; `jaxlm sample --pretrained`."""

import gzip
import json
import struct
from itertools import pairwise

import numpy as np
import pytest

from jaxlm.cli import guarded
from jaxlm.data import DataError, GPT2Files, HuggingFace, SentencePiece, tokenizer_in

BASE = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), *((b"<0x%02X>" % i, 0.0) for i in range(256))]
PIECES = {
    b" ": -9.0,
    b"a": -9.0,
    b"b": -9.0,
    b"c": -9.0,
    b"ab": -2.0,
    b"bc": -1.0,
    b"abc": -3.0,
    b" a": -4.0,
    b"aa": -5.0,
}


def packed(pieces):
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces)
    return struct.pack("<i", max(len(p) for p, _ in pieces)) + body


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "tok.bin"
    path.write_bytes(packed([*BASE, *PIECES.items()]))
    return SentencePiece(path)


def brute(text: bytes) -> list[bytes]:
    """The definition: look at all neighbours again after every join; of equal scores the leftmost."""
    parts = [c.encode() for c in " " + text.decode()]
    while True:
        joins = [(-PIECES[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in PIECES]
        if not joins:
            return parts
        i = min(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_joins_equal_the_definition(small):
    rng = np.random.default_rng(0)
    for n in [1, 2, 3, 7, 40] * 10:
        text = bytes(rng.choice(list(b"abc "), n).tolist())
        want = [small._ids[p] for p in brute(text)]
        assert small.encode(text).tolist() == want, text
        assert small.decode(want) == text.decode()


def test_whatever_is_no_piece_goes_byte_by_byte(small):
    ids = small.encode("aé".encode())
    assert ids.tolist() == [small._ids[b" a"], 3 + 0xC3, 3 + 0xA9] and ids.dtype == np.int32
    assert small.decode(ids) == "aé" and small.decode([1, *ids, 2]) == "aé"
    assert small.decode(small.encode(b"a\xff")) == "a�"
    assert 1 not in small.encode(b"\n<s>\n") and small.encode(b"").tolist() == []
    assert (small.vocab, small.bos) == (259 + len(PIECES), 1)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "tok.bin"
    with pytest.raises(DataError, match="No such file"):
        _ = SentencePiece(path).vocab
    for raw in (b"", packed(BASE[:9]), packed([*BASE, (b"a", 0.0)])[:-1], packed([(b"x", 0.0)] * 300)):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="expected a SentencePiece vocabulary") as error:
            SentencePiece(path).encode(b"a")
        assert "\n" not in str(error.value)


def gpt2_files(folder, names=("encoder.json", "vocab.bpe"), end=""):
    """Bytes a, b, and the blank (written Ġ), and the joins ab, Ġa."""
    words = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġa": 4, "<|endoftext|>": 5}
    texts = json.dumps(words), "#version: 0.2\na b\nĠ a\n"
    for name, text in zip(names, texts, strict=True):
        raw = text.encode()
        (folder / (name + end)).write_bytes(gzip.compress(raw) if end else raw)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2s_two_files(tmp_path, names, end):
    gpt2_files(tmp_path, names, end)
    tokenizer = tokenizer_in(tmp_path)
    assert isinstance(tokenizer, GPT2Files) and tokenizer == tokenizer_in(tmp_path)
    assert tokenizer.encode(b"ab a").tolist() == [3, 4] and tokenizer.decode([5, 3, 4]) == "ab a"
    assert (tokenizer.vocab, tokenizer.bos) == (6, 5)


def test_the_tokenizer_of_a_folder(tmp_path, small):
    assert tokenizer_in(tmp_path) == small
    gpt2_files(tmp_path)
    assert isinstance(tokenizer_in(tmp_path), GPT2Files)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert type(tokenizer_in(tmp_path)) is HuggingFace
    with pytest.raises(DataError, match=r"no tokenizer there; expected tokenizer\.json"):
        tokenizer_in(tmp_path / "none")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.bpe").write_text("a b c\n")
    with pytest.raises(DataError, match="expected a byte-level BPE"):
        tokenizer_in(tmp_path).encode(b"a")


@pytest.mark.data
def test_gpt2s_own_vocabulary(data_folder):
    tokenizer = tokenizer_in(data_folder.file("tokenizers/gpt2"))
    assert (tokenizer.vocab, tokenizer.bos) == (50257, 50256)
    assert tokenizer.encode(b"Hello world").tolist() == [15496, 995]  # as published with the tokenizer
    text = "naïve 日本\n\tx = [1, 2]  <|endoftext|>"
    ids = tokenizer.encode(text.encode())
    assert tokenizer.decode(ids) == text and 50256 not in ids


@pytest.mark.data
def test_pretrained_weights_write_their_story(data_folder, capfd):
    """The text of the model's own expected tokens, by the command."""
    folder = data_folder.file("models/stories260K")
    tokenizer = tokenizer_in(folder)
    tokens = data_folder.arrays("models/stories260K/expected.npz")["tokens"]
    text = tokenizer.decode(tokens)
    np.testing.assert_array_equal(tokenizer.encode(text.encode()), tokens[1:])
    capfd.readouterr()
    greedy = ["sample", "--pretrained", str(folder), "--temperature", "0", "--tokens", "95"]
    assert guarded(greedy, debug=False) == 0
    assert capfd.readouterr().out == text + "\n"
    assert text.startswith("Once upon a time, there was a little girl named Lily.")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "expected one of the two"),
        (["RUN", "--pretrained", "DIR"], "expected one of the two"),
        (["--pretrained", "DIR"], r"config\.json"),
        (["--pretrained", "DIR", "--mesh", "data=2"], "mesh = 'data=2'"),
    ],
)
def test_wrong_arguments_of_sample_are_one_line(args, expected, tmp_path, capfd):
    capfd.readouterr()
    assert guarded(["sample", *(str(tmp_path) if a == "DIR" else a for a in args)], debug=False) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and expected.replace("\\", "") in lines[0]
