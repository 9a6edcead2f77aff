"""Sparse non-negative matrix language models: n-grams and skip-grams in one weighted sum of relative frequencies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxlm.data.counts import CountLM, Documents, Table, find, windows
from jaxlm.data.errors import DataError

BUCKETS = 12  # counts 1, 2, 3, 4 to 7, 8 to 15, ...


@dataclass(frozen=True)
class Skip:
    """A kind of feature: the `adjacent` last tokens, and `remote` tokens behind a gap.

    skipped   widths of the gap; several share one count: the feature does not know how wide its gap was
    """

    remote: int = 0
    skipped: tuple[int, ...] = (0,)
    adjacent: int = 0

    def __post_init__(self):
        if min(self.remote, self.adjacent, *self.skipped) < 0 or not self.skipped:
            raise DataError(f"{self}: expected numbers of tokens")

    @property
    def reach(self) -> int:
        return self.adjacent + (max(self.skipped) + self.remote if self.remote else 0)

    def contexts(self, grams: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """For each gap the feature's tokens, the nearest first, each (m,).   grams (m, reach + 1 or more)"""
        for gap in self.skipped:
            back = (
                *range(1, self.adjacent + 1),
                *range(self.adjacent + gap + 1, self.adjacent + gap + self.remote + 1),
            )
            yield tuple(grams[:, -1 - b].astype(np.int64) for b in back)


def ngrams(order: int) -> tuple[Skip, ...]:
    """The features of an n-gram model: the last 0 to `order` tokens."""
    return tuple(Skip(adjacent=n) for n in range(order + 1))


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one kind that were seen, and what followed them.

    known   of a chain that numbers a feature token by token; [-1] ascending, its places are the features' numbers
    table   what followed
    """

    kind: Skip
    known: tuple[np.ndarray, ...]
    table: Table

    @classmethod
    def count(cls, kind: Skip, rows: np.ndarray, base: int) -> "Features":
        found = list(kind.contexts(rows))
        ids, known = np.zeros(len(rows) * len(found), np.int64), []
        for columns in zip(*found, strict=True):
            there, ids = np.unique(ids * base + np.concatenate(columns), return_inverse=True)
            known.append(there)
        last = np.tile(rows[:, -1].astype(np.int64), len(found))
        return cls(kind, tuple(known), Table.of(base, ids * base + last))

    def look(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Numbers of each row's features, one for each gap, -1 for one never seen.   each (m,)"""
        for columns in self.kind.contexts(rows):
            ids = np.zeros(len(rows), np.int64)
            for known, column in zip(self.known, columns, strict=True):
                ids = find(known, ids * self.table.base + column)
            yield ids


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix by its entries: values (e,) at rows, columns (e,); `size` (m, n)."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    size: tuple[int, int]

    def times(self, v: np.ndarray) -> np.ndarray:
        return np.bincount(self.rows, v[self.columns] * self.values, self.size[0])

    def transposed_times(self, u: np.ndarray) -> np.ndarray:
        return np.bincount(self.columns, u[self.rows] * self.values, self.size[1])


@dataclass(frozen=True, eq=False)
class SNM(CountLM):
    """Sparse non-negative matrix language model (Shazeer, Pelemans and Chelba 2015).

        P(w | h) = Σ_f M_fw / Σ_f Σ_w' M_fw'       M_fw = exp(A(f, w)) C_fw / C_f       f: features of h

    C counts in the training text; one more feature, always there, gives each token of the vocabulary 1/vocab.

    A is looked up by the kind of feature and the sizes of C_f, of the number of tokens that followed f, and of C_fw:
    meta-features without words, fitted to held-out text by its likelihood (Chelba and Pereira 2015, who found those
    with words no better). Before `adjust` A = 0: the mean of the relative frequencies.

    weights   exp(A), the last of them of 1/vocab   (cells + 1,)
    """

    features: tuple[Features, ...]
    weights: np.ndarray
    vocab: int
    pad: int

    @classmethod
    def fit(cls, documents: Documents, kinds: Sequence[Skip], vocab: int, pad: int) -> "SNM":
        """Count the features of the training documents."""
        if not kinds:
            raise DataError("kinds = (): expected at least one Skip")
        rows = windows(documents, max(k.reach for k in kinds) + 1, vocab, pad)
        found = tuple(Features.count(k, rows, vocab + 1) for k in kinds)
        return cls(found, np.ones(len(kinds) * BUCKETS**3 + 1), vocab, pad)

    @property
    def reach(self) -> int:
        return max(f.kind.reach for f in self.features)

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        own, whole = self.terms(grams)
        return own.times(self.weights) / whole.times(self.weights)

    def adjust(self, documents: Documents, steps: int = 50, prior: float = 1.0) -> "SNM":
        """The model with A fitted to held-out documents.

        Each step replaces v = exp(A) by (s + prior) / (t + prior), where s_j is how many tokens were given by cell j,
        Σ_i v_j x_ij / (x_i · v), and t_j = Σ_i z_ij / (z_i · v): as log x·v lies above its tangent mixture and
        -log z·v above its tangent, Σ_i log(x_i · v) - log(z_i · v) + prior Σ_j (log v_j - v_j) never falls.
        """
        rows = windows(documents, self.reach + 1, self.vocab, self.pad)
        own, whole = self.terms(rows)
        v = self.weights
        for _ in range(steps):
            given = v * own.transposed_times(1 / own.times(v))
            v = (given + prior) / (whole.transposed_times(1 / whole.times(v)) + prior)
        return replace(self, weights=v)

    def terms(self, grams: np.ndarray) -> tuple[Sparse, Sparse]:
        """x and z of the rows, by cell: P = (x · weights) / (z · weights).   (m, reach + 1) -> 2 of (m, cells + 1)"""
        m, cells = len(grams), len(self.weights)
        every, uniform = np.arange(m), np.full(m, cells - 1)
        own = [(every, uniform, np.full(m, 1 / self.vocab))]
        whole = [(every, uniform, np.ones(m))]
        for place, feature in enumerate(self.features):
            for ids in feature.look(grams):
                rows = np.flatnonzero(ids >= 0)
                if rows.size:
                    first, x, z = _terms(feature.table, ids[rows], grams[rows, -1].astype(np.int64))
                    first = first + place * BUCKETS**3
                    own.append((rows, first + x[0], x[1]))
                    whole.append((rows[z[0]], first[z[0]] + z[1], z[2]))
        return tuple(Sparse(*map(np.concatenate, zip(*e, strict=True)), (m, cells)) for e in (own, whole))  # type: ignore


def _terms(table: Table, ids: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, tuple, tuple]:
    """For features that are there: (first cell; x as cell, value; z as row, cell, value), cells counted from the first.

    z of a feature and a bucket is the share of its count that tokens of this bucket have.
    """
    joint, total = table.joint(ids, tokens), table.totals[ids]
    first = (bucket(total) * BUCKETS + bucket(table.kinds[ids])) * BUCKETS
    asked, place = np.unique(ids, return_inverse=True)
    number = np.full(table.totals.size, -1)
    number[asked] = np.arange(asked.size)
    owner = number[table.grams // table.base]
    there = owner >= 0
    mass = np.bincount(owner[there] * BUCKETS + bucket(table.counts[there]), table.counts[there], asked.size * BUCKETS)
    mass = (mass.reshape(-1, BUCKETS) / table.totals[asked][:, None])[place]
    row, cell = np.nonzero(mass)
    return first, (bucket(np.maximum(joint, 1)), joint / total), (row, cell, mass[row, cell])


def bucket(count: np.ndarray) -> np.ndarray:
    """Sizes of counts: 0 for 1, 1 for 2, 2 for 3, 3 for 4 to 7, 4 for 8 to 15...   (n,) of at least 1"""
    count = np.asarray(count, np.int64)
    power = np.frexp(count.astype(float))[1]  # 1 + floor(log2)
    return np.where(count <= 3, count - 1, np.minimum(power, BUCKETS - 1))
