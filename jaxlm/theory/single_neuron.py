"""Learning a single neuron whose labels an adversary may spoil (Wang, Zarifis, Diakonikolas and Diakonikolas 2023).

Labels are σ(w* x) with σ = ReLU and x Gaussian, but for a share ρ, which are 3 σ(-w* x). Minimised is the convex
surrogate E[∫_0^{wx} (σ(t) - y) dt], whose gradient is E[(σ(wx) - y) x], by projected gradient descent from 0. It is
sharp, ∇L(w)(w - w*) >= μ |w - w*|^2 outside a ball around w*, so the way into that ball has a linear rate.

With this adversary everything has a closed form: w stays on the line of w*, w = α w* with
    α <- α - η (α/2 - a),   a = (1 - ρ)/2 - 3ρ/2,   error(α) = (1 - ρ)(1 - α)^2/2 + ρ (α^2 + 9)/2.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params

TITLE = "Robustly learning a single neuron via sharpness"
QUESTION = "With adversarial labels, does a convex surrogate come within a constant factor of the best neuron?"
ROWS = (98,)
NEEDS = ()
HEADLINE = "squared error over the best neuron's, greatest"


@dataclass(frozen=True)
class Settings:
    """Data and descent.

    Args:
        inputs: d.
        points: Training points; as many test it.
        spoilt: Shares ρ of labels that the adversary sets.
        rate: η.
        steps: Of gradient descent.
        radius: Of the ball that w stays in.
        seeds: Of data.
    """

    inputs: int = 50
    points: int = 20_000
    spoilt: tuple[float, ...] = (0.0, 0.05, 0.1)
    rate: float = 0.5
    steps: int = 60
    radius: float = 2.0
    seeds: int = 3


BUDGETS = {
    "smoke": Settings(4, 64, steps=4, seeds=2),
    "cpu": Settings(),
    "gpu": Settings(inputs=500, points=1_000_000, seeds=10),
}


def sample(key: Array, s: Settings, spoilt: Array) -> dict[str, Array]:
    """Points and labels; w* is the first axis.   -> x (n, d), y (n)"""
    points, chosen = jax.random.split(key)
    x = jax.random.normal(points, (s.points, s.inputs))
    z = x[:, 0]
    bad = jax.random.uniform(chosen, (s.points,)) < spoilt
    return {"x": x, "y": jnp.where(bad, 3 * jax.nn.relu(-z), jax.nn.relu(z))}


def surrogate(params: Params, data: dict[str, Array]) -> Array:
    """The convex loss.   w (d) -> ()"""
    z = data["x"] @ params["w"]
    return jnp.mean(jax.nn.relu(z) ** 2 / 2 - data["y"] * z)


def error(params: Params, data: dict[str, Array]) -> Array:
    """Of the neuron.   w (d) -> ()"""
    return jnp.mean((jax.nn.relu(data["x"] @ params["w"]) - data["y"]) ** 2)


def within(radius: float, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same updates, and then back into the ball."""

    def update(updates: Any, state: optax.OptState, params: Any = None):
        assert params is not None
        updates, state = tx.update(updates, state, params)
        moved = optax.apply_updates(params, updates)
        back = optax.projections.projection_l2_ball(moved, radius)
        return jax.tree.map(jnp.subtract, back, params), state

    return optax.GradientTransformation(tx.init, update)


def predicted(spoilt: float, rate: float, steps: int) -> dict[str, np.ndarray]:
    """α and the error after each step with infinitely many points, and the least error of any α."""
    a, alpha, seen = (1 - spoilt) / 2 - 1.5 * spoilt, 0.0, []
    for _ in range(steps):
        alpha -= rate * (alpha / 2 - a)
        seen.append(alpha)
    along = np.array(seen)
    value = lambda alpha: (1 - spoilt) * (1 - alpha) ** 2 / 2 + spoilt * (alpha**2 + 9) / 2  # noqa: E731
    return {"alpha": along, "error": value(along), "best": np.asarray(value(1 - spoilt))}


def run(s: Settings, lab: Lab) -> Result:
    shares = jnp.repeat(jnp.asarray(s.spoilt), s.seeds)
    keys = jax.random.split(lab.key, len(shares))
    data = jax.vmap(lambda k, r: sample(k, s, r))(keys, shares)
    fresh = jax.vmap(lambda k, r: sample(jax.random.fold_in(k, 1), s, r))(keys, shares)
    star = jnp.eye(s.inputs)[0]

    def watch(params: Params, key: Array, each: dict) -> dict[str, Array]:
        way = params["w"] - star
        slope = jax.grad(surrogate)(params, each["data"])["w"] @ way
        square, wrong = jnp.sum(way**2), error(params, each["fresh"])
        return {"sharpness": slope / square, "square": square, "alpha": params["w"][0], "error": wrong}

    def begin(key: Array, each: dict) -> Params:
        return {"w": jnp.zeros(s.inputs)}

    def loss(params: Params, key: Array, step: Array, each: dict) -> Array:
        return surrogate(params, each["data"])

    tx = within(s.radius, optax.sgd(s.rate))
    each = {"data": data, "fresh": fresh}
    seen = fit(keys, begin, loss, tx, steps=s.steps, every=1, watch=watch, each=each, tell=lab.tell).watched
    seen = {k: v.reshape(s.steps, len(s.spoilt), s.seeds) for k, v in seen.items()}
    told = [predicted(r, s.rate, s.steps) for r in s.spoilt]
    series = {"spoilt": s.spoilt, **{k: np.moveaxis(v, 0, 2) for k, v in seen.items()}, "predicted": told}
    return Result(claimed(s, seen, told), series)


def claimed(s: Settings, seen: dict[str, np.ndarray], told: list[dict]) -> tuple[Claim, ...]:
    best, star = np.array([t["best"] for t in told]), np.array([5 * r for r in s.spoilt])
    ratio = seen["error"][-1, 1:] / best[1:, None]
    # Outside the ball |w - w*|^2 <= OPT; where labels are clean, that is everywhere (down to rounding).
    outside = seen["square"] > np.maximum(star, 1e-6)[None, :, None]
    sharp = float(np.min(np.where(outside, seen["sharpness"], np.inf)))
    clean = np.sqrt(seen["square"][:, 0])
    steps = np.flatnonzero(clean[:, 0] > 1e-3)
    rate = float(np.max((clean[steps[-1]] / clean[0]) ** (1 / max(len(steps) - 1, 1))))
    off = max(float(np.max(np.abs(seen["alpha"][:, i] - told[i]["alpha"][:, None]))) for i in range(len(told)))
    return (
        Claim(HEADLINE, float(ratio.max()), high=1.3, paper=5.0),
        Claim("clean labels: distance to w* at the end, greatest", float(clean[-1].max()), high=1e-3),
        Claim("clean labels: factor of the distance a step, slowest", rate, high=1 - s.rate / 2 + 0.03),
        Claim("sharpness outside the ball, least", sharp, low=0.2),
        Claim("α: farthest from the closed form", off, high=0.03),
    )


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    for i, r in enumerate(series["spoilt"]):
        told = series["predicted"][i]
        steps = np.arange(1, len(told["alpha"]) + 1)
        left.plot(steps, np.array(series["alpha"][i]).T, color=f"C{i}", alpha=0.6)
        left.plot(steps, told["alpha"], "k--", linewidth=1)
        left.plot([], [], color=f"C{i}", label=f"{100 * r:g} % adversarial")
        right.plot(steps, np.array(series["error"][i]).T, color=f"C{i}", alpha=0.6)
        right.plot(steps, told["error"], "k--", linewidth=1)
        right.axhline(told["best"], color=f"C{i}", linestyle=":")
    left.plot([], [], "k--", label="closed form")
    right.plot([], [], "k:", label="the best neuron")
    left.set(xlabel="step", ylabel="α, w along w*", xlim=(0, 30))
    right.set(xlabel="step", ylabel="squared error on new points", xlim=(0, 30))
    left.legend(frameon=False)
    right.legend(frameon=False)
