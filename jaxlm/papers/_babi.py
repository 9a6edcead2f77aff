"""What the bAbI results share: tasks as stacked arrays, and their training in one program."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data import babi
from jaxlm.data.folder import DataFolder
from jaxlm.memory.memn2n import Inputs, MemN2N, ages, noisy_ages
from jaxlm.module import init
from jaxlm.papers.result import Lab
from jaxlm.train.fit import Fit, fit
from jaxlm.typing import Array, Params, Tree

BATCH, ROWS = 32, 50  # questions of a training step, and of a step of evaluation
SHORT = 20  # tasks whose stories fit into so many memories are stacked apart from the others
PARTS = ("train", "held out", "test")


@dataclass(frozen=True)
class Settings:
    """The published recipe.

    tasks          numbers of the tasks
    size           'en' (1,000 training questions a task) or 'en-10k'
    joint          one model for all tasks, or one for each
    restarts       models from other initial weights; the one with the lowest training error counts
    epochs         behind the linear start
    linear         epochs of the linear start, 0 for none
    rate           learning rate of the loss summed over a batch, of both phases
    halve          epochs after which it halves, behind the linear start
    clip           limit of the gradient's norm, of each matrix
    noise          share of random gaps in the time indices
    questions      at most so many training and test questions of a task are used; 0: all
    every          epochs between looks at the errors
    rounds         times that its pace is measured against training one model after the other; 0: not
    width, hops, tying, encoding, relu, mask_empty: of the model
    """

    tasks: tuple[int, ...] = tuple(babi.NAMES)
    size: str = "en"
    joint: bool = False
    restarts: int = 10
    epochs: int = 100
    linear: int = 20
    rate: float = 0.005
    halve: int = 25
    clip: float = 40.0
    noise: float = 0.1
    questions: int = 0
    every: int = 10
    rounds: int = 0
    width: int = 20
    hops: int = 3
    tying: str = "adjacent"
    encoding: str = "pe-code"
    relu: bool = False
    mask_empty: bool = False


class Set(NamedTuple):
    """Questions that one model learns.   cells (q,): 3 times the place of the task among them, plus the part"""

    questions: list[babi.Question]
    cells: np.ndarray


class Stack(NamedTuple):
    """Sets padded to one size, axis t; questions sorted by the lengths of their stories.

    bags      (t, u, f)   rows of the distinct sentences, see Inputs; 0 is empty
    asked     (t, q, f)   rows of the questions
    stories   (t, q, n)   numbers of sentences
    lengths   (t, q)
    answers   (t, q)
    support   (t, q, n)   bool
    cells     (t, q)
    train     (t, k)      questions that train
    live      (t, v)      bool: rows of the tables that the set has
    memory    (t,)        memories of the set
    place     (t,)        place of its time word
    """

    bags: Any
    asked: Any
    stories: Any
    lengths: Any
    answers: Any
    support: Any
    cells: Any
    train: Any
    live: Any
    memory: Any
    place: Any


class Group(NamedTuple):
    """A stack with its model, the places of its sets among all, and (questions, slots) of a training step's parts."""

    model: MemN2N
    stack: Stack
    sets: tuple[int, ...]
    batch: tuple[tuple[int, int], ...]


def load(data: DataFolder, s: Settings) -> list[Set]:
    """The sets: one for each task, whose last tenth is held out, or one of all, of which a random tenth is."""
    few, sets = s.questions or None, []
    for at, task in enumerate(s.tasks):
        train, test = (babi.read(data, task, part, s.size)[:few] for part in ("train", "test"))
        held = babi.heldout(len(train), seed=at if s.joint else None)
        sets.append(Set([*train, *test], 3 * at * s.joint + np.concatenate([held, np.full(len(test), 2)])))
    if not s.joint:
        return sets
    return [Set([q for one in sets for q in one.questions], np.concatenate([one.cells for one in sets]))]


def groups(sets: Sequence[Set], s: Settings) -> list[Group]:
    """Sets stacked with others of about their size."""
    memory = [min(50, babi.longest_story([q for q, c in zip(*one, strict=True) if c % 3 < 2])) for one in sets]
    parts = [[i for i, m in enumerate(memory) if (m <= SHORT) == short] for short in (True, False)]
    return [group([sets[i] for i in part], [memory[i] for i in part], tuple(part), s) for part in parts if part]


def group(sets: Sequence[Set], memory: Sequence[int], places: tuple[int, ...], s: Settings) -> Group:
    """One group of sets, each padded to the largest."""
    vocabularies = [babi.Vocabulary.of(one.questions) for one in sets]
    most = max(memory)
    arrays = [babi.encode(one.questions, v, m) for one, v, m in zip(sets, vocabularies, memory, strict=True)]
    model = MemN2N(
        max(map(len, vocabularies)), s.width, s.hops, most, max(a.questions.shape[1] for a in arrays),
        s.tying, s.encoding, relu=s.relu, mask_empty=s.mask_empty,
    )  # fmt: skip
    rows, distinct = [], max(len(a.sentences) for a in arrays)
    for one, vocabulary, a, m in zip(sets, vocabularies, arrays, memory, strict=True):
        own = replace(model, words=a.questions.shape[1])
        order = np.argsort(a.lengths, kind="stable")
        live = np.arange(model.vocab + most) < len(vocabulary)
        live |= abs(np.arange(model.vocab + most) - model.vocab - (m - 1) / 2) < m / 2
        rows.append(
            Stack(
                np.asarray(own.bags(jnp.asarray(np.pad(a.sentences, ((0, distinct - len(a.sentences)), (0, 0)))))),
                np.asarray(own.bags(jnp.asarray(a.questions[order]))),
                np.pad(a.stories[order], ((0, 0), (0, most - m))),
                a.lengths[order],
                a.answers[order],
                np.pad(a.support[order], ((0, 0), (0, most - m))),
                one.cells[order].astype(np.int32),
                np.flatnonzero(one.cells[order] % 3 == 0).astype(np.int32),
                live if s.tying == "adjacent" else live[: model.vocab],
                np.int32(m),
                np.asarray(own.place),
            )
        )
    return Group(model, jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows), places, plan(s, most))


def plan(s: Settings, memory: int) -> tuple[tuple[int, int], ...]:
    """(questions, slots) that a batch, sorted by length, is cut into: most stories of a joint batch are short."""
    return ((8, memory), (10, 21), (14, 11)) if s.joint and memory > 21 else ((BATCH, memory),)


def take(stack: Stack, rows: Array, slots: int, times: Array, mask_empty: bool) -> Inputs:
    """What the model reads of some questions of one set: the last of the slots stands for all empty memories left."""
    at = jnp.arange(slots, dtype=jnp.int32)
    count = jnp.where(at < slots - 1, jnp.clip(stack.memory - at, 0, 1), jnp.maximum(0, stack.memory - at))[None]
    if mask_empty:
        count = at[None] < stack.lengths[rows][:, None]
    weight = jnp.log(jnp.broadcast_to(count, times.shape).astype(jnp.float32))
    return Inputs(stack.bags[stack.stories[rows, :slots]], stack.asked[rows], times, weight, stack.place)


def answer(model: MemN2N, params: Params, stack: Stack, x: Inputs, linear: bool | Array = False) -> tuple[Array, Array]:
    """Log probabilities over the set's own rows, and the attention.   (b, v), (K, b, n)"""
    logits, attention = model.read(params, x, linear)
    return jax.nn.log_softmax(jnp.where(stack.live[None], logits, -jnp.inf), axis=-1), attention


def batch_loss(g: Group, params: Params, stack: Stack, key: Array, linear: Array, noise: float) -> Array:
    """Cross-entropy summed over a batch that is drawn with replacement.   ()"""
    model, (draw, gaps) = g.model, jax.random.split(key)
    rows = stack.train[jax.random.randint(draw, (BATCH,), 0, stack.train.shape[0])]
    if len(g.batch) > 1:
        rows = rows[jnp.argsort(-stack.lengths[rows])]
    times = noisy_ages(gaps, stack.lengths[rows], model.memory, model.memory, noise)
    times, first, total = jnp.minimum(times, stack.memory), 0, jnp.float32(0)
    for size, slots in g.batch:
        part = rows[first : first + size]
        fits = (stack.lengths[part] < slots) | (stack.memory <= slots)  # what does not is left out of this batch
        x = take(stack, part, slots, times[first : first + size, :slots], model.mask_empty)
        logs, _ = answer(model, params, stack, x, linear)
        right = jnp.take_along_axis(logs, stack.answers[part][:, None], axis=1)[:, 0]
        total, first = total - jnp.where(fits, right, 0.0).sum(), first + size
    return total


def evaluate(g: Group, params: Params, cells: int) -> dict[str, Array]:
    """Means over the questions of each cell.   each (t, cells)

    error   of the answers
    nats    cross-entropy
    found   share of the supporting sentences that some hop attends to most, of all sentences
    """
    count = g.stack.lengths.shape[1]
    lengths = np.asarray(g.stack.lengths).max(0)
    sums: Tree = jnp.zeros((4, len(g.sets), cells))
    bounds = sorted({slots for slots in (11, 21, g.model.memory) if slots <= g.model.memory})
    first = 0
    for slots in bounds:
        fitting = count if slots == g.model.memory else int((lengths < slots).sum())
        blocks = np.arange(first, fitting, ROWS)[:, None] + np.arange(ROWS)[None]
        blocks, first = jnp.asarray(np.where(blocks < fitting, blocks, -1)), fitting
        one = jax.vmap(lambda p, s, rows, n=slots: judge(g.model, p, s, rows, n, cells), (0, 0, None))
        if len(blocks):
            sums = sums + jax.lax.map(partial(one, params, g.stack), blocks).sum(0).swapaxes(0, 1)
    number, *rest = sums
    return {name: one / jnp.maximum(number, 1) for name, one in zip(("error", "nats", "found"), rest, strict=True)}


def judge(model: MemN2N, params: Params, stack: Stack, rows: Array, slots: int, cells: int) -> Array:
    """Sums over questions of one set by cell: their number, errors, nats, share of the support found.   (4, cells)"""
    cell = jnp.where(rows < 0, -1, stack.cells[rows])
    x = take(stack, rows, slots, ages(stack.lengths[rows], slots), model.mask_empty)
    logs, attention = answer(model, params, stack, x)
    wrong = jnp.argmax(logs, axis=-1) != stack.answers[rows]
    nats = -jnp.take_along_axis(logs, stack.answers[rows][:, None], axis=1)[:, 0]
    there = jnp.arange(slots)[None] < stack.lengths[rows][:, None]
    most = jnp.argmax(jnp.where(there[None], attention, -1.0), axis=-1)
    most = jax.nn.one_hot(most, slots, dtype=jnp.float32).max(0)
    support = stack.support[rows, :slots].astype(jnp.float32)
    found = (support * most).sum(-1) / jnp.maximum(1, support.sum(-1))
    each = jnp.stack([jnp.ones_like(nats), wrong.astype(jnp.float32), nats, found])
    return jnp.where(cell[None] >= 0, each, 0.0) @ jax.nn.one_hot(cell, cells, dtype=jnp.float32)


def clip_each(limit: float) -> optax.GradientTransformation:
    """Clip every matrix (the last two axes of a leaf) to a norm of its own."""

    def one(g: Array) -> Array:
        norm = jnp.sqrt(jnp.square(g).sum((-2, -1), keepdims=True))
        return g * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))

    return optax.stateless(lambda updates, _: jax.tree.map(one, updates))


def schedule(s: Settings, epoch: int) -> optax.Schedule:
    """The learning rate by step: constant in the linear start, then halved at every multiple of `halve` epochs."""
    return lambda step: s.rate * 0.5 ** (jnp.maximum(0, jnp.asarray(step) // epoch - s.linear + 1) // s.halve)


def train(s: Settings, parts: Sequence[Group], lab: Lab, look: bool = True) -> Fit:
    """Train all sets and restarts in one program, vmapped over the restarts, inside it over the sets of a group.

    A set's restarts share batches and noise and differ by their initial weights: the rows of the sentences are then one
    matrix for all, and their embedding one product.
    """
    epoch = max(1, min(g.stack.train.shape[1] for g in parts) // BATCH)
    data, cells = jax.random.fold_in(lab.key, 1), 3 * len(s.tasks) if s.joint else 3

    def begin(key: Array) -> Params:
        keys = [jax.random.split(jax.random.fold_in(key, i), len(g.sets)) for i, g in enumerate(parts)]
        return {str(i): jax.vmap(lambda k, g=g: init(g.model, k))(keys[i]) for i, g in enumerate(parts)}

    def loss(params: Params, key: Array, step: Array) -> Array:
        linear, total = step < s.linear * epoch, jnp.float32(0)
        for i, g in enumerate(parts):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(data, step), i), len(g.sets))
            each = jax.vmap(lambda p, one, k, g=g: batch_loss(g, p, one, k, linear, s.noise))
            total = total + each(params[str(i)], g.stack, keys).sum()
        return total / (BATCH * sum(len(g.sets) for g in parts))

    def watch(params: Params, key: Array) -> dict[str, Array]:
        seen = [evaluate(g, params[str(i)], cells) for i, g in enumerate(parts)]
        order = np.argsort([place for g in parts for place in g.sets])
        out = {k: jnp.concatenate([one[k] for one in seen])[order].reshape(-1, 3) for k in seen[0]}
        return {**out, "train_error": out["error"][:, 0].mean(), "test_error": out["error"][:, 2].mean()}

    scale = BATCH * sum(len(g.sets) for g in parts)  # the recipe's loss is a sum, what is shown is a mean
    tx = optax.chain(optax.scale(scale), clip_each(s.clip), optax.sgd(schedule(s, epoch)))
    keys = jax.random.split(jax.random.fold_in(lab.key, 0), s.restarts)
    keep = None if lab.folder is None else lab.folder / "progress.npz"
    plan = {"steps": (s.linear + s.epochs) * epoch, "every": s.every * epoch}
    return fit(keys, begin, loss, tx, **plan, watch=watch if look else None, tell=lab.tell, keep=keep)
