"""Early alignment of the neurons of a two-layer ReLU network with tiny initial weights (Min, Mallada and Vidal 2024).

f(x) = Σ_j v_j ReLU(w_j x), w_j of size ε, v_j = ±|w_j| (balanced), gradient flow on the sum of logistic losses over n
points whose labels a hyperplane tells: μ = min y_i y_j cos(x_i, x_j) > 0. Before any weight has grown, each neuron with
v_j > 0 is active on all positive points and on no negative one (the others the other way round), or dead; that takes
at most t_1 = 4 ln n / (sqrt(μ) max|x|). After that the loss is O(1/t), and the weights have a stable rank of at most 2.

How it falls exactly: f is homogeneous of order 2, so that once directions rest dL/dt = -c L^2 ln(1/L) (Lyu and Li
2020), and L ln(1/L) falls as 1/t: L alone is steeper than 1/t by a logarithm.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.power_law import slope
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import Fit, fit
from jaxlm.typing import Array, Params

TITLE = "Early neuron alignment in two-layer ReLU networks with small initialization"
QUESTION = "With tiny initial weights, when and how do neurons align before they grow?"
ROWS = (157,)
NEEDS = ()
HEADLINE = "time of alignment over its bound, greatest"

FALLS = {"L": lambda loss: loss, "L ln(1/L)": lambda loss: -loss * np.log(loss)}


@dataclass(frozen=True)
class Settings:
    """Data, network, flow.

    Args:
        inputs: d.
        points: n.
        hidden: Neurons.
        spread: Standard deviation of the points around the axis of their label.
        scale: ε of the initial weights.
        rate: Step of Euler's method.
        early: Steps that are watched one by one.
        steps: In all.
        every: Steps between two looks after those.
        seeds: Of data and weights.
        sizes: n at which the time of alignment is measured, too.
    """

    inputs: int = 20
    points: int = 40
    hidden: int = 200
    spread: float = 0.1
    scale: float = 1e-6
    rate: float = 0.01
    early: int = 60
    steps: int = 40_000
    every: int = 500
    seeds: int = 3
    sizes: tuple[int, ...] = (10, 40, 160, 640)


BUDGETS = {
    "smoke": Settings(4, 6, 8, scale=0.5, rate=0.5, early=3, steps=40, every=5, seeds=2, sizes=(6,)),
    "cpu": Settings(),
    "gpu": Settings(steps=400_000, seeds=10),
}


def points(key: Array, s: Settings, n: int) -> dict[str, Array]:
    """Points along one axis, each on its label's side.   -> x (n, d), y (n)"""
    axis, noise = jax.random.split(key)
    mean = jax.random.normal(axis, (s.inputs,))
    y = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)
    x = y[:, None] * (mean / jnp.linalg.norm(mean))[None] + s.spread * jax.random.normal(noise, (n, s.inputs))
    return {"x": x, "y": y}


def separability(data: dict[str, Array]) -> Array:
    """μ.   -> ()"""
    x = data["x"] / jnp.linalg.norm(data["x"], axis=1, keepdims=True)
    return jnp.min(data["y"][:, None] * data["y"][None] * (x @ x.T))


def bound(data: dict[str, Array]) -> np.ndarray:
    """t_1 of a batch of data sets.   x (r, n, d) -> (r,)"""
    longest = jnp.max(jnp.linalg.norm(data["x"], axis=2), axis=1)
    return np.asarray(4 * math.log(data["x"].shape[1]) / (jnp.sqrt(jax.vmap(separability)(data)) * longest))


def start(key: Array, s: Settings) -> Params:
    w = s.scale * jax.random.normal(key, (s.hidden, s.inputs))
    sign = jnp.where(jnp.arange(s.hidden) % 2 == 0, 1.0, -1.0)
    return {"w": w, "v": sign * jnp.linalg.norm(w, axis=1)}


def loss(params: Params, key: Array, step: Array, data: dict[str, Array]) -> Array:
    f = jax.nn.relu(data["x"] @ params["w"].T) @ params["v"]
    return jnp.sum(jax.nn.softplus(-data["y"] * f))


def watch(params: Params, key: Array, data: dict[str, Array]) -> dict[str, Array]:
    """Share of neurons that are aligned or dead, size and stable rank of the first layer, imbalance of the layers."""
    active = data["x"] @ params["w"].T > 0
    own = (data["y"][:, None] * jnp.sign(params["v"])[None]) > 0
    aligned = jnp.all(active == own, axis=0) | ~jnp.any(active, axis=0)
    s = jnp.linalg.svd(params["w"], compute_uv=False)
    return {
        "aligned": jnp.mean(aligned),
        "norm": jnp.sqrt(jnp.sum(s**2)),
        "rank": jnp.sum(s**2) / s[0] ** 2,
        "imbalance": jnp.max(jnp.abs(jnp.sum(params["w"] ** 2, axis=1) - params["v"] ** 2)),
        "now": loss(params, key, jnp.int32(0), data),
    }


def flow(s: Settings, n: int, steps: int, every: int, lab: Lab) -> tuple[Fit, dict[str, Array]]:
    """The flow of all seeds, and their data."""
    keys = jax.random.split(jax.random.fold_in(lab.key, n), s.seeds)
    data = jax.vmap(lambda k: points(k, s, n))(keys)

    def begin(key: Array, data: dict[str, Array]) -> Params:
        return start(key, s)

    tx = optax.sgd(s.rate)
    return fit(keys, begin, loss, tx, steps=steps, every=every, watch=watch, each=data, tell=lab.tell), data


def times(s: Settings, lab: Lab) -> dict[str, list]:
    """When all neurons of a run are aligned, beside the bound, at each n; and how far loss and weights went by then."""
    out: dict[str, list] = {"time": [], "bound": [], "norm": [], "loss": []}
    for i, n in enumerate(s.sizes):
        found, data = flow(s, n, s.early, 1, lab.part(f"n = {n}", i / len(s.sizes), (i + 1) / len(s.sizes)))
        done = found.watched["aligned"] == 1  # (steps, r)
        first = np.where(done.any(axis=0), done.argmax(axis=0), s.early)
        out["time"].append((first + 1) * s.rate)
        out["bound"].append(bound(data))
        at = np.minimum(first, s.early - 1), np.arange(s.seeds)
        out["norm"].append(found.watched["norm"][at])
        out["loss"].append(np.abs(found.watched["now"][at] / (n * math.log(2)) - 1))
    return out


def run(s: Settings, lab: Lab) -> Result:
    with jax.enable_x64(True):
        early = times(s, lab.part("early", 0, 0.3))
        late = flow(s, s.points, s.steps, s.every, lab.part("late", 0.3, 1.0))[0].watched
    t = s.rate * s.every * np.arange(1, len(late["now"]) + 1)
    last = t >= t[-1] / 4
    falls = {name: [slope(t[last], f(row[last])) for row in late["now"].T] for name, f in FALLS.items()}
    ratio = np.array(early["time"]) / np.array(early["bound"])
    claims = (
        Claim(HEADLINE, float(ratio.max()), high=1),
        Claim("by then: greatest |W|", float(np.max(early["norm"])), high=1e-3),
        Claim("by then: greatest change of the loss, a share of n ln 2", float(np.max(early["loss"])), high=1e-4),
        Claim("late: slope of L ln(1/L) in t, steepest", min(falls["L ln(1/L)"]), low=-1.1, high=-0.9, paper=-1),
        Claim("late: slope of L ln(1/L) in t, flattest", max(falls["L ln(1/L)"]), low=-1.1, high=-0.9, paper=-1),
        Claim("late: slope of L in t, flattest", max(falls["L"]), high=-0.9, paper=-1),
        Claim("late: slope of L in t, steepest", min(falls["L"]), paper=-1),
        Claim("late: greatest stable rank of W", float(late["rank"][last].max()), high=2, paper=2),
        Claim("greatest change of |w|^2 - v^2, a share of |W|^2", _imbalance(late), high=1e-2),
    )
    kept = {k: late[k] for k in ("now", "rank", "aligned")}
    series = {"t": t, **kept, "sizes": s.sizes, "time": early["time"], "bound": early["bound"]}
    note = "the bound grows as ln n; the losses are summed over points, so that more of them align the neurons sooner"
    return Result(claims, series, (note,))


def _imbalance(late: dict) -> float:
    return float(np.max(late["imbalance"] / late["norm"] ** 2))


def draw(figure, series) -> None:
    figure.set_size_inches(11, 4)
    left, middle, right = figure.subplots(1, 3)
    for i, name in enumerate(("time", "bound")):
        values = np.array(series[name])
        left.loglog(series["sizes"], values.mean(axis=1), "o-" if i == 0 else "k--", label=("measured", "bound")[i])
    left.set(xlabel="points n", ylabel="time until all are aligned", title="Alignment")
    left.legend(frameon=False)
    t, now = np.array(series["t"]), np.array(series["now"])
    middle.loglog(t, now, "C0")
    law = 1 / (t * np.log(1 / now.mean(axis=1)))
    middle.loglog(t, now[-1].mean() * law / law[-1], "k--", label="1/(t ln(1/L))")
    middle.set(xlabel="time", ylabel="loss", title="Convergence")
    middle.legend(frameon=False)
    right.semilogx(t, series["rank"], "C0")
    right.axhline(2, color="k", linestyle="--", label="bound")
    right.set(xlabel="time", ylabel="stable rank of W", ylim=(0.9, 2.2))
    right.legend(frameon=False)
