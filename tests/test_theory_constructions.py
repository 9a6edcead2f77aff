"""Constructions of theory: each exact statement at 1e-10 in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.analysis import durations, implicit_update
from jaxlm.analysis.boolean_trees import Trees, occam
from jaxlm.analysis.detached import detached_jacobian, hold
from jaxlm.analysis.implicit_update import Sight, absorb, look
from jaxlm.analysis.ngram_compiler import attending, compile_ngrams
from jaxlm.analysis.programs import Assign, Repeat, compile_program, execute, sum_of
from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.layers.mlp import MLP, SwiGLU
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM
from jaxlm.module import init
from jaxlm.ops.simplex import hardmax, sparsemax, sparsemax_naive
from jaxlm.theory import continuous_time, ngram_transformer, short_programs, universal_attention
from jaxlm.theory import detached_jacobian as theory_detached
from jaxlm.theory import implicit_update as theory_update

EXACT = 1e-10


def far(got, want) -> float:
    return float(np.abs(np.asarray(got) - np.asarray(want)).max())


def test_sparsemax_is_the_nearest_point_of_the_simplex(x64):
    z = jax.random.normal(jax.random.key(0), (5, 7), jnp.float64) / 2
    p = jax.jit(sparsemax)(z)
    close(p, jax.jit(sparsemax_naive)(z), jnp.float64)
    assert far(p.sum(axis=-1), 1) < EXACT and (p == 0).any() and (p > 0).sum() > len(z)
    apart = jnp.full_like(z, -jnp.inf).at[:, 1:3].set(jnp.array([1.5, 0.5]))
    assert (jax.jit(sparsemax)(apart) == hardmax(apart)).all()  # a lead of 1 takes all


class TestNgramTransformer:
    @pytest.mark.parametrize(("layers", "how"), [(False, "sparse"), (True, "hard")])
    def test_every_conditional(self, layers, how, x64):
        """A trigram model with impossible events, by hand from the table."""
        table = ngram_transformer.random_table(np.random.default_rng(0), 3, 2)
        table[0, 1] = (1.0, 0.0, 0.0)
        tokens = ngram_transformer.padded(np.array([[0, 1, 1, 0, 1], [1, 0, 1, 0, 0]]), 3, mark=2)
        model, params = compile_ngrams(table, tokens.shape[1], layers=layers)
        out = ngram_transformer.compiled(model, params, jnp.asarray(tokens), how)
        want = [[table[r[i - 1], r[i]] for i in range(1, len(r))] for r in tokens]
        assert far(out[:, 1:], want) < EXACT and far(ngram_transformer.conditionals(table, tokens), want) == 0
        assert (out[0, 3] == jnp.array([1.0, 0, 0])).all()  # p = 0 is 0

    def test_refusals(self):
        with pytest.raises(ShapeError, match="equal axes"):
            compile_ngrams(np.ones((2, 3)), 4)
        with pytest.raises(ConfigError, match="beta"):
            compile_ngrams(np.ones((2, 2)), 4, beta=0.0)
        with pytest.raises(ConfigError, match="how"):
            attending(lambda x: x, "none")


class TestImplicitUpdate:
    def test_a_context_is_a_change_of_weights(self, x64):
        """Every prefix through the block itself, by the sheet's formula in numpy, and by gradient descent."""
        block = Block(Attention(8, heads=2), MLP(8, 5))
        params = implicit_update.float64(init(block, jax.random.key(0)))
        x = jax.random.normal(jax.random.key(1), (4, 8), jnp.float64)
        found = jax.device_get(theory_update.exact(block, params, x[:3], x[3]))
        for a, b in (("block", "patched"), ("plain", "updated")):
            assert far(found[a], found[b]) < EXACT and far(found[a][1:], found[a][0]) > 1e-2
        assert far(found["plain"][1:], found["descended"]) < EXACT
        s = np.linalg.svd(found["change"], compute_uv=False)
        assert s[1] < EXACT * s[0]
        sight = jax.jit(look, static_argnums=0)(block, params, x[None])
        assert far(sight.out[0], found["block"][-1]) < EXACT  # the prompt, as it stands
        up, (alone, *_, read) = np.asarray(params["mlp"]["up"]), found["read"]
        assert far(found["change"], np.outer(alone, (read - alone) @ up) / (alone @ alone)) < EXACT

    def test_a_block_without_a_bias_is_refused(self):
        with pytest.raises(ConfigError, match="biases"):
            absorb({"mlp": {"up": 0, "down": 0}}, *[Sight(*[jnp.ones(2)] * 3)] * 2)


class TestDetachedJacobian:
    def test_one_gated_layer(self, x64):
        """The map by hand: gain / rms, W_up, the gate, W_down."""
        mlp, norm = SwiGLU(4, 3), RMSNorm(4)
        params = implicit_update.float64(init(mlp, jax.random.key(0)))
        gain, x = jnp.array([1.0, 2, 3, 4]), jnp.array([0.3, -1.0, 2.0, 0.5])
        found = jax.jit(lambda x: detached_jacobian(lambda x: mlp.apply(params, norm.apply({"gain": gain}, x)), x))(x)
        gate, up, down = (np.asarray(params[n]) for n in ("gate", "up", "down"))
        scale = np.asarray(gain) / np.sqrt(np.mean(np.asarray(x) ** 2) + norm.eps)
        z = np.asarray(x) * scale @ gate
        want = (scale[:, None] * up * (z / (1 + np.exp(-z)))[None]) @ down
        assert far(found.jacobian, want.T) < EXACT and far(found.rest, 0) < EXACT and far(found.value, 0) > 1e-2

    def test_a_whole_model(self, x64):
        model = LM(5, 8, Stack(Block(Attention(8), SwiGLU(8, 4)), 2))
        params = implicit_update.float64(init(model, jax.random.key(0)))
        found = theory_detached.measure(model, params, jnp.array([3, 0, 4]), jax.random.key(1))
        assert found["error"] < EXACT and found["ordinary"] > 1e-2 and 1e-6 < found["moved"] < 1
        assert abs(found["energy"][-1] - 1) < EXACT and (np.diff(found["values"]) <= 0).all()

    def test_loops_branches_and_products(self):
        def f(x):
            def step(carry, _):
                h, gate = carry  # the gate carries x from the second step on
                return (h + jax.nn.sigmoid(h) * h / (1 + gate * gate), gate + h), None

            (h, gate), _ = jax.lax.scan(step, (x, jnp.zeros(3)), None, 3)
            y = jax.lax.cond(gate.sum() > 100, lambda h: jnp.exp(h), lambda h: jax.nn.relu(h) - h / 4, h)
            return y * jnp.max(jnp.abs(y)) * 0.5

        x = jnp.array([0.5, -1.0, 2.0])
        value, (held, along) = jax.jit(lambda x: (f(x), jax.jvp(hold(f), (x,), (x,))))(x)
        close((held, along), (value, value))
        with pytest.raises(ConfigError, match="while loop"):
            hold(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x))(x)


class TestContinuousTime:
    def test_a_duration_is_so_many_copies(self, x64):
        s = continuous_time.Settings(most=3, width=8, copies=(3,))
        model = continuous_time.model_of(s)
        params = implicit_update.float64(init(model, jax.random.key(0)))
        assert max(continuous_time.exact(s, model, params, jax.random.key(1))) < EXACT
        tokens, ones = jnp.array([[1, 0, 2]]), jnp.ones((1, 3))
        smooth = durations.continuous(model)
        slope = jax.jit(jax.grad(lambda d: continuous_time.answers(smooth, params, tokens, d)[0, 0]))(ones)
        assert (np.abs(slope[0, :2]) > 1e-6).all()

    def test_refusals(self):
        with pytest.raises(ConfigError, match="window"):
            durations.continuous(Block(Attention(8, window=2)))
        with pytest.raises(ConfigError, match="starts"):
            durations.ContinuousAttention(8).apply({}, jnp.ones((1, 2, 8)), starts=jnp.ones((1, 2), bool))


def test_a_layer_gathers_four_tokens(x64):
    s = universal_attention.Settings((4, 64), 500, 3, 19, rows=100)
    error, gap = universal_attention.errors(np.random.default_rng(0), s)
    assert gap < EXACT and error[1] < 0.3 * error[0]
    assert len(set(universal_attention.target(np.eye(4)).tolist())) == 4  # the order matters


class TestShortPrograms:
    def test_primality(self):
        assert short_programs.numbers(200)[0] == 0
        assert [n for n in range(30) if short_programs.is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]

    def test_a_network_does_what_its_program_does(self):
        """Cut-off at 0, simultaneous assignment and nested loops."""
        inner = Repeat(2, (Assign(x=sum_of(y=1), y=sum_of(x=2, y=-1)), Assign(z=sum_of(1, z=1, x=1))))
        program = (Repeat(3, (inner, Assign(y=sum_of(5, y=-1)))), Assign(w=sum_of(z=1, y=-3)))
        net, starts = compile_program(program, ("x", "y", "z", "w")), [(0, 0), (3, 1), (1, 7)]
        assert len(net.biases) == 3 * 5 + 1
        found = net.run(x=np.array([a for a, _ in starts]), y=np.array([b for _, b in starts]))
        for i, (x, y) in enumerate(starts):
            want = execute(program, {"x": x, "y": y})
            assert {n: int(v[i]) for n, v in found.items()} == want
        with pytest.raises(ConfigError, match="no variables"):
            compile_program((Assign(q=sum_of(1)),), ("x",))

    def test_trees(self):
        """Every function of two leaves by Python; the shortest that agrees; a prefix code; the bound's formula."""
        trees = Trees.up_to(3, 2)
        columns = [tuple((r >> i & 1) ^ no for r in range(8)) for i in range(3) for no in (0, 1)]
        ops = (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b)
        both = {tuple(op(a, b) for a, b in zip(f, g, strict=True)) for f in columns for g in columns for op in ops}
        assert {tuple(t) for t in trees.tables.astype(int).tolist()} == both | set(columns)
        assert len(trees.tables) == len(both | set(columns)) and (trees.leaves[:6] == 1).all()
        rng, want = np.random.default_rng(0), trees.tables[-1]
        for n in (1, 3, 8):
            asked = rng.choice(8, n, replace=False)
            found = trees.shortest(asked, want[asked], rng)
            assert (trees.tables[found][asked] == want[asked]).all()
        assert (trees.tables[found] == want).all() and trees.shortest(np.array([0, 0]), np.array([0, 1]), rng) is None
        catalan = (1, 1, 2, 5, 14)
        assert sum(c * 6 ** (m + 1) * 3**m * 2 ** -trees.bits(m + 1) for m, c in enumerate(catalan)) <= 1
        assert abs(occam(10, 100, 0.05) - 0.0992721) < 1e-6
