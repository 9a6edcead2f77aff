"""What a language model has to beat: gzip, and n-gram models smoothed after Witten and Bell and after Kneser and Ney.

Every token of every document is predicted from those before it in its own document.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxlm.data.counts import CountLM, Documents, NGrams, Table, distinct, windows
from jaxlm.data.errors import DataError

BYTES = 256
FALLBACK = (0.5, 1.0, 1.5)  # discounts of counts 1, 2, 3+ where the counts of counts give none


def gzip_bits_per_byte(documents: Sequence[bytes]) -> float:
    """Bits per byte of `gzip -9` on the documents joined into one file, header and checksum included."""
    if not any(documents):
        raise DataError(f"documents: {len(documents)} without any text; expected at least one byte")
    text = b"".join(documents)
    return 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


@dataclass(frozen=True, eq=False)
class WittenBell(CountLM):
    """Interpolated Witten-Bell n-grams.

        P_n(c | h) = (N(hc) + T(h) P_{n-1}(c | h')) / (N(h) + T(h)),     P_{-1} = 1/vocab

    N counts occurrences, T(h) the distinct tokens seen after h, h' is h without its first token; an unseen h leaves
    P_{n-1}. Witten and Bell 1991, method C, in its interpolated form (Chen and Goodman 1998, section 2.4).

    order   tokens of context
    """

    counts: NGrams
    order: int
    vocab: int = BYTES
    pad: int = 0

    @classmethod
    def fit(cls, documents: Documents, order: int = 3, vocab: int = BYTES, pad: int = 0) -> "WittenBell":
        """Count the n-grams of the training documents."""
        return cls(_count(documents, order, vocab, pad, continuation=False), order, vocab, pad)

    @property
    def reach(self) -> int:
        return self.order

    def lower(self, order: int) -> "WittenBell":
        """The model of a lower order from the same counts."""
        if not 0 <= order <= self.order:
            raise DataError(f"order = {order}: expected 0 to {self.order}")
        kept = NGrams(self.counts.contexts[:order], self.counts.tables[: order + 1])
        return replace(self, counts=kept, order=order)

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        p = np.full(len(grams), 1 / self.vocab)
        for table, at in zip(self.counts.tables, self.counts.look(grams), strict=True):
            total, kinds = table.totals[at], table.kinds[at]
            p = np.where(at >= 0, (table.joint(at, grams[:, -1]) + kinds * p) / (total + kinds), p)
        return p


@dataclass(frozen=True, eq=False)
class KneserNey(CountLM):
    """Interpolated modified Kneser-Ney n-grams (Kneser and Ney 1995; Chen and Goodman 1998, section 3).

        P_n(c | h) = max(N(hc) - D(N(hc)), 0) / N(h) + γ(h) P_{n-1}(c | h'),     P_{-1} = 1/vocab
        γ(h) = Σ_k D(k) N_k(h) / N(h)

    Below the highest order N(hc) is not how often hc occurs but how many different tokens stand before it. N_k(h)
    tokens follow h with count k. Each order has its discounts, from the n_k n-grams that are seen k times:
    Y = n_1 / (n_1 + 2 n_2), D(k) = k - (k + 1) Y n_{k+1} / n_k for k = 1, 2, and 3 for all above; where that is not
    in (0, k], as in tiny texts, 0.5, 1, 1.5. An unseen h leaves P_{n-1}.

    order       tokens of context: 4 is the five-gram model
    discounts   [k] D of counts 1, 2, 3+ after contexts of k tokens
    """

    counts: NGrams
    discounts: tuple[tuple[float, ...], ...]
    order: int
    vocab: int
    pad: int

    @classmethod
    def fit(
        cls, documents: Documents, order: int = 4, vocab: int = BYTES, pad: int = 0, modified: bool = True
    ) -> "KneserNey":
        """Count the n-grams of the training documents.

        modified   False: one discount Y for all counts, Kneser and Ney's own
        """
        counts = _count(documents, order, vocab, pad, continuation=True)
        return cls(counts, tuple(_discounts(t, modified) for t in counts.tables), order, vocab, pad)

    @property
    def reach(self) -> int:
        return self.order

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        p = np.full(len(grams), 1 / self.vocab)
        levels = zip(self.counts.tables, self.discounts, self.counts.look(grams), strict=True)
        for table, discounts, at in levels:
            d = np.array([0.0, *discounts])
            joint, kept = table.joint(at, grams[:, -1]), d[np.minimum(table.counts, 3)]
            freed = np.bincount(table.grams // table.base, kept)  # Σ_k D(k) N_k(h)
            own = joint - d[np.minimum(joint, 3)]
            p = np.where(at >= 0, (own + freed[at] * p) / table.totals[at], p)
        return p


def _count(documents: Documents, order: int, vocab: int, pad: int, continuation: bool) -> NGrams:
    if order < 0:
        raise DataError(f"order = {order}: expected at least 0 tokens of context")
    rows, times = distinct(windows(documents, order + 1, vocab, pad), vocab + 1)
    return NGrams.count(rows.astype(np.int64), times, vocab + 1, continuation)


def _discounts(table: Table, modified: bool) -> tuple[float, ...]:
    """D of counts 1, 2, 3+."""
    n = np.bincount(np.minimum(table.counts, 5), minlength=6).astype(float)
    if not modified:
        y = float(n[1] / (n[1] + 2 * n[2])) if n[1] * n[2] else FALLBACK[0]
        return (y, y, y)
    if not n[1:5].all():
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    d = [float(k - (k + 1) * y * n[k + 1] / n[k]) for k in (1, 2, 3)]
    return tuple(x if 0 < x <= k else f for k, x, f in zip((1, 2, 3), d, FALLBACK, strict=True))


def baselines(train: Sequence[bytes], held_out: Sequence[bytes]) -> dict[str, float]:
    """Bits per byte on the held-out documents by name: gzip, and n-gram models of the bytes of `train`."""
    scores = {"gzip -9": gzip_bits_per_byte(held_out)}
    model = WittenBell.fit(train)
    for order in (1, 2, 3):
        scores[f"Witten-Bell order {order}"] = model.lower(order).bits_per_byte(held_out)
    return scores | {"Kneser-Ney order 5": KneserNey.fit(train, 5).bits_per_byte(held_out)}
