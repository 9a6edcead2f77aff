"""What the experiments on recurrences rest on, exactly."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.layers.mlp import MLP
from jaxlm.mixers.lru import LRU
from jaxlm.module import abstract
from jaxlm.theory import onion
from jaxlm.theory import ssm_languages as languages
from jaxlm.theory import window_universality as window


def some(module, dtype=jnp.float32):
    """Weights of a module, drawn by numpy: nothing is compiled."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda w: jnp.asarray(rng.normal(scale=0.5, size=w.shape), dtype), abstract(module))


class TestWindow:
    def test_states_are_powers_of_the_eigenvalues_and_rebuild_what_they_can(self, x64):
        mixer, length = LRU(1, 4, 0.5, 0.9, 2 * math.pi), 6
        params = some(mixer, jnp.float64)
        v = np.asarray(window.states(mixer, params, jnp.eye(length)))
        nu, theta, b = (np.asarray(params[k]) for k in ("nu", "theta", "B"))
        rates = np.exp(-np.exp(nu) + 1j * np.exp(theta))
        into = np.sqrt(1 - np.abs(rates) ** 2) * (b[0, 0] + 1j * b[0, 1])
        want = into * rates ** np.arange(length - 1, -1, -1)[:, None]
        np.testing.assert_allclose(v, np.stack([want.real, want.imag], axis=2).reshape(length, -1), atol=1e-10)
        rng = np.random.default_rng(0)
        even = window.white(rng, length)
        np.testing.assert_allclose(even.T @ even / len(even), np.eye(length), atol=1e-10)
        for n in (1, 2, 3, 4):
            held = even @ v[:, : 2 * n]
            readout = np.linalg.lstsq(held, even, rcond=None)[0]
            assert abs(window.left(held, even, readout) - max(0, 1 - 2 * n / length)) < 1e-10

    def test_the_least_error_of_some_directions(self, x64):
        """By quadrature, exact for polynomials: E y^2 = 1, and what E[y | p x] leaves is at least the bound."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(8)
        weights, rng = weights / weights.sum(), np.random.default_rng(1)
        a, b = window.some_map(rng, 2, 0.6, 1.0)
        sizes, turn = np.linalg.eigh(b)
        top = np.argmax(np.abs(sizes))
        for p in (turn[:, top], turn[:, 1 - top], *rng.normal(size=(5, 2))):
            p = p / np.linalg.norm(p)
            across = np.array([-p[1], p[0]])
            x = nodes[:, None, None] * p + nodes[None, :, None] * across
            y = np.asarray(window.volterra(jnp.asarray(a), jnp.asarray(b), jnp.asarray(x.reshape(-1, 2)))).reshape(8, 8)
            best = y @ weights
            left = weights @ (y - best[:, None]) ** 2 @ weights
            assert abs(weights @ y**2 @ weights - 1) < 1e-10
            assert abs(left - (1 - (a @ p) ** 2 - 2 * (p @ b @ p) ** 2)) < 1e-10
            assert left > window.least(b, 1) - 1e-10
        assert abs(window.least(b, 0) - 0.6) < 1e-10 and window.least(b, 2) == 0

    def test_a_masked_network_is_the_narrow_one(self):
        params, x = some(MLP(3, 6)), jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
        narrow = {k: w[:, :2] if k == "up" else w[:2] if k in ("up_bias", "down") else w for k, w in params.items()}
        mask = (jnp.arange(6) < 2).astype(jnp.float32)
        close(window.guess(params, x, mask), MLP(3, 2).apply(narrow, x)[:, 0])


class TestOnion:
    @pytest.mark.parametrize("ratio", [0.2, 0.5, 0.6])
    def test_every_sequence_is_peeled_off_up_to_one_half(self, ratio):
        tokens, table = np.array(list(itertools.product(range(3), repeat=6))), np.eye(3)
        right = np.all(onion.peel(onion.plant(tokens, ratio, table), ratio, table, 6) == tokens, axis=1)
        # At 0.6 the first layer is outweighed by those of one other token: 0.6 + 0.36 + ... > 1.
        assert right.all() if ratio <= 0.5 else not right[tokens.tolist().index([0, 1, 1, 1, 1, 1])]

    def test_linear_probes_read_the_first_place_alone(self):
        rng = np.random.default_rng(0)
        tokens = rng.integers(4, size=(8000, 3))
        found = onion.probe(onion.plant(tokens, 0.5, np.eye(4)), tokens, 4)
        assert found[0] == 1 and np.abs(found[1:] - 0.25).max() < 0.04

    def test_edits_by_hand(self, x64):
        rng = np.random.default_rng(1)
        weights = {k: jnp.asarray(rng.normal(size=7)) for k in ("gain", "decay", "slope", "shift")}
        weights["table"], held = jnp.asarray(rng.normal(size=(5, 7))), jnp.asarray(rng.normal(size=(2, 7)))
        w = {k: np.asarray(x) for k, x in weights.items()}
        want = [w["gain"] / (1 + np.exp(-w["decay"])) ** j + w["slope"] * j + w["shift"] for j in range(3)]
        place, old, new = (jnp.array(x, jnp.int32) for x in ([2, 0], [4, 1], [0, 3]))
        got = onion.by_onion(weights, held, place, old, new, 3)
        layers = np.stack([want[2] * (w["table"][0] - w["table"][4]), want[0] * (w["table"][3] - w["table"][1])])
        np.testing.assert_allclose(got, np.asarray(held) + layers, atol=1e-10)
        free, source = jnp.asarray(rng.normal(size=(7, 7))), jnp.asarray(rng.normal(size=(2, 7)))
        turn = np.linalg.qr(np.asarray(free))[0]
        moved = np.asarray(onion.by_swap(free, held, place, source, 3)) @ turn
        for row, columns in ((0, slice(4, 6)), (1, slice(0, 2))):
            mixed = (np.asarray(held) @ turn)[row]
            mixed[columns] = (np.asarray(source) @ turn)[row, columns]
            np.testing.assert_allclose(moved[row], mixed, atol=1e-10)

    def test_repetition_goes_on_from_the_stored_state(self):
        s = onion.Settings(vocab=3, length=2)
        model, tokens = onion.model_of(s, 4), jnp.array([[2, 0], [1, 1]])
        params = some(model)
        told = jnp.array([[2, 0, 3, 2], [1, 1, 3, 1]])

        @jax.jit
        def both(params):
            whole = model.apply(params, jax.nn.one_hot(told, 4, dtype=jnp.float32))[0]
            return onion.recite(model, params, onion.store(model, params, tokens), tokens), whole[:, 2:]

        close(*both(params))
        assert float(onion.whole(jax.nn.one_hot(tokens, 3), tokens.at[0, 1].set(1))) == 0.5


class TestLanguages:
    def test_the_constructions_are_right_everywhere_but_without_the_negative_eigenvalue(self):
        found = languages.by_hand(languages.Settings(length=64, trials=8), jax.random.key(0))
        *right, stays = found.values()
        assert right == [1.0, 1.0] and 0.3 < stays < 0.7

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_the_most_that_few_changes_of_sign_get_right(self, n):
        """Against all sequences of signs with at most n changes."""
        for length in (2, 5, 8):
            best = 0
            for signs in itertools.product((0, 1), repeat=length):
                if np.abs(np.diff(signs)).sum() <= n:
                    best = max(best, sum(s == t % 2 for t, s in enumerate(signs, 1)))
            assert languages.most_on_ones([n], [length])[0, 0] == best

    def test_readouts_that_swing_attain_it(self):
        for n in (1, 3, 8):
            weights, zeros = languages.swinging(0.7, n), np.arange(n) + 1.5
            sums = weights @ 0.7 ** np.outer(np.arange(n + 1), np.concatenate([zeros, zeros + 0.5]))
            assert np.abs(sums[:n]).max() < 1e-10 * np.abs(sums[n:]).max() + 1e-14
        s = languages.Settings(channels=(1, 8), prefixes=(3, 40))
        np.testing.assert_array_equal(languages.on_ones(s), languages.most_on_ones(s.channels, s.prefixes))
