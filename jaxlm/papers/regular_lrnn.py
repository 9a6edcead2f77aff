"""Regular languages by linear recurrences (Fan et al. 2024): trained on at most 40 tokens, asked after 500.

Even pairs, sums and arithmetic, both mod 5. The published shape: LayerNorm before each RegularLRNN, a residual around
all but the last, LayerNorm and an MLP with ReLU at the end; one layer, three for arithmetic. Every prefix is asked in
training, the last answer alone in the test. Beside it the same model over minGRU, a diagonal recurrence whose
transitions lie between 0 and 1. (The authors: batches of 128, rates of 1e-4 and 2e-4, up to 40,000 steps, of which they
report the checkpoint that is best at length 500. Here the last one counts: what drifts beyond 40 tokens is seen.)
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm import tasks
from jaxlm.blocks import Block, Chain
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers import MinGRU, RegularLRNN
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.tokenwise import Tokenwise
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks import Task
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "Regular languages: block-diagonal against diagonal transitions, 40 tokens to 500"
ROWS = (117,)
NEEDS = ()

LAYERS = {"EvenPairs": 1, "Sum": 1, "ModularArithmetic": 3}
NEAR = 0.1  # above chance by less than this is near chance


@dataclass(frozen=True)
class Settings:
    """tasks, and steps of each; width, block of the mixer; length of training, far: of the test, of `trials` sequences;
    every: steps after which `batch` new sequences are judged"""

    tasks: tuple[str, ...] = tuple(LAYERS)
    steps: tuple[int, ...] = (300, 600, 1200)
    width: int = 32
    block: int = 8
    length: int = 40
    far: int = 500
    batch: int = 32
    rate: float = 2e-3
    decay: float = 1e-4
    trials: int = 512
    every: int = 20


BUDGETS = {
    "smoke": Settings(("Sum",), (2,), width=4, block=2, length=5, far=7, batch=2, trials=4, every=2),
    "cpu": Settings(),
    "gpu": Settings(steps=(4000, 4000, 20000), width=64, batch=128, rate=1e-3, trials=2048, every=100),
}


def model_of(mixer: Mixer, task: Task, depth: int) -> SequenceModel:
    """The published shape around a mixer."""
    d = mixer.width
    norm = Tokenwise(LayerNorm(d))
    below = tuple(Block(mixer, None, LayerNorm(d)) for _ in range(depth - 1))
    body = Chain((*below, norm, mixer, norm, Tokenwise(MLP(d, d, "relu"))))
    return SequenceModel(body, task.classes, task.vocab, readout="every")


def learn(model: SequenceModel, task: Task, steps: int, s: Settings, lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Train on fresh sequences.

    ->      accuracy at all lengths of training, over its course (chunks,); and at its end, the accuracy of the last
            answer at every length that is asked, up to `far` (answers,)
    """

    def right(params: Params, key: Array, trials: int, length: int) -> tuple[Array, Array]:
        sample = task.sample(key, trials, length)
        logits = model.apply(params, jax.nn.one_hot(sample.tokens, task.vocab, dtype=jnp.float32))[0]
        return (jnp.argmax(logits, axis=-1) == sample.targets).astype(jnp.float32), sample.weights

    def loss(params: Params, key: Array, step: Array) -> Array:
        sample = task.sample(key, s.batch, s.length)
        logits = model.apply(params, jax.nn.one_hot(sample.tokens, task.vocab, dtype=jnp.float32))[0]
        return jnp.sum(sample.weights * nats(logits, sample.targets)) / jnp.sum(sample.weights)

    def watch(params: Params, key: Array) -> Tree:
        hits, weights = right(params, key, s.batch, s.length)
        return {"accuracy": jnp.sum(hits * weights) / jnp.sum(weights)}

    tx = clipped(optax.adamw(trapezoid(s.rate, steps), weight_decay=s.decay))
    every = max(n for n in range(1, s.every + 1) if steps % n == 0)
    keep = None if lab.folder is None else lab.folder / "progress.npz"
    begin = partial(init, model)
    found = fit(lab.key[None], begin, loss, tx, steps=steps, every=every, watch=watch, tell=lab.tell, keep=keep)
    params = jax.tree.map(lambda p: p[0], found.params)
    key = jax.random.fold_in(lab.key, steps)
    hits, weights = jax.jit(right, static_argnums=(2, 3))(params, key, s.trials, s.far)
    return found.watched["accuracy"][:, 0], np.asarray(jnp.mean(hits, axis=0))[np.asarray(weights[0]) > 0]


def run(s: Settings, lab: Lab) -> Result:
    mixers = {"block-diagonal": RegularLRNN(s.width, s.block), "diagonal": MinGRU(s.width)}
    total = len(mixers) * sum(s.steps)
    claims, series, done = [], {}, 0
    for name, steps in zip(s.tasks, s.steps, strict=True):
        task, depth = tasks.make(name), LAYERS[name]
        for kind, mixer in mixers.items():
            own = lab.part(f"{kind} {name}", done / total, (done + steps) / total)
            curve, by_length = learn(model_of(mixer, task, depth), task, steps, s, own)
            done += steps
            chance = task.chance(s.far)
            band = {"low": 0.95} if kind == "block-diagonal" else {"high": chance + NEAR}
            claims.append(Claim(f"{name}, {kind}: accuracy at length {s.far}", float(by_length[-1]), **band))
            series[f"{name}, {kind}"] = {"curve": curve, "by_length": by_length, "chance": chance, "steps": steps}
    claims.sort(key=lambda c: ", diagonal" in c.name)  # stable: the blocks first
    return Result(tuple(claims), {"runs": series, "tasks": s.tasks, "length": s.length, "far": s.far})


def draw(figure, series) -> None:
    figure.set_size_inches(11, 3.5)
    places = figure.subplots(1, len(series["tasks"]), sharey=True, squeeze=False)[0]
    for ax, task in zip(places, series["tasks"], strict=True):
        for kind, colour in (("block-diagonal", "C0"), ("diagonal", "C1")):
            own = series["runs"][f"{task}, {kind}"]
            ax.plot(np.linspace(0, series["far"], len(own["by_length"])), own["by_length"], colour, label=kind)
            ax.axhline(own["chance"], color="k", linestyle=":", linewidth=1)
        ax.axvline(series["length"], color="k", linewidth=0.5)
        ax.set(title=f"{task}, {LAYERS[task]} layer" + "s" * (LAYERS[task] > 1), xlabel="length", ylim=(0, 1.03))
    figure.axes[0].set_ylabel("accuracy")
    figure.axes[0].legend(frameon=False)
