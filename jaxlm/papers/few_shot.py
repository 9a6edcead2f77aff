"""Few-shot classification of Omniglot characters by models that must bind labels in their state (Irie et al. 2022).

5 ways on characters never seen in training. Synchronous: one drawing of each class beside its label, then a query.
Delayed: each drawing is asked for, its label comes with the next one. Two tasks: delayed, characters then MNIST digits
or the reverse; SRWM goes on from its delayed weights, its state carried all along, or begun anew at every segment, or
where the second task begins. Differs from the paper: eight alphabets (242 characters, split by character) in place of
fifty, and digits (the same ten in training and test, other images) in place of Mini-ImageNet; images are seen by a
Conv-4 that is trained first, as a matching network (on drawings a little moved and turned; quarter turns as further
classes), then frozen, the same for all models (with `pretrain` 0 everything is trained end to end, as in the paper); an
image without a label has an empty slot, not class 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data.folder import DataFolder
from jaxlm.data.omniglot import MNIST, OMNIGLOT, digits, omniglot, quarter_turns
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm, l2_norm
from jaxlm.mixers import LSTM, DeltaNet, Mixer
from jaxlm.mixers.srwm import SRWM, FakeSR
from jaxlm.models.episodes import Episodes, delayed, distinct, synchronous, two_tasks
from jaxlm.models.few_shot import Conv4, FewShot, jittered
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "Few-shot learning by self-modification"
ROWS = (47,)
NEEDS = (OMNIGLOT, MNIST)

MODELS = ("SRWM", "DeltaNet", "LSTM", "fake SR")
WAYS = 5
SHARPNESS = 10.0  # of the matching network's softmax over cosines


@dataclass(frozen=True)
class Settings:
    """shots: of each class before the query; instances: of each class in a delayed episode; segment: tokens;
    reduce: how Conv-4 halves; pretrain: steps of Conv-4 alone, pairs: its batch; steps: synchronous, delayed, two
    tasks; batch: episodes, synchronous and delayed; trials: episodes of a test; baselines: DeltaNet and LSTM too"""

    shots: int = 1
    instances: int = 6
    segment: int = 10
    channels: int = 32
    reduce: str = "stride"
    pretrain: int = 1600
    pairs: int = 96
    width: int = 64
    heads: int = 4
    depth: int = 2
    hidden: int = 128
    steps: tuple[int, ...] = (6000, 8000, 8000)
    batch: tuple[int, ...] = (32, 16)
    rate: float = 2e-3
    seeds: int = 1
    trials: int = 800
    baselines: bool = True


BUDGETS = {
    "smoke": Settings(1, 2, 4, 2, "stride", 1, 4, 16, 2, 1, 16, (1, 1, 1), (2, 2), 1e-3, 1, 4, False),
    "cpu": Settings(),
    "gpu": Settings(1, 15, 50, 64, "pool", 0, 0, 256, 16, 2, 1024, (300000, 300000, 300000), (128, 32), 1e-3, 1, 1000),
}


def seen_by(
    s: Settings, lab: Lab, banks: dict[str, dict[str, np.ndarray]]
) -> tuple[Conv4, dict[str, dict[str, Array]]]:
    """Conv-4, trained on the 'train' splits to match two items of a class, and all drawings as its features.

    banks   a name each, of split: (classes, items, 28, 28) uint8
    ->      as banks, (classes, items, features), of unit length, then centred and scaled by 'train'; the drawings
            themselves where `pretrain` is 0
    """
    vision = Conv4(s.channels, reduce=s.reduce)
    if not s.pretrain:
        return vision, jax.tree.map(jnp.asarray, banks)
    train = [jnp.asarray(bank["train"]) for bank in banks.values()]

    def loss(params: Params, key: Array, step: Array) -> Array:
        move, *own = jax.random.split(key, 1 + len(train))
        pairs = [_pairs(k, bank, min(s.pairs, bank.shape[0])) for k, bank in zip(own, train, strict=True)]
        images = jnp.concatenate(pairs, axis=1).reshape(-1, vision.size, vision.size)
        both = l2_norm(vision.apply(params, jittered(move, images.astype(jnp.float32) / 255)))
        one, other = jnp.split(both, 2)
        near = SHARPNESS * one @ other.T
        names = jnp.arange(near.shape[0])
        return jnp.mean(nats(near, names) + nats(near.T, names)) / 2

    every = max(n for n in range(1, 51) if s.pretrain % n == 0)
    tx = clipped(optax.adam(trapezoid(3e-3, s.pretrain)))
    keep = None if lab.folder is None else lab.folder / "vision.npz"
    found = fit(
        lab.key[None], lambda key: init(vision, key), loss, tx, steps=s.pretrain, every=every, tell=lab.tell, keep=keep
    )
    params = jax.tree.map(lambda p: p[0], found.params)
    see = jax.jit(lambda images: l2_norm(vision.apply(params, images)))

    def features(bank: np.ndarray) -> np.ndarray:
        parts = bank.reshape(-1, 20, *bank.shape[2:])  # of one size everywhere: one program
        return np.concatenate([see(part) for part in parts]).reshape(*bank.shape[:2], -1)

    seen = jax.tree.map(features, banks)
    known = np.concatenate([bank["train"].reshape(-1, vision.features) for bank in seen.values()])
    mean = known.mean(0)
    std = (known - mean).std()  # one for all channels: the cosines that were trained stay what they are
    return vision, jax.tree.map(lambda x: jnp.asarray((x - mean) / std), seen)


def _pairs(key: Array, bank: Array, classes: int) -> Array:
    """Two different items of each of some classes.   (2, classes, ...)"""
    names, items = jax.random.split(key)
    item = distinct(items, bank.shape[1], classes, 2)
    return bank[distinct(names, bank.shape[0], 1, classes)[0][None], item.T]


def model_of(name: str, s: Settings, vision: Conv4) -> FewShot:
    """SRWM and its control as in the few-shot code (W reads x itself, the norm on the skip path), others pre-norm."""
    d, own = s.width, SRWM(s.width, s.heads, "identity", query_scale=1.0)
    mixers: dict[str, Mixer] = {"SRWM": own, "fake SR": FakeSR(own), "DeltaNet": DeltaNet(d, s.heads), "LSTM": LSTM(d)}
    residual = "ln_skip" if name in ("SRWM", "fake SR") else "plain"
    block = Block(mixers[name], MLP(d, s.hidden, "relu"), LayerNorm(d), residual=residual)
    body = Stack(block, s.depth) if s.depth > 1 else block
    return FewShot(body, WAYS, features=vision.features) if s.pretrain else FewShot(body, WAYS, vision)


@dataclass(frozen=True)
class Lesson:
    """What is learned: `draw(key, split, batch)` gives episodes; all of their steps count, or the last alone."""

    draw: Callable[[Array, str, int], Episodes]
    steps: int
    batch: int
    last: bool = False


def learn(model: FewShot, lesson: Lesson, s: Settings, lab: Lab, first: Tree, starts: np.ndarray) -> dict[str, Any]:
    """Train models side by side, and test them on unseen classes after every chunk.

    first    the weights that they begin with                           leaves (models, ...)
    starts   where the state of each begins anew                        (models, t) bool
    ->       params, leaves (models, ...); right, targets of the last test (models, trials, t); curve of its accuracy
             (chunks, models), `every` so many steps
    """

    def logits(params: Params, e: Episodes, starts: Array) -> Array:
        return model.apply(params, e.images, e.slots, None, jnp.broadcast_to(starts[None], e.slots.shape))[0]

    def loss(params: Params, key: Array, step: Array, each: Tree) -> Array:
        e = lesson.draw(key, "train", lesson.batch)
        return jnp.mean(nats(logits(params, e, each["starts"]), e.targets)[:, -1 if lesson.last else slice(None)])

    def watch(params: Params, key: Array, each: Tree) -> Tree:
        e = lesson.draw(key, "test", s.trials)
        right = jnp.argmax(logits(params, e, each["starts"]), axis=-1) == e.targets
        accuracy = jnp.mean(right[:, -1 if lesson.last else slice(None)], dtype=jnp.float32)
        return {"accuracy": accuracy, "right": right, "targets": e.targets}

    every = max(n for n in range(1, 101) if lesson.steps % n == 0)
    tx = clipped(optax.adam(trapezoid(s.rate, lesson.steps, warmup=100), 0.9, 0.995))
    keys = jax.random.split(lab.key, starts.shape[0])
    keep = None if lab.folder is None else lab.folder / "progress.npz"
    each = jax.tree.map(jnp.asarray, {"first": first, "starts": starts})
    found = fit(
        keys,
        lambda key, each: each["first"],
        loss,
        tx,
        steps=lesson.steps,
        every=every,
        watch=watch,
        tell=lab.tell,
        keep=keep,
        each=each,
    )
    end = {name: found.watched[name][-1] for name in ("right", "targets")}
    return {"params": found.params, "curve": found.watched["accuracy"], "every": every, **end}


def by_instance(right: np.ndarray, targets: np.ndarray) -> list[float]:
    """Accuracy at the first, second, ... item of a class.   right, targets (..., t) -> as many as a class has items"""
    hot = targets[..., None] == np.arange(WAYS)
    number = (np.cumsum(hot, axis=-2) - 1)[hot].reshape(targets.shape)
    return [float(right[number == n].mean()) for n in range(number.max() + 1)]


def drawings(data: DataFolder) -> dict[str, dict[str, np.ndarray]]:
    """Characters and digits by split, the characters of 'train' with their quarter turns."""
    split = omniglot(data)
    return {"characters": {"train": quarter_turns(split["train"]), "test": split["test"]}, "digits": digits(data)}


def run(s: Settings, lab: Lab) -> Result:
    vision, banks = seen_by(s, lab.part("vision", 0, 0.3), drawings(lab.data))
    chars, figures, half = banks["characters"], banks["digits"], WAYS * s.instances

    def at_once(key: Array, split: str, n: int) -> Episodes:
        return synchronous(key, chars[split], n, WAYS, s.shots)

    def later(key: Array, split: str, n: int) -> Episodes:
        return delayed(key, chars[split], n, WAYS, s.instances)

    def joined(key: Array, split: str, n: int) -> Episodes:
        return two_tasks(key, chars[split], figures[split], n, WAYS, s.instances)

    lessons = {
        "sync": (Lesson(at_once, s.steps[0], s.batch[0], last=True), WAYS * s.shots + 1),
        "delayed": (Lesson(later, s.steps[1], s.batch[1]), half),
    }
    names = MODELS if s.baselines else ("SRWM", "fake SR")
    found, share = {kind: {} for kind in lessons}, 0.6 / len(names) / 2
    for i, (kind, name) in enumerate((kind, name) for kind in lessons for name in names):
        part, model = lab.part(f"{name} {kind}", 0.3 + i * share, 0.3 + (i + 1) * share), model_of(name, s, vision)
        first = [init(model, key) for key in jax.random.split(part.key, s.seeds)]  # vmapped it compiles far longer
        lesson, t = lessons[kind]
        never = np.zeros((s.seeds, t), bool)
        found[kind][name] = learn(model, lesson, s, part, jax.tree.map(lambda *p: np.stack(p), *first), never)
    place = np.arange(2 * half)
    runs = {"carried": place < 0, "anew at every segment": place % s.segment == 0, "anew at task 2": place == half}
    starts = np.repeat(np.stack(list(runs.values())), s.seeds, axis=0)
    first = jax.tree.map(lambda p: np.concatenate([p] * len(runs)), found["delayed"]["SRWM"]["params"])
    both = Lesson(joined, s.steps[2], -(-s.batch[1] // 2))
    two = learn(model_of("SRWM", s, vision), both, s, lab.part("two", 0.9, 1), first, starts)
    return judged(s, found, two, list(runs))


def judged(s: Settings, found: dict[str, dict[str, dict[str, Any]]], two: dict[str, Any], runs: list[str]) -> Result:
    """The claims, and what the figure shows."""
    sync = {name: float(f["curve"][-1].mean()) for name, f in found["sync"].items()}
    late = {name: by_instance(f["right"], f["targets"]) for name, f in found["delayed"].items()}
    half = WAYS * s.instances
    both: dict[str, list[float]] = {}
    for i, name in enumerate(runs):
        rows = slice(i * s.seeds, (i + 1) * s.seeds)
        parts = [[two[n][rows, :, p] for n in ("right", "targets")] for p in (slice(half), slice(half, None))]
        both[name] = [accuracy for part in parts for accuracy in by_instance(*part)]
    mean = {name: 100 * float(np.mean(b)) for name, b in both.items()}
    text = f"{WAYS}-way {s.shots}-shot"
    claims = [
        Claim(f"SRWM, {text}, unseen characters: accuracy", sync["SRWM"], low=0.85),
        Claim("SRWM above fake SR, points", 100 * (sync["SRWM"] - sync["fake SR"]), low=20),
        *[Claim(f"{name}, {text}: accuracy", sync[name]) for name in sync if name != "SRWM"],
        *[Claim(f"{name}, delayed label, second of a class: accuracy", late[name][1]) for name in late],
        *[Claim(f"{name}, delayed label, last of a class: accuracy", late[name][-1]) for name in late],
        Claim("two tasks, state carried above anew at every segment, points", mean[runs[0]] - mean[runs[1]], low=1),
        Claim("two tasks, state carried above anew at task 2, points", mean[runs[0]] - mean[runs[2]]),
        Claim("two tasks, state carried: accuracy", mean[runs[0]] / 100),
    ]
    curves = {name: f["curve"].mean(1) for name, f in found["sync"].items()}
    every = found["sync"]["SRWM"]["every"]
    return Result(tuple(claims), {"curves": curves, "every": every, "instances": late, "tasks": both, "text": text})


def draw(figure, series) -> None:
    figure.set_size_inches(12, 4)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for name, curve in series["curves"].items():
        left.plot(series["every"] * np.arange(1, len(curve) + 1), curve, label=name)
    left.set(
        xlabel="steps of training", ylabel="accuracy, unseen characters", title=f"{series['text']}, label beside it"
    )
    for axes, kind in ((middle, "instances"), (right, "tasks")):
        for name, accuracy in series[kind].items():
            axes.plot(np.arange(1, len(accuracy) + 1), accuracy, marker="o", label=name)
    middle.set(xlabel="which one of its class", title="label one step later")
    right.set(xlabel="which one of its class, in either task", title="SRWM, two tasks: its state")
    for axes in (left, middle, right):
        axes.axhline(1 / WAYS, color="gray", linestyle=":")
        axes.set_ylim(0, 1)
        axes.legend()
