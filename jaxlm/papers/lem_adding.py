"""The adding problem over 2,000 steps (Rusch et al. 2022, section 5, figure 1): LEM solves it, an LSTM does not.

A sequence of 2,000 numbers, two of them marked: the sum of these two is asked after the last. Fresh sequences in every
step, batches of 50, Adam, as in the paper. Different on the cpu budget: narrower models, one seed, fewer steps, and the
rate falls to zero over the last quarter of them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.adding import BASELINE, adding
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.lem import LEM
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import count, init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "LEM on the adding problem"
ROWS = (14,)
NEEDS = ()


@dataclass(frozen=True)
class Settings:
    """Seeds, the models, their training; test: sequences of an evaluation, after `every` steps.

    rate   of Adam; it falls to zero over the last quarter of the steps
    clip   greatest norm of a gradient
    """

    seeds: int = 1
    width: int = 128
    dt: float = 0.0242
    length: int = 2000
    rate: float = 0.0026
    clip: float = 1.0
    batch: int = 50
    steps: int = 30000
    every: int = 100
    test: int = 1000


BUDGETS = {
    "smoke": Settings(width=4, length=12, batch=4, steps=4, every=2, test=8),
    "cpu": Settings(width=32, rate=0.005, steps=6000, every=50, test=500),
    "gpu": Settings(),
}


def draw_batch(key: Array, batch: int, length: int) -> tuple[Array, Array]:
    """Sequences as `jaxlm.data.adding` makes them, from a key.   u (b, t, 2), sum (b, 1)"""
    of_numbers, of_first, of_second = jax.random.split(key, 3)
    numbers, half = jax.random.uniform(of_numbers, (batch, length)), length // 2
    places = (
        jax.random.randint(of_first, (batch, 1), 0, half),
        jax.random.randint(of_second, (batch, 1), half, length),
    )
    marks = sum((jnp.arange(length)[None] == place).astype(numbers.dtype) for place in places)
    return jnp.stack([numbers, marks], axis=2), jnp.sum(numbers * marks, axis=1, keepdims=True)


def train(body: Mixer, test: tuple[np.ndarray, np.ndarray], s: Settings, lab: Lab) -> np.ndarray:
    """Mean squared error on the test sequences after every chunk.   (seeds, chunks)"""
    model = SequenceModel(body, 1)

    def error(params: Params, u: Array, total: Array) -> Array:
        return jnp.mean((model.apply(params, u)[0] - total) ** 2)

    def loss(params: Params, key: Array, step: Array) -> Array:
        return error(params, *draw_batch(key, s.batch, s.length))

    def watch(params: Params, key: Array) -> Tree:
        u, total = jax.lax.optimization_barrier(tuple(map(jnp.asarray, test)))  # XLA would fold constants for minutes
        return {"test": error(params, u, total)}

    found = fit(
        jax.random.split(lab.key, s.seeds),
        lambda key: init(model, key),
        loss,
        clipped(optax.adam(trapezoid(s.rate, s.steps, cooldown=0.25)), s.clip),
        steps=s.steps,
        every=s.every,
        watch=watch,
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "fit.npz",
    )
    return found.watched["test"].T


def run(s: Settings, lab: Lab) -> Result:
    """Train both models on the same task for the same number of steps."""
    bodies = {"lem": LEM(s.width, inputs=2, dt=s.dt), "lstm": LSTM(s.width, inputs=2)}
    test = adding(s.test, s.length, int(jax.random.bits(lab.key)))
    errors = {
        "lem": train(bodies["lem"], test, s, lab.part("lem", 0.0, 0.5)),
        "lstm": train(bodies["lstm"], test, s, lab.part("lstm", 0.5, 1.0)),
    }
    said = f"length {s.length:,}, {s.seeds} seed{'s' * (s.seeds > 1)}"
    claims = (
        Claim(f"LEM, last test MSE, {said}", float(errors["lem"][:, -1].max()), high=1e-3, paper=5.3e-5),
        Claim("LSTM, last test MSE", float(errors["lstm"][:, -1].min()), low=0.1, paper=BASELINE),
        Claim("always saying 1", float(np.mean((test[1] - 1) ** 2)), paper=BASELINE),
    )
    sizes = " and ".join(f"{count(SequenceModel(b, 1)):,} ({name.upper()})" for name, b in bodies.items())
    note = f"width {s.width} (paper 128), {sizes} weights, {s.steps:,} steps of {s.batch} fresh sequences"
    return Result(claims, {"step": s.every * (1 + np.arange(s.steps // s.every)), "errors": errors}, (note,))


def draw(figure, series) -> None:
    """Test errors over training, every seed a line."""
    axes = figure.subplots()
    for name, color in (("lem", "tab:blue"), ("lstm", "tab:orange")):
        for i, errors in enumerate(series["errors"][name]):
            axes.plot(series["step"], errors, color=color, label=name.upper() if i == 0 else None)
    axes.axhline(BASELINE, color="grey", ls=":", label="always saying 1")
    axes.axhline(1e-3, color="black", ls="--", lw=0.8, label="solved")
    axes.set(yscale="log", xlabel="step", ylabel="mean squared error, test", title=TITLE)
    axes.legend()
