"""Tokenizers: there and back, the begin token, and files that are none."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data import Bytes, DataError, HuggingFace, Rows, pack

DATA = Path(os.environ.get("JAXLM_DATA", Path(__file__).parents[1] / "../shared/data"))


def write(path, model_vocab, added=()):
    """A word-level tokenizer file with the given words and added tokens (content, id, special)."""
    fields = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [{"id": i, "content": content, "special": special, **fields} for content, i, special in added]
    model = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(model_vocab)}, "unk_token": model_vocab[0]}
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_bytes_there_and_back():
    text = "naïve 日本\n"
    ids = Bytes().encode(text.encode())
    assert Bytes().decode(ids) == text and ids.tolist() == list(text.encode()) and Bytes().vocab == 256
    assert Bytes().decode([0, 104, 105, 0]) == "hi" and Bytes().decode(np.array([0xE6, 65])) == "�A"
    assert Bytes() == Bytes() and hash(Bytes()) == hash(Bytes())


def test_begin_token_is_the_files_own_or_one_more(tmp_path):
    own = HuggingFace(write(tmp_path / "own.json", ["?", "a", "b"], [("<|endoftext|>", 3, True), ("<s>", 4, True)]))
    assert (own.vocab, own.bos) == (5, 4)
    plain = HuggingFace(write(tmp_path / "plain.json", ["?", "a", "<s>"], [("extra", 7, False)]))
    assert (plain.vocab, plain.bos) == (5, 4)
    assert plain.decode([4, 1, 2]) == "a <s>"  # the extra id is no text
    assert own == HuggingFace(tmp_path / "own.json") and len({own, HuggingFace(own.path)}) == 1


def test_text_is_never_cut_nor_read_as_a_special_token(tmp_path):
    tokenizer = HuggingFace(write(tmp_path / "t.json", ["?", "a", "b"], [("<s>", 3, True)]))
    ids = tokenizer.encode(b"a b a b a b <s>")
    assert ids[:6].tolist() == [1, 2] * 3 and ids.dtype == np.int32 and 3 not in ids


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[1, 2]"])
def test_unreadable_tokenizers_are_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"path='.*': unreadable tokenizer \(.*\); expected a tokenizer\.json") as error:
        _ = HuggingFace(str(path)).vocab
    assert "\n" not in str(error.value)


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"path='.*none\.json': no such file; expected a tokenizer\.json"):
        HuggingFace(str(tmp_path / "none.json")).encode(b"text")


@pytest.mark.data
def test_gpt_neox_tokenizer(tmp_path):
    packed = DATA / "tokenizers/gpt-neox-20b/tokenizer.json.gz"
    if not packed.exists():
        pytest.skip(f"{packed} is absent; set JAXLM_DATA to the folder of data sets")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    tokenizer = HuggingFace(str(path))
    text = "def f(x):\n    return x  # <|endoftext|> naïve 日本\n"
    ids = tokenizer.encode(text.encode())
    assert tokenizer.decode(ids) == text and len(ids) < len(text) and tokenizer.bos not in ids
    assert (tokenizer.bos, tokenizer.vocab) == (0, 50277)
    stream = pack([text.encode()] * 3, tokenizer)
    batch = Rows(stream, 8, seed=1).batch(0, 2)
    assert (
        batch["tokens"].dtype == np.int32 and stream.scored == 3 * len(ids) and stream.bytes == 3 * len(text.encode())
    )
