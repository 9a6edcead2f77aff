"""Hopfield networks against their formulas in numpy: energies, updates, and the modern one as attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.memory.hopfield import (
    Exponential,
    Hopfield,
    Power,
    dense_energy,
    dense_field,
    dense_sweep,
    dense_update,
    energy,
    error_bound,
    hebb,
    modern_energy,
    modern_update,
    retrieve,
    separation,
    settle,
    sweep,
    update,
)
from jaxlm.mixers.attention import Attention
from jaxlm.module import ConfigError, ShapeError, init
from jaxlm.ops.attention import attention
from jaxlm.papers.hopfield_capacity import CROWDS, capacity, exact, mean_field, wrong
from jaxlm.papers.hopfield_capacity import signs as drawn

n, p = 16, 7  # n a power of two: fields are exact and a tie is a tie; p odd: the exponential has none
ALL = (Power(2), Power(3), Power(3, rectified=True), Power(4), Exponential())


def signs(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=shape).astype(dtype)


def of(f, x):
    """F in numpy."""
    if isinstance(f, Exponential):
        return np.exp(x)
    return (np.maximum(x, 0) if f.rectified else x) ** f.a


class TestClassical:
    def test_hebb_is_the_sum_over_patterns_without_diagonal(self, x64):
        xi = signs(p, n)
        want = sum(np.outer(x, x) for x in xi) / n
        np.fill_diagonal(want, 0)
        close(hebb(xi), want, np.float64)

    def test_energy_and_the_update_of_all(self, x64):
        w, s = np.asarray(hebb(signs(p, n))), signs(2, n, seed=1)
        close(energy(w, s), np.array([-x @ w @ x / 2 for x in s]), np.float64)
        np.testing.assert_array_equal(update(w, s), np.where(s @ w == 0, s, np.sign(s @ w)))

    def test_a_sweep_goes_unit_by_unit(self, x64):
        w, order = np.asarray(hebb(signs(p, n))), np.random.default_rng(2).permutation(n)
        s = signs(5, n, seed=1)
        want = s.copy()
        for row in want:
            for i in order:
                field = w[i] @ row
                row[i] = np.sign(field) if field else row[i]
        np.testing.assert_array_equal(sweep(w, s, order), want)
        assert (want != np.asarray(update(w, s))).any()

    def test_no_unit_raises_the_energy(self, x64):
        """Law 5; all at once may, and may cycle."""
        w, s, seen = hebb(signs(9, n)), jnp.asarray(signs(20, n, seed=1)), []
        step = jax.jit(lambda s, i: (lambda s: (s, energy(w, s)))(sweep(w, s, i[None])))
        for i in np.random.default_rng(0).integers(n, size=3 * n):
            s, e = step(s, i)
            seen.append(np.asarray(e))
        falls = np.diff(seen, axis=0)
        assert falls.max() <= 1e-12 and falls.min() < -0.1
        pair = jnp.asarray([[0.0, 1], [1, 0]])
        there = update(pair, jnp.asarray([1.0, -1]))
        np.testing.assert_array_equal(there, [-1, 1])
        np.testing.assert_array_equal(update(pair, there), [1, -1])

    def test_a_few_patterns_are_found_again_and_their_negatives_too(self):
        xi = signs(5, 200, dtype=np.float32)
        w = hebb(xi)
        noisy = xi * np.where(np.random.default_rng(1).random(xi.shape) < 0.2, -1, 1).astype(np.float32)
        found, sweeps = settle(partial(sweep, w), jnp.asarray(np.concatenate([noisy, -noisy])), jax.random.key(0))
        np.testing.assert_array_equal(found, np.concatenate([xi, -xi]))
        assert 2 <= sweeps < 10

    def test_settling_stops_at_its_limit(self):
        w, s = hebb(signs(39, 64, dtype=np.float32)), jnp.asarray(signs(3, 64, seed=1, dtype=np.float32))
        assert settle(partial(sweep, w), s, jax.random.key(0), most=1)[1] == 1
        end, _ = settle(partial(sweep, w), s, jax.random.key(0))
        np.testing.assert_array_equal(update(w, end), end)


class TestDense:
    @pytest.mark.parametrize("f", ALL, ids=str)
    def test_the_update_is_the_papers(self, f, x64):
        """Krotov & Hopfield 2016, unit by unit: the sign of an energy difference."""
        xi, s = signs(p, n), signs(3, n, seed=1)
        want, order = s.copy(), np.random.default_rng(3).permutation(n)

        def new(row, i):
            rest = xi @ row - xi[:, i] * row[i]
            gap = np.sum(of(f, xi[:, i] + rest) - of(f, -xi[:, i] + rest))
            return np.sign(gap) if gap else row[i]

        np.testing.assert_array_equal(dense_update(xi, s, f), [[new(row, i) for i in range(n)] for row in s])
        for row in want:
            for i in order:
                row[i] = new(row, i)
        np.testing.assert_array_equal(dense_sweep(xi, s, order, f), want)
        close(dense_energy(xi, s, f), -of(f, s @ xi.T).sum(1), np.float64)

    @pytest.mark.parametrize("f", ALL, ids=str)
    def test_no_unit_raises_the_energy(self, f, x64):
        xi, s, seen = signs(12, n), jnp.asarray(signs(20, n, seed=1)), []
        step = jax.jit(lambda s, i: (lambda s: (s, dense_energy(xi, s, f)))(dense_sweep(xi, s, i[None], f)))
        for i in np.random.default_rng(0).integers(n, size=2 * n):
            s, e = step(s, i)
            seen.append(np.asarray(e))
        falls = np.diff(seen, axis=0) / np.abs(seen[0]).max()
        assert falls.max() <= 1e-12 and falls.min() < 0

    def test_squares_are_the_classical_network(self, x64):
        """Law 5: the same field (the rule leaves out j = i), and 2n times the energy less the diagonal."""
        xi, s = signs(p, n), signs(30, n, seed=1)
        w, order = hebb(xi), np.arange(n)
        np.testing.assert_array_equal(dense_update(xi, s, Power(2)), update(w, s))
        np.testing.assert_array_equal(dense_sweep(xi, s, order, Power(2)), sweep(w, s, order))
        close(dense_energy(xi, s, Power(2)), 2 * n * np.asarray(energy(w, s)) - p * n, np.float64)
        field = dense_field(Power(2), xi[None, :, 0], s @ xi.T - xi[None, :, 0] * s[:, :1])
        ratio = 4 * n * np.asarray(s @ w)[:, 0] / np.asarray(field)
        assert np.isin(ratio[~np.isnan(ratio)], 4.0 ** np.arange(12)).all()  # the factor is a square of a power of two

    def test_the_exponential_does_not_overflow(self):
        xi = signs(50, 2000, dtype=np.float32)
        noisy = xi[:2] * np.where(np.random.default_rng(1).random((2, 2000)) < 0.3, -1, 1).astype(np.float32)
        np.testing.assert_array_equal(jax.jit(partial(dense_update, f=Exponential()))(xi, noisy), xi[:2])

    def test_higher_powers_hold_what_squares_lose(self):
        xi = signs(80, 60, dtype=np.float32)
        lost = [float((np.asarray(dense_update(xi, xi, Power(a))) != xi).mean()) for a in (2, 4)]
        assert lost[0] > 0.05 and lost[1] == 0


class TestModern:
    def patterns(self, count=6, d=8, seed=0):
        return np.random.default_rng(seed).normal(size=(count, d))

    def test_energy_and_update(self, x64):
        x, s, beta = self.patterns(), self.patterns(3, seed=1), 0.7
        weights = np.exp(beta * s @ x.T)
        free = np.log(weights.sum(1)) / beta
        largest = (x**2).sum(1).max()
        want = -free + (s**2).sum(1) / 2 + np.log(6) / beta + largest / 2
        close(modern_energy(x, s, beta), want, np.float64)
        close(modern_update(x, s, beta), (weights / weights.sum(1, keepdims=True)) @ x, np.float64)

    def test_the_update_is_a_step_down_the_gradient(self, x64):
        """ξ - ∇E = softmax(β ξ Xᵀ) X: a step of length one; the energy never rises and is never negative."""
        x, s, beta = self.patterns(), jnp.asarray(2 * self.patterns(40, seed=1)), 1.3
        slope = jax.grad(lambda s: jnp.sum(modern_energy(x, s, beta)))(s)
        close(s - slope, modern_update(x, s, beta), np.float64)
        seen = []
        for _ in range(6):
            seen.append(np.asarray(modern_energy(x, s, beta)))
            s = modern_update(x, s, beta)
        assert np.diff(seen, axis=0).max() <= 1e-12 and np.diff(seen, axis=0).min() < -0.1 and np.min(seen) >= 0

    def test_beta_large_finds_the_nearest_and_beta_zero_the_mean(self, x64):
        x = self.patterns()
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        s = x + 0.1 * self.patterns(seed=1)
        close(modern_update(x, s, 1e3), x, np.float64)
        close(retrieve(x, x, 1e3, steps=5), x, np.float64)
        close(modern_update(x, s, 1e-13), np.broadcast_to(x.mean(0), x.shape), np.float64)

    def test_separation_bounds_the_error(self, x64):
        x = self.patterns(20, 12)
        dots = x @ x.T
        want = [dots[i, i] - max(dots[i, j] for j in range(20) if j != i) for i in range(20)]
        close(separation(x), np.array(want), np.float64)
        for beta in (0.3, 1.0, 3.0):
            off = np.linalg.norm(np.asarray(modern_update(x, x, beta)) - x, axis=1)
            assert (off <= np.asarray(error_bound(x, beta))).all() and off.max() > 1e-6

    def test_the_update_is_attention(self, x64):
        """Law 5: keys = values = X, the scale is β; the last query of a causal sequence sees them all."""
        x, s, beta = self.patterns(9, 8), self.patterns(9, 8, seed=1), 0.4
        q, kv = (beta * s)[None, :, None], x[None, :, None]
        got = attention(q, kv, kv)[0][0, -1, 0]
        close(got, modern_update(x, s, beta)[-1], np.float64)


class TestLayer:
    def test_is_attention_on_the_same_weights(self):
        """β = 1/√k, one step: exactly `Attention` without positions, given its mask."""
        layer, mixer = Hopfield(12, heads=3), Attention(12, heads=3, position=None)
        params = init(mixer, jax.random.key(0))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init(layer, jax.random.key(0)))
        x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)
        causal = np.broadcast_to(np.tril(np.ones((7, 7), bool)), (2, 7, 7))
        want = mixer.apply(params, x)[0]
        close(layer.apply(params, jnp.asarray(x), jnp.asarray(x), jnp.asarray(causal)), want)
        close(layer.apply(params, jnp.asarray(x[:, -1:]), jnp.asarray(x)), want[:, -1:])

    def test_more_steps_settle_the_state_first(self):
        layer = Hopfield(8, heads=2, head=5, beta=0.9, steps=3)
        params = {k: np.asarray(v) for k, v in init(layer, jax.random.key(0)).items()}
        rng = np.random.default_rng(0)
        r, y = rng.normal(size=(1, 4, 8)).astype(np.float32), rng.normal(size=(1, 6, 8)).astype(np.float32)
        want = np.zeros((4, 8))
        for h in range(2):
            s, x, v = (a @ params[m][:, h] for a, m in ((r[0], "query"), (y[0], "key"), (y[0], "value")))
            for values in (x, x, v):
                w = np.exp(0.9 * s @ x.T)
                s = w / w.sum(1, keepdims=True) @ values
            want += s @ params["out"][h]
        close(layer.apply(params, jnp.asarray(r), jnp.asarray(y))[0], want.astype(np.float32))

    def test_bad_fields_and_shapes_are_named(self):
        for field, value in (("heads", 5), ("steps", 0), ("beta", -1.0)):
            with pytest.raises(ConfigError, match=rf"Hopfield\.{field}"):
                Hopfield(8, **{field: value})
        with pytest.raises(ConfigError, match=r"Power\.a"):
            Power(0)
        layer = Hopfield(8)
        with pytest.raises(ShapeError, match=r"\(2, 3, 9\)"):
            layer.apply(init(layer, jax.random.key(0)), jnp.zeros((2, 3, 9)), jnp.zeros((2, 3, 9)))


class TestCapacity:
    def test_mean_field_ends_at_the_known_load(self):
        load, overlap = mean_field()
        assert abs(load[0] - 0.1379) < 1e-4 and abs(overlap[0] - 0.967) < 1e-3
        assert (np.diff(load) < 0).all() and (np.diff(overlap) > 0).all()

    def test_formulas(self):
        logarithm = np.log(100)
        for a, want in ((2, 100 / 2), (3, 100**2 / 6), (4, 100**3 / 30)):
            close(np.float64(capacity(100, a)), np.float64(want / logarithm), np.float64)

    def test_wrong_bits_are_those_of_the_update(self):
        d, a, tested = 16, 3, 8
        got, key = wrong(jax.random.key(0), d, a, tested), jax.random.key(0)
        counts = [max(round(c * capacity(d, a)), 2) for c in CROWDS]
        xi = drawn(key, max(counts), d)
        for i in (0, 4, len(counts) - 1):
            kept = xi[: counts[i]]
            moved = dense_update(kept, kept[:tested], Power(a)) != kept[:tested]
            close(got[i], np.float32(np.asarray(moved).sum(1).mean()))

    def test_exact_patterns_are_fixed_points(self):
        key, count = jax.random.key(3), 9
        xi = np.asarray(drawn(key, 12, 64)).astype(np.float64)[:count]
        w = xi.T @ xi
        np.fill_diagonal(w, 0)
        kept = ((xi @ w) * xi >= 0).all(1)
        share, whole = exact(key, 64, 12, jnp.int32(count))
        assert 0 < kept.mean() < 1
        close(share, np.float32(kept.mean()))
        assert not whole
