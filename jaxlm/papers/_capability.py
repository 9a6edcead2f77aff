"""What the capability card measures: one mixer on one task, and what a mixer costs."""

import math
import time
from collections.abc import Callable
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


def model_of(mixer: Mixer, task: Task, depth: int, hidden: int) -> SequenceModel:
    """One-hot tokens, blocks of the mixer and an MLP, a readout at every place."""
    body = Stack(Block(mixer, MLP(mixer.width, hidden)), depth)  # type: ignore[attr-defined]
    return SequenceModel(body, task.classes, task.vocab, readout="every")


def learn(model: SequenceModel, task: Task, length: int, s: Settings, lab: Lab) -> dict[str, np.ndarray]:
    """Train some seeds side by side on fresh sequences of one length, and test them there and farther.

    ->      curve (chunks, seeds): accuracy at the length over training; near, far (seeds,): at its end
    """

    def logits(params: Params, sample: Sample) -> Array:
        return model.apply(params, jax.nn.one_hot(sample.tokens, task.vocab, dtype=jnp.float32))[0]

    def loss(params: Params, key: Array, step: Array) -> Array:
        sample = task.sample(key, s.batch, length)
        return jnp.sum(sample.weights * nats(logits(params, sample), sample.targets)) / jnp.sum(sample.weights)

    def right(params: Params, key: Array, length: int) -> Array:
        sample, legal = task.sample(key, s.trials, length), task.legal(key, s.trials, length)
        guesses = jnp.argmax(logits(params, sample), axis=-1)
        allowed = jnp.take_along_axis(legal, guesses[..., None], axis=-1)[..., 0]  # of a language several may be right
        return jnp.sum(sample.weights * allowed) / jnp.sum(sample.weights)

    def watch(params: Params, key: Array) -> Tree:
        return {"accuracy": right(params, key, length)}

    keep = None if lab.folder is None else lab.folder / "progress.npz"
    keys, every = jax.random.split(lab.key, s.seeds), max(n for n in range(1, s.steps // 4 + 2) if s.steps % n == 0)
    tx = clipped(optax.adamw(trapezoid(s.rate, s.steps), weight_decay=0.01))
    found = fit(keys, partial(init, model), loss, tx, steps=s.steps, every=every, watch=watch, tell=lab.tell, keep=keep)
    test = jax.jit(jax.vmap(right, (0, None, None)), static_argnums=2)
    key = jax.random.fold_in(lab.key, s.steps)
    ends = {name: np.asarray(test(found.params, key, n)) for name, n in (("near", length), ("far", s.far * length))}
    return {"curve": found.watched["accuracy"], **ends}


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
