"""Cells made for longer memory on the words of the Penn Treebank: SCRN beside a plain RNN, LTM beside an LSTM.

SCRN (Mikolov et al. 2014): 100 units and 40 slow ones; with 100 units alone the paper's network has a test perplexity
of 129, with the slow ones 115. LTM (Nugaliyadde et al. 2019; 2023) is told beside an LSTM of as many units, without a
published number. All learn alike: truncated backpropagation through time in lanes that carry the state, Adam, a
sampled softmax; the test perplexity is that of the full one. Different from the papers: few epochs, one matrix that
embeds and reads out, a norm before it. A first run of three epochs was stopped after 2.5 of SCRN's: it began slower
than the RNN, and was still 0.04 sampled nats behind.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.ptb import penn_treebank
from jaxlm.mixers import LSTM, LTM, RNN, SCRN
from jaxlm.mixers.base import Mixer
from jaxlm.models import LM
from jaxlm.module import count, init
from jaxlm.ops.sampled import LogUniform, sampled_nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train import progress
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "Longer memory: SCRN and LTM on Penn Treebank"
ROWS = (19,)
NEEDS = ("ptb",)
HEADLINE = "SCRN: test perplexity over the RNN's"
PIECES = 10  # of an epoch: how often progress is told
PAPER = {"RNN": 129, "SCRN": 115}  # at 100 and 100 + 40 units


@dataclass(frozen=True)
class Settings:
    """cells by name; their units; the slow units that SCRN has beside; lanes, and words of each between two updates;
    rate of Adam, falling to zero over the second half; samples of the softmax that trains; words of each split, 0: all
    """

    cells: tuple[str, ...] = ("RNN", "SCRN", "LSTM", "LTM")
    units: int = 100
    slow: int = 40
    lanes: int = 64
    length: int = 32
    epochs: int = 3
    rate: float = 0.006
    samples: int = 512
    words: int = 0


BUDGETS = {
    "smoke": Settings(cells=("SCRN",), units=6, slow=2, lanes=2, length=4, epochs=1, samples=16, words=200),
    "cpu": Settings(cells=("RNN", "SCRN"), epochs=8),
    "gpu": Settings(lanes=32, epochs=12, rate=0.003, samples=4096),
}


def cell_of(name: str, s: Settings) -> Mixer:
    """A cell of `units`, SCRN of `slow` more."""
    cells: dict[str, Callable[[], Mixer]] = {
        "RNN": lambda: RNN(s.units),
        "SCRN": lambda: SCRN(s.units + s.slow, slow=s.slow),
        "LSTM": lambda: LSTM(s.units),
        "LTM": lambda: LTM(s.units),
    }
    return cells[name]()


def run(s: Settings, lab: Lab) -> Result:
    """Train each cell on the same words in the same order, and test it."""
    bank = penn_treebank(lab.data)
    train, test = (lanes(text[: s.words or None], s) for text in (bank.train, bank.test))
    perplexity, curves, sizes = {}, {}, {}
    for n, name in enumerate(s.cells):
        own = lab.part(name, n / len(s.cells), (n + 1) / len(s.cells))
        cell = cell_of(name, s)
        model = LM(len(bank.vocabulary), cell.width, cell)
        params, curves[name] = learn(model, train, s, replace(own, key=lab.key))
        perplexity[name] = math.exp(judge(model, params, test))
        sizes[name] = count(cell)
    ratios = [("SCRN", "RNN", HEADLINE), ("LTM", "LSTM", "LTM: test perplexity over the LSTM's")]
    claims = [
        Claim(said, perplexity[a] / perplexity[b], high=1.0 if said == HEADLINE else math.inf)
        for a, b, said in ratios
        if a in perplexity and b in perplexity
    ]
    claims += [Claim(f"test perplexity, {n}", p, paper=PAPER.get(n)) for n, p in perplexity.items()]
    notes = (
        f"{s.epochs} epochs of {train.size:,} words; {s.units} units, SCRN {s.slow} slow ones beside",
        "weights of the cells: " + ", ".join(f"{n} {size:,}" for n, size in sizes.items()),
    )
    return Result(tuple(claims), {"perplexity": perplexity, "curves": curves, "paper": PAPER}, notes)


def lanes(text: np.ndarray, s: Settings) -> np.ndarray:
    """A text in lanes of equal length, cut in steps; each step ends with the word that begins the next.

    (n,) -> (steps, lanes, length + 1)
    """
    steps = (len(text) - 1) // (s.lanes * s.length)
    first = steps * s.length * np.arange(s.lanes)[None, :, None] + s.length * np.arange(steps)[:, None, None]
    return text[first + np.arange(s.length + 1)]


def learn(model: LM, rows: np.ndarray, s: Settings, lab: Lab) -> tuple[Params, np.ndarray]:
    """Weights, and the mean sampled nats of each piece of the training.   rows (steps, lanes, length + 1)"""
    steps = len(rows)
    tx = clipped(optax.adam(trapezoid(s.rate, s.epochs * steps)))
    draw = LogUniform(model.vocab, min(s.samples, model.vocab))
    go = jax.jit(partial(_steps, model, tx, draw), donate_argnums=0)
    params, plan = init(model, lab.key), {k: v for k, v in asdict(s).items() if k != "cells"}
    carry, curve, file = (params, tx.init(params)), [], None if lab.folder is None else lab.folder / "progress.npz"
    if file is not None and file.exists():
        carry, seen, _ = progress.resume(file, carry, plan)
        curve = list(seen["curve"])
    size = -(-steps // PIECES)
    cuts = range(0, steps, size)
    for epoch in range(len(curve) // len(cuts), s.epochs):
        state = model.start(carry[0], s.lanes)
        for at in cuts:
            number = epoch * steps + at
            carry, state, found = go(carry, state, jnp.asarray(rows[at : at + size]), jnp.int32(number), lab.key)
            curve.append(float(found))
            lab.tell((number + min(size, steps - at)) / (s.epochs * steps), sampled_nats=curve[-1])
        if file is not None:
            progress.keep(file, carry, plan, {"curve": np.array(curve)})
    return carry[0], np.array(curve)


def _steps(
    model: LM, tx: Any, draw: LogUniform, carry: Tree, state: Tree, rows: Array, number: Array, key: Array
) -> tuple[Tree, Tree, Array]:
    """An update for each of rows (steps, lanes, length + 1), the state carried: (carry, state, mean sampled nats)."""

    def one(carry: Tree, at: tuple[Array, Array]) -> tuple[Tree, Array]:
        (params, moments), state = carry
        row, n = at

        def loss(params: Params) -> tuple[Array, Tree]:
            x, after = model.hidden(params, row[:, :-1], state)
            classes = model.readout(params).T
            own = jax.random.fold_in(key, n)
            told = sampled_nats(x, lambda i: jnp.take(classes, i, axis=0), row[:, 1:], draw, own)
            return jnp.mean(told), after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = tx.update(grads, moments, params)
            return ((optax.apply_updates(params, updates), moments), after), value

    (carry, state), told = jax.lax.scan(one, (carry, state), (rows, number + jnp.arange(len(rows), dtype=jnp.int32)))
    return carry, state, jnp.mean(told)


def judge(model: LM, params: Params, rows: np.ndarray) -> float:
    """Mean nats a word under the full softmax, the state carried through the lanes."""

    def one(state: Tree, row: Array) -> tuple[Tree, Array]:
        weights = jnp.ones(row[:, 1:].shape, jnp.float32)
        (total, _), state = model.loss(params, row[:, :-1], row[:, 1:], weights, state)
        return state, total

    state = model.start(params, rows.shape[1])
    _, totals = jax.jit(partial(jax.lax.scan, one))(state, jnp.asarray(rows))
    return float(jnp.sum(totals)) / rows[:, :, 1:].size


def draw(figure, series: Mapping[str, Any]) -> None:
    """Left: the loss over training. Right: test perplexities, the published ones as lines."""
    left, right = figure.subplots(1, 2)
    for name, curve in series["curves"].items():
        left.plot(np.linspace(0, 1, len(curve) + 1)[1:], curve, ".-", label=name)
    left.set(xlabel="share of the training", ylabel="sampled nats a word")
    left.legend()
    names = list(series["perplexity"])
    colors = [f"C{i}" for i in range(len(names))]
    right.bar(names, list(series["perplexity"].values()), color=colors)
    right.bar_label(right.containers[0], fmt="%.1f")
    for name, color in zip(names, colors, strict=True):
        if name in series["paper"]:
            right.axhline(series["paper"][name], color=color, ls="--", lw=1, label=f"paper, {name}, at the end")
    right.set(ylabel="test perplexity")
    right.legend(loc="lower right")
