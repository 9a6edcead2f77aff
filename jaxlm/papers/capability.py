"""The capability card: every mixer on every synthetic task, at one small size and budget, and what each costs.

No paper's table: the separations that the literature knows, measured side by side. A model is one-hot tokens, two
blocks of the mixer and an MLP, a readout at every place; it trains on fresh sequences of one length and is tested there
and at four times the length. Several seeds train in one program; the best counts, for the question is what a mixer can
do. Accuracies are scaled: 0 is the best constant answer, 1 all right. Costs are of the mixer alone.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm import tasks
from jaxlm.papers._capability import Settings, cost_of, learn, length_of, mixer_of, mixers_of, model_of, tasks_of
from jaxlm.papers.record import plain
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks import Task

TITLE = "Capability card"
ROWS = ()
NEEDS = ()

# Classes of mixers, each with every mixer of the library that is surely in it.
CELLS = ("RNN", "GRU", "LSTM", "OdysseyLSTM", "SLSTM", "SCRN", "CoRNN", "LTC", "LTM", "LEM")
TURNS = ("DeltaNet to -1", "GatedDeltaNet to -1")  # transitions with eigenvalues down to -1
BLOCKS = ("RegularLRNN",)  # block-diagonal transitions
GATED = ("GLA", "HGRN2", "RetNet", "Mamba2", "MLSTM", "ReGLA", "RWKV5", "RWKV6", "LogLinearMamba2")
CORRECTED = ("DeltaNet", "GatedDeltaNet", "KDA", "LogLinearGatedDeltaNet")
DECAYS = ("LinearAttention", *GATED, *CORRECTED, "Mamba", "RWKV4", "RGLRU", "MinGRU", "MinLSTM")
MATRICES = ("Attention", "LinearAttention", *GATED, *CORRECTED, *TURNS, "DeltaProduct", "RWKV7")
VECTORS = (*CELLS, "LRU", "S5", "RWKV4", "RGLRU", "HGRN", "MinGRU", "MinLSTM")
UNLEARNED = 0.5  # scaled accuracy below which a task counts as not learned

# What is known of classes of mixers: (what, task, where, mixers, what one of them reaches; None: none of them learns).
SEPARATIONS = (
    ("parity, nonlinear cells", "Parity", "far", CELLS, 0.9),
    ("parity, eigenvalues to -1", "Parity", "far", TURNS, 0.8),
    ("parity, block-diagonal transitions", "Parity", "far", BLOCKS, 0.8),
    ("parity, transitions in [0, 1]", "Parity", "far", DECAYS, None),
    ("parity, attention", "Parity", "far", ("Attention",), None),
    ("sum mod 5, nonlinear cells", "Sum", "near", CELLS, 0.8),
    ("sum mod 5, block-diagonal transitions", "Sum", "far", BLOCKS, 0.8),
    ("sum mod 5, transitions in [0, 1]", "Sum", "near", DECAYS, None),
    ("modular arithmetic, block-diagonal transitions", "ModularArithmetic", "near", BLOCKS, 0.8),
    ("modular arithmetic, transitions in [0, 1]", "ModularArithmetic", "near", DECAYS, None),
    ("recall, attention and matrix memories", "MQAR", "near", MATRICES, 0.9),
    ("recall, vector states", "MQAR", "near", VECTORS, None),
)

BUDGETS = {
    "smoke": Settings(
        ("LSTM",),
        ("Parity",),
        width=8,
        hidden=8,
        depth=1,
        length=8,
        far=2,
        batch=4,
        steps=4,
        trials=4,
        timed=16,
        rows=1,
        repeats=1,
    ),
    "cpu": Settings(width=32, hidden=64, batch=16, steps=1000),
    "gpu": Settings(steps=4000, seeds=4, trials=1024, timed=4096),
}


def run(s: Settings, lab: Lab) -> Result:
    """Train and measure every mixer; a row that is finished is kept, and not made twice."""
    rows, columns = mixers_of(s.mixers), tasks_of(s.tasks)
    found = {}
    for i, name in enumerate(rows):
        part = lab.part(name, i / len(rows), (i + 1) / len(rows))
        found[name] = once(part, lambda part, name=name: row(name, columns, s, part))
    card = {name: own["cells"] for name, own in found.items()}
    costs = {name: own["costs"] for name, own in found.items() if own["costs"]}
    seconds = {name: own["seconds"] for name, own in found.items()}
    note = (
        f"width {s.width}, {s.depth} blocks, {s.steps} steps of {s.batch} sequences of {s.length} tokens (or the "
        f"task's least), tested at {s.far} times the length; the best of {s.seeds} seeds; accuracy scaled, 0 is chance",
        f"costs of one mixer at {s.timed} tokens, {s.rows} rows, on {jax.devices()[0].device_kind}",
        f"all rows: {sum(seconds.values()):,.0f} s of a core, the longest {max(seconds.values()):,.0f}",
    )
    series = {"card": card, "costs": costs, "seconds": seconds, "far": s.far}
    return Result((*known(card), *best(card)), series, note)


def row(name: str, columns: Sequence[str], s: Settings, lab: Lab) -> dict[str, Any]:
    """A mixer's cells by task, its costs (empty: not measured) and the seconds of a core that they took."""
    began, given = time.process_time(), [tasks.make(column) for column in columns]
    learned = learn(model_of(mixer_of(name, s.width), given, s), given, s, lab)
    cells = {c: cell(task, found, s) for c, task, found in zip(columns, given, learned, strict=True)}
    costs = cost_of(mixer_of(name, s.width), s.timed, s.rows, s.repeats) if s.timed else {}
    return {"cells": cells, "costs": costs, "seconds": time.process_time() - began}


def cell(task: Task, found: Mapping[str, np.ndarray], s: Settings) -> dict[str, Any]:
    """near, far: scaled accuracies of the seed that is best at the training length; all: of every seed; losses."""
    at = {"near": length_of(task, s), "far": s.far * length_of(task, s)}
    both = {where: [tasks.scaled(float(a), task.chance(n)) for a in found[where]] for where, n in at.items()}
    first = int(np.argmax(both["near"]))
    return {**{where: x[first] for where, x in both.items()}, "all": both, "loss": found["loss"], "length": at["near"]}


def once(lab: Lab, make: Callable[[Lab], dict[str, Any]]) -> dict[str, Any]:
    """What is made in a lab, or what its folder keeps of that."""
    if lab.folder is None:
        return plain(make(lab))
    file = lab.folder / "row.json"
    if not file.exists():
        lab.folder.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(plain(make(lab))))
        new.replace(file)
        (lab.folder / "progress.npz").unlink(missing_ok=True)
    return json.loads(file.read_text())


def known(card: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """The known separations that the card can judge: of each, the best mixer of a class."""
    out = []
    for what, task, where, names, least in SEPARATIONS:
        own = [card[name][task][where] for name in names if task in card.get(name, ())]
        place = {"near": "at the training length", "far": "beyond it"}[where]
        if own:
            band = {"high": UNLEARNED} if least is None else {"low": least}
            out.append(Claim(f"{what}: the best of {len(own)} {place}", max(own), **band))
    return out


def best(card: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """What the best mixer of the card reaches on each task; not judged."""
    columns = next(iter(card.values()))
    return [Claim(f"{task}: the best of the card", max(own[task]["near"] for own in card.values())) for task in columns]


def draw(figure, series) -> None:
    """Two tables of colours, at the length and beyond; recall against the state's size; the two speeds."""
    card, costs = series["card"], series["costs"]
    rows, columns = list(card), list(next(iter(card.values())))
    figure.set_size_inches(6 + 0.9 * len(columns), 3.5 + 0.6 * len(rows))
    axes = figure.subplots(2, 2, height_ratios=(max(2, 0.5 * len(rows)), max(3, 0.25 * len(rows))))
    for ax, where, title in (
        (axes[0, 0], "near", "at the training length"),
        (axes[0, 1], "far", f"at {series['far']} times the length"),
    ):
        values = np.array([[card[r][c][where] for c in columns] for r in rows], float)
        ax.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for i, j in np.ndindex(values.shape):
            ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="black" if values[i, j] > 0.6 else "w")
        ax.set(xticks=range(len(columns)), yticks=range(len(rows)), title=title)
        ax.set_xticklabels(columns, rotation=45, ha="right")
        ax.set_yticklabels(rows if where == "near" else [])
    left, right = axes[1]
    for name, cost in costs.items():
        if "MQAR" in card[name]:
            left.plot(max(cost["state"], 1), card[name]["MQAR"]["near"], "o")
            left.annotate(name, (max(cost["state"], 1), card[name]["MQAR"]["near"]), fontsize=7)
        right.plot(cost["training"], cost["decoding"], "o")
        right.annotate(name, (cost["training"], cost["decoding"]), fontsize=7)
    left.set(xlabel="bytes of state, one row", ylabel="MQAR", xscale="log", title="recall and the state's size")
    right.set(xlabel="tokens a second, gradient", ylabel="decoding", xscale="log", yscale="log", title="speed here")
