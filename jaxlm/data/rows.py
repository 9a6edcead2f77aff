"""Layouts: pure functions from a step to a batch, whoever reads it and however many hosts or workers share the work.

A stream is documents one after another, each behind one begin token (`bos`), so that a document's first token is a
target like any other. A begin token is context only: the pair whose target is one has weight 0, and so every token of
every document is scored exactly once an epoch. A batch is a dict of numpy arrays:

    tokens   (b, t) int32     ids, `bos` past the end of the stream
    starts   (b, t) bool      first tokens: begin tokens, and the places where a row does not continue the one before
    targets  (b, t) int32     the next token of each
    weights  (b, t) float32   1 where the pair counts; 0 where its target begins a document or is past the end

`batch(step, size, part)` gives the rows `part` (a slice) of a batch of `size` rows: hosts read their own part. To
resume is to know the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.tokens import Tokenizer

Batch = dict[str, np.ndarray]
ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Stream:
    """Packed documents, begin tokens included.

    tokens   (n,)       ids in the smallest dtype the tokenizer gives
    offsets  (docs+1,)  places of the begin tokens, and the end
    bytes               bytes of the documents' text
    bos                 the begin token
    """

    tokens: np.ndarray
    offsets: np.ndarray
    bytes: int
    bos: int

    @property
    def scored(self) -> int:
        """Tokens that are scored once an epoch: all but begin tokens."""
        return len(self.tokens) - (len(self.offsets) - 1)

    def bits_per_byte(self, nats: float, scored: float | None = None) -> float:
        """Bits per byte from summed nats over `scored` tokens (default: all, which is exact for any tokenizer).

        Over a part of the tokens, bytes count in proportion: exact for bytes.
        """
        return nats / math.log(2) / (self.bytes * (1.0 if scored is None else scored / self.scored))


def pack(documents: Sequence[bytes], tokenizer: Tokenizer) -> Stream:
    """Encode documents into one stream."""
    if not any(documents):
        raise DataError(f"documents: {len(documents)} without any text; expected at least one byte")
    pieces, begin, ends = [], None, [0]
    for document in documents:
        ids = tokenizer.encode(document)
        begin = np.full(1, tokenizer.bos, ids.dtype) if begin is None else begin
        pieces += [begin, ids]
        ends.append(ends[-1] + 1 + len(ids))
    return Stream(np.concatenate(pieces), np.asarray(ends), sum(map(len, documents)), tokenizer.bos)


class _Epoch(NamedTuple):
    documents: np.ndarray  # (docs,) the stream's documents in this epoch's order
    ends: np.ndarray  # (docs+1,) where they lie in this epoch
    rows: np.ndarray  # (rows,) this epoch's order of its rows


def _shuffled(stream: Stream, seed: int, rows: int, epoch: int) -> _Epoch:
    """An epoch's order of documents and of rows.

    Sorts raw Philox output, a counter-based generator keyed by (seed, epoch): numpy keeps the raw numbers the same for
    ever, which it does not promise for its own `permutation`.
    """
    docs = len(stream.offsets) - 1
    draw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(docs + rows)
    documents = np.argsort(draw[:docs], kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.diff(stream.offsets)[documents])])
    return _Epoch(documents, ends, np.argsort(draw[docs:], kind="stable"))


def _read(stream: Stream, epoch: _Epoch, heads: np.ndarray, length: int) -> Batch:
    """Rows of an epoch from their first places  heads (b,)."""
    total = len(stream.tokens)
    places = heads[:, None] + np.arange(length + 1)
    inside = np.minimum(places, total - 1)
    at = np.searchsorted(epoch.ends, inside, side="right") - 1
    document = epoch.documents[at]
    first = inside == epoch.ends[at]
    ids = stream.tokens[stream.offsets[document] + inside - epoch.ends[at]].astype(np.int32)
    ids[places >= total] = stream.bos
    first |= places >= total
    weights = (~first[:, 1:]).astype(np.float32)
    return {"tokens": ids[:, :-1], "starts": first[:, :-1], "targets": ids[:, 1:], "weights": weights}


def _rows_of(step: int, size: int, part: slice) -> range:
    """Numbers of the rows that a part of a batch holds."""
    if step < 0:
        raise DataError(f"step={step}: expected 0 or more")
    if size < 1:
        raise DataError(f"size={size}: expected at least one row a batch")
    if part.step is not None and part.step < 1:
        raise DataError(f"part={part}: expected rows in ascending order")
    return range(step * size, (step + 1) * size)[part]


def _check(stream: Stream, length: int, seed: int = 0) -> None:
    if length < 1:
        raise DataError(f"length={length}: expected at least 1 token a row")
    if len(stream.tokens) < length + 1:
        raise DataError(f"length={length}: the text has {len(stream.tokens)} tokens; expected at least {length + 1}")
    if not 0 <= seed < 2**64:
        raise DataError(f"seed={seed}: expected 0 to 2**64 - 1")


@dataclass(frozen=True, eq=False)
class Rows:
    """Training rows that stand alone: each starts afresh.

    In epoch e the documents follow one another in an order drawn from (seed, e); row r is tokens [r t, (r+1) t) of
    that stream, its targets one further; the rows come in an order drawn from (seed, e) too, since neighbours are
    mostly pieces of one document. Every token is in exactly one row an epoch; the last row is filled up with weight 0.
    """

    stream: Stream
    length: int
    seed: int = 0
    carries = False  # the state is not carried from batch to batch

    def __post_init__(self):
        _check(self.stream, self.length, self.seed)

    @property
    def epoch(self) -> int:
        """Rows an epoch."""
        return -(-len(self.stream.tokens) // self.length)

    @cached_property
    def _epochs(self):
        return lru_cache(maxsize=2)(lambda epoch: _shuffled(self.stream, self.seed, self.epoch, epoch))

    def row(self, i: int) -> Batch:
        """Row i, without the leading axis: a pure function of (seed, i)."""
        return {name: value[0] for name, value in self.batch(i, 1).items()}

    def batch(self, step: int, size: int, part: slice = ALL) -> Batch:
        """Rows step * size ... of all epochs one after another."""
        ids = np.asarray(_rows_of(step, size, part), np.int64)
        epochs, places = ids // self.epoch, ids % self.epoch
        pieces = []
        for e in np.unique(epochs) if ids.size else (0,):
            order = self._epochs(int(e))
            heads = order.rows[places[epochs == e]] * self.length
            pieces.append(_read(self.stream, order, heads, self.length))
        batch = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        batch["starts"][:, 0] = True
        return batch


@dataclass(frozen=True, eq=False)
class Lanes:
    """Training lanes that go on: the state after batch s is the state before batch s + 1, lane by lane.

    In epoch e the documents follow one another in an order drawn from (seed, e), and a batch of `size` lanes cuts that
    stream in `size` equal parts; batch s holds the next t tokens of each. The stream changes with `size`, not with
    `part`. A lane starts afresh at documents and where an epoch begins.
    """

    stream: Stream
    length: int
    seed: int = 0
    carries = True  # the trainer keeps the state, and saves it

    def __post_init__(self):
        _check(self.stream, self.length, self.seed)

    @cached_property
    def _epochs(self):
        return lru_cache(maxsize=2)(lambda epoch: _shuffled(self.stream, self.seed, 0, epoch))

    def steps(self, size: int) -> int:
        """Batches an epoch."""
        return -(-len(self.stream.tokens) // (size * self.length))

    def batch(self, step: int, size: int, part: slice = ALL) -> Batch:
        """The next tokens of `size` lanes after `step` batches."""
        lanes = np.asarray(_rows_of(step, size, part), np.int64) - step * size
        epoch, place = divmod(step, self.steps(size))
        heads = (lanes * self.steps(size) + place) * self.length
        batch = _read(self.stream, self._epochs(epoch), heads, self.length)
        batch["starts"][:, 0] |= place == 0
        return batch


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rows that score every token of a text exactly once, in order.

    Row r holds tokens [r s, r s + t), s = t - overlap. After the first row, the first `overlap` targets of a row are
    context with weight 0, so that every scored token but the text's first ones sees at least `overlap` tokens before it
    (or the whole of its document). Rows past the end have weight 0, so all batches have one shape.
    """

    stream: Stream
    length: int
    overlap: int = 0
    carries = False

    def __post_init__(self):
        _check(self.stream, 1)
        if self.length < 1:
            raise DataError(f"length={self.length}: expected at least 1 token a row")
        if not 0 <= self.overlap < self.length:
            raise DataError(f"overlap={self.overlap}: expected 0 to length - 1 = {self.length - 1}")

    @property
    def rows(self) -> int:
        """Rows with something to score."""
        more = len(self.stream.tokens) - 1 - self.length  # pairs beyond the first row's
        return 1 + max(0, -(-more // (self.length - self.overlap)))

    def steps(self, size: int) -> int:
        """Batches that hold all rows."""
        return -(-self.rows // size)

    def batch(self, step: int, size: int, part: slice = ALL) -> Batch:
        """Rows step * size ..., of weight 0 past the last."""
        ids = np.asarray(_rows_of(step, size, part), np.int64)
        heads = ids * (self.length - self.overlap)
        batch = _read(self.stream, self._order, heads, self.length)
        batch["weights"][(ids > 0)[:, None] & (np.arange(self.length) < self.overlap)] = 0
        batch["weights"][ids >= self.rows] = 0
        batch["starts"][:, 0] = True
        return batch

    @cached_property
    def _order(self) -> _Epoch:
        return _Epoch(np.arange(len(self.stream.offsets) - 1), self.stream.offsets, np.arange(0))
