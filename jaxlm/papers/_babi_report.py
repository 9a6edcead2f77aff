"""From trained restarts to a result: the choice by training error, the table, one story's attention, the pace."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import babi
from jaxlm.memory.memn2n import ages
from jaxlm.papers._babi import BATCH, Group, Set, Settings, answer, group, groups, load, take, train
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import Fit

FAILED = 0.05  # a task with a larger test error is failed


def chosen(s: Settings, watched: Mapping[str, np.ndarray]) -> np.ndarray:
    """The restart with the lowest training error, for each task or of all; equals by cross-entropy.   (t,)"""
    error, nats = (watched[name][-1][..., 0] for name in ("error", "nats"))  # (r, t)
    if s.joint:
        error, nats = (np.broadcast_to(x.mean(1, keepdims=True), x.shape) for x in (error, nats))
    return np.lexsort((nats, np.round(error, 6)), axis=0)[0]


def table(
    s: Settings, watched: Mapping[str, np.ndarray], paper: Sequence[float], high: float
) -> tuple[list[Claim], dict[str, Any]]:
    """Claims in percent, the mean first, and the series behind them."""
    best = chosen(s, watched)
    at = np.arange(len(best))
    error = 100 * watched["error"]  # (chunks, r, t, part)
    ours, beside = error[-1, best, at, 2], [paper[task - 1] for task in s.tasks]

    def failed(errors: Any) -> float:
        return float(np.sum(np.asarray(errors) > 100 * FAILED))

    claims = [
        Claim("mean test error, %", float(ours.mean()), high=high, paper=float(np.mean(beside))),
        Claim(f"tasks above {100 * FAILED:.0f} %", failed(ours), paper=failed(beside)),
        *(Claim(f"{t} {babi.NAMES[t]}, %", float(o), paper=p) for t, o, p in zip(s.tasks, ours, beside, strict=True)),
    ]
    series = {
        "tasks": s.tasks,
        "ours": ours,
        "paper": beside,
        "chosen": best,
        "train": error[-1, best, at, 0],
        "held out": error[-1, best, at, 1],
        "restarts, test": error[-1, :, :, 2],
        "restarts, train": error[-1, :, :, 0],
        "curve, test": error[:, best, at, 2].mean(1),
        "curve, train": error[:, best, at, 0].mean(1),
        "support found": watched["found"][-1, best, at, 2],
    }
    return claims, series


def attention(s: Settings, parts: Sequence[Group], sets: Sequence[Set], run: Fit) -> dict[str, Any]:
    """Attention of every hop over the story of one test question, the first right one with two supporting facts.

    story    sentences;  question, answer, said: texts
    weights  (K, n) over the story's sentences, oldest first;  support (n,) bool
    """
    place = next((i for i, task in enumerate(s.tasks) if task == 2), 0)
    g, at = next((g, g.sets.index(i)) for g in parts for i in g.sets if i == (0 if s.joint else place))
    best = chosen(s, run.watched)[place]
    one = jax.tree.map(lambda x: x[at], g.stack)
    params = jax.tree.map(lambda x: jnp.asarray(x[best, at]), run.params[str(parts.index(g))])
    own = sets[g.sets[at]]
    questions = [
        own.questions[i] for i in np.argsort([min(g.model.memory, len(q.story)) for q in own.questions], kind="stable")
    ]
    rows = np.flatnonzero(np.asarray(one.cells) == 3 * place * s.joint + 2)[: 8 * BATCH]

    @jax.jit
    def run_rows(rows):
        x = take(one, rows, g.model.memory, ages(one.lengths[rows], g.model.memory), g.model.mask_empty)
        logs, seen = answer(g.model, params, one, x)
        return jnp.argmax(logs, axis=-1), seen

    said, seen = map(np.asarray, run_rows(jnp.asarray(rows)))
    pairs = [len(questions[r].support) > 1 for r in rows]
    story = [4 <= len(questions[r].story) <= 12 for r in rows]
    right = said == np.asarray(one.answers)[rows]
    pick = int(np.argmax(4 * np.array(story) + 2 * np.array(pairs) + right))
    q, words = questions[rows[pick]], babi.Vocabulary.of(own.questions).words
    n = min(len(q.story), g.model.memory)
    return {
        "story": [" ".join(x) for x in q.story[-n:]],
        "question": " ".join(q.words) + "?",
        "answer": q.answer,
        "said": words[said[pick]] if said[pick] < len(words) else "",
        "weights": seen[:, pick, :n],
        "support": np.asarray(one.support)[rows[pick], :n],
    }


def report(
    s: Settings, lab: Lab, columns: Mapping[str, Sequence[float]], column: str, high: float = math.inf
) -> Result:
    """Train everything in one program, and lay the test errors beside a column of the paper's.

    high   band of the mean test error, %
    """
    sets = load(lab.data, s)
    parts = groups(sets, s)
    run = train(s, parts, lab)
    claims, series = table(s, run.watched, columns[column], high)
    series |= {f"paper, {name}": [errors[task - 1] for task in s.tasks] for name, errors in columns.items()}
    series |= attention(s, parts, sets, run)
    if s.rounds:
        pace = faster(s, parts, sets, lab)
        clock, cores = (a / b for a, b in zip(pace["one by one"], pace["together"], strict=True))
        claims.append(Claim("times faster than one by one, on the clock", clock))
        claims.append(Claim("times faster than one by one, seconds of the cores", cores))
        series["pace"] = pace
    return Result(tuple(claims), series)


def faster(s: Settings, parts: Sequence[Group], sets: Sequence[Set], lab: Lab) -> dict[str, list[float]]:
    """Seconds of an epoch of all sets and restarts, on the clock and of the processor's cores, compilation left out.

    together     in one program
    one by one   each model alone: from one task of each group, times the models
    Both are measured in turn, `rounds` times; the quickest counts.
    """
    few = replace(s, linear=0, epochs=4, every=1)

    def epoch(settings: Settings, groups: Sequence[Group]) -> np.ndarray:
        times: list[tuple[float, float]] = []

        def tell(*_: float, **__: float) -> None:
            times.append((time.perf_counter(), time.process_time()))

        train(settings, groups, Lab(lab.key, tell=tell), look=False)
        return np.diff(times, axis=0).min(0)

    alone = []
    for g in parts:
        at = int(np.argsort(np.asarray(g.stack.memory), kind="stable")[len(g.sets) // 2])
        alone.append(group([sets[g.sets[at]]], [int(g.stack.memory[at])], (0,), s))
    together, one = [], []
    for _ in range(s.rounds):
        together.append(epoch(few, parts))
        each = [epoch(replace(few, restarts=1, tasks=(1,)), [g]) for g in alone]
        one.append(sum(s.restarts * len(g.sets) * x for g, x in zip(parts, each, strict=True)))
    return {name: np.min(x, axis=0).tolist() for name, x in (("together", together), ("one by one", one))}


def draw(figure: Any, series: Mapping[str, Any]) -> None:
    """Errors by task beside the paper's, and the attention of every hop over one story."""
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    at = np.arange(len(series["tasks"]))
    left.bar(at - 0.2, series["ours"], 0.4, label=f"ours, mean {np.mean(series['ours']):.1f} %")
    left.bar(at + 0.2, series["paper"], 0.4, label=f"paper, mean {np.mean(series['paper']):.1f} %")
    left.plot(
        np.broadcast_to(at, np.shape(series["restarts, test"])).ravel() - 0.2,
        np.ravel(series["restarts, test"]), "k.", ms=2, label="all restarts",
    )  # fmt: skip
    left.set(xticks=at, xlabel="task", ylabel="test error, %")
    left.set_xticklabels(series["tasks"], fontsize=7)
    left.legend(fontsize=7)
    weights = np.asarray(series["weights"]).T
    right.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (slot, hop), p in np.ndenumerate(weights):
        right.text(hop, slot, f"{p:.2f}", ha="center", va="center", fontsize=6, color="w" if p > 0.5 else "k")
    marks = ["→ " if yes else "" for yes in series["support"]]
    right.set_yticks(range(len(marks)), [m + x for m, x in zip(marks, series["story"], strict=True)], fontsize=6)
    right.set_xticks(range(weights.shape[1]), [f"hop {k + 1}" for k in range(weights.shape[1])], fontsize=7)
    right.set_title(f"{series['question']} {series['said']} (→ supporting facts)", fontsize=7)
