"""Baselines against a dictionary twin, by hand, and as distributions."""

import gzip
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxlm.data import DataError, WittenBell, baselines, gzip_bits_per_byte
from jaxlm.data.baselines import grams

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
    got = WittenBell.fit(TRAIN).bits_per_byte(HELD)[order]
    assert math.isclose(got, Twin(TRAIN, order).bits_per_byte(HELD), rel_tol=1e-9)


@pytest.mark.parametrize("context", [b"\0\0\0", b"the", b"\0\0a", b"zzz", b"\xff\xff\xff", b"zat"])
def test_probabilities_sum_to_one(context):
    codes = int.from_bytes(context, "big") * 256 + np.arange(256)
    for order, p in enumerate(WittenBell.fit(TRAIN).probabilities(codes)):
        assert abs(p.sum() - 1) < 1e-9 and p.min() > 0
        twin = Twin(TRAIN, order)
        assert math.isclose(p[ord("e")], twin.p(context[3 - order :], ord("e")), rel_tol=1e-9)


def test_contexts_stay_inside_documents():
    codes = grams([b"abcd", b"", b"ef"])
    want = [b"\0\0\0a", b"\0\0ab", b"\0abc", b"abcd", b"\0\0\0e", b"\0\0ef"]
    assert codes.tolist() == [int.from_bytes(w, "big") for w in want]


def test_gzip_counts_the_whole_file():
    assert gzip_bits_per_byte([b"ab" * 500, b"c"]) == 8 * len(gzip.compress(b"ab" * 500 + b"c", 9)) / 1001


def test_all_baselines_by_name():
    scores = baselines(TRAIN, HELD)
    assert list(scores) == ["gzip -9", "Witten-Bell order 1", "Witten-Bell order 2", "Witten-Bell order 3"]
    assert scores["Witten-Bell order 2"] == WittenBell.fit(TRAIN).bits_per_byte(HELD)[2]


def test_nothing_to_count_is_named():
    with pytest.raises(DataError, match="documents: 1 without any text"):
        WittenBell.fit([b""])
    with pytest.raises(DataError, match="documents: 0 without any text"):
        gzip_bits_per_byte([])
    with pytest.raises(DataError, match="documents: 2 without any text"):
        WittenBell.fit(TRAIN).bits_per_byte([b"", b""])
