"""What a language model has to beat: gzip and interpolated Witten-Bell n-grams over bytes, on the same held-out text.

Every byte of every document is predicted, given the preceding bytes of its own document; places before a document's
first byte count as the byte 0.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.errors import DataError

ORDERS = (0, 1, 2, 3)  # number of context bytes: order 2 is the trigram model


def gzip_bits_per_byte(documents: Sequence[bytes]) -> float:
    """Bits per byte of `gzip -9` on the documents joined into one file, header and checksum included."""
    _check(documents)
    text = b"".join(documents)
    return 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def grams(documents: Sequence[bytes]) -> np.ndarray:
    """The last four bytes up to each byte of the documents  (bytes,) uint32, the byte itself lowest."""
    joined = np.frombuffer(b"".join(b"\0\0\0" + document for document in documents), np.uint8)
    codes = np.zeros(joined.size - 3 if joined.size else 0, np.uint32)
    for back in range(4):
        codes |= joined[3 - back : joined.size - back].astype(np.uint32) << np.uint32(8 * back)
    ends = np.cumsum([len(document) + 3 for document in documents], dtype=np.int64)
    inside = np.ones(codes.size, bool)
    # A window whose last byte is another document's padding predicts nothing.
    for back in range(3):
        inside[ends[:-1] - 3 + back] = False
    return codes[inside]


@dataclass(frozen=True, eq=False)
class WittenBell:
    """Interpolated Witten-Bell byte models of orders 0 to 3, from the counts of one training text.

        P_n(c | h) = (N(hc) + T(h) P_{n-1}(c | h')) / (N(h) + T(h)),     P_{-1} = 1/256

    N counts occurrences, T(h) the distinct bytes seen after h, h' is h without its first byte; an unseen h leaves
    P_{n-1}. Witten and Bell 1991, method C, in its interpolated form (Chen and Goodman 1998, section 2.4).

    codes   distinct 4-grams, ascending   (g,) uint32
    counts  their occurrences             (g,) int64
    """

    codes: np.ndarray
    counts: np.ndarray

    @classmethod
    def fit(cls, documents: Sequence[bytes]) -> "WittenBell":
        """Count the 4-grams of the training documents."""
        _check(documents)
        ordered = np.sort(grams(documents))
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        return cls(ordered[first], np.diff(np.append(first, ordered.size)))

    def probabilities(self, codes: np.ndarray) -> tuple[np.ndarray, ...]:
        """P of each code's lowest byte after the bytes above it, by order 0, 1, 2, 3.   4 x (m,) float64"""
        codes = codes.astype(np.int64)
        found, p = [], np.full(codes.size, 1 / 256)
        for order in ORDERS:
            joint, total, kinds = self._lookup(order, codes & (256 ** (order + 1) - 1))
            seen = total > 0
            p = np.where(seen, (joint + kinds * p) / np.where(seen, total + kinds, 1), p)
            found.append(p)
        return tuple(found)

    def bits_per_byte(self, documents: Sequence[bytes]) -> tuple[float, ...]:
        """Mean negative log2 probability of the bytes of the documents, by order 0, 1, 2, 3."""
        _check(documents)
        codes, times = np.unique(grams(documents), return_counts=True)
        return tuple(float(-(np.log2(p) @ times) / times.sum()) for p in self.probabilities(codes))

    def _lookup(self, order: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """N(hc), N(h) and T(h) for (order + 1)-grams."""
        below = 256**order
        if order == 3:
            # Too many for a table of every 4-gram: search the sorted list.
            at = np.minimum(np.searchsorted(self.codes, codes.astype(np.uint32)), self.codes.size - 1)
            joint = np.where(self.codes[at] == codes, self.counts[at], 0)
            contexts = self.codes >> np.uint32(8)
            totals = np.bincount(contexts, self.counts, below)
            kinds = np.bincount(contexts, minlength=below)
        else:
            # Counts weigh less than 2**53, so float64 sums of them are exact.
            table = np.bincount(self.codes & np.uint32(256 * below - 1), self.counts, 256 * below).reshape(below, 256)
            joint, totals, kinds = table.reshape(-1)[codes], table.sum(1), np.count_nonzero(table, axis=1)
        return joint, totals[codes >> 8], kinds[codes >> 8]


def baselines(train: Sequence[bytes], held_out: Sequence[bytes]) -> dict[str, float]:
    """Bits per byte on the held-out documents by name: gzip, and Witten-Bell of orders 1 to 3 fitted on `train`."""
    scores = WittenBell.fit(train).bits_per_byte(held_out)
    named = {f"Witten-Bell order {order}": scores[order] for order in ORDERS[1:]}
    return {"gzip -9": gzip_bits_per_byte(held_out)} | named


def _check(documents: Sequence[bytes]) -> None:
    if not any(documents):
        raise DataError(f"documents: {len(documents)} without any text; expected at least one byte")
