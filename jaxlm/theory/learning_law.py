"""Towards optimal learning of language models (Gu et al. 2024): which examples to weigh, when.

A linear student learns a teacher's signs by weighted gradient descent, w <- w - rate Σ_n γ_n(t) ∇l_n(w). The weights
γ(t), one distribution over examples a step, are themselves learned through the unrolled descent, so that the loss on
other examples, summed over the steps, is least. The Learning Law: then all examples in use contribute the same,
∇L · ∇l_n = const. Without a bound the optimum uses about one example a step, which makes that trivial; a second policy
pays for a low entropy, and keeps many.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.power_law import slope
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Tree

TITLE = "Towards optimal learning of language models"
QUESTION = "How fast can gradient descent learn if every step weighs its examples at best, and what do they then share?"
ROWS = (44,)
NEEDS = ()
HEADLINE = "steps to the final loss of equal weights, share, largest of the seeds"
PLANS = ("equal", "free", "bound")


@dataclass(frozen=True)
class Settings:
    """The task, the inner and the outer descent.

    Args:
        examples: N.
        held_out: Examples of the loss that is summed.
        width: Of an example.
        noise: Standard deviation of the noise in the teacher's mind when it gives a sign.
        steps: T of the inner descent.
        rate: Of it.
        updates: Of the weights, by Adam.
        outer_rate: Of Adam.
        price: Of entropy, in the bound policy, nats of loss for a nat.
        seeds: Of tasks.
        shown: Steps at which the law is judged.
    """

    examples: int = 128
    held_out: int = 512
    width: int = 16
    noise: float = 0.0
    steps: int = 200
    rate: float = 0.1
    updates: int = 600
    outer_rate: float = 0.1
    price: float = 0.003
    seeds: int = 3
    shown: tuple[int, ...] = (20, 60, 120)


BUDGETS = {
    "smoke": Settings(examples=6, held_out=8, width=2, steps=8, updates=2, seeds=1, shown=(2, 4)),
    "cpu": Settings(),
    "gpu": Settings(examples=4096, width=128, steps=2000, updates=500, outer_rate=0.03, shown=(200, 600, 1200)),
}


def task(key: Array, s: Settings) -> tuple[Array, Array]:
    """Examples times their signs, of a teacher: learned from (N, d), judged by (held_out, d)."""
    own, inputs, mind = jax.random.split(key, 3)
    teacher = jax.random.normal(own, (s.width,))
    x = jax.random.normal(inputs, (s.examples + s.held_out, s.width))
    told = x @ teacher + s.noise * jax.random.normal(mind, (len(x),))
    signed = x * jnp.sign(told)[:, None]
    return signed[: s.examples], signed[s.examples :]


def losses(w: Array, signed: Array) -> Array:
    """log(1 + exp(-w · x y)) of each example, nats.   (n)"""
    return jax.nn.softplus(-signed @ w)


def gradients(w: Array, signed: Array) -> Array:
    """Of each example's loss.   (n, d)"""
    return -jax.nn.sigmoid(-signed @ w)[:, None] * signed


def path(weights: Array, learned: Array, rate: float) -> Array:
    """The student before every step of weighted descent from 0, and after the last.   weights (T, N) -> (T+1, d)"""

    def step(w: Array, gamma: Array) -> tuple[Array, Array]:
        return w - rate * gamma @ gradients(w, learned), w

    last, before = jax.lax.scan(step, jnp.zeros_like(learned[0]), weights)
    return jnp.concatenate([before, last[None]])


def curve(students: Array, judged: Array) -> Array:
    """The mean loss of each student.   (T+1, d) -> (T+1)"""
    return jnp.mean(jax.nn.softplus(-students @ judged.T), axis=-1)


def law(weights: Array, students: Array, learned: Array, judged: Array) -> Tree:
    """What examples contribute at each step, c_n = ∇L · ∇l_n, under the policy's own weights.   leaves (T)

    spread    standard deviation of c over the size of its mean
    count     effective number of examples, 1 / Σ γ²
    """

    def at(gamma: Array, w: Array) -> Tree:
        c = gradients(w, learned) @ jnp.mean(gradients(w, judged), axis=0)
        mean = gamma @ c
        return {"spread": jnp.sqrt(gamma @ (c - mean) ** 2) / jnp.abs(mean), "count": 1 / jnp.sum(gamma**2)}

    return jax.vmap(at)(weights, students[:-1])


def run(s: Settings, lab: Lab) -> Result:
    prices = jnp.repeat(jnp.array([0.0, s.price]), s.seeds)
    data = jax.vmap(lambda k: task(k, s))(jax.random.split(lab.key, s.seeds))
    each = prices, *(jnp.concatenate([x, x]) for x in data)

    def area(params: Tree, key: Array, step: Array, each: Tree) -> Array:
        price, learned, judged = each
        weights = jax.nn.softmax(params["policy"])
        entropy = -jnp.mean(jnp.sum(weights * jax.nn.log_softmax(params["policy"]), axis=-1))
        return jnp.mean(curve(path(weights, learned, s.rate)[1:], judged)) - price * entropy

    def init(key: Array, each: Tree) -> Tree:
        return {"policy": jnp.zeros((s.steps, s.examples))}

    @jax.jit
    @jax.vmap
    def look(policy: Array, learned: Array, judged: Array) -> Tree:
        weights = jax.nn.softmax(policy)
        students = path(weights, learned, s.rate)
        return {"loss": curve(students, judged), **law(weights, students, learned, judged)}

    keys = jax.random.split(lab.key, len(prices))
    every = max(1, s.updates // 10)
    tx = optax.adam(s.outer_rate)
    found = fit(keys, init, area, tx, steps=s.updates, every=every, tell=lab.tell, each=each)
    policies = jnp.concatenate([jnp.zeros((s.seeds, s.steps, s.examples)), found.params["policy"]])
    seen = look(policies, *(jnp.concatenate([x, x, x]) for x in data))
    table = {k: np.asarray(v, float).reshape(3, s.seeds, -1) for k, v in seen.items()}  # (plans, seeds, steps)
    note = (
        "free, the optimum uses about one example a step, which makes the law trivial; bound by the price of entropy "
        "it uses many, and then contributions differ by what the price is worth"
    )
    series = {"steps": s.steps, **{k: v.mean(axis=1) for k, v in table.items()}}
    return Result(claims(s, table), series, (note,))


def claims(s: Settings, table: Tree) -> tuple[Claim, ...]:
    """Of every plan's loss, spread and count.   leaves (plans, seeds, steps)"""
    equal, free, bound = table["loss"]
    shown = [t for t in s.shown if t < s.steps]
    fall = {plan: table["spread"][0][:, shown] / table["spread"][n][:, shown] for n, plan in enumerate(PLANS)}
    counts = dict(zip(PLANS, table["count"].mean(axis=(1, 2)), strict=True))
    out = [
        Claim(HEADLINE, max(reached(f, e) for f, e in zip(free, equal, strict=True)), high=0.5),
        Claim("spread of contributions, times smaller, least of steps and seeds", fall["free"].min(), low=3),
        Claim("effective number of examples a step, mean", counts["free"], paper=1),
        Claim(
            "bound policy: steps to the final loss of equal weights, share, largest of the seeds",
            max(reached(b, e) for b, e in zip(bound, equal, strict=True)),
        ),
        Claim("bound policy: spread, times smaller, median", float(np.median(fall["bound"]))),
        Claim("bound policy: effective number of examples a step, mean", counts["bound"]),
    ]
    for plan, loss in zip(PLANS, table["loss"], strict=True):
        out.append(Claim(f"{plan} weights: mean loss on the way, nats", loss[:, 1:].mean()))
        out.append(Claim(f"{plan} weights: loss in the end, nats", loss[:, -1].mean()))
        out.append(Claim(f"{plan} weights: exponent of the loss in steps", late(loss.mean(axis=0))[0]))
    return tuple(out)


def reached(loss: np.ndarray, equal: np.ndarray) -> float:
    """The first step with the final loss of equal weights, as a share of all steps; 1 + 1/T if there is none."""
    below = np.append(loss, -np.inf) <= equal[-1]
    return float(np.argmax(below)) / (len(equal) - 1)


def late(loss: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(β, steps, curve) of the power law B t^β through the later nine tenths of a loss curve."""
    t = np.arange(max(1, len(loss) // 10), len(loss))
    found = slope(t, loss[t])
    return found, t, np.exp(np.mean(np.log(loss[t]) - found * np.log(t))) * t**found


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    for n, plan in enumerate(PLANS):
        loss = np.array(series["loss"][n])
        a.loglog(np.arange(1, len(loss)), loss[1:], f"C{n}", label=f"{plan} weights")
        _, steps, fitted = late(loss)
        a.loglog(steps, fitted, f"C{n}:", label="power law")
        b.semilogy(series["spread"][n], f"C{n}", label=f"{plan} weights")
        c.semilogy(series["count"][n], f"C{n}", label=f"{plan} weights")
    a.set(title="Loss on held-out examples, nats", xlabel="step")
    b.set(title="Spread of contributions over their mean (law: 0)", xlabel="step")
    c.set(title="Effective number of examples", xlabel="step")
    for axes in (a, b, c):
        axes.legend(fontsize="small", frameon=False)
