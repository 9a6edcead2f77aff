"""What the capability card measures: one mixer on one task, and what a mixer costs."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm import tasks
from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError
from jaxlm.layers.mlp import MLP
from jaxlm.mixers import MIXERS, DeltaNet, GatedDeltaNet, make
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.facts import facts
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Lab
from jaxlm.tasks import Sample, Task
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree


@dataclass(frozen=True)
class Settings:
    """mixers, tasks: names, none for all; far: length of the second test, times the training length; trials: sequences
    of a test; timed, rows, repeats: tokens (0: not), rows and runs of the measured costs"""

    mixers: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    width: int = 64
    hidden: int = 128
    depth: int = 2
    length: int = 40
    far: int = 4
    batch: int = 64
    steps: int = 600
    rate: float = 3e-3
    seeds: int = 2
    trials: int = 256
    timed: int = 1024
    rows: int = 4
    repeats: int = 3


# Mixers with a field that changes what they can do, under names of their own.
VARIANTS: dict[str, Callable[[int], Mixer]] = {
    "DeltaNet to -1": lambda width: DeltaNet(width, beta_max=2.0),
    "GatedDeltaNet to -1": lambda width: GatedDeltaNet(width, beta_max=2.0),
}


def mixer_of(name: str, width: int) -> Mixer:
    """A registered mixer, or one of VARIANTS."""
    return VARIANTS[name](width) if name in VARIANTS else make(name, width)


def mixers_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the card's rows: those given, or all; ConfigError for an unknown one."""
    known = (*MIXERS, *VARIANTS)
    for name in names:
        if name not in known:
            raise ConfigError(f"mixers = {name!r}: unknown; expected names of {', '.join(known)}")
    return names or known


def tasks_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the card's columns: those given, or all; ConfigError for an unknown one."""
    for name in names:
        tasks.make(name)
    return names or tuple(tasks.TASKS)


def model_of(mixer: Mixer, given: Sequence[Task], s: Settings) -> SequenceModel:
    """One-hot tokens, blocks of the mixer and an MLP, a readout at every place; wide enough for any of the tasks."""
    body = Stack(Block(mixer, MLP(mixer.width, s.hidden)), s.depth)  # type: ignore[attr-defined]
    vocab, classes = max(task.vocab for task in given), max(task.classes for task in given)
    return SequenceModel(body, classes, vocab, readout="every")


def length_of(task: Task, s: Settings) -> int:
    """Tokens of a task's training sequences: the setting, or the task's least."""
    return max(s.length, task.shortest)


def padded(x: Array, length: int) -> Array:
    """Zeros after the last place.   (b, t) -> (b, length)"""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])])


@partial(jax.jit, static_argnums=(0, 2, 3))
def lessons(task: Task, keys: Array, s: Settings, length: int) -> Sample:
    """What some models train on: a fresh batch in every step, padded to a length.

    keys    (r,)
    ->      leaves (r, steps, b, length), in few bits: they are held all through the training
    """

    def one(key: Array) -> Sample:
        x = task.sample(key, s.batch, length_of(task, s))
        few = x.tokens.astype(jnp.int16), x.targets.astype(jnp.int16), x.weights > 0
        return Sample(*(padded(part, length) for part in few))

    return jax.lax.map(lambda key: jax.lax.map(one, jax.random.split(key, s.steps)), keys)


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def exam(task: Task, key: Array, trials: int, length: int, to: int) -> tuple[Array, Array, Array]:
    """A test, padded: tokens (trials, to), weights (trials, to), answers that are right (trials, to, classes)."""
    asked, legal = task.sample(key, trials, length), task.legal(key, trials, length)
    return padded(asked.tokens, to), padded(asked.weights, to), jnp.pad(legal, [(0, 0), (0, to - length), (0, 0)])


def ruled_out(logits: Array, known: Array) -> Array:
    """The lowest number for the answers that a task does not have: it knows the first ones.   (..., classes), ()"""
    return jnp.where(jnp.arange(logits.shape[-1]) < known, logits, jnp.finfo(logits.dtype).min)


def answers(logits: Array) -> Array:
    """The likeliest answer; -1, which is never right, where a state outgrew the numbers.   (..., classes) -> (...)"""
    return jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), jnp.argmax(logits, axis=-1), -1)


def right(weights: np.ndarray, legal: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """Share of right answers of each model: (trials, t), (trials, t, classes), (r, trials, t) -> (r,)

    guesses    -1: no answer, a wrong one
    """
    allowed = np.take_along_axis(legal[None], np.maximum(guesses, 0)[..., None], axis=-1)[..., 0] & (guesses >= 0)
    return np.sum(weights * allowed, axis=(1, 2)) / np.sum(weights)


def learn(model: SequenceModel, given: Sequence[Task], s: Settings, lab: Lab) -> list[dict[str, np.ndarray]]:
    """Train some seeds on each of the tasks and test them at the training length and farther.

    All are one compiled program, which takes longer to compile than a small model to train: the model has to have the
    largest vocabulary and the most classes; answers that a task does not have are ruled out.

    ->      of each task: near, far (seeds,): accuracies; loss (chunks, seeds): nats an answer, over training
    """
    length = max(length_of(task, s) for task in given)

    def logits(params: Params, tokens: Array, known: Array) -> Array:
        y, _ = model.apply(params, jax.nn.one_hot(tokens, model.reads, dtype=jnp.float32))
        return ruled_out(y, known)

    def loss(params: Params, key: Array, step: Array, each: tuple[Sample, Array]) -> Array:
        tokens, targets, scored = (x[step] for x in each[0])
        paid = nats(logits(params, tokens, each[1]), targets.astype(jnp.int32))
        return jnp.sum(scored * paid) / jnp.sum(scored)

    keys = [jax.random.split(lab.part(type(task).__name__, 0, 1).key, 3) for task in given]
    sets = [lessons(task, jax.random.split(own[0], s.seeds), s, length) for task, own in zip(given, keys, strict=True)]
    known = jnp.repeat(jnp.asarray([task.classes for task in given], jnp.int32), s.seeds)
    found = fit(
        jnp.concatenate([jax.random.split(own[1], s.seeds) for own in keys]),
        lambda key, each: init(model, key),
        loss,
        clipped(optax.adamw(trapezoid(s.rate, s.steps), weight_decay=0.01)),
        steps=s.steps,
        every=max(n for n in range(1, s.steps // 4 + 2) if s.steps % n == 0),
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "progress.npz",
        each=(jax.tree.map(lambda *x: jnp.concatenate(x), *sets), known),
        at_once=s.seeds,
    )

    @jax.jit
    def answer(params: Params, tokens: Array) -> Array:
        each = jnp.repeat(tokens, s.seeds, axis=0)
        return jax.lax.map(lambda a: answers(logits(*a)), (params, each, known))

    out = [{"loss": part} for part in np.split(found.watched["loss"], len(given), axis=1)]
    for where, times in (("near", 1), ("far", s.far)):
        lengths = [times * length_of(task, s) for task in given]
        drawn = zip(given, keys, lengths, strict=True)
        tests = [exam(task, own[2], s.trials, n, times * length) for task, own, n in drawn]
        guesses = np.split(np.asarray(answer(found.params, jnp.stack([test[0] for test in tests]))), len(given))
        for result, (_, weights, legal), mine in zip(out, tests, guesses, strict=True):
            result[where] = right(np.asarray(weights), np.asarray(legal), mine)
    return out


def cost_of(mixer: Mixer, length: int, batch: int, repeats: int) -> dict[str, float]:
    """What a mixer alone costs here: tokens a second of its gradient and of decoding, memory of the gradient, state.

    The fastest of the repeats counts. temporary: bytes that the compiled gradient needs beside its arguments.
    """
    params = init(mixer, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch, length, mixer.reads))

    def loss(params: Params, x: Array) -> Array:
        return jnp.sum(mixer.apply(params, x)[0] ** 2)

    gradient = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()

    def decode(params: Params, state: Tree) -> tuple[Tree, Array]:
        def body(state: Tree, x: Array) -> tuple[Tree, Array]:
            y, state = mixer.step(params, x, state)
            return state, y

        return jax.lax.scan(body, state, jnp.moveaxis(x[:, :64], 1, 0))

    state = mixer.start(params, batch, length)
    one = jax.jit(decode).lower(params, state).compile()
    told, memory = facts(mixer, length), gradient.memory_analysis()
    return {
        "weights": told.weights,
        "state": told.state_bytes,
        "temporary": memory.temp_size_in_bytes if memory else math.nan,
        "training": batch * length / fastest(lambda: gradient(params, x), repeats),
        "decoding": batch * min(64, length) / fastest(lambda: one(params, state), repeats),
    }


def fastest(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the quickest of some runs after a first."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)
