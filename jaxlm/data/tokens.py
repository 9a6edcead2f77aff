"""Tokenizers: frozen values between bytes and token ids. `bos` begins every document and is counted in `vocab`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from jaxlm.data.errors import DataError

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

    def __post_init__(self):
        object.__setattr__(self, "path", os.fspath(self.path))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        if not os.path.isfile(self.path):
            raise DataError(f"path={self.path!r}: no such file; expected a tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(self.path)
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            reason = " ".join(str(error).split())
            message = f"path={self.path!r}: unreadable tokenizer ({reason}); expected a tokenizer.json"
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
