"""FitzHugh-Nagumo, one step ahead (Rusch et al. 2022, section 5, table 5): LEM against an LSTM of the same size.

128 training, 128 validation and 1,024 test sequences of 1,000 points; both models with 16 units and 1,169 weights; Adam
with batches of 32; each seed's best validation error chooses the step whose test error counts: all as in the paper.
Different: 2,400 steps, of which the last quarter lets the rate fall to zero (the paper's: 400 epochs, 1,600 steps, at
one rate); each step draws its own batch; the error is over all test sequences (the authors' code gives that of its last
batch).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.fitzhugh_nagumo import fitzhugh_nagumo
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.lem import LEM
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import count, init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "LEM on FitzHugh-Nagumo, one step ahead"
ROWS = (14,)
NEEDS = ()
LINEAR = 0.0172  # error of the best linear predictor from three lags


@dataclass(frozen=True)
class Settings:
    """Seeds, the models, their training, and the numbers of sequences.

    lem_rate, lstm_rate   of Adam; in the last quarter they fall to zero
    every                 steps from one validation to the next
    """

    seeds: int = 5
    width: int = 16
    dt: float = 1.0
    lem_rate: float = 0.009
    lstm_rate: float = 0.009
    steps: int = 2400
    every: int = 100
    batch: int = 32
    train: int = 128
    valid: int = 128
    test: int = 1024
    points: int = 1000


BUDGETS = {
    "smoke": Settings(seeds=2, width=4, steps=4, every=2, batch=2, train=4, valid=2, test=2, points=40),
    "cpu": Settings(),
    "gpu": Settings(steps=16000, every=200),
}


def train(body: Mixer, rate: float, data: dict[str, tuple[np.ndarray, np.ndarray]], s: Settings, lab: Lab) -> Tree:
    """Root mean squared errors of every seed after every chunk: 'valid', 'test'   (seeds, chunks)."""
    model = SequenceModel(body, 1, readout="every")

    def error(params: Params, x: Array, y: Array) -> Array:
        return jnp.mean((model.apply(params, x)[0] - y) ** 2)

    def loss(params: Params, key: Array, step: Array) -> Array:
        rows = jax.random.permutation(key, s.train)[: s.batch]
        return error(params, *(jnp.asarray(a)[rows] for a in data["train"]))

    def watch(params: Params, key: Array) -> Tree:
        return {split: jnp.sqrt(error(params, *map(jnp.asarray, data[split]))) for split in ("valid", "test")}

    found = fit(
        jax.random.split(lab.key, s.seeds),
        lambda key: init(model, key),
        loss,
        optax.adam(trapezoid(rate, s.steps, warmup=1, cooldown=0.25)),
        steps=s.steps,
        every=s.every,
        watch=watch,
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "fit.npz",
    )
    return {split: found.watched[split].T for split in ("valid", "test")}


def chosen(errors: Tree) -> np.ndarray:
    """Each seed's test error where its validation error is least.   (seeds,)"""
    best = np.argmin(errors["valid"], axis=1)
    return np.take_along_axis(errors["test"], best[:, None], axis=1)[:, 0]


def run(s: Settings, lab: Lab) -> Result:
    """Train both models, all seeds of a model at once."""
    lem, lstm = LEM(s.width, inputs=1, dt=s.dt), LSTM(s.width, inputs=1)
    ends = np.cumsum([s.train, s.valid, s.test])
    x, y = fitzhugh_nagumo(int(ends[-1]), int(jax.random.bits(lab.key)), s.points)
    splits = zip(np.split(x, ends[:-1]), np.split(y, ends[:-1]), strict=True)
    data: dict[str, tuple[np.ndarray, np.ndarray]] = dict(zip(("train", "valid", "test"), splits, strict=True))
    errors = {
        "lem": train(lem, s.lem_rate, data, s, lab.part("lem", 0.0, 0.5)),
        "lstm": train(lstm, s.lstm_rate, data, s, lab.part("lstm", 0.5, 1.0)),
    }
    ours = {name: chosen(e) for name, e in errors.items()}
    claims = (
        Claim(f"LEM, test RMSE, mean of {s.seeds} seeds", float(ours["lem"].mean()), high=0.0035, paper=0.0024),
        Claim("LEM, worst seed", float(ours["lem"].max())),
        Claim("LSTM, test RMSE, mean", float(ours["lstm"].mean()), paper=0.012),
        Claim("LSTM over LEM", float(ours["lstm"].mean() / ours["lem"].mean()), low=3.0, paper=5.0),
    )
    series = {"step": s.every * (1 + np.arange(s.steps // s.every)), "errors": errors, "chosen": ours}
    size = count(SequenceModel(lem, 1, readout="every"))
    return Result(claims, series, (f"{size:,} weights each; all {s.test:,} test sequences, {s.points:,} points",))


def draw(figure, series) -> None:
    """Test errors over training, every seed a line."""
    axes = figure.subplots()
    for name, label, color in (("lem", "LEM", "tab:blue"), ("lstm", "LSTM", "tab:orange")):
        for i, errors in enumerate(series["errors"][name]["test"]):
            axes.plot(series["step"], errors, color=color, lw=1, label=f"{label}, each seed" if i == 0 else None)
    axes.axhline(LINEAR, color="grey", ls=":", label="linear predictor, three lags")
    axes.axhline(0.0024, color="tab:blue", ls="--", label="published LEM")
    axes.axhline(0.012, color="tab:orange", ls="--", label="published LSTM")
    axes.set(yscale="log", xlabel="step", ylabel="RMSE over all test points", title=TITLE)
    axes.legend()
