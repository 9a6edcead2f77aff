"""SNM language models against a dictionary twin, the closed form of relative frequencies, and what the fit promises."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from jaxlm.data import DataError
from jaxlm.data.snm import BUCKETS, SNM, Skip, bucket, ngrams

VOCAB = PAD = 6
KINDS = (*ngrams(2), Skip(1, (1,)), Skip(2, (2,), 1), Skip(1, (1, 2, 3), 1))


def draw(seed, n=120):
    return [np.random.default_rng(seed).zipf(1.5, n) % VOCAB, np.array([1]), np.array([2, 2, 1])]


TRAIN, HELD = draw(0), draw(1)
MODEL = SNM.fit(TRAIN, KINDS, VOCAB, PAD)


def features(history):
    """(place of the kind, tokens from the oldest) of each feature of a history."""
    h = [PAD] * 20 + list(history)
    for place, kind in enumerate(KINDS):
        near = h[len(h) - kind.adjacent :]
        for gap in kind.skipped:
            end = len(h) - kind.adjacent - gap
            yield place, (*h[end - kind.remote : end], *near)


class Twin:
    """One history at a time, with dictionaries; A as a function of kind, C_f, N_f and C_fw."""

    def __init__(self, documents, weights):
        self.weights, self.counts = weights, defaultdict(Counter)
        for d in documents:
            for i in range(len(d)):
                for f in features(d[:i]):
                    self.counts[f][int(d[i])] += 1

    def size(self, n):
        return n - 1 if n < 4 else min(int(np.log2(n)) + 1, BUCKETS - 1)

    def p(self, history):
        y = np.full(VOCAB, self.weights[-1] / VOCAB)
        for f in features(history):
            seen = self.counts.get(f, {})
            for w, c in seen.items():
                cell = [f[0], self.size(sum(seen.values())), self.size(len(seen)), self.size(c)]
                y[w] += self.weights[np.ravel_multi_index(cell, (len(KINDS), *[BUCKETS] * 3))] * c / sum(seen.values())
        return y / y.sum()


HISTORIES = [[], [1], [2, 2], [5, 4, 3, 2, 1, 0], list(map(int, TRAIN[0][:9])), [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_is_the_papers_sum_over_features(history):
    weights = np.random.default_rng(3).uniform(0.1, 2, MODEL.weights.size)
    got = replace(MODEL, weights=weights).distribution(history)
    np.testing.assert_allclose(got, Twin(TRAIN, weights).p(history), rtol=1e-12)
    assert abs(got.sum() - 1) < 1e-12 and got.min() > 0


def test_without_adjustment_it_is_the_mean_of_relative_frequencies():
    history, twin = HISTORIES[4], Twin(TRAIN, MODEL.weights)
    seen = [twin.counts[f] for f in features(history) if f in twin.counts]
    shares = [np.array([c[w] / sum(c.values()) for w in range(VOCAB)]) for c in seen]
    np.testing.assert_allclose(MODEL.distribution(history), np.mean([*shares, np.full(VOCAB, 1 / VOCAB)], axis=0))


def test_each_step_of_the_fit_raises_the_held_out_likelihood():
    prior, found = 0.5, [MODEL]
    for _ in range(8):
        found.append(found[-1].adjust(HELD, steps=1, prior=prior))
    size = sum(map(len, HELD))
    value = [-size * m.nats(HELD) + prior * np.sum(np.log(m.weights) - m.weights) for m in found]
    assert (np.diff(value) > 0).all()
    np.testing.assert_allclose(found[-1].weights, MODEL.adjust(HELD, steps=8, prior=prior).weights, rtol=1e-9)
    assert found[-1].nats(HELD) < MODEL.nats(HELD) - 0.01
    for history in HISTORIES:
        assert abs(found[-1].distribution(history).sum() - 1) < 1e-12


def test_the_fits_end_is_a_stationary_point():
    """Of the likelihood with its prior, in the log of the weights: by differences."""
    end, prior = MODEL.adjust(HELD, steps=3000, prior=1.0), 1.0
    own, whole = end.terms(np.array([[PAD] * MODEL.reach + [1]]))
    asked = np.union1d(own.columns, whole.columns)

    def value(v):
        return -sum(map(len, HELD)) * replace(end, weights=v).nats(HELD) + prior * np.sum(np.log(v) - v)

    for j in asked[::4]:
        up, down = (np.exp(np.log(end.weights) + h * (np.arange(end.weights.size) == j)) for h in (1e-4, -1e-4))
        assert abs(value(up) - value(down)) / 2e-4 < 1e-3


def test_a_gap_that_is_tied_forgets_its_width():
    text = [np.array([0, 1, 2, 3, 0, 4, 4, 3])]  # 0 stands 2, then 3 tokens before 3
    tied, apart = (SNM.fit(text, [Skip(1, s)], 5, 5) for s in ((1, 2), (1,)))
    assert tied.features[0].table.joint(np.array([0]), np.array([3])) == 2
    assert apart.features[0].table.joint(np.array([0]), np.array([3])) == 0
    assert tied.reach == 3 and Skip(2, (1, 5), 3).reach == 10


def test_sizes_of_counts():
    assert bucket(np.array([1, 2, 3, 4, 7, 8, 15, 16, 10**9])).tolist() == [0, 1, 2, 3, 3, 4, 4, 5, BUCKETS - 1]


def test_what_cannot_be_is_named():
    with pytest.raises(DataError, match="expected at least one Skip"):
        SNM.fit(TRAIN, (), VOCAB, PAD)
    with pytest.raises(DataError, match=r"Skip\(remote=-1"):
        Skip(-1)
