"""Quadratic models of networks and the catapult (Zhu, Liu, Radhakrishnan and Belkin 2022).

f(x) = m^-1/2 Σ v_i ReLU(u_i x) on one point, its linear and its quadratic Taylor model at the initial weights, under
gradient descent on (f - y)^2 / 2. λ is the top eigenvalue of the tangent kernel, steps are η = c / λ(0). Lewkowycz et
al. (2020): below c = 2 the loss falls; up to c = 4 it first rises to order m, until λ is small enough; beyond, the
quadratic model diverges. The linear one diverges from c = 2 on, for its λ is constant. Two numbers tell it all:
    g <- g (1 - ηλ + η^2 g^2 |x|^2 / m)        λ <- λ - (η g^2 |x|^2 / m) (4 - ηλ)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.power_law import slope
from jaxlm.analysis.taylor import sharpest, tangent_kernel, taylor
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params

TITLE = "Quadratic models for understanding neural network dynamics"
QUESTION = "Does the second-order Taylor model of a network show the catapult that the linear one cannot?"
ROWS = (83,)
NEEDS = ()
HEADLINE = "quadratic, 2 < c < 4: share that converges"


@dataclass(frozen=True)
class Settings:
    """The network and its steps.

    Args:
        width: m.
        inputs: Dimension of the point.
        seeds: Of initial weights.
        steps: Of gradient descent.
        calm: c below 2.
        catapult: c between 2 and 4.
        wild: c above 4.
        network: c of the network itself.
        widths: Others, at which the peak of the loss is measured.
        peak: c of these, one of the catapult's.
    """

    width: int = 1024
    inputs: int = 10
    seeds: int = 8
    steps: int = 400
    calm: tuple[float, ...] = (1.0, 1.9)
    catapult: tuple[float, ...] = (2.5, 3.0, 3.5, 3.9)
    wild: tuple[float, ...] = (4.1, 5.0, 6.0)
    network: tuple[float, ...] = (2.5, 3.0, 3.9, 5.0, 6.0, 8.0)
    widths: tuple[int, ...] = (256, 4096)
    peak: float = 3.0


BUDGETS = {
    "smoke": Settings(16, 4, 2, 4, (1.0,), (3.0,), (5.0,), (3.0,), (32,)),
    "cpu": Settings(),
    "gpu": Settings(width=16384, seeds=32, widths=(256, 1024, 4096)),
}
ORDERS = {"linear": 1, "quadratic": 2, "network": None}


def network(params: Params, x: Array) -> Array:
    """The outputs on some points.   x (n, d) -> (n,)"""
    return jax.nn.relu(x @ params["u"].T) @ params["v"] / np.sqrt(params["v"].shape[0])


def start(key: Array, width: int, inputs: int) -> Params:
    """u (m, d) and v (m), all N(0, 1)."""
    u, v = jax.random.split(key)
    return {"u": jax.random.normal(u, (width, inputs)), "v": jax.random.normal(v, (width,))}


def descend(s: Settings, width: int, kind: str, times: tuple[float, ...], lab: Lab) -> dict[str, np.ndarray]:
    """Loss and ηλ after every step, of every seed at every c.

    -> loss, curvature (steps, seeds, c), initial (seeds)
    """
    x = jnp.full((1, s.inputs), s.inputs**-0.5)
    keys = jax.random.split(jax.random.fold_in(lab.key, width), s.seeds)
    begin = jax.vmap(lambda k: start(k, width, s.inputs))(keys)
    sharp = jax.vmap(lambda w: sharpest(tangent_kernel(lambda w: network(w, x), w)))(begin)
    rate = (jnp.asarray(times)[None, :] / sharp[:, None]).reshape(-1)
    each = {"w": jax.tree.map(lambda a: jnp.repeat(a, len(times), axis=0), begin), "rate": rate}

    def model(each: dict):
        def f(w: Params) -> Array:
            return network(w, x)

        order = ORDERS[kind]
        return f if order is None else taylor(f, each["w"], order)

    def loss(w: Params, key: Array, step: Array, each: dict) -> Array:
        return each["rate"] * jnp.sum(model(each)(w) ** 2) / 2  # so that sgd of step 1 has the model's own step

    def watch(w: Params, key: Array, each: dict) -> dict[str, Array]:
        f = model(each)
        return {"now": jnp.sum(f(w) ** 2) / 2, "curvature": each["rate"] * sharpest(tangent_kernel(f, w))}

    def begins(key: Array, each: dict) -> Params:
        return each["w"]

    many = jnp.repeat(keys, len(times), axis=0)
    found = fit(many, begins, loss, optax.sgd(1.0), steps=s.steps, every=1, watch=watch, each=each).watched
    shape = (s.steps, s.seeds, len(times))
    initial = np.asarray(jax.vmap(lambda w: jnp.sum(network(w, x) ** 2) / 2)(begin))
    lab.tell(1.0)
    seen = {"loss": found["now"].reshape(shape), "curvature": found["curvature"].reshape(shape)}
    return {**seen, "initial": initial, "rate": np.asarray(rate).reshape(shape[1:])}


def recursion(initial: np.ndarray, rate: np.ndarray, times: tuple[float, ...], width: int, steps: int) -> np.ndarray:
    """The quadratic model's loss after each step, from g and λ alone.   (seeds), (seeds, c) -> (steps, seeds, c)"""
    g, curvature, losses = np.sqrt(2 * initial)[:, None], np.array(times)[None], []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            kick = rate * g**2 / width
            g, curvature = g * (1 - curvature + rate * kick), curvature - rate * kick * (4 - curvature)
            losses.append(g**2 / 2)
    return np.stack(losses)


def judged(found: dict[str, np.ndarray], at: slice) -> dict[str, float]:
    """What became of some of the runs: shares that converged and diverged, peaks over initial losses, ends."""
    loss, curvature = found["loss"][:, :, at], found["curvature"][:, :, at]
    initial = found["initial"][:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        peak = np.nanmax(np.where(np.isfinite(loss), loss, np.inf), axis=0) / initial
        diverged = ~np.isfinite(loss[-1]) | (loss[-1] > 1e6 * initial)
    return {
        "converged": float(np.mean(loss[-1] < 1e-3)),
        "diverged": float(np.mean(diverged)),
        "peak": float(np.median(peak)),
        "least": float(np.min(peak)),
        "most": float(np.max(peak)),
        "end": float(np.max(curvature[-1])),
    }


def run(s: Settings, lab: Lab) -> Result:
    with jax.enable_x64(True):
        times = (*s.calm, *s.catapult, *s.wild)
        quadratic = descend(s, s.width, "quadratic", times, lab.part("quadratic", 0.0, 0.4))
        linear = descend(s, s.width, "linear", times, lab.part("linear", 0.4, 0.6))
        real = descend(s, s.width, "network", s.network, lab.part("network", 0.6, 0.8))
        peaks = [judged(quadratic, slice(times.index(s.peak), times.index(s.peak) + 1))["peak"]]
        for i, width in enumerate(s.widths):
            part = lab.part(f"width {width}", 0.8 + 0.2 * i / len(s.widths), 0.8 + 0.2 * (i + 1) / len(s.widths))
            peaks.append(judged(descend(s, width, "quadratic", (s.peak,), part), slice(None))["peak"])
    widths = (s.width, *s.widths)
    calm, mid = slice(0, len(s.calm)), slice(len(s.calm), len(s.calm) + len(s.catapult))
    claims = compared(quadratic, linear, real, calm, mid, slice(mid.stop, None))
    name = f"quadratic, c = {s.peak:g}: exponent of peak over initial loss in m"
    claims += (Claim(name, slope(widths, peaks), low=0.7, high=1.3, paper=1.0),)
    told = recursion(quadratic["initial"], quadratic["rate"], times, s.width, s.steps)
    early, seen = told[:20, :, : mid.stop], quadratic["loss"][:20, :, : mid.stop]
    off = float(np.max(np.abs(seen - early) / (1e-12 + early)))
    claims += (Claim("loss against its recursion, 20 steps, c < 4: farthest", off, high=1e-6),)
    series = {"c": times, "widths": widths, "peaks": peaks, "told": np.median(told, axis=1).T}
    for name, found in (("quadratic", quadratic), ("linear", linear)):
        series[name] = {k: np.median(found[k], axis=1).T for k in ("loss", "curvature")}
    return Result(claims, series)


def compared(quadratic: dict, linear: dict, real: dict, calm: slice, mid: slice, wild: slice) -> tuple[Claim, ...]:
    """The table of outcomes."""
    below, between, beyond = (judged(quadratic, at) for at in (calm, mid, wild))
    return (
        Claim("quadratic, c < 2: share that converges", below["converged"], low=1),
        Claim("quadratic, c < 2: greatest peak over initial loss", below["most"], high=1),
        Claim(HEADLINE, between["converged"], low=1),
        Claim("quadratic, 2 < c < 4: least peak over initial loss", between["least"], low=2),
        Claim("quadratic, 2 < c < 4: median peak over initial loss", between["peak"]),
        Claim("quadratic, 2 < c < 4: greatest ηλ at the end", between["end"], high=2),
        Claim("quadratic, c > 4: share that diverges", beyond["diverged"], low=1),
        Claim("linear, c < 2: share that converges", judged(linear, calm)["converged"], low=1),
        Claim("linear, c > 2: share that diverges", judged(linear, slice(mid.start, None))["diverged"], low=1),
        Claim("the network itself, 2 < c <= 8: share that converges", judged(real, slice(None))["converged"], low=1),
    )


def draw(figure, series) -> None:
    figure.set_size_inches(11, 4)
    left, middle, right = figure.subplots(1, 3)
    for i, c in enumerate(series["c"]):
        for panel, key in ((left, "loss"), (middle, "curvature")):
            values = np.array(series["quadratic"][key][i], float)
            values[~np.isfinite(values) | (values > 1e8)] = np.nan
            panel.semilogy(np.maximum(values[:60], 1e-12), color=f"C{i}", label=f"c = {c:g}")
        told = np.array(series["told"][i], float)[:60]
        left.semilogy(np.where(told < 1e8, np.maximum(told, 1e-12), np.nan), "k:", linewidth=1)
    left.plot([], [], "k:", label="g and λ alone")
    middle.axhline(2, color="k", linestyle="--")
    left.set(xlabel="step", ylabel="loss, median over seeds", title="Quadratic model")
    middle.set(xlabel="step", ylabel="ηλ", title="Its curvature; 2 is the edge")
    left.legend(frameon=False, fontsize="small")
    widths, peaks = np.array(series["widths"]), np.array(series["peaks"])
    right.loglog(widths, peaks, "o", label="measured")
    order = np.argsort(widths)
    right.loglog(widths[order], peaks[0] * widths[order] / widths[0], "k--", label="∝ m")
    right.set(xlabel="width m", ylabel="peak over initial loss", title="The peak grows with the width")
    right.minorticks_off()
    right.legend(frameon=False)
