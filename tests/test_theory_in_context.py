"""In-context experiments: the exact predictors against sums over everything that is hidden."""

import itertools
from math import lgamma

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis import boolean, switching
from jaxlm.analysis.context_counts import back_off, followed
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.tasks.boolean import COPY, BooleanFunctions
from jaxlm.theory.abstract_symbols import pairs

EVERY = np.array(list(itertools.product((0, 1), repeat=8)), np.int32)


@pytest.fixture(scope="module")
def mixtures():
    """ln P of every prefix of all sequences of 8 bits, in float64."""
    with jax.enable_x64(True):
        found = jax.jit(lambda x: (switching.kt(x), switching.ptw(x, 3), switching.lin(x)))(jnp.asarray(EVERY))
    return dict(zip(("kt", "ptw", "lin"), map(np.asarray, found), strict=True))


class TestSwitching:
    @pytest.mark.parametrize("name", ["kt", "ptw", "lin"])
    def test_a_mixture_is_a_probability_of_every_length(self, mixtures, name):
        for t in range(8):
            prefixes = mixtures[name][:: 1 << (7 - t), t]
            np.testing.assert_allclose(np.exp(prefixes).sum(), 1, atol=1e-10)

    def test_lin_is_the_sum_over_all_patterns_of_switches(self, mixtures):
        for i in range(0, 256, 15):
            np.testing.assert_allclose(mixtures["lin"][i, -1], switching.lin_naive(EVERY[i]), atol=1e-10)

    def test_ptw_is_its_definition(self, mixtures):
        def weight(bits, depth):
            ones = int(bits.sum())
            whole = np.exp(lgamma(ones + 0.5) + lgamma(len(bits) - ones + 0.5) - lgamma(len(bits) + 1)) / np.pi
            if not len(bits) or not depth:
                return whole  # 1 of no bits at all
            half = 1 << (depth - 1)
            return 0.5 * whole + 0.5 * weight(bits[:half], depth - 1) * weight(bits[half:], depth - 1)

        for i, t in ((5, 8), (37, 8), (90, 6), (201, 3)):
            np.testing.assert_allclose(mixtures["ptw"][i, t - 1], np.log(weight(EVERY[i, :t], 3)), atol=1e-10)

    def test_sources_switch_as_often_as_they_say(self):
        keys, names = jax.random.split(jax.random.key(0), 512), ("LIN", "PTW", "uniform")
        draw = jax.jit(lambda keys: [jax.vmap(lambda k, n=n: switching.SOURCES[n](k, 41))(keys) for n in names])
        lin, ptw, uniform = map(np.asarray, draw(keys))
        assert abs(lin[:, 1].mean() - 0.5) < 0.09
        # Of 2^6 places: 1 is the second half of a block of the last level, 16 that of the first half's first half.
        assert abs(ptw[:, 1].mean() - 2**-6) < 0.02 and abs(ptw[:, 16].mean() - 2**-2) < 0.08
        assert abs(uniform.sum(1).mean() - 40 / 20) < 0.3

    def test_errors(self):
        with pytest.raises(ShapeError, match=r"bits: got 8, expected at most 2\^2"):
            switching.ptw(jnp.asarray(EVERY), 2)


def met(clause, x):
    return all(c in (0, v) for c, v in zip(clause, x, strict=True))


RULES = {
    "conjunction": lambda w, x: met(w[0], x),
    "CNF": lambda w, x: all(not met(-c, x) for c in w),
    "DNF": lambda w, x: any(met(c, x) for c in w),
    "sparse parity": lambda w, x: sum(v > 0 for c, v in zip(w[0], x, strict=True) if c) % 2,
}


@pytest.fixture(scope="module")
def prompts():
    """256 of each of RULES, 12 points over 5 variables; the conjunctions and DNFs taught, too."""

    def draw(keys):
        tasks = {name: BooleanFunctions(name, 5, random=4) for name in (*RULES, COPY)}
        plain = {name: jax.vmap(lambda k, t=t: t.draw(k, 12))(keys) for name, t in tasks.items()}
        return plain | {n + " taught": jax.vmap(tasks[n].teach)(plain[n]) for n in ("conjunction", "DNF")}

    return jax.tree.map(np.asarray, jax.jit(draw)(jax.random.split(jax.random.key(3), 256)))


class TestBoolean:
    def test_labels_are_those_of_the_rule(self, prompts):
        for name in prompts.keys() - {COPY}:
            rule, p = RULES[name.removesuffix(" taught")], prompts[name]
            for w, x, y in list(zip(p.w, p.x, p.y, strict=True))[:24]:
                assert y.tolist() == [rule(w, a) for a in x], name
            assert 0.1 < p.y.mean() < 0.9 and (np.abs(p.w).sum((1, 2)) > 0).all()

    def test_a_conjunction_has_each_variable_as_often_as_it_says(self, prompts):
        share = np.abs(prompts["conjunction"].w).mean()
        assert abs(share - 0.3 / (1 - 0.7**5)) < 0.05

    def test_two_points_of_a_lesson_identify_a_conjunction(self, prompts):
        p = prompts["conjunction taught"]
        np.testing.assert_array_equal(boolean.elimination(p.x, p.y)[:, 2:], p.y[:, 2:])
        for w, x, y in zip(p.w[:, 0], p.x, p.y, strict=True):
            places = np.flatnonzero(w)
            assert y[: len(places) + 2].tolist() == [1, 1] + [0] * len(places)
            for row, i in zip(x[2:], places, strict=False):
                np.testing.assert_array_equal(row, np.where(np.arange(5) == i, -w, np.where(w == 0, 1, w)))

    def test_bayes_is_the_sum_over_all_conjunctions(self, prompts):
        p, n = prompts["conjunction"], 5
        w = boolean.conjunctions(n)
        cube = np.array(list(itertools.product((-1, 1), repeat=n)))
        value, log_point = boolean.conjunction_points(w, cube, 0.3)
        np.testing.assert_allclose(np.exp(log_point).mean(1), 1, atol=1e-10)  # a law of points for each of them
        prior = 0.15 ** np.abs(w).sum(1) * 0.7 ** (w == 0).sum(1)
        found = boolean.bayes_conjunctions(p.x[:2], p.y[:2], 0.7, 0.3)
        for b, t in ((0, 0), (0, 3), (1, 11)):
            seen = (p.x[b, : t + 1] @ (1 << np.arange(n)[::-1]) + 31).astype(int) // 2  # their places in the cube
            like = prior * np.exp(log_point[:, seen]).prod(1) * (value[:, seen[:-1]] == p.y[b, :t]).all(1)
            np.testing.assert_allclose(found[b, t], like[value[:, seen[-1]]].sum() / like.sum(), atol=1e-10)

    def test_simple_learners(self, prompts):
        p = prompts["sparse parity"]
        near, most = boolean.nearest(p.x, p.y), boolean.majority(p.y)
        for b, t in itertools.product(range(4), range(1, 12)):
            first = max(range(t), key=lambda i: (p.x[b, i] @ p.x[b, t], -i))
            assert near[b, t] == p.y[b, first] and most[b, t] == (2 * p.y[b, :t].sum() >= t)
        line = np.sign(p.x[..., 0]) > 0
        assert (boolean.least_squares(p.x, line, 11) == line[:, 11]).mean() > 0.95

    def test_a_copied_label_is_the_nearest_one(self, prompts):
        p = prompts[COPY]
        np.testing.assert_array_equal(boolean.nearest(p.x, p.y)[:, 4:], p.y[:, 4:])

    def test_errors(self):
        with pytest.raises(ConfigError, match="family = 'xor': expected one of conjunction"):
            BooleanFunctions("xor")


class TestContextCounts:
    tokens = np.random.default_rng(5).integers(0, 3, 30)

    @pytest.mark.parametrize("order", [0, 1, 2, 3])
    def test_counts_are_of_what_followed(self, order):
        x, found = self.tokens, followed(self.tokens, order, 3)
        for i in range(len(x)):
            want = np.zeros(3)
            for j in range(order, i + (order == 0)):
                if i + 1 >= order and all(x[j - 1 - r] == x[i - r] for r in range(order)):
                    want[x[j]] += 1
            np.testing.assert_array_equal(found[i], want)

    def test_back_off_takes_the_longest_context_that_was_met(self):
        law = back_off(self.tokens, 3, 3)
        np.testing.assert_allclose(law.sum(1), 1, atol=1e-12)
        counts = [followed(self.tokens, n, 3) for n in range(4)]
        for i, row in enumerate(law):
            longest = max(n for n in range(4) if counts[n][i].any())
            np.testing.assert_allclose(row, counts[longest][i] / counts[longest][i].sum(), atol=1e-12)
        assert (back_off(self.tokens, 2, 3, without=1)[:, 1] == 0).all()


def test_half_of_the_pairs_are_the_same():
    tokens, y = map(np.asarray, jax.jit(pairs, static_argnums=(1, 4))(jax.random.key(0), 512, 10, jnp.int32(5), 99))
    assert set(tokens[:, :2].ravel()) == set(range(10, 15)) and (tokens[:, 2] == 99).all()
    np.testing.assert_array_equal(y, np.where(tokens[:, 0] == tokens[:, 1], 1, -1))
    assert abs(y.mean()) < 0.15
