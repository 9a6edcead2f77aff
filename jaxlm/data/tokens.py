"""Tokenizers: frozen values between bytes and token ids. `bos` begins every document and is counted in `vocab`."""

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.sentencepiece import SentencePiece

# Tokens that begin (or, failing that, end) a text in the tokenizer files in use, the likeliest first.
_BEGIN = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]", "<|startoftext|>", "[CLS]")
_BOS = (*_BEGIN, "<|endoftext|>", "</s>", "<eos>", "[EOS]")


class Tokenizer(Protocol):
    """Bytes to ids and back."""

    @property
    def vocab(self) -> int:
        """Number of ids, `bos` included."""
        ...

    @property
    def bos(self) -> int:
        """The id that begins a document: context of its first token, never a target."""
        ...

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text  (t,), without `bos`."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, `bos` left out; bytes that are no UTF-8 become U+FFFD."""
        ...


@dataclass(frozen=True)
class Bytes:
    """A token is a byte; NUL, which text does not hold, begins a document."""

    vocab = 256
    bos = 0

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text  (t,) uint8."""
        return np.frombuffer(text, np.uint8)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        ids = np.asarray(ids)
        return ids[ids != self.bos].astype(np.uint8).tobytes().decode("utf-8", "replace")


@dataclass(frozen=True)
class HuggingFace:
    """A Hugging Face `tokenizer.json`. Text is never read as a special token, and none is added.

    path  the file; equality and hash are the path's
    """

    path: str

    _kind = "tokenizer.json"

    def __post_init__(self):
        object.__setattr__(self, "path", os.fspath(self.path))

    def _read(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(_text(self.path))

    @cached_property
    def _tokenizer(self) -> Any:
        if not os.path.isfile(self.path):
            raise DataError(f"path={self.path!r}: no such file; expected a {self._kind}")
        try:
            tokenizer = self._read()
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            reason = " ".join(str(error).split())
            message = f"path={self.path!r}: unreadable tokenizer ({reason}); expected a {self._kind}"
            raise DataError(message) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos(self) -> int:
        """The file's own token that begins or ends a text; an id more where it has none."""
        special = {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return next((special[name] for name in _BOS if name in special), self._size)

    @property
    def vocab(self) -> int:
        """Number of ids, `bos` included."""
        return max(self._size, self.bos + 1)

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text  (t,) int32; bytes that are no UTF-8 are read as U+FFFD."""
        encoded = self._tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False)
        return np.asarray(encoded.ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in np.asarray(ids).reshape(-1)], skip_special_tokens=True)


@dataclass(frozen=True)
class GPT2Files(HuggingFace):
    """GPT-2's byte-level BPE: `encoder.json` (or `vocab.json`) and its merges, `vocab.bpe` (or `merges.txt`)."""

    merges: str

    _kind = "byte-level BPE: encoder.json and vocab.bpe"

    def _read(self) -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        lines = [line for line in _text(self.merges).splitlines() if line and not line.startswith("#version")]
        pairs: Any = [tuple(line.split(" ")) for line in lines]
        tokenizer = Tokenizer(models.BPE(json.loads(_text(self.path)), pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if tokenizer.token_to_id("<|endoftext|>") is not None:
            tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        return tokenizer


def tokenizer_in(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json, GPT-2's two files (all also as .gz), or a SentencePiece tok*.bin."""
    place = Path(folder)

    def there(*names: str) -> str | None:
        found = (place / (n + end) for n in names for end in ("", ".gz"))
        return next((str(p) for p in found if p.is_file()), None)

    if one := there("tokenizer.json"):
        return HuggingFace(one)
    words, merges = there("encoder.json", "vocab.json"), there("vocab.bpe", "merges.txt")
    if words and merges:
        return GPT2Files(words, merges)
    if pieces := sorted(place.glob("tok*.bin")):
        return SentencePiece(str(pieces[0]))
    expected = "tokenizer.json, encoder.json and vocab.bpe, or a SentencePiece tok*.bin"
    raise DataError(f"{place}: no tokenizer there; expected {expected}")


def _text(path: str) -> str:
    raw = Path(path).read_bytes()
    return (gzip.decompress(raw) if path.endswith(".gz") else raw).decode("utf-8")
