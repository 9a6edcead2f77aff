"""What the scaling experiments rest on, exactly: closed forms against brute force, rules and laws by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.analysis import random_features as rf
from jaxlm.analysis.loss_surface import LossSurface, fit_loss_surface
from jaxlm.analysis.power_law import fit_power_law, slope
from jaxlm.analysis.rectified_law import fit_rectified_law
from jaxlm.analysis.taylor import tangent_kernel
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.theory import finetune_selection, learning_law, superposition
from jaxlm.theory import linear_representations as linear
from jaxlm.train.optimizers import row_decay


class TestRandomFeatures:
    def test_measured_loss_is_that_of_ridge_regression(self, x64):
        spectrum, ridges, noise = rf.power_spectrum(9, 0.7), (0.0, 0.3), 0.2
        for n, t in ((4, 6), (6, 4)):
            key = jax.random.key(n)
            u, x = np.split(np.asarray(jax.random.normal(key, (n + t, 9), jnp.float64)), [n])
            x = x * np.sqrt(spectrum)
            got = rf.measure(key[None], jnp.asarray(spectrum), n, t, jnp.array(ridges), noise)[0]
            for ridge, loss in zip(ridges, got, strict=True):
                to_weights = np.linalg.pinv(x @ u.T) if ridge == 0 else None
                if to_weights is None:
                    to_weights = np.linalg.solve(u @ x.T @ x @ u.T + ridge * np.eye(n), u @ x.T)
                bias = np.sqrt(spectrum)[:, None] * (u.T @ to_weights @ x - np.eye(9))
                heard = np.sqrt(spectrum)[:, None] * (u.T @ to_weights)
                want = np.sum(bias**2) + noise * (1 + np.sum(heard**2))
                np.testing.assert_allclose(loss, want, rtol=1e-10)

    def test_closed_forms_agree(self):
        spectrum = rf.power_spectrum(300, 1.0)
        for n, t in ((20, 70), (70, 20), (33, 34), (15, math.inf), (math.inf, 15)):
            kappa = rf.resolution(spectrum, n, t)
            assert rf.effective(spectrum, kappa) == pytest.approx(min(n, t), rel=1e-10)
            want = rf.predict_ridgeless(spectrum, n, t)
            assert rf.predict(spectrum, n, t) == pytest.approx(want, rel=1e-10)
            assert rf.predict_ridgeless(spectrum, t, n) == pytest.approx(want, rel=1e-10)
        assert rf.predict(spectrum, 50, 50) == math.inf == rf.predict_ridgeless(spectrum, 50, 50)

    def test_ridge_is_symmetric_and_stationary_at_its_best(self):
        spectrum = rf.power_spectrum(300, 0.5)
        for n, t, ridge in ((20, 70, 1.0), (40, 60, 0.01), (30, 35, 20.0)):
            assert rf.predict(spectrum, n, t, ridge) == pytest.approx(rf.predict(spectrum, t, n, ridge), rel=1e-10)
        ridge, loss = rf.best_ridge(spectrum, 40, 50, 0.1)
        assert rf.predict(spectrum, 40, 50, ridge, 0.1) == pytest.approx(loss, rel=1e-10)
        for factor in (0.8, 1.25):
            assert rf.predict(spectrum, 40, 50, factor * ridge, 0.1) > loss

    def test_limits(self):
        flat = np.ones(50)  # a projection on N of 50 equal directions leaves 50 - N
        assert rf.predict(flat, 20, math.inf) == pytest.approx(30, rel=1e-10)
        assert rf.predict(flat, 80, 200, noise=0.3) == pytest.approx(0.3 / (1 - 50 / 200), rel=1e-10)
        kappa = rf.resolution(rf.power_spectrum(200_000, 1.0), 30, math.inf)
        assert kappa == pytest.approx((math.pi / 61) ** 2, rel=2e-3)  # Σ 1 / (1 + κ i²) = π / 2√κ - 1/2
        assert rf.limit(1.0) == pytest.approx(math.pi**2 / 4, rel=1e-12)
        with pytest.raises(ConfigError, match="ridge"):
            rf.predict(flat, 3, 4, -1.0)


class TestSuperposition:
    def test_decay_of_rows(self):
        w = jnp.array([[3.0, 4.0], [0.3, 0.4]])
        params, grads = {"w": w, "b": jnp.ones(2)}, {"w": 0 * w, "b": 2 * jnp.ones(2)}
        for strength, want in ((0.5, 0.5 * w), (-0.5, jnp.array([[1.2, 1.6], [-0.15, -0.2]]))):
            tx = row_decay(strength)
            updates, _ = tx.update(grads, tx.init(params), params)
            close(updates, {"w": want, "b": 2 * jnp.ones(2)})

    def test_moments_of_the_features(self):
        p = superposition.frequencies(4, jnp.float32(1.5))
        np.testing.assert_allclose(p, np.arange(1, 5.0) ** -1.5, rtol=1e-6)
        x = np.asarray(superposition.examples(jax.random.key(0), p, 20_000))
        np.testing.assert_allclose((x > 0).mean(axis=0), p, atol=0.015)
        np.testing.assert_allclose(x.mean(axis=0), p, atol=0.02)
        np.testing.assert_allclose((x**2).mean(axis=0), 4 / 3 * p, atol=0.03)

    def test_anatomy_by_hand(self):
        w = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32) * np.linspace(0.1, 1.5, 7)[:, None]
        w, p = w.astype(np.float32), (np.arange(1, 8.0) ** -1).astype(np.float32)
        norms = np.linalg.norm(w, axis=1)
        held = norms > 0.5
        unit = w[held] / norms[held, None]
        pairs = [(unit[i] @ unit[j]) ** 2 for i in range(len(unit)) for j in range(len(unit)) if i != j]
        got = superposition.anatomy(jnp.asarray(w), jnp.asarray(p))
        assert 1 < held.sum() < 7
        want = {"held": held.mean(), "long": (norms > 1).mean(), "overlap": np.mean(pairs)}
        close(got, {**{k: np.float32(v) for k, v in want.items()}, "unlearned": np.float32(4 / 3 * p[~held].sum())})

    def test_a_code_as_wide_as_the_features_is_exact(self):
        x = superposition.examples(jax.random.key(0), jnp.full(5, 0.5), 8)
        assert superposition.errors({"w": jnp.eye(5), "b": jnp.zeros(5)}, x) == 0


class TestLinearRepresentations:
    def test_conditionals_and_entropy(self, x64):
        prior = jnp.array([0.3, 0.45, 0.6])
        p = np.asarray(linear.conditional(prior))
        assert p.shape == (27, 8)
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
        at = {tuple(c): row for c, row in zip(linear.settings_of(3, 3), p, strict=True)}
        tokens = [tuple(c) for c in linear.settings_of(3, 2)]
        assert at[1, 2, 0][tokens.index((1, 1, 0))] == pytest.approx(0.45, rel=1e-12)
        assert at[2, 2, 2][tokens.index((0, 1, 1))] == pytest.approx(0.7 * 0.45 * 0.6, rel=1e-12)
        own = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1).mean()
        assert float(linear.entropy(prior)) == pytest.approx(own, rel=1e-12)

    def test_a_linear_code_is_exact(self, x64):
        """With token vectors Σ ±u_i each concept is a logistic regression of its own, and every cosine is 0 or 1."""
        prior, margin = jnp.array([0.3, 0.45, 0.6]), 2.0
        u = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (5, 3), jnp.float64))[0].T
        logits = jnp.where(
            linear.settings_of(3, 3) == linear.OPEN,
            jnp.log(prior / (1 - prior))[None] / 2,
            margin * (2.0 * linear.settings_of(3, 3) - 1),
        )
        params = {"f": logits @ u, "g": (2.0 * linear.settings_of(3, 2) - 1) @ u}
        want = float(linear.entropy(prior)) + 3 * 2 / 3 * math.log1p(math.exp(-2 * margin))
        assert float(linear.cross_entropy(params, linear.conditional(prior))) == pytest.approx(want, rel=1e-10)
        found = linear.cosines(params, 3)
        np.testing.assert_allclose(found["table"], np.eye(3), atol=1e-10)
        for name, value in (("same", 1), ("different", 0), ("apart", 0), ("matched", 1), ("crossed", 0)):
            assert float(found[name]) == pytest.approx(value, abs=1e-10), name


class TestLearningLaw:
    def test_contributions_of_examples_by_the_adjoint(self, x64):
        """A weight is worth -rate λ · ∇l_n, with λ the derivative of later losses by the student, traced by hand."""
        n, d, steps, rate = 5, 3, 4, 0.3
        rng = np.random.default_rng(0)
        learned, judged = rng.normal(size=(n, d)), rng.normal(size=(7, d))
        weights = rng.dirichlet(np.ones(n), size=steps)

        def area(weights):
            students = learning_law.path(weights, jnp.asarray(learned), rate)
            return jnp.sum(learning_law.curve(students, jnp.asarray(judged)))

        sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
        w, students = np.zeros(d), [np.zeros(d)]
        for gamma in weights:
            w = w + rate * (gamma * sigmoid(-learned @ w)) @ learned
            students.append(w)
        want, back = np.zeros((steps, n)), np.zeros(d)
        for t in reversed(range(steps)):
            back = back - sigmoid(-judged @ students[t + 1]) @ judged / len(judged)
            slopes = sigmoid(-learned @ students[t])
            want[t] = rate * slopes * (learned @ back)
            hessian = (learned.T * (weights[t] * slopes * (1 - slopes))) @ learned
            back = back - rate * hessian @ back
        np.testing.assert_allclose(jax.grad(area)(jnp.asarray(weights)), want, rtol=1e-10)
        np.testing.assert_allclose(
            learning_law.path(jnp.asarray(weights), jnp.asarray(learned), rate), students, rtol=1e-10
        )

    def test_the_law_of_equal_examples(self, x64):
        """Copies of one example contribute the same; of two examples the spread is that of two numbers."""
        one, judged = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, -1.0], [1.0, 0.3]])
        weights = jnp.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
        copies = jnp.tile(one, (3, 1))
        found = learning_law.law(weights, learning_law.path(weights, copies, 0.5), copies, judged)
        np.testing.assert_allclose(found["spread"], 0, atol=1e-7)
        np.testing.assert_allclose(found["count"], [1 / 0.38, 1 / 0.44], rtol=1e-12)
        two = jnp.array([[1.0, -2.0], [0.3, 0.1]])
        half = jnp.full((1, 2), 0.5)
        toward = -judged.mean(axis=0) / 2  # at w = 0
        a, b = -two[0] / 2 @ toward, -two[1] / 2 @ toward
        spread = learning_law.law(half, learning_law.path(half, two, 0.5), two, judged)["spread"]
        assert float(spread[0]) == pytest.approx(float(abs(a - b) / abs(a + b)), rel=1e-10)

    def test_when_a_loss_is_reached(self):
        equal = np.array([1.0, 0.8, 0.6, 0.5, 0.4])
        assert learning_law.reached(np.array([1.0, 0.6, 0.4, 0.3, 0.2]), equal) == 0.5
        assert learning_law.reached(np.full(5, 0.9), equal) == 1.25
        steps = np.arange(101)
        assert learning_law.late(3.0 * np.maximum(steps, 1.0) ** -0.4)[0] == pytest.approx(-0.4)


class TestLossSurface:
    def test_finds_an_exact_surface(self):
        truth, rng = LossSurface(1.7, 400.0, 1800.0, 0.34, 0.37, 0.0), np.random.default_rng(0)
        n, d = 10 ** rng.uniform(6, 9, 40), 10 ** rng.uniform(8, 11, 40)
        found = fit_loss_surface(n, d, truth(n, d))
        np.testing.assert_allclose(found[:5], truth[:5], rtol=1e-6)
        bent = truth(n, d) * np.where(np.arange(40) == 7, 1.3, 1)  # one bad run does not bend the law
        np.testing.assert_allclose(fit_loss_surface(n, d, bent)[:5], truth[:5], rtol=0.05)

    def test_the_best_size_of_a_budget(self):
        law = LossSurface(1.7, 400.0, 1800.0, 0.34, 0.37, 0.0)
        size, tokens = law.best(1e21)
        assert 6 * size * tokens == pytest.approx(1e21, rel=1e-12)
        for factor in (0.99, 1.01):
            assert law(size * factor, tokens / factor) > law(size, tokens)
        many = np.logspace(18, 24, 5)
        assert slope(many, law.best(many)[0]) == pytest.approx(law.exponent, rel=1e-10)

    def test_refuses_what_it_cannot_fit(self):
        with pytest.raises(ShapeError, match="losses"):
            fit_loss_surface([1.0], [1.0, 2.0], [3.0])
        with pytest.raises(ConfigError, match="positive"):
            fit_loss_surface(np.ones(9), np.ones(9), np.zeros(9))


class TestRectifiedLaw:
    sizes = 2.0 ** np.arange(1, 9)

    def test_finds_an_exact_law(self):
        kernels, time = np.array([2.0, 5.0, 0.5]), 3.0
        b, beta, e = np.array([9.0, 4.0, 2.0]), np.array([0.7, 1.1, 0.4]), np.array([1.5, 0.0, 0.8])
        losses = b[:, None] / (time * kernels[:, None] + self.sizes[None] ** beta[:, None]) + e[:, None]
        found = fit_rectified_law(self.sizes, losses, kernels, (0.0, 1.0, 3.0, 9.0))
        assert found.time == time and found.squares < 1e-14
        np.testing.assert_allclose(found.exponent, beta, rtol=1e-4)
        np.testing.assert_allclose(found.scale, b, rtol=1e-3)
        np.testing.assert_allclose(found.floor, e, atol=1e-3)
        np.testing.assert_allclose(found.shift, time * kernels, rtol=1e-12)
        np.testing.assert_allclose(found(self.sizes), losses, rtol=1e-6)

    def test_without_a_shift_it_is_the_power_law(self):
        noise = 1 + 0.01 * np.random.default_rng(0).normal(size=(2, 8))
        losses = (3 * self.sizes**-0.6 + np.array([[1.0], [0.0]])) * noise
        found = fit_rectified_law(self.sizes, losses, [1.0, 2.0], (0.0,))
        for n, row in enumerate(losses):
            want = fit_power_law(self.sizes, row)
            got = found.scale[n], found.exponent[n], found.floor[n]
            np.testing.assert_allclose(got, (want.a, want.b, want.c), rtol=1e-4, atol=1e-4)

    def test_refuses_what_it_cannot_fit(self):
        with pytest.raises(ShapeError, match="losses"):
            fit_rectified_law([1.0, 2.0], np.ones((2, 2)), [1.0], (0.0,))
        with pytest.raises(ConfigError, match="positive"):
            fit_rectified_law([0.0, 2.0], np.ones((1, 2)), [1.0], (0.0,))

    def test_where_the_power_begins(self, x64):
        """Gradients m + σ g of many numbers: of n together the mean is m, what is left of the rest is σ²/n of it."""
        m, g = jnp.array([3.0, 4.0, 0.0, 0.0]), 10.0 * jnp.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        kernel = tangent_kernel(lambda p: (m[None] + g) @ p["w"], {"w": jnp.zeros(4)})
        np.testing.assert_allclose(kernel, [[125.0, 25.0], [25.0, 125.0]], rtol=1e-12)
        assert float(finetune_selection.begins(kernel)) == pytest.approx(5.0, rel=1e-12)
