"""M+: nothing that the pool drops is lost, what is recalled is the paper's choice, and credit runs out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import apply, begin, noisy, wide_numpy
from test_memoryllm import BLOCK, STACK, VOCAB, D, K, N, by_hand
from tolerance import close

from jaxlm.memory.m_plus import MPlus, retriever_loss
from jaxlm.memory.memoryllm import MemoryLLM
from jaxlm.module import ConfigError

MODEL = MPlus(VOCAB, D, STACK, slots=N, new=K, store=12, recall=3, rank=2)


def run(model, updates, rows=2):
    """The state after updates whose slots say their own number, in every entry; layer i adds i / 2."""
    push, state = jax.jit(model.push), model.start({}, rows)
    for i in range(updates):
        number = i * K + np.arange(K, dtype=np.float32)[None, None, :, None] + np.arange(2)[:, None, None, None] / 2
        new = np.broadcast_to(number, (2, rows, K, D)).astype(np.float32)
        state, _ = push(state, new, jax.random.split(jax.random.key(i), rows))
    return jax.tree.map(np.asarray, state)


def test_every_dropped_slot_is_in_the_store():
    updates = 9
    state = run(dataclasses.replace(MODEL, store=20), updates)
    written = sorted([*range(K)] * (N // K) + [*range(K, K * updates)])
    pool, store = state["layers"]["pool"], state["layers"]["store"]
    for layer in range(2):
        for b in range(2):
            held = store["credit"][layer, b] > 0
            assert held.sum() == len(written) - N
            numbers = store["number"][layer, b][held]
            assert sorted([*numbers, *state["number"][b]]) == written
            np.testing.assert_array_equal(store["slot"][layer, b][held], np.repeat(numbers[:, None] + layer / 2, D, 1))
            np.testing.assert_array_equal(pool[layer, b], np.repeat(state["number"][b][:, None] + layer / 2, D, 1))


def test_credit_runs_out_and_a_full_store_gives_up_the_poorest():
    short = run(dataclasses.replace(MODEL, credit=3.0), 8)["layers"]["store"]
    assert sorted(set(short["credit"][short["credit"] > 0])) == [1, 2, 3]
    assert (np.sum(short["credit"] > 0, axis=2) == 3 * K).all()  # of the last three updates alone
    full = run(dataclasses.replace(MODEL, store=4), 9)["layers"]["store"]
    assert (full["credit"] >= 1e4 - 1).all()  # four entries: of the last two updates


@pytest.fixture(scope="module")
def example():
    """Weights, a text, and a state with random slots: five entries in the store of the first row, two of the second."""
    draw, params = np.random.default_rng(0), noisy(MODEL)
    state = jax.tree.map(np.array, begin(MODEL, params, 2))
    state["updates"][:] = 5
    state["layers"]["pool"] = draw.normal(size=(2, 2, N, D)).astype(np.float32)
    credit = np.zeros((2, 2, 12), np.float32)
    credit[:, 0, [1, 4, 5, 8, 11]] = credit[:, 1, [0, 7]] = 5
    number = np.stack([[draw.permutation(12) for _ in range(2)] for _ in range(2)]).astype(np.int32)
    slot = draw.normal(size=(2, 2, 12, D)).astype(np.float32)
    state["layers"]["store"] = {"slot": slot, "number": number, "credit": credit}
    return params, draw.integers(0, VOCAB, (2, 3)).astype(np.int32), state


def formula(params, text, state, b):
    """Row b, layer by layer: its logits, and the places recalled at each layer, oldest first."""
    p, called = wide_numpy(params), []
    rms = lambda x, gain: x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * gain  # noqa: E731
    slots = []
    for i in range(2):
        x = params["embed"][text[b : b + 1]] * np.float32(np.sqrt(D))
        if i:  # the input of layer 1 is the output of layer 0
            first = jax.tree.map(lambda w: w[0], params["body"]["block0"])
            x = np.asarray(apply(BLOCK, first, np.concatenate([slots[0][None], x], axis=1))[0])[:, len(slots[0]) :]
        gain, store = p["body"]["block0"]["norm"]["gain"][i], {k: v[i, b] for k, v in state["layers"]["store"].items()}
        query = rms(np.float64(x[0]), gain) @ p["retriever"]["query"][i]
        key = rms(np.float64(store["slot"]), gain) @ p["retriever"]["key"][i]
        score = {
            j: np.mean([1 / (1 + np.exp(-q @ key[j])) for q in query]) for j in range(12) if store["credit"][j] > 0
        }
        best = sorted(score, key=lambda j: -score[j])[:3]
        called.append(sorted(best, key=lambda j: store["number"][j]))
        slots.append(np.concatenate([store["slot"][called[-1]], state["layers"]["pool"][i, b]]))
    return by_hand(params, text[b : b + 1], np.stack(slots)[:, None])[1][0], called


def test_recalls_the_best_in_the_order_of_their_age(example):
    params, text, state = example
    logits, after = apply(MODEL, params, text, state)
    want = [formula(params, text, state, b) for b in range(2)]
    close(logits, np.stack([y for y, _ in want]))
    credit = state["layers"]["store"]["credit"].copy()
    for b, (_, called) in enumerate(want):
        assert [len(x) for x in called] == ([3, 3], [2, 2])[b]
        for i in range(2):
            credit[i, b, called[i]] += 1
    np.testing.assert_array_equal(after["layers"]["store"]["credit"], credit)


def test_with_nothing_in_the_store_it_is_memoryllm(example):
    params, text, state = example
    plain = MemoryLLM(VOCAB, D, STACK, slots=N, new=K)
    pool = {**state, "layers": {"pool": state["layers"]["pool"]}}
    none = {**state["layers"]["store"], "credit": np.zeros((2, 2, 12), np.float32)}
    got = apply(MODEL, params, text, {**state, "layers": {**state["layers"], "store": none}})[0]
    close(got, apply(plain, {k: v for k, v in params.items() if k != "retriever"}, text, pool)[0])


def test_the_retriever_learns_from_its_loss(example):
    params, text, state = example
    store, x = state["layers"]["store"], jnp.asarray(MODEL.entry(params, text))
    wanted = store["number"] == store["number"].max(axis=2, where=store["credit"] > 0, initial=-1, keepdims=True)
    both = {"block": params["body"]["block0"], "retriever": params["retriever"]}

    def loss(both):
        scores = jax.vmap(lambda p, slots: MODEL.scores(p, slots, x))(both, store["slot"])
        return retriever_loss(scores, wanted, store), scores

    (value, scores), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(both)
    s, held = np.asarray(scores, np.float64), store["credit"] > 0
    want = -np.mean(np.log(s[held & wanted])) - np.mean(np.log(1 - s[held & ~wanted]))
    close(value, np.float32(want))
    assert all(np.abs(g).max() > 1e-4 for g in grad["retriever"].values())


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"MPlus\.recall = 13: expected 1 to the 12 entries"):
        dataclasses.replace(MODEL, recall=13)
    with pytest.raises(ConfigError, match=r"MPlus\.store = 1: expected at least the 2 slots"):
        dataclasses.replace(MODEL, store=1, recall=1)
