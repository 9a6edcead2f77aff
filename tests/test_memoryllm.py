"""MemoryLLM against its layers composed by hand, the empty pool, and how long slots survive."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, begin, noisy
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import SwiGLU
from jaxlm.memory.memoryllm import MemoryLLM
from jaxlm.mixers.attention import Attention
from jaxlm.models import LM
from jaxlm.module import ConfigError, ShapeError

VOCAB, D, N, K = 7, 4, 6, 2
BLOCK = Block(Attention(D, heads=1), SwiGLU(D, 8))
STACK = Stack(BLOCK, 2)
MODEL, BASE = MemoryLLM(VOCAB, D, STACK, slots=N, new=K), LM(VOCAB, D, STACK)
update = jax.jit(MemoryLLM.update, static_argnums=0)


@pytest.fixture(scope="module")
def example():
    """Weights, two texts a row, and the state after two updates, its pool filled at random."""
    draw, params = np.random.default_rng(0), noisy(MODEL)
    state = jax.tree.map(np.array, begin(MODEL, params, 2))
    state["layers"]["pool"] = draw.normal(size=(2, 2, N, D)).astype(np.float32)
    state["updates"][:] = 2
    return params, draw.integers(0, VOCAB, (2, 2, 3)).astype(np.int32), state


def by_hand(params, text, slots):
    """What the layers make of [slots; text]: all of their outputs, and the readout's logits."""
    x, out = params["embed"][text] * np.float32(np.sqrt(D)), []
    for i in range(2):
        p = jax.tree.map(lambda w, i=i: w[i], params["body"]["block0"])
        out.append(np.asarray(apply(BLOCK, p, np.concatenate([slots[i], x], axis=1))[0]))
        x = out[-1][:, slots.shape[2] :]
    y = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * params["norm"]["gain"]
    return np.stack(out), y @ params["embed"].T


def test_layers_read_their_pools(example):
    params, texts, state = example
    logits, after = apply(MODEL, params, texts[1], state)
    close(logits, by_hand(params, texts[1], state["layers"]["pool"])[1])
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert np.abs(logits - apply(MODEL, params, texts[1])[0]).max() > 1e-2


def test_an_update_appends_the_last_states_and_drops_the_same_slots_of_each_layer(example):
    params, texts, state = example
    after = update(MODEL, params, texts[1], state, jax.random.key(7))
    old, new = state["layers"]["pool"], np.asarray(after["layers"]["pool"])
    states = by_hand(params, texts[1], old[:, :, -K:])[0]
    close(new[:, :, -K:], states[:, :, -K:] + params["offset"])
    assert new.shape == old.shape
    for b in range(2):
        kept = [[j for j in range(N) if (old[i, b, j] == s).all()] for i in range(2) for s in new[i, b, : N - K]]
        first, second = kept[: N - K], kept[N - K :]
        order = [min(x) for x in first]
        assert all(first) and first == second and order == sorted(order)
    np.testing.assert_array_equal(after["number"][:, -K:], [[2 * K, 2 * K + 1]] * 2)


def test_an_empty_pool_is_the_base_model_and_the_first_update_fills_it(example):
    params, texts, _ = example
    start = begin(MODEL, params, 2)
    base = {k: v for k, v in params.items() if k != "offset"}
    close(apply(MODEL, params, texts[0], start)[0], apply(BASE, base, texts[0])[0])
    state = update(MODEL, params, texts[0], start, jax.random.key(0))
    new = by_hand(params, texts[0], np.zeros((2, 2, 0, D), np.float32))[0][:, :, -K:] + params["offset"]
    close(state["layers"]["pool"], np.tile(new, (1, 1, N // K, 1)))


def test_as_many_new_slots_as_there_are_replace_all():
    whole, new = MemoryLLM(VOCAB, D, STACK, slots=N, new=N), np.random.default_rng(2).normal(size=(2, 3, N, D))
    state = whole.start({}, 3)
    for i in range(2):
        state, dropped = jax.jit(whole.push)(
            state, new[::-1].astype(np.float32) * i, jax.random.split(jax.random.key(i), 3)
        )
    np.testing.assert_array_equal(state["layers"]["pool"], new[::-1].astype(np.float32))
    assert dropped["real"].all() and not np.any(dropped["slot"])


def test_slots_survive_as_often_as_the_law_says():
    rows, model = 1500, MemoryLLM(VOCAB, D, Stack(BLOCK, 1), slots=24, new=3)
    new = jnp.zeros((1, rows, 3, D), jnp.float32)

    def push(state, key):
        state = model.push(state, new, jax.random.split(key, rows))[0]
        return state, jnp.mean((state["number"] // 3 == 1).astype(jnp.float32)) * 24 / 3

    state, alive = jax.jit(partial(jax.lax.scan, push))(model.start({}, rows), jax.random.split(jax.random.key(0), 34))
    assert alive[0] == 0 and alive[1] == 1
    for n in (1, 4, 16, 32):
        law = (1 - 3 / 24) ** n
        assert abs(alive[1 + n] - law) <= 3 * np.sqrt(law * (1 - law) / (3 * rows)), n
    assert np.all(np.diff(np.where(state["number"] < 3, 0, state["number"])) >= 0)  # in order, after the first's tiles


def test_ten_thousand_updates_leave_the_pool_its_size():
    model = MemoryLLM(VOCAB, D, Stack(BLOCK, 1), slots=4, new=2)
    params, text = noisy(model), jnp.array([[1, 2]], jnp.int32)

    @jax.jit
    def run(state, keys):
        return jax.lax.scan(
            lambda s, k: (model.update(params, text, s, k), jnp.max(jnp.abs(s["layers"]["pool"]))), state, keys
        )

    start = begin(model, params, 1)
    state, largest = run(start, jax.random.split(jax.random.key(0), 10_000))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)
    assert int(state["updates"][0]) == 10_000 and np.isfinite(largest).all()
    np.testing.assert_array_equal(state["number"][0, -2:], [19_998, 19_999])
    assert len(set(np.asarray(state["number"][0]).tolist())) == 4


def test_what_cannot_be_is_named(example):
    params, _, state = example
    with pytest.raises(ConfigError, match=r"MemoryLLM\.new = 4: expected a divisor of the 6 slots"):
        MemoryLLM(VOCAB, D, STACK, slots=6, new=4)
    with pytest.raises(ConfigError, match=r"MemoryLLM\.body"):
        MemoryLLM(VOCAB, D, Attention(D))
    with pytest.raises(ShapeError, match="a text of 1 tokens, expected at least 2"):
        MODEL.update(params, jnp.zeros((2, 1), jnp.int32), state, jax.random.key(0))
    with pytest.raises(ShapeError, match="a row is one text"):
        MODEL.apply(params, jnp.zeros((2, 3), jnp.int32), state, jnp.zeros((2, 3), bool))
