"""Biophysical synapses on FitzHugh-Nagumo, one step ahead: an LTC of half an LSTM's units (Lemmel & Grosu 2023).

A liquid time-constant network whose synapses are conductances (Hasani et al. 2021), every neuron joined to every other,
and an LSTM of twice as many units learn the same sequences for the same number of steps at the same rate; each seed's
best validation error chooses the step whose test error counts. The data is the neuron of `lem-fhn` in shorter pieces.
After 600 steps the ratio was 1.05, as one of the LTC's three seeds lagged; after 1,500 the LSTM's error still falls.
"""

from dataclasses import dataclass

import jax
import numpy as np

from jaxlm.data.fitzhugh_nagumo import fitzhugh_nagumo
from jaxlm.mixers import LSTM, LTC
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import count
from jaxlm.papers import lem_fhn
from jaxlm.papers.result import Claim, Lab, Result

TITLE = "LTC with biophysical synapses on FitzHugh-Nagumo, one step ahead"
ROWS = (141,)
NEEDS = ()
HEADLINE = "LTC: test MSE over the LSTM's of twice the units"


@dataclass(frozen=True)
class Settings:
    """units of the LSTM, of which the LTC has half; unfolds of its solver a point; rates of Adam, which fall to zero in
    the last quarter; every: steps from one validation to the next; numbers of sequences, and their points"""

    units: int = 16
    unfolds: int = 6
    ltc_rate: float = 0.01
    lstm_rate: float = 0.01
    seeds: int = 3
    steps: int = 1500
    every: int = 250
    batch: int = 16
    train: int = 64
    valid: int = 32
    test: int = 128
    points: int = 200


BUDGETS = {
    "smoke": Settings(4, 2, seeds=1, steps=2, every=1, batch=2, train=4, valid=2, test=2, points=8),
    "cpu": Settings(),
    "gpu": Settings(steps=6000, every=200, batch=32, train=128, valid=128, test=1024, points=1000),
}


def run(s: Settings, lab: Lab) -> Result:
    """Train both, all seeds of a model at once."""
    ends = np.cumsum([s.train, s.valid, s.test])
    x, y = fitzhugh_nagumo(int(ends[-1]), int(jax.random.bits(lab.key)), s.points)
    cut = zip(("train", "valid", "test"), np.split(x, ends[:-1]), np.split(y, ends[:-1]), strict=True)
    data = {name: (a, b) for name, a, b in cut}
    how = lem_fhn.Settings(
        seeds=s.seeds, steps=s.steps, every=s.every, batch=s.batch, train=s.train, valid=s.valid, test=s.test
    )
    bodies = {
        "LTC": (LTC(s.units // 2, inputs=1, unfolds=s.unfolds), s.ltc_rate),
        "LSTM": (LSTM(s.units, inputs=1), s.lstm_rate),
    }
    errors, ours, sizes = {}, {}, {}
    for n, (name, (body, rate)) in enumerate(bodies.items()):
        errors[name] = lem_fhn.train(body, rate, data, how, lab.part(name, n / 2, (n + 1) / 2))
        ours[name] = lem_fhn.chosen(errors[name]) ** 2
        sizes[name] = count(SequenceModel(body, 1, readout="every"))
    claims = (
        Claim(HEADLINE, float(ours["LTC"].mean() / ours["LSTM"].mean()), high=1.0),
        *(Claim(f"{n}: test MSE, mean of {s.seeds} seeds", float(e.mean())) for n, e in ours.items()),
        *(Claim(f"{n}: worst seed", float(e.max())) for n, e in ours.items()),
        Claim("always saying the last voltage: test MSE", float(np.mean((data["test"][0] - data["test"][1]) ** 2))),
    )
    note = f"{s.units // 2} neurons of {sizes['LTC']:,} weights, {s.units} LSTM units of {sizes['LSTM']:,}"
    series = {"step": s.every * (1 + np.arange(s.steps // s.every)), "errors": errors}
    return Result(claims, series, (note,))


def draw(figure, series) -> None:
    """Test errors over training, every seed a line."""
    axes = figure.subplots()
    for n, (name, found) in enumerate(series["errors"].items()):
        for i, errors in enumerate(found["test"]):
            axes.plot(series["step"], np.square(errors), color=f"C{n}", lw=1, label=name if i == 0 else None)
    axes.set(yscale="log", xlabel="step", ylabel="mean squared error over all test points", title=TITLE)
    axes.legend()
