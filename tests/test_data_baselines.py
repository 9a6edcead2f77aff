"""Baselines against dictionary twins, by hand, and as distributions."""

import gzip
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxlm.data import DataError, KneserNey, WittenBell, baselines, gzip_bits_per_byte
from jaxlm.data.baselines import FALLBACK
from jaxlm.data.counts import distinct, windows

TRAIN = [b"the cat sat on the mat", b"", b"a", b"the dog ate the cat's hat", b"ab", bytes(range(1, 256))]
HELD = [b"that cat", b"zzz the dog", b"x", b"\xff\xfe", b"ab"]


class Twin:
    """Witten-Bell with dictionaries, one context at a time."""

    def __init__(self, documents, order):
        self.order = order
        self.counts = defaultdict(Counter)
        for document in documents:
            padded = b"\0" * order + document
            for i in range(order, len(padded)):
                for n in range(order + 1):
                    self.counts[padded[i - n : i]][padded[i]] += 1

    def p(self, context, byte):
        below = self.p(context[1:], byte) if context else 1 / 256
        seen = self.counts.get(context)
        if not seen:
            return below
        return (seen[byte] + len(seen) * below) / (sum(seen.values()) + len(seen))

    def bits_per_byte(self, documents):
        bits = total = 0
        for document in documents:
            padded = b"\0" * self.order + document
            for i in range(self.order, len(padded)):
                bits -= math.log2(self.p(padded[i - self.order : i], padded[i]))
                total += 1
        return bits / total


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_counts_agree_with_the_twin(order):
    want = Twin(TRAIN, order).bits_per_byte(HELD)
    for model in (WittenBell.fit(TRAIN, order), WittenBell.fit(TRAIN).lower(order)):
        assert math.isclose(model.bits_per_byte(HELD), want, rel_tol=1e-9)


@pytest.mark.parametrize("context", [b"\0\0\0", b"the", b"\0\0a", b"zzz", b"\xff\xff\xff", b"zat"])
def test_probabilities_sum_to_one(context):
    p = WittenBell.fit(TRAIN).distribution(context)
    assert abs(p.sum() - 1) < 1e-9 and p.min() > 0
    assert math.isclose(p[ord("e")], Twin(TRAIN, 3).p(context, ord("e")), rel_tol=1e-9)


WORDS, VOCAB, PAD = [np.random.default_rng(s).zipf(1.4, 150) % 7 for s in (0, 1)], 8, 8


class ChenGoodman:
    """Modified Kneser-Ney with dictionaries and the recursion of the paper, one n-gram at a time."""

    def __init__(self, documents, order, discounts):
        self.order, self.discounts = order, discounts
        grams = [Counter() for _ in range(order + 1)]
        for d in documents:
            padded = [PAD] * order + [int(w) for w in d]
            for i in range(order, len(padded)):
                for n in range(order + 1):
                    grams[n][tuple(padded[i - n : i + 1])] += 1
        self.counts = [Counter(g[1:] for g in grams[n + 1]) for n in range(order)] + [grams[order]]

    def seen(self, n, h):
        return {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == h}

    def p(self, h, w):
        h, n = tuple(h), len(h)
        below = self.p(h[1:], w) if n else 1 / VOCAB
        seen, d = self.seen(n, h), self.discounts[n]
        if not seen:
            return below
        freed = sum(d[min(c, 3) - 1] for c in seen.values())
        own = seen[w] - d[min(seen[w], 3) - 1] if w in seen else 0
        return (own + freed * below) / sum(seen.values())


@pytest.mark.parametrize("modified", [True, False])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_kneser_ney_is_the_papers_recursion(order, modified):
    model = KneserNey.fit(WORDS, order, VOCAB, PAD, modified)
    twin = ChenGoodman(WORDS, order, model.discounts)
    for context in ([], [0], [6, 6, 6], [1, 2, 0], [0, 1, 0, 2]):
        last = ([PAD] * order + context)[len(context) :]
        got = model.distribution(context)
        np.testing.assert_allclose(got, [twin.p(last, w) for w in range(VOCAB)], rtol=1e-12)
        assert abs(got.sum() - 1) < 1e-9 and got.min() > 0
    padded = [np.concatenate([np.full(order, PAD), w]).tolist() for w in WORDS]
    logs = [math.log(twin.p(p[i - order : i], p[i])) for p in padded for i in range(order, len(p))]
    assert math.isclose(model.nats(WORDS), -np.mean(logs), rel_tol=1e-9)


def test_discounts_come_from_the_counts_of_counts():
    text = [np.repeat(np.arange(10), [1, 1, 1, 1, 2, 2, 3, 3, 4, 5])]  # n_1..n_4 = 4, 2, 2, 1
    (unigrams,) = KneserNey.fit(text, 0, 10, 10).discounts
    y = 4 / (4 + 2 * 2)
    np.testing.assert_allclose(unigrams, [1 - 2 * y * 2 / 4, 2 - 3 * y * 2 / 2, 3 - 4 * y * 1 / 2])
    assert KneserNey.fit(text, 0, 10, 10, modified=False).discounts == ((y, y, y),)
    assert KneserNey.fit([b"aab"], 0).discounts == (FALLBACK,)


def test_an_unseen_history_leaves_the_continuations():
    """By hand: start and b stand before a, a and c before b, b before c."""
    text = [b"abcbab"]
    model = KneserNey.fit(text, 1, modified=False)
    d = model.discounts[0][0]
    want = (np.array([2, 2, 1]) - d) / 5 + 3 * d / 5 / 256
    np.testing.assert_allclose(model.distribution(b"z")[list(b"abc")], want)


def test_contexts_stay_inside_documents():
    found = windows([b"abcd", b"", b"ef"], 4, 256, 0)
    want = [b"\0\0\0a", b"\0\0ab", b"\0abc", b"abcd", b"\0\0\0e", b"\0\0ef"]
    assert [bytes(row.tolist()) for row in found] == want
    assert windows([np.array([3])], 2, 5, 5).tolist() == [[5, 3]]


def test_distinct_rows_are_counted_whatever_their_size():
    rows = np.random.default_rng(0).integers(0, 3, (200, 5))
    want = Counter(map(tuple, rows.tolist()))
    for base in (3, 10**6):  # the greater one does not fit into one number
        got = distinct(rows, base)
        assert dict(zip(map(tuple, got[0].tolist()), got[1].tolist(), strict=True)) == want


def test_gzip_counts_the_whole_file():
    assert gzip_bits_per_byte([b"ab" * 500, b"c"]) == 8 * len(gzip.compress(b"ab" * 500 + b"c", 9)) / 1001


def test_all_baselines_by_name():
    scores = baselines(TRAIN, HELD)
    names = ["gzip -9", *(f"Witten-Bell order {n}" for n in (1, 2, 3)), "Kneser-Ney order 5"]
    assert list(scores) == names
    assert scores["Witten-Bell order 2"] == WittenBell.fit(TRAIN, 2).bits_per_byte(HELD)
    assert scores["Kneser-Ney order 5"] == KneserNey.fit(TRAIN, 5).bits_per_byte(HELD)


def test_nothing_to_count_is_named():
    with pytest.raises(DataError, match="documents: 1 without any text"):
        WittenBell.fit([b""])
    with pytest.raises(DataError, match="documents: 0 without any text"):
        gzip_bits_per_byte([])
    with pytest.raises(DataError, match="documents: 2 without any text"):
        WittenBell.fit(TRAIN).bits_per_byte([b"", b""])
    with pytest.raises(DataError, match="tokens from 0 to 9; expected 0 to 8"):
        KneserNey.fit([np.arange(10)], 1, 9)
    with pytest.raises(DataError, match="order = -1"):
        KneserNey.fit(TRAIN, -1)
    with pytest.raises(DataError, match="order = 4: expected 0 to 3"):
        WittenBell.fit(TRAIN).lower(4)
