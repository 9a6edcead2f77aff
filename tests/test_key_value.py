"""Feed-forward layers as memories: read off small models, against loops in numpy and models written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import MLP, GatedMLP
from jaxlm.lenses import key_value
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.lm import LM
from jaxlm.module import ConfigError, abstract, init

VOCAB, D, F, T = 11, 8, 12, 7


def block(mlp):
    return Block(Attention(D, heads=2), mlp)


MODELS = {
    "relu": LM(VOCAB, D, Stack(block(MLP(D, F, "relu")), 3)),
    "gated, two places": LM(VOCAB, D, Stack((block(GatedMLP(D, F)), Block(LSTM(D), GatedMLP(D, F))), 4), tied=False),
    "one block": LM(VOCAB, D, block(MLP(D, F, "gelu", bias=False))),
}


def noisy(model, seed=0):
    leaves, tree = jax.tree.flatten(init(model, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in leaves])


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    """(model, weights, tokens, memories, reading)"""
    model = MODELS[request.param]
    params, tokens = noisy(model), np.random.default_rng(1).integers(0, VOCAB, (2, T))
    reading = jax.jit(lambda p, z: key_value.read(model, p, z))(params, tokens)
    memories = jax.tree.map(np.asarray, key_value.of(model, params))
    return model, params, tokens, memories, jax.tree.map(np.asarray, reading)


def test_the_output_is_the_sum_of_coefficients_times_values(case):
    model, params, tokens, memories, reading = case
    assert reading.coefficients.shape == (len(memories.values), 2, T, F)
    m, v = np.float64(reading.coefficients), np.float64(memories.values)
    total = np.zeros(reading.out.shape)
    for i in range(F):
        total += m[..., i, None] * v[:, None, None, i]
    total += np.float64(memories.bias)[:, None, None]
    assert np.abs(total - reading.out).max() <= 1e-6 * np.abs(reading.out).max()
    close(key_value.recombine(jax.tree.map(jnp.asarray, memories), reading.coefficients), reading.out)
    close(reading.before + reading.out, reading.after)
    close(reading.logits, model.apply(params, tokens)[0])


def test_coefficients_are_the_activations_of_the_keys(case):
    model, params, _, memories, reading = case
    found = key_value.blocks(model)
    for layer, (x, m) in enumerate(zip(reading.before, reading.coefficients, strict=True)):
        b = found[layer % len(found)]
        own = params["body"][f"block{layer % len(found)}"] if isinstance(model.body, Stack) else params["body"]
        own = jax.tree.map(lambda w, i=layer // len(found): w[i], own) if isinstance(model.body, Stack) else own
        x = np.asarray(b.normalise.apply(own["mlp_norm"], x))
        act = {"relu": lambda x: np.maximum(x, 0), "gelu": jax.nn.gelu, "silu": jax.nn.silu}[b.mlp.activation]
        up = x @ memories.keys[layer].T
        if memories.gates is None:
            want = act(up + own["mlp"].get("up_bias", np.zeros(F, np.float32)))
        else:
            want = act(x @ memories.gates[layer].T) * up
        close(m, np.asarray(want))


def test_top_tokens_are_those_of_the_readout(case):
    model, params, _, memories, reading = case
    token, chance = key_value.top_tokens(model, params, reading.after[-1])
    logits = np.float64(reading.logits)
    assert (token == logits.argmax(-1)).all()
    p = np.exp(logits - logits.max(-1, keepdims=True))
    close(chance, np.float32((p / p.sum(-1, keepdims=True)).max(-1)))
    assert key_value.top_tokens(model, params, memories.values)[0].shape == memories.values.shape[:2]


def test_triggers_are_the_strongest_of_all_prefixes():
    model = MODELS["relu"]
    params, rows = noisy(model), np.random.default_rng(2).integers(0, VOCAB, (7, T))
    found = key_value.triggers(model, params, rows, top=4, batch=2)  # the seventh row does not fill a batch
    m = np.asarray(key_value.read(model, params, rows[:6]).coefficients)
    for layer in range(3):
        for i in range(F):
            own = m[layer, :, :, i]
            np.testing.assert_allclose(found.score[layer, i], np.sort(own.ravel())[::-1][:4], rtol=1e-5)
            np.testing.assert_allclose(
                own[found.row[layer, i], found.place[layer, i]], found.score[layer, i], rtol=1e-5
            )
            assert len(set(zip(found.row[layer, i], found.place[layer, i], strict=True))) == 4
    with pytest.raises(ConfigError, match="full batch"):
        key_value.triggers(model, params, rows, batch=8)


def test_shared_suffixes_and_their_chance():
    rows = np.array([[1, 2, 3, 1, 2], [3, 1, 2, 2, 2]])
    row, place = np.array([[[0, 0, 1], [0, 1, 1]]]), np.array([[[1, 4, 2], [0, 0, 4]]])
    found = key_value.Triggers(np.array([[[3.0, 2.0, 1.0], [2.0, 1.0, 0.0]]]), row, place)
    np.testing.assert_array_equal(
        key_value.suffixes(rows, found, 2)[0], [[[1, 2], [1, 2], [1, 2]], [[-1, 1], [-1, 3], [2, 2]]]
    )
    share, chance = key_value.shared_suffix(rows, found, 2)
    assert share == [0.5]  # all three pairs of the first key, none of the second's one living pair
    pairs = [tuple(r[i : i + 2]) for r in rows.tolist() for i in range(4)]
    same = [a == b for i, a in enumerate(pairs) for b in pairs[:i]]
    assert chance == pytest.approx(np.mean(same))


def test_agreement_with_the_next_token():
    rows = np.array([[1, 2, 3], [3, 1, 2]])
    row, place = np.array([[[0], [1], [0], [1]]]), np.array([[[0], [1], [2], [0]]])
    found = key_value.Triggers(np.array([[[1.0], [1.0], [1.0], [1.0]]]), row, place)
    share, chance = key_value.agreement(rows, found, np.array([[2, 3, 1, 1]]))
    assert share == [pytest.approx(2 / 3)]  # 2 after 1 and 1 after 3; the third trigger ends its row
    assert chance == [pytest.approx((2 + 0 + 1) / 9)]  # values 2, 3, 1 against what follows: 2, 2, 1


def test_composition_and_refinement_against_loops():
    model = MODELS["relu"]
    params, tokens = noisy(model), np.random.default_rng(3).integers(0, VOCAB, (2, T))
    reading = key_value.read(model, params, tokens)
    values = np.asarray(key_value.top_tokens(model, params, key_value.of(model, params).values)[0])
    made = key_value.composition(model, params, reading, values)
    fine = key_value.refinement(model, params, reading)
    top = [np.asarray(key_value.top_tokens(model, params, x)[0]) for x in (reading.before, reading.out, reading.after)]
    final = np.asarray(reading.logits).argmax(-1)
    for layer in range(3):
        new, cases = [], {"residual": 0, "layer": 0, "both": 0, "neither": 0}
        for b in range(2):
            for t in range(T):
                before, out, after = (x[layer, b, t] for x in top)
                votes = {values[layer, i] for i in range(F) if reading.coefficients[layer, b, t, i] > 0}
                new.append(out not in votes)
                kind = {
                    (True, False): "residual",
                    (False, True): "layer",
                    (True, True): "both",
                    (False, False): "neither",
                }
                cases[kind[after == before, after == out]] += 1
        assert made["new"][layer] == pytest.approx(np.mean(new))
        assert all(fine[k][layer] == pytest.approx(n / (2 * T)) for k, n in cases.items())
        assert fine["settled"][layer] == pytest.approx(np.mean(top[0][layer] == final))
        logits = np.asarray(model.normalise.apply(params["norm"], reading.before[layer]) @ model.readout(params))
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert fine["probability"][layer] == pytest.approx(np.take_along_axis(p, final[..., None], -1).mean(), rel=1e-4)
    np.testing.assert_allclose(made["active"], (np.asarray(reading.coefficients) > 0).mean((1, 2, 3)), rtol=1e-6)


def test_a_memory_written_by_hand_is_read_back():
    """A key that looks for one token, a value that says another: the lens finds both."""
    model = LM(VOCAB, 16, Block(Attention(16, heads=2), MLP(16, F, "relu")), tied=False)
    params = jax.tree.map(np.array, init(model, jax.random.key(0)))
    embed = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][:VOCAB].astype(np.float32)
    params["embed"], params["readout"] = embed, embed.T.copy()
    params["body"]["mixer"]["out"] *= 0
    params["body"]["mlp"]["up"][:, 5] = 4 * embed[3]
    params["body"]["mlp"]["up_bias"][5] = -1
    params["body"]["mlp"]["down"][5] = embed[9]
    rows = np.random.default_rng(1).integers(0, VOCAB, (20, T))
    rows[:, 1:][rows[:, :-1] == 3] = 9
    found = key_value.triggers(model, params, rows, top=5, batch=10)
    assert (key_value.suffixes(rows, found, 1)[0, 5] == 3).all()
    token, _ = key_value.top_tokens(model, params, key_value.of(model, params).values)
    assert token[0, 5] == 9
    place = found.place[0, 5, 0]
    assert place == T - 1 or rows[found.row[0, 5, 0], place + 1] == token[0, 5]


def test_a_model_without_such_layers_is_named():
    for body in (LSTM(D), Block(LSTM(D)), Stack((block(MLP(D, F)), block(GatedMLP(D, F))), 2)):
        with pytest.raises(ConfigError, match=r"body = .*expected"):
            key_value.of(LM(VOCAB, D, body), abstract(LM(VOCAB, D, body)))
