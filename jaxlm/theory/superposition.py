"""Superposition yields robust neural scaling (Liu et al. 2025): loss against width, with rows in superposition or not.

Sparse features, active with probability i^-alpha and then U(0, 2), through ReLU(x W Wᵀ + b) of width m << n. A decay
towards rows of unit length keeps every feature in the code, weight decay only the frequent ones. The autoencoders of
all widths and both decays learn from the same examples, in one program for all exponents and seeds.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.power_law import slope
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import cosine, row_decay
from jaxlm.typing import Array, Params, Tree

TITLE = "Superposition yields robust neural scaling"
QUESTION = "When does the loss fall as one over the width, whatever the data?"
ROWS = (101,)
NEEDS = ()
HEADLINE = "strong, alpha 1: slope in the width, mean"
DECAYS = {"strong": -1.0, "weak": 1.0}


@dataclass(frozen=True)
class Settings:
    """The autoencoders and their training.

    Args:
        features: n.
        widths: m of each.
        alphas: Exponents of the features' frequencies.
        seeds: Of every exponent.
        batch: Examples of a step.
        steps: Of Adam, rate 1e-2 after a warm-up, then a cosine to a twentieth.
        tested: Examples of a test.
    """

    features: int = 400
    widths: tuple[int, ...] = (8, 16, 32, 64)
    alphas: tuple[float, ...] = (1.0, 1.5, 2.0)
    seeds: int = 3
    batch: int = 128
    steps: int = 3000
    tested: int = 2048


BUDGETS = {
    "smoke": Settings(16, (2, 4), (1.0, 2.0), 1, 8, 2, 16),
    "cpu": Settings(),
    "gpu": Settings(1000, (10, 16, 25, 40, 63, 100), (0.5, 1.0, 1.25, 1.5, 2.0), 3, 2048, 20000, 8192),
}


def frequencies(n: int, alpha: Array) -> Array:
    """How often each feature is active: i^-alpha.   (n)"""
    return jnp.arange(1, n + 1, dtype=jnp.float32) ** -alpha


def examples(key: Array, p: Array, count: int) -> Array:
    """Features that are 0, or, with probability p, U(0, 2).   (count, n)"""
    u = jax.random.uniform(key, (count, p.size), p.dtype)
    return jnp.where(u < p[None], 2 * u / p[None], 0)


def begin(key: Array, n: int, m: int) -> Params:
    """W (n, m) of rows about as long as 1, b (n)."""
    rows, bias = jax.random.split(key)
    return {"w": jax.random.normal(rows, (n, m)) / m**0.5, "b": jax.random.normal(bias, (n,))}


def errors(params: Params, x: Array) -> Array:
    """The mean squared error of ReLU(x W Wᵀ + b), summed over features.   x (b, n) -> ()"""
    back = jax.nn.relu(x @ params["w"] @ params["w"].T + params["b"][None])
    return jnp.sum(jnp.mean((back - x) ** 2, axis=0))


def anatomy(w: Array, p: Array) -> Tree:
    """Which features a code holds, and how their rows overlap.

    held, long    shares of rows longer than 1/2 and than 1
    overlap       mean squared cosine of two different rows that are held
    unlearned     error of leaving out the others, Σ E x² = 4/3 Σ p
    """
    norms = jnp.linalg.norm(w, axis=1)
    held = (norms > 0.5).astype(w.dtype)
    rows = w * (held / norms)[:, None]
    pairs = jnp.sum(held) * (jnp.sum(held) - 1)
    overlap = (jnp.sum((rows.T @ rows) ** 2) - jnp.sum(held)) / jnp.maximum(pairs, 1)  # ‖RRᵀ‖ = ‖RᵀR‖
    unlearned = 4 / 3 * jnp.sum((1 - held) * p)
    return {"held": jnp.mean(held), "long": jnp.mean(norms > 1), "overlap": overlap, "unlearned": unlearned}


def train(s: Settings, lab: Lab) -> Tree:
    """What is measured of every autoencoder in the end.   {(decay, width): leaves (alphas, seeds)}"""
    members = [(decay, m) for decay in DECAYS for m in s.widths]
    alphas = jnp.repeat(jnp.array(s.alphas, jnp.float32), s.seeds)

    def init(key: Array, alpha: Array) -> Params:
        keys = jax.random.split(key, len(members))
        return {f"{d} {m}": begin(k, s.features, m) for k, (d, m) in zip(keys, members, strict=True)}

    def loss(params: Params, key: Array, step: Array, alpha: Array) -> Array:
        x = examples(key, frequencies(s.features, alpha), s.batch)
        return sum(errors(one, x) for one in params.values())  # type: ignore[return-value]

    def watch(params: Params, key: Array, alpha: Array) -> Tree:
        p = frequencies(s.features, alpha)
        x = examples(key, p, s.tested)
        seen = {name: {"error": errors(one, x), **anatomy(one["w"], p)} for name, one in params.items()}
        return {"seen": seen, **{f"{d} {m}": seen[f"{d} {m}"]["error"] for d, m in members[:: len(s.widths)]}}

    rate = cosine(1e-2, s.steps, warmup=s.steps // 10, last=0.05)
    kinds: dict[Hashable, optax.GradientTransformation] = {
        d: optax.chain(optax.scale_by_adam(), row_decay(strength), optax.scale_by_learning_rate(rate))
        for d, strength in DECAYS.items()
    }
    tx = optax.multi_transform(kinds, {f"{d} {m}": d for d, m in members})
    keys = jax.random.split(lab.key, len(alphas))
    every = max(1, s.steps // 10)
    found = fit(keys, init, loss, tx, steps=s.steps, every=every, watch=watch, tell=lab.tell, each=alphas)
    last = jax.tree.map(lambda x: np.asarray(x[-1], float).reshape(len(s.alphas), s.seeds), found.watched["seen"])
    return {(d, m): last[f"{d} {m}"] for d, m in members}


def run(s: Settings, lab: Lab) -> Result:
    found = train(s, lab)
    table = {  # (alphas, seeds, widths)
        d: {k: np.stack([found[d, m][k] for m in s.widths], axis=-1) for k in found[d, s.widths[0]]} for d in DECAYS
    }
    slopes = {d: np.array([[slope(s.widths, seed) for seed in alpha] for alpha in table[d]["error"]]) for d in DECAYS}
    means = {d: {k: v.mean(axis=1) for k, v in table[d].items()} for d in DECAYS}
    series = {"widths": s.widths, "alphas": s.alphas, **means}
    return Result((*exponents(s, slopes), *codes(s, table)), series)


def exponents(s: Settings, slopes: dict[str, np.ndarray]) -> list[Claim]:
    """Slopes of the error in the width."""
    claims = []
    for alpha, strong, weak in zip(s.alphas, slopes["strong"], slopes["weak"], strict=True):
        band = (-1.15, -0.85) if alpha <= 1.5 else ()
        claims.append(Claim(f"strong, alpha {alpha:g}: slope in the width, mean", strong.mean(), *band, paper=-1))
        theory = 1 - alpha if alpha > 1 else None
        claims.append(Claim(f"weak, alpha {alpha:g}: slope in the width, mean", weak.mean(), paper=theory))
        if alpha == 1:
            name = "alpha 1: slope of strong less that of weak, largest of the seeds"
            claims += [
                Claim("strong, alpha 1: least slope of the seeds", strong.min(), low=-1.3),
                Claim("strong, alpha 1: largest slope of the seeds", strong.max(), high=-0.8),
                Claim(name, float(np.max(strong - weak)), high=-0.4),
            ]
    name = f"weak: slope at alpha {s.alphas[-1]:g} less that at {s.alphas[0]:g}, largest of the seeds"
    return [*claims, Claim(name, float(np.max(slopes["weak"][-1] - slopes["weak"][0])), high=0)]


def codes(s: Settings, table: dict[str, Tree]) -> list[Claim]:
    """What the rows are like, at the first exponent."""
    strong, weak = ({k: v[0] for k, v in table[d].items()} for d in ("strong", "weak"))
    crowded = strong["overlap"] * np.array(s.widths)
    ratio = weak["error"] / np.maximum(weak["unlearned"], 1e-9)  # before any training none are left out
    return [
        Claim("strong: squared overlap of rows times width, least", crowded.min(), low=0.8, paper=1),
        Claim("strong: squared overlap of rows times width, largest", crowded.max(), high=1.6, paper=1),
        Claim("strong: share of features held, least", strong["held"].min(), low=1),
        Claim("weak: share of features held, largest", weak["held"].max(), high=0.25),
        Claim("weak: error over that of the features left out, mean", float(ratio.mean()), paper=1),
    ]


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    widths, strong, weak = np.array(series["widths"]), series["strong"], series["weak"]
    for n, alpha in enumerate(series["alphas"]):
        error = np.array(strong["error"][n])
        a.loglog(widths, error, f"C{n}o", label=f"alpha {alpha:g}: measured")
        a.loglog(widths, np.exp(np.mean(np.log(error * widths))) / widths, f"C{n}:", label=None if n else "c / m")
        b.loglog(widths, weak["error"][n], f"C{n}o", label=f"alpha {alpha:g}: measured")
        b.loglog(widths, weak["unlearned"][n], f"C{n}:", label=None if n else "features left out: 4/3 Σ p")
        c.loglog(widths, strong["overlap"][n], f"C{n}o", label=f"alpha {alpha:g}: measured")
    c.loglog(widths, 1 / widths, "k:", label="1 / m")
    b.set_ylim(np.min(weak["error"]) / 4, None)
    for axes, title in ((a, "Strong superposition: error"), (b, "Weak: error"), (c, "Strong: squared overlap")):
        axes.set(title=title, xlabel="width m")
        axes.set_xticks(widths, map(str, widths))
        axes.tick_params(which="minor", labelbottom=False)
        axes.legend(fontsize="small", frameon=False)
