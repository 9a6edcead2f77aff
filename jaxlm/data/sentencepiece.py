"""A SentencePiece BPE vocabulary, as llama2.c stores it: scores decide which neighbours are joined first."""

import heapq
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.data.errors import DataError

_BEGIN, _END, _FIRST_BYTE = 1, 2, 3  # 0 is unknown; then 256 bytes, written <0x..>


@dataclass(frozen=True)
class SentencePiece:
    """Text to ids by joining the neighbours whose joined piece scores best; what is no piece goes byte by byte.

    path  a `.bin` file: int32 length of the longest piece, then per piece float32 score, int32 length, bytes.
          Equality and hash are the path's
    A blank is put before a text, and taken away again; control pieces are never read from a text.
    """

    path: str

    bos = _BEGIN

    def __post_init__(self):
        object.__setattr__(self, "path", os.fspath(self.path))

    @cached_property
    def _pieces(self) -> list[tuple[bytes, float]]:
        expected = "expected a SentencePiece vocabulary as llama2.c writes it"
        try:
            with open(self.path, "rb") as f:
                raw = f.read()
        except OSError as error:
            raise DataError(f"path={self.path!r}: {error.strerror}; {expected}") from error
        pieces, at = [], 4
        try:
            while at < len(raw):
                score, size = struct.unpack_from("<fi", raw, at)
                at += 8
                if size < 0 or at + size > len(raw):
                    raise struct.error("a piece that leaves the file")
                pieces.append((raw[at : at + size], score))
                at += size
        except struct.error as error:
            raise DataError(f"path={self.path!r}: {error}; {expected}") from error
        if len(pieces) < _FIRST_BYTE + 256 or not re.fullmatch(b"<0x00>", pieces[_FIRST_BYTE][0]):
            raise DataError(f"path={self.path!r}: {len(pieces)} pieces, no bytes among them; {expected}")
        return pieces

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        """Pieces that text may become."""
        return {p: i for i, (p, _) in enumerate(self._pieces) if i >= _FIRST_BYTE + 256}

    @property
    def vocab(self) -> int:
        """Number of ids, `bos` included."""
        return len(self._pieces)

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text  (t,) int32."""
        if not text:
            return np.zeros(0, np.int32)
        ids: list[int] = []
        for char in (b" " + text).decode("utf-8", "surrogateescape"):  # a byte that is no UTF-8 stays one
            piece = char.encode("utf-8", "surrogateescape")
            known = self._ids.get(piece)
            ids += [_FIRST_BYTE + byte for byte in piece] if known is None else [known]
        return np.asarray(self._joined(ids), np.int32)

    def _joined(self, ids: list[int]) -> list[int]:
        """Join the best pair, leftmost first among equals, until none is left: a heap over a linked list."""
        own: list[int | None] = list(ids)
        after, before = list(range(1, len(ids) + 1)), list(range(-1, len(ids) - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            if i < 0 or after[i] == len(ids):
                return
            a, b = own[i], own[after[i]]
            new = self._ids.get(self._bytes(a) + self._bytes(b))
            if new is not None:
                heapq.heappush(heap, (-self._pieces[new][1], i, a, b, new))  # type: ignore[arg-type]

        for i in range(len(ids)):
            offer(i)
        while heap:
            _, i, a, b, new = heapq.heappop(heap)
            j = after[i]
            if own[i] != a or j == len(ids) or own[j] != b:
                continue  # one of them has been joined since
            own[i], own[j], after[i] = new, None, after[j]
            if after[j] < len(ids):
                before[after[j]] = i
            offer(before[i])
            offer(i)
        return [i for i in own if i is not None]

    def _bytes(self, id: int | None) -> bytes:
        """The bytes that a piece stands for in a text."""
        if id is None or id < _FIRST_BYTE:
            return b""
        return bytes([id - _FIRST_BYTE]) if id < _FIRST_BYTE + 256 else self._pieces[id][0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, control pieces and the first blank left out; bytes that are no UTF-8 become U+FFFD."""
        raw = b"".join(self._bytes(int(i)) for i in np.asarray(ids).reshape(-1))
        return raw.removeprefix(b" ").decode("utf-8", "replace")
