"""Counts of what followed what in a text, and what every language model made of counts shares."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.errors import DataError

Documents = Sequence[bytes] | Sequence[np.ndarray]


class CountLM(ABC):
    """A language model from the counts of a training text.

    vocab   tokens are 0 to vocab - 1; documents may be bytes too
    reach   tokens of context that it looks at
    pad     the token that stands at places before a document's first; `vocab` is none of the text's
    """

    vocab: int
    pad: int

    @property
    @abstractmethod
    def reach(self) -> int: ...

    @abstractmethod
    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        """P of each row's last token after those before it.   (m, reach + 1) int -> (m,) float64"""

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """P of every token after the last tokens of a document.   (vocab,) float64"""
        last = ([self.pad] * self.reach + list(context))[len(context) :]
        grams = np.empty((self.vocab, self.reach + 1), np.int64)
        grams[:, :-1], grams[:, -1] = last, np.arange(self.vocab)
        return self.probabilities(grams)

    def nats(self, documents: Documents) -> float:
        """Mean negative log probability of the documents' tokens; its exponential is the perplexity."""
        rows, times = distinct(windows(documents, self.reach + 1, self.vocab, self.pad), self.vocab + 1)
        return float(-(np.log(self.probabilities(rows)) @ times) / times.sum())

    def bits_per_byte(self, documents: Documents) -> float:
        """Mean negative log2 probability of the documents' tokens, where these are bytes."""
        return self.nats(documents) / math.log(2)


def windows(documents: Documents, size: int, vocab: int, pad: int) -> np.ndarray:
    """The last `size` tokens up to each token of the documents, `pad` before a document's first.   (m, size)"""
    parts = [np.frombuffer(d, np.uint8) if isinstance(d, bytes) else np.asarray(d) for d in documents]
    parts = [p for p in parts if p.size]
    if not parts:
        raise DataError(f"documents: {len(documents)} without any text; expected at least one token")
    low, high = min(p.min() for p in parts), max(p.max() for p in parts)
    if low < 0 or high >= vocab:
        raise DataError(f"documents: tokens from {low} to {high}; expected 0 to {vocab - 1}")
    kind = np.min_scalar_type(vocab if pad == vocab else vocab - 1)
    before = np.full(size - 1, pad, kind)
    joined = np.concatenate([x for p in parts for x in (before, p.astype(kind))])
    told = np.concatenate([x for p in parts for x in (np.zeros(size - 1, bool), np.ones(p.size, bool))])
    # A window whose last token is padding predicts nothing.
    return np.lib.stride_tricks.sliding_window_view(joined, size)[told[size - 1 :]]


def distinct(rows: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """The different rows and how often each occurs.   (m, n) of tokens below base -> (g, n), (g,)"""
    codes, size, numbered = np.zeros(len(rows), np.int64), 1, False
    for column in rows.T:
        if size * base > 2**62:  # number those that there are
            codes = np.unique(codes, return_inverse=True)[1]
            size, numbered = int(codes.max()) + 1, True
        codes, size = codes * base + column, size * base
    if numbered:
        _, first, times = np.unique(codes, return_index=True, return_counts=True)
        return rows[first], times
    codes, times = np.unique(codes, return_counts=True)  # sorting without places is far quicker
    powers = base ** np.arange(rows.shape[1] - 1, -1, -1, dtype=np.int64)
    return (codes[:, None] // powers % base).astype(rows.dtype), times


def find(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Places in an ascending array, -1 for what it lacks.   (n,), (m,) -> (m,)"""
    at = np.minimum(np.searchsorted(known, asked), known.size - 1)
    return np.where(known[at] == asked, at, -1)


@dataclass(frozen=True, eq=False)
class Table:
    """How often each token followed each context.

    base     above every token
    grams    (g,) int64, ascending    number of the context * base + token
    counts   (g,)
    totals   (c,)                     sum of the counts of a context
    kinds    (c,)                     tokens that followed it
    """

    base: int
    grams: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray

    @classmethod
    def of(cls, base: int, codes: np.ndarray, times: np.ndarray | None = None) -> "Table":
        """From gram codes, each seen once or `times`."""
        grams, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
        if times is not None:
            counts = np.bincount(place, times).astype(np.int64)  # sums below 2**53 are exact
        owner = grams // base
        return cls(base, grams, counts, np.bincount(owner, counts), np.bincount(owner))

    def joint(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Counts of tokens after contexts, 0 where the context is unknown (-1)."""
        at = find(self.grams, contexts * self.base + tokens)
        return np.where(at < 0, 0, self.counts[at])


@dataclass(frozen=True, eq=False)
class NGrams:
    """Counts after contexts of 0, 1, 2... tokens.

    contexts   [k] (c,) int64, ascending: number of the k nearest tokens * base + the token before them
    tables     [k] after contexts of k tokens
    """

    contexts: tuple[np.ndarray, ...]
    tables: tuple[Table, ...]

    @classmethod
    def count(cls, rows: np.ndarray, times: np.ndarray, base: int, continuation: bool = False) -> "NGrams":
        """From distinct rows of order + 1 tokens and their occurrences.

        continuation   below the highest order count the different tokens seen just before an n-gram, N1+(· h w),
                       instead of its occurrences
        """
        contexts, codes, ids, last = [], [], np.zeros(len(rows), np.int64), rows[:, -1]
        for column in rows.T[-2::-1]:
            codes.append(ids * base + last)
            known, ids = np.unique(ids * base + column, return_inverse=True)
            contexts.append(known)
        codes.append(ids * base + last)
        tables = [Table.of(base, codes[-1], times)]
        for code, above in zip(codes[-2::-1], codes[:0:-1], strict=True):
            if continuation:
                once = np.unique(above, return_index=True)[1]  # a row of each n-gram that is longer by one
                tables.append(Table.of(base, code[once]))
            else:
                tables.append(Table.of(base, code, times))
        return cls(tuple(contexts), tuple(reversed(tables)))

    def look(self, grams: np.ndarray) -> list[np.ndarray]:
        """Numbers of each row's contexts of 0, 1, 2... tokens, -1 for one never seen.   each (m,)"""
        numbers = [np.zeros(len(grams), np.int64)]
        for known, column in zip(self.contexts, grams.T[-2::-1], strict=True):
            numbers.append(find(known, numbers[-1] * self.tables[0].base + column))
        return numbers
