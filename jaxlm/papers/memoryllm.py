"""MemoryLLM and M+ (Wang et al. 2024; Wang et al. 2025): how long a fact that was written into the memory is known.

A fact is a text of two tokens, a key and its value; a question is the key alone. A small MemoryLLM learns to write and
to answer from its pool, through the last few updates; then, from the same weights, M+ learns to recall from the store
what the pool has dropped. The test writes other facts, one fact, and other facts again, and asks for the one on the
way. The papers' models have 8 billion weights and are asked in natural language.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.layers.heads import divisor
from jaxlm.layers.mlp import SwiGLU
from jaxlm.memory.m_plus import MPlus, retriever_loss
from jaxlm.memory.memoryllm import MemoryLLM
from jaxlm.mixers.attention import Attention
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.taps import capture
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, State

TITLE = "MemoryLLM and M+: how long a written fact is known"
ROWS = (89, 93)
NEEDS = ()


@dataclass(frozen=True)
class Settings:
    """The facts, the model, its memory, its training.

    Args:
        keys: Different keys.
        values: Different values.
        width: Of the model.
        depth: Blocks.
        heads: Of the attention.
        slots: N of each layer's pool.
        new: K, slots that an update writes.
        store: Entries of each layer's long-term store, in the test.
        recall: Entries that are recalled.
        before: Updates before those that gradients pass, at most.
        through: Updates that gradients pass.
        steps: Of the training of MemoryLLM.
        plus_steps: Of the training of M+ from there.
        batch: Memories a step.
        rate: Of Adam, at its highest.
        rows: Memories of the test.
        every: Updates from question to question in the test.
        far: The test's updates after the fact, in distances N/K of the pool.
    """

    keys: int = 48
    values: int = 16
    width: int = 64
    depth: int = 2
    heads: int = 2
    slots: int = 32
    new: int = 2
    store: int = 512
    recall: int = 4
    before: int = 16
    through: int = 8
    steps: int = 500
    plus_steps: int = 300
    batch: int = 32
    rate: float = 3e-3
    rows: int = 128
    every: int = 4
    far: int = 10

    @property
    def distance(self) -> int:
        """Updates in which a pool could be written anew."""
        return self.slots // self.new


SMALL = {"width": 8, "depth": 1, "slots": 4, "store": 16, "recall": 2, "before": 2, "through": 2, "every": 2, "far": 2}
SMOKE = Settings(keys=6, values=4, steps=2, plus_steps=2, batch=2, rows=2, **SMALL)
BUDGETS = {
    "smoke": SMOKE,
    "cpu": Settings(),
    "gpu": Settings(keys=256, values=64, width=128, depth=4, slots=128, store=2048, steps=8000, plus_steps=4000),
}


def run(s: Settings, lab: Lab) -> Result:
    stack = Stack(Block(Attention(s.width, s.heads), SwiGLU(s.width)), s.depth)
    pool = MemoryLLM(s.keys + s.values, s.width, stack, slots=s.slots, new=s.new)
    plus = MPlus(
        pool.vocab, s.width, stack, slots=s.slots, new=s.new, store=s.store, recall=s.recall, rank=s.width // 2
    )
    params, curve = learn(lambda key: init(pool, key), answers_loss(pool, s), s, s.steps, lab.part("pool", 0, 0.45))
    known, _ = retention(pool, params, s, lab.key)
    lab.tell(0.5, right=known[0])

    begin = lambda key: {**params, "retriever": init(plus, key)["retriever"]}  # noqa: E731
    small = dataclasses.replace(plus, store=max(s.recall, s.new * (s.before + s.through)))
    params_plus, curve_plus = learn(begin, recall_loss(small, s), s, s.plus_steps, lab.part("plus", 0.5, 0.9))
    known_plus, state = retention(plus, params_plus, s, lab.key)
    far = s.far * s.distance
    claims = (
        Claim("MemoryLLM: % right after the write", known[0], low=90),
        Claim(f"MemoryLLM: % right after {s.distance} updates, N/K", known[s.distance // s.every]),
        Claim(f"MemoryLLM: % right after {far} updates", known[-1]),
        Claim("M+: % right after the write", known_plus[0]),
        Claim(f"M+: % right after {far} updates", known_plus[-1]),
        Claim(f"M+ above MemoryLLM after {far} updates, points", known_plus[-1] - known[-1], low=30),
        Claim("M+: % of the dropped slots that are in the store", found(state, s), low=100),
    )
    after = s.every * np.arange(len(known))
    law = 100 * (1 - s.new / s.slots) ** after
    series = {"after": after, "MemoryLLM": known, "M+": known_plus, "law": law, "curves": [curve, curve_plus]}
    return Result(claims, series, (f"{s.values} values: {100 / s.values:.1f} % are right by chance",))


def learn(
    begin: Callable[[Array], Params], loss: Callable[..., Array], s: Settings, steps: int, lab: Lab
) -> tuple[Params, np.ndarray]:
    """Weights, and the loss on the way."""
    tx, every = clipped(optax.adam(trapezoid(s.rate, steps), b2=0.98)), divisor(steps, max(1, steps // 20))
    done = fit(jax.random.split(lab.key, 1), begin, loss, tx, steps=steps, every=every, tell=lab.tell)
    return jax.tree.map(lambda p: p[0], done.params), done.watched["loss"][:, 0]


def written(model: MemoryLLM, params: Params, facts: Array, key: Array, s: Settings, skip: Array | int = 0) -> State:
    """The state after facts (u, b, 2); gradients pass the last ones, and the first `skip` are left out."""

    def one(state: State, at: tuple[Array, Array, Array]) -> tuple[State, None]:
        fact, key, i = at
        after = model.update(params, fact, state, key)
        return jax.tree.map(lambda new, old: jnp.where(i >= skip, new, old), after, state), None

    u, b, _ = facts.shape
    at = facts, jax.random.split(key, u), jnp.arange(u, dtype=jnp.int32)
    head, tail = (jax.tree.map(lambda x, a=a, z=z: x[a:z], at) for a, z in ((0, s.before), (s.before, u)))
    state = jax.lax.scan(one, model.start(params, b), head)[0]
    return jax.lax.scan(one, jax.lax.stop_gradient(state), tail)[0]


def some_facts(key: Array, s: Settings) -> Array:
    """Facts of distinct keys, as many as a step of training writes.   (u, b, 2)"""
    u, one, two = s.before + s.through, *jax.random.split(key)
    order = jnp.argsort(jax.random.uniform(one, (s.batch, s.keys), jnp.float32), axis=1)[:, :u]
    values = s.keys + jax.random.randint(two, (s.batch, u), 0, s.values, jnp.int32)
    return jnp.stack([order.astype(jnp.int32), values], axis=-1).swapaxes(0, 1)


def answers_loss(model: MemoryLLM, s: Settings) -> Callable[..., Array]:
    """Nats of the values of the last facts, told again in another order."""

    def loss(params: Params, key: Array, step: Array) -> Array:
        keys = jax.random.split(key, 4)
        facts = some_facts(keys[0], s)
        state = written(model, params, facts, keys[1], s, jax.random.randint(keys[2], (), 0, s.before + 1, jnp.int32))
        last = jax.random.permutation(keys[3], facts[-s.through :]).swapaxes(0, 1)  # (b, through, 2)
        text = last.reshape(s.batch, -1)
        return jnp.mean(nats(model.apply(params, text[:, :-1], state)[0][:, ::2], last[:, :, 1]))

    return loss


def recall_loss(model: MPlus, s: Settings) -> Callable[..., Array]:
    """Nats of the value of any one fact, and what the retriever gave the slots of that fact and the others."""

    def loss(params: Params, key: Array, step: Array) -> Array:
        keys = jax.random.split(key, 3)
        facts = some_facts(keys[0], s)
        state = written(model, params, facts, keys[1], s)
        asked = jax.random.randint(keys[2], (s.batch,), 0, len(facts), jnp.int32)
        fact = facts[asked, jnp.arange(s.batch)]
        read = capture(lambda params: model.apply(params, fact[:, :1], state)[0], ["recall.scores"])
        logits, seen = read(params)
        store = state["layers"]["store"]
        wanted = store["number"] // model.new == asked[None, :, None]
        return jnp.mean(nats(logits[:, 0], fact[:, 1])) + retriever_loss(seen["recall.scores"][0], wanted, store)

    return loss


def retention(model: MemoryLLM, params: Params, s: Settings, key: Array) -> tuple[np.ndarray, State]:
    """% right after 0, every, 2 every, ... updates since the write of a fact; the state at the end.

    Twice the pool's distance of other facts comes first, the fact the last of it.
    """
    one, two, three, four = jax.random.split(key, 4)
    chunks = 2 * s.distance // s.every, s.far * s.distance // s.every + 1
    n = sum(chunks) * s.every
    fact = jax.random.randint(one, (s.rows, 2), 0, jnp.array([[s.keys, s.values]]), jnp.int32)
    fact = fact + jnp.array([[0, s.keys]], jnp.int32)
    other = (fact[None, :, 0] + 1 + jax.random.randint(two, (n, s.rows), 0, s.keys - 1, jnp.int32)) % s.keys
    told = jnp.stack([other, s.keys + jax.random.randint(three, other.shape, 0, s.values, jnp.int32)], axis=-1)
    told = told.at[chunks[0] * s.every - 1].set(fact)

    @jax.jit
    def go(params: Params) -> tuple[State, Array]:
        def write(state: State, at: tuple[Array, Array]) -> tuple[State, None]:
            return model.update(params, at[0], state, at[1]), None

        def ask(state: State, at: tuple[Array, Array]) -> tuple[State, Array]:
            guess = jnp.argmax(model.apply(params, fact[:, :1], state)[0][:, 0], axis=-1)
            return jax.lax.scan(write, state, at)[0], jnp.mean((guess == fact[:, 1]).astype(jnp.float32))

        at = told, jax.random.split(four, n)
        at = jax.tree.map(lambda x: x.reshape(sum(chunks), s.every, *x.shape[1:]), at)
        return jax.lax.scan(ask, model.start(params, s.rows), at)

    state, right = go(params)
    return 100 * np.asarray(right)[chunks[0] :], jax.tree.map(np.asarray, state)


def found(state: Any, s: Settings) -> float:
    """% of the slots that were ever written, the first update's copies too, that are in a pool or in the store."""
    store, written = state["layers"]["store"], int(state["updates"][0]) * s.new
    copies = np.bincount(np.arange(written), minlength=written)
    copies[: s.new] = s.distance
    hits = 0
    for layer in range(store["number"].shape[0]):
        for row, pool in enumerate(state["number"]):
            held = store["number"][layer, row][store["credit"][layer, row] > 0]
            hits += np.minimum(np.bincount(np.concatenate([held, pool]), minlength=written), copies).sum()
    return 100 * float(hits) / (copies.sum() * np.prod(store["number"].shape[:2]))


def draw(figure, series) -> None:
    """% right by the updates since the write, beside the share of slots that survive; the two losses in training."""
    left, right = figure.subplots(1, 2)
    for name in ("MemoryLLM", "M+"):
        left.plot(series["after"], series[name], label=name)
    left.plot(series["after"], series["law"], "k--", label="(1 - K/N)^n")
    left.set(xlabel="updates since the write", ylabel="% right", ylim=(0, 102))
    left.legend()
    for name, curve in zip(("MemoryLLM", "M+, with its retriever"), series["curves"], strict=True):
        right.plot(np.linspace(0, 1, len(curve) + 1)[1:], curve, label=name)
    right.set(xlabel="share of the training", ylabel="nats")
    right.legend()
