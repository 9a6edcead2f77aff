"""A search space odyssey on a long lag (Greff et al. 2015): the LSTM without each of its parts, side by side.

The paper's tasks are speech, handwriting and music; its finding is that no ablation beats the whole cell, and that the
cells without a forget gate (NFG) and without the output's tanh (NOAF) are worse on all three. Here: flip-flop language,
where a bit is written, must be kept over many pairs that are to be ignored, and is asked for, again and again, so that
old bits must go. Fresh sequences in every step, weights from N(0, 0.1²) as in the paper, the same seeds and steps for
all; each variant counts at its own best rate, for the rate matters most. The paper: SGD with momentum, and a random
search of 200 settings a variant.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.mixers.odyssey_lstm import VARIANTS, OdysseyLSTM
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import count, init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks import FlipFlop
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "A search space odyssey: the LSTM without each of its parts"
ROWS = (125,)
NEEDS = ()
WORST = ("NFG", "NOAF")  # of the paper, on all of its tasks


@dataclass(frozen=True)
class Settings:
    """variants by name; seeds of each; ignore: probability that a pair is to be ignored; length in tokens, two a pair;
    rates of Adam, each with the same seeds, the gradient's norm at most `clip`; test: sequences of an evaluation, after
    `every` steps"""

    variants: tuple[str, ...] = VARIANTS
    seeds: int = 3
    width: int = 32
    length: int = 200
    ignore: float = 0.9
    batch: int = 32
    steps: int = 2000
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    clip: float = 1.0
    every: int = 50
    test: int = 512


BUDGETS = {
    "smoke": Settings(variants=("NFG",), seeds=1, width=4, length=8, batch=4, steps=2, rates=(0.01,), every=1, test=4),
    "cpu": Settings(width=12, length=100, batch=8, steps=800, every=40, test=256),
    "gpu": Settings(),
}


def optimizer(s: Settings) -> optax.GradientTransformation:
    """Adam at a rate that stands among the parameters, so that models of several rates train in one program."""

    def own_rate(updates: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda u: -params["rate"] * u, updates)

    slow = optax.scale_by_schedule(trapezoid(1.0, s.steps))
    return clipped(optax.chain(optax.scale_by_adam(), slow, optax.stateless(own_rate)), s.clip)


def train(variant: str, s: Settings, lab: Lab) -> tuple[np.ndarray, int]:
    """Test loss in nats after every chunk (chunks, rates, seeds), infinite where training failed; number of weights."""
    task = FlipFlop(ignore=s.ignore)
    model = SequenceModel(OdysseyLSTM(s.width, task.vocab, variant), task.classes, readout="every")

    def judge(params: Params, key: Array, batch: int) -> Array:
        sample = task.sample(key, batch, s.length)
        logits = model.apply(params["model"], jax.nn.one_hot(sample.tokens, task.vocab, dtype=jnp.float32))[0]
        return jnp.sum(sample.weights * nats(logits, sample.targets)) / jnp.sum(sample.weights)

    def watch(params: Params, key: Array, rate: Array) -> Tree:
        return {"test": judge(params, key, s.test)}

    keys, rates = jax.random.split(lab.key, s.seeds), jnp.asarray(s.rates, jnp.float32)
    found = fit(
        jnp.tile(keys, len(s.rates)),
        lambda key, rate: {"model": init(model, key), "rate": rate},
        lambda params, key, step, rate: judge(params, key, s.batch),
        optimizer(s),
        steps=s.steps,
        every=s.every,
        watch=watch,
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "fit.npz",
        each=jnp.repeat(rates, s.seeds),
    )
    losses = np.nan_to_num(found.watched["test"], nan=np.inf)
    return losses.reshape(-1, len(s.rates), s.seeds), count(model)


def run(s: Settings, lab: Lab) -> Result:
    """Train every variant from the same seeds, and rank them by their last test losses."""
    curves, ends, sizes = {}, {}, {}
    for n, variant in enumerate(s.variants):
        own = lab.part(variant, n / len(s.variants), (n + 1) / len(s.variants))
        losses, sizes[variant] = train(variant, s, replace(own, key=lab.key))
        ends[variant] = losses[-1]
        curves[variant] = losses[:, losses[-1].mean(axis=1).argmin()]
    last = {v: float(curve[-1].mean()) for v, curve in curves.items()}
    order = sorted(last, key=lambda v: -last[v])
    claims = [Claim(f"{v}: place from the worst", order.index(v) + 1, high=len(WORST)) for v in WORST if v in last]
    claims += [Claim(f"{v}: last test loss in nats, mean of {s.seeds} seeds", last[v]) for v in s.variants]
    notes = (
        f"width {s.width}, {s.steps} steps of {s.batch} sequences of {s.length} tokens, {100 * s.ignore:.0f} % of the "
        f"pairs to be ignored; each variant at the best of the rates {', '.join(map(str, s.rates))}",
        "weights: " + ", ".join(f"{v} {n:,}" for v, n in sizes.items()),
    )
    series = {"step": s.every * (1 + np.arange(s.steps // s.every)), "rates": s.rates, "curves": curves, "ends": ends}
    return Result(tuple(claims), series, notes)


def draw(figure, series) -> None:
    """Test losses over training at each variant's best rate, means of the seeds; at the end every rate and seed."""
    figure.set_size_inches(11, 4.5)
    left, right = figure.subplots(1, 2)
    for n, (variant, curve) in enumerate(series["curves"].items()):
        style = {"lw": 2.5} if variant in (*WORST, "V") else {"lw": 1, "ls": "--"}
        left.plot(series["step"], np.array(curve, float).mean(1), color=f"C{n}", label=variant, **style)
        for rate, marker in zip(range(len(series["rates"])), "v.^", strict=False):
            losses = np.array(series["ends"][variant][rate], float)
            right.plot(losses, np.full(losses.shape, n), marker, color=f"C{n}", alpha=0.7)
    rates = ", ".join(f"{rate:g} ({sign})" for rate, sign in zip(series["rates"], "▼●▲", strict=False))
    left.set(yscale="log", xlabel="step", ylabel="test loss, nats", title="at its best rate, mean of the seeds")
    right.set(xscale="log", xlabel="last test loss, nats", title=f"every seed, rates {rates}")
    right.set_yticks(range(len(series["curves"])), list(series["curves"]))
    right.invert_yaxis()
    left.legend(frameon=False, fontsize="small", ncols=2)
