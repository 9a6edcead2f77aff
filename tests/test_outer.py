"""Outer-product memories against their formulas in numpy, and the laws of Cabannes et al. 2024."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerance import close

from jaxlm.data import DataError
from jaxlm.data.zipf import Zipf
from jaxlm.memory.outer import (
    OuterMemory,
    circle,
    embeddings,
    error,
    learned,
    population_gradient,
    power,
    recall,
    scores,
    store,
    threshold,
    visit,
)
from jaxlm.module import ConfigError, ShapeError, init
from jaxlm.papers.memory_training import pace

N, M, D = 12, 3, 7


def drawn(seed=0, n=N, m=M, d=D, dtype=np.float32):
    rng = np.random.default_rng(seed)
    e, u = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    return (e.astype(dtype), u.astype(dtype), rng.integers(m, size=n).astype(np.int32), rng.random(n).astype(dtype))


def by_hand(e, u, y, q):
    """The matrix that acts on columns, fact by fact."""
    w = np.zeros((u.shape[1], e.shape[1]))
    for x in range(len(e)):
        w += q[x] * np.outer(u[y[x]], e[x])
    return w


class TestClosedForm:
    def test_the_matrix_is_the_sum_of_outer_products(self):
        e, u, y, q = drawn()
        close(store(e, u, y, q), by_hand(e, u, y, q).T.astype(np.float32))

    def test_scores_need_no_matrix(self):
        e, u, y, q = drawn()
        w = by_hand(e, u, y, q)
        want = np.array([[u[j] @ w @ e[x] for j in range(M)] for x in range(N)])
        close(scores(e, u, y, q), want.astype(np.float32))
        np.testing.assert_array_equal(recall(e, u, y, q), want.argmax(1))

    def test_the_error_weighs_mistakes_by_frequency(self):
        p = jnp.asarray([0.5, 0.3, 0.2])
        y, got = jnp.asarray([0, 1, 2]), jnp.asarray([[0, 1, 2], [0, 0, 2], [1, 1, 1]])
        close(jnp.stack([error(p, g, y) for g in got]), np.float32([0, 0.3, 0.7]))

    def test_rescaling_what_is_stored_changes_nothing(self):
        """Law 1."""
        e, u, y, q = drawn(n=60, d=6)
        first = recall(e, u, y, q)
        assert 0 < np.mean(first == y) < 1
        for c in (1e-3, 7.0, 1e4):
            np.testing.assert_array_equal(recall(e, u, y, np.float32(c) * q), first)

    def test_orthonormal_embeddings_never_err(self):
        """Law 1: whatever q > 0, however unequal."""
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32)
        y = rng.integers(5, size=16).astype(np.int32)
        for q in (np.ones(16), 10.0 ** -rng.uniform(0, 3, 16)):
            np.testing.assert_array_equal(recall(basis, basis[:5], y, q.astype(np.float32)), y)

    def test_no_memory_beats_guessing_what_it_never_saw(self):
        """Law 1: E >= (1 - 1/m) of the unseen mass, on average over embeddings; wide ones reach it."""
        facts = Zipf(40, 1.5, 5)
        p, rng = jnp.asarray(facts.p, jnp.float32), np.random.default_rng(0)

        @jax.jit
        @jax.vmap
        def one(key, counts):
            a, b = jax.random.split(key)
            e, u = embeddings(a, 40, 400), embeddings(b, 5, 400, unit=True)
            return error(p, recall(e, u, facts.y, power(counts, 0.0)), facts.y)

        counts = np.stack([facts.counts(rng, 20) for _ in range(300)])
        found = one(jax.random.split(jax.random.key(0), 300), counts.astype(np.int32))
        bound = 0.8 * np.where(counts == 0, facts.p, 0).sum(1)
        gap, noise = np.mean(found - bound), np.std(found - bound) / np.sqrt(300)
        assert abs(gap) < 3 * noise < 0.1 * bound.mean()

    def test_a_circle_holds_any_map_in_two_dimensions(self):
        y = np.random.default_rng(0).integers(9, size=500).astype(np.int32)
        e, u = circle(y, 9)
        assert e.shape == (500, 2)
        np.testing.assert_array_equal(np.argmax(e @ u.T, axis=1), y)  # the matrix is the identity

    def test_embeddings_have_length_one(self):
        e = embeddings(jax.random.key(0), 4000, 50)
        assert abs(np.mean(np.square(e)) * 50 - 1) < 0.02
        close(np.linalg.norm(embeddings(jax.random.key(0), 9, 50, unit=True), axis=1), np.ones(9, np.float32))

    def test_shapes_are_named(self):
        e, u, y, q = drawn()
        with pytest.raises(ShapeError, match=r"q \(3,\)"):
            scores(e, u, y, q[:3])


class TestSchemes:
    def test_powers(self):
        w = jnp.asarray([4.0, 1.0, 0.25, 0.0])
        for rho, want in ((1.0, [4, 1, 0.25, 0]), (0.5, [2, 1, 0.5, 0]), (0.0, [1, 1, 1, 0])):
            close(power(w, rho), np.float32(want))
        close(power(jnp.asarray([9, 0, 4]), 0.5), np.float32([3, 0, 2]))
        assert np.isfinite(jax.grad(lambda w: power(w, 0.5).sum())(w)).all()

    def test_the_threshold_keeps_the_most_frequent_that_were_seen(self):
        w = jnp.asarray([[0, 5, 2, 5, 1], [3, 0, 0, 0, 0]])
        np.testing.assert_array_equal(threshold(w, 1), [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
        np.testing.assert_array_equal(threshold(w, 3), [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
        np.testing.assert_array_equal(threshold(w, 9), [[0, 1, 1, 1, 1], [1, 0, 0, 0, 0]])

    def test_learned_is_f_applied_again_and_again(self):
        visits, step = np.array([0, 1, 2, 7, 300]), 0.7
        want = []
        for times in visits:
            q = 0.0
            for _ in range(times):
                q += step / (1 + np.exp(q) / (M - 1))
            want.append(q)
        close(jax.jit(learned, static_argnums=2)(visits, step, M), np.float32(want))

    def test_learned_is_linear_at_first_then_logarithmic(self):
        early = learned(jnp.asarray([1, 2, 4]), 1e-3, M)
        close(early, np.float32(1e-3 * (1 - 1 / M) * np.array([1, 2, 4])) * (1 - np.float32(0)), "bfloat16")
        late = np.asarray(learned(jnp.asarray([2000, 4000, 8000]), 1.0, M))
        assert np.abs(np.diff(late) / np.log(2) - 1).max() < 0.01


class TestZipf:
    def test_frequencies(self):
        facts = Zipf(50, 1.5, 4)
        want = np.array([1 / k**1.5 for k in range(1, 51)])
        close(facts.p, want / want.sum(), np.float64)
        np.testing.assert_array_equal(facts.y[:6], [0, 1, 2, 3, 0, 1])

    def test_draws_follow_them(self):
        facts, count = Zipf(20, 1.2, 3), 50_000
        x, y = facts.draw(np.random.default_rng(0), count)
        np.testing.assert_array_equal(y, x % 3)
        for seen in (np.bincount(x, minlength=20), facts.counts(np.random.default_rng(1), count)):
            assert seen.sum() == count
            chi = np.sum((seen - count * facts.p) ** 2 / (count * facts.p))
            assert chi < 19 + 4 * np.sqrt(38)

    def test_the_unseen_mass(self):
        facts, rng = Zipf(200, 2.0), np.random.default_rng(0)
        got = [facts.p[facts.counts(rng, 30) == 0].sum() for _ in range(2000)]
        assert abs(np.mean(got) - facts.unseen(30)) < 4 * np.std(got) / np.sqrt(2000)
        assert Zipf(1, 1.0).unseen(5) < 1e-9 and abs(facts.unseen(0) - 1) < 1e-12

    @pytest.mark.parametrize(("alpha", "times"), [(1.5, (1e2, 1e4)), (2.0, (1e2, 1e4)), (3.0, (1e2, 1e4))])
    def test_its_exponent(self, alpha, times):
        """-(1 - 1/alpha), far below the number of inputs."""
        facts = Zipf(1_000_000, alpha)
        low, high = (facts.unseen(int(t)) for t in times)
        assert abs(np.log(high / low) / np.log(times[1] / times[0]) + 1 - 1 / alpha) < 0.02

    def test_a_bad_field_is_named(self):
        with pytest.raises(DataError, match=r"Zipf\.alpha"):
            Zipf(5, -1.0)


class TestTrained:
    def test_one_step_from_zero_stores_the_frequencies(self, x64):
        """Law 2: W_1 = γ Σ p e (u_f - ū)ᵀ."""
        e, u, y, q = drawn(dtype=np.float64)
        p, gamma = q / q.sum(), 0.3
        zero = {"input": e, "output": u, "memory": np.zeros((D, D))}
        got = -gamma * population_gradient(zero, p, y)
        close(got, gamma * (by_hand(e, u, y, p).T - np.outer(p @ e, u.mean(0))), np.float64)

    def test_the_population_gradient_is_the_gradient(self, x64):
        e, u, y, q = drawn(dtype=np.float64)
        params = {"input": e, "output": u, "memory": np.random.default_rng(1).normal(size=(D, D))}
        model = OuterMemory(N, M, D)
        got = jax.grad(model.loss)(params, np.arange(N), y, q)
        close(got["memory"], population_gradient(params, q, y), np.float64)
        assert not np.any(got["input"]) and not np.any(got["output"])

    def test_the_gap_follows_the_exact_recursion(self, x64):
        """Law 2: orthonormal embeddings, any order of visits. The paper's f drops the factor m / (m - 1)."""
        n, m, gamma = 6, 4, 1.7
        model, eye = OuterMemory(n, m, 8), np.eye(8)
        params = {"input": eye[:n], "output": eye[4:], "memory": np.zeros((8, 8))}
        visits, y = np.array([0, 1, 2, 5, 9, 3]), np.arange(n, dtype=np.int32) % m
        order = np.random.default_rng(0).permutation(np.repeat(np.arange(n), visits))

        @jax.jit
        def step(params, x):
            grads = jax.grad(model.loss)(params, x[None], jnp.asarray(y)[x][None], np.ones(1))
            return jax.tree.map(lambda p, g: p - gamma * g, params, grads)

        for x in order:
            params = step(params, x)
        logits = np.asarray(model.apply(params, np.arange(n)))
        right = logits[np.arange(n), y]
        exact = np.zeros(n)
        for x in order:
            exact[x] = visit(exact[x], gamma * m / (m - 1), m)
        for j in range(m):
            close((right - logits[:, j])[y != j], exact[y != j], np.float64)
        assert np.abs(np.asarray(learned(visits, gamma, m)) - exact).max() > 0.1

    @pytest.mark.parametrize("form", ["matrix", "learnable", "exponential"])
    def test_the_logits_of_each_form(self, form):
        model = OuterMemory(N, M, D, form)
        params = {n: np.asarray(p) for n, p in init(model, jax.random.key(0)).items()}
        x = np.array([[3, 0], [11, 5]])
        h = np.maximum(params["input"][x], 0) if form == "exponential" else params["input"][x] @ params["memory"]
        close(model.apply(params, x), h @ params["output"].T)
        grads = jax.grad(lambda p: model.loss(p, x, np.array([[1, 2], [0, 1]]), jnp.ones((2, 2))))(params)
        assert {n for n, g in grads.items() if np.any(g)} == set(params) - (
            {"input", "output"} if form == "matrix" else set()
        )

    def test_norm_divides_by_the_length(self):
        model = OuterMemory(N, M, D, norm=True)
        params = {n: np.asarray(p) for n, p in init(model, jax.random.key(0)).items()}
        h = params["input"] @ params["memory"]
        h = h / np.sqrt((h**2).sum(1, keepdims=True) + 1e-6)
        close(model.apply(params, np.arange(N)), h @ params["output"].T)

    def test_everything_starts_at_variance_one_over_d(self):
        params = init(OuterMemory(300, 50, 200), jax.random.key(0))
        assert set(params) == {"input", "output", "memory"}
        for leaf in params.values():
            assert abs(np.mean(np.square(leaf)) * 200 - 1) < 0.03

    def test_adam_without_memory_is_optax_adam(self):
        model = OuterMemory(N, M, 16, "learnable")
        params = init(model, jax.random.key(0))
        rng = np.random.default_rng(0)
        grads = jax.tree.map(
            lambda p: rng.normal(size=p.shape).astype(np.float32) * 10.0 ** rng.integers(-9, 1), params
        )
        tx = pace(model.rates())
        for adam, base in ((1.0, optax.adam(1.0, b1=0.0, b2=0.0)), (0.0, optax.sgd(1.0))):
            with jax.numpy_dtype_promotion("standard"):
                want = base.update(grads, base.init(params), params)[0]
            scale = {"input": 0.25, "output": 0.25, "memory": 1 / 16} if adam else dict.fromkeys(params, 1.0)
            want = {n: 3 * scale[n] * w for n, w in want.items()}
            given = {"model": params, "rate": jnp.float32(3), "adam": jnp.float32(adam)}
            none = {"model": grads, "rate": jnp.zeros(()), "adam": jnp.zeros(())}
            got, _ = tx.update(none, tx.init(given), given)
            close(got["model"], want)
            assert not got["rate"] and not got["adam"]

    def test_bad_fields_are_named(self):
        with pytest.raises(ConfigError, match=r"OuterMemory\.form"):
            OuterMemory(N, M, D, "cubic")
        with pytest.raises(ConfigError, match=r"OuterMemory\.norm"):
            OuterMemory(N, M, D, "exponential", norm=True)
