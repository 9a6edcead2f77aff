"""The origins of linear representations (Jiang et al. 2024): why flipping a concept adds one and the same vector.

Tokens are all settings of m binary concepts; a context fixes some of them, the others follow their prior. Vectors of
contexts and tokens, p(token | context) = softmax(f g), learn the exact cross-entropy by gradient descent. What a
context leaves open asks that differences of tokens match log-odds, what it fixes drives a margin that grows for ever.
With more dimensions than concepts the differences stay parallel in part; with as many, a run that reaches the entropy
has one direction for each concept, though not every start does.
"""

from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "The origins of linear representations"
QUESTION = "Does next-token prediction by gradient descent give every concept a direction of its own?"
ROWS = (91,)
NEEDS = ()
HEADLINE = "same concept: mean cosine, least of the seeds"
OPEN = 2  # a concept that a context does not fix


@dataclass(frozen=True)
class Settings:
    """The concepts and the learning.

    Args:
        concepts: m.
        width: Of the vectors.
        scale: Of their start.
        rate: Of gradient descent.
        steps: Of it; then the width of as many dimensions as concepts is judged.
        every: Steps between two looks.
        judged: Step at which the wider one is judged.
        seeds: Of start and prior.
        starts: Seeds of as many dimensions as concepts.
        least: The prior of a concept is drawn from [least, 1 - least].
    """

    concepts: int = 4
    width: int = 8
    scale: float = 0.01
    rate: float = 5.0
    steps: int = 20_000
    every: int = 1000
    judged: int = 5000
    seeds: int = 4
    starts: int = 8
    least: float = 0.3


BUDGETS = {
    "smoke": Settings(concepts=2, width=4, steps=4, every=2, judged=2, seeds=2, starts=2),
    "cpu": Settings(),
    "gpu": Settings(concepts=6, width=12, steps=200_000, every=2000, judged=20_000),
}


def settings_of(concepts: int, values: int) -> np.ndarray:
    """All of them, the last concept fastest: 2 values for tokens, 3 with OPEN for contexts.   (values^m, m)"""
    return np.array(list(product(range(values), repeat=concepts)))


def conditional(prior: Array) -> Array:
    """p(token | context) for independent concepts that are 1 with probabilities `prior` (m).   (3^m, 2^m)"""
    tokens, contexts = (settings_of(prior.size, n) for n in (2, OPEN + 1))
    free = jnp.where(tokens == 1, prior[None], 1 - prior[None])
    fixed = jnp.asarray(contexts[:, None] == tokens[None], prior.dtype)
    return jnp.prod(jnp.where((contexts == OPEN)[:, None], free[None], fixed), axis=-1)


def entropy(prior: Array) -> Array:
    """Of a token, mean over contexts, in nats: each concept is open in a third of them.   ()"""
    return -jnp.sum(jax.scipy.special.xlogy(prior, prior) + jax.scipy.special.xlogy(1 - prior, 1 - prior)) / 3


def cross_entropy(params: Params, p: Array) -> Array:
    """Of softmax(f g), mean over contexts, in nats.   p (contexts, tokens) -> ()"""
    return -jnp.mean(jnp.sum(p * jax.nn.log_softmax(params["f"] @ params["g"].T), axis=-1))


def directions(vectors: Array, concepts: int, values: int) -> Array:
    """Unit differences of vectors when one concept goes from 0 to 1, at all settings of the others.

    vectors  of all settings_of(concepts, values)       (values^m, d)
    ->                                                  (m, values^(m-1), d)
    """
    grid = vectors.reshape(*(values,) * concepts, -1)
    gaps = [jnp.take(grid, 1, axis=i) - jnp.take(grid, 0, axis=i) for i in range(concepts)]
    flat = jnp.stack([gap.reshape(-1, gap.shape[-1]) for gap in gaps])
    return flat / jnp.linalg.norm(flat, axis=-1, keepdims=True)


def cosines(params: Params, concepts: int) -> Tree:
    """Mean cosines of differences.

    same, different     of tokens: one concept at two settings of the others; two concepts
    apart               two concepts, mean absolute cosine
    matched, crossed    a context's and a token's: one concept; two
    table               of tokens, by the two concepts      (m, m)
    """
    g, f = directions(params["g"], concepts, 2), directions(params["f"], concepts, OPEN + 1)
    own, n = np.eye(concepts, dtype=bool), g.shape[1]
    between = jnp.einsum("iad,jbd->ijab", g, g)
    table = jnp.sum(between, axis=(2, 3)) - jnp.asarray(n * own, g.dtype)  # without each one and itself
    table = table / jnp.asarray(np.where(own, n * (n - 1), n * n), g.dtype)
    met = jnp.einsum("id,jd->ij", f.mean(axis=1), g.mean(axis=1))

    def mean(x: Array, which: np.ndarray) -> Array:
        return jnp.sum(jnp.where(which, x, 0)) / np.sum(which).item()

    return {
        "same": mean(table, own),
        "different": mean(table, ~own),
        "apart": mean(jnp.mean(jnp.abs(between), axis=(2, 3)), ~own),
        "matched": mean(met, own),
        "crossed": mean(met, ~own),
        "table": table,
    }


def train(s: Settings, lab: Lab, width: int, seeds: int) -> Tree:
    """Cosines and the loss above the entropy while the vectors learn.   leaves (looks, seeds, ...)"""
    priors = jax.random.uniform(lab.key, (seeds, s.concepts), minval=s.least, maxval=1 - s.least)

    def init(key: Array, prior: Array) -> Params:
        a, b = jax.random.split(key)
        shapes = ((OPEN + 1) ** s.concepts, width), (2**s.concepts, width)
        return {n: s.scale * jax.random.normal(k, x) for n, k, x in zip("fg", (a, b), shapes, strict=True)}

    def loss(params: Params, key: Array, step: Array, prior: Array) -> Array:
        return cross_entropy(params, conditional(prior))

    def watch(params: Params, key: Array, prior: Array) -> Tree:
        gap = cross_entropy(params, conditional(prior)) - entropy(prior)
        return {"gap": gap, **cosines(params, s.concepts)}

    keys = jax.random.split(jax.random.fold_in(lab.key, 1), seeds)
    how = {"steps": s.steps, "every": s.every, "watch": watch, "tell": lab.tell, "each": priors}
    return fit(keys, init, loss, optax.sgd(s.rate), **how).watched


def run(s: Settings, lab: Lab) -> Result:
    wide = train(s, lab.part("wide", 0.0, 0.5), s.width, s.seeds)
    tight = train(s, lab.part("tight", 0.5, 1.0), s.concepts, s.starts)
    now = {k: v[s.judged // s.every - 1] for k, v in wide.items()}
    best = int(np.argmin(tight["gap"][-1]))
    end = {k: v[-1, best] for k, v in tight.items()}
    name = f"width {s.concepts}, {s.steps:,} steps, seed of the least loss: "
    claims = (
        Claim("same concept: mean cosine, least of the seeds", now["same"].min(), low=0.5),
        Claim("different concepts: mean cosine, largest of the seeds", now["different"].max(), high=0.06),
        Claim("context and token, same concept: mean cosine, least of the seeds", now["matched"].min(), low=0.5),
        Claim("context and token, different concepts: largest of the seeds", now["crossed"].max(), high=0.06),
        Claim("loss above the entropy, nats, largest of the seeds", now["gap"].max(), high=1e-3),
        Claim(f"same concept after {s.steps:,} steps, mean of the seeds", wide["same"][-1].mean(), paper=0.9),
        Claim(f"{name}same concept", end["same"], low=0.9, paper=0.9),
        Claim(f"{name}different concepts, mean absolute cosine", end["apart"], high=0.2),
        Claim(f"width {s.concepts}: same concept, mean of all seeds", tight["same"][-1].mean()),
        Claim(f"width {s.concepts}: share of seeds above 0.9", np.mean(tight["same"][-1] > 0.9)),
    )
    series = {k: v.mean(axis=1) for k, v in wide.items() if k != "table"}
    series |= {"steps": s.every * (1 + np.arange(len(wide["gap"]))), "widths": (s.width, s.concepts)}
    series |= {"tight": tight["same"][:, best], "tight_gap": tight["gap"][:, best], "table": end["table"]}
    note = (
        f"the paper's averages are above 0.9: width {s.width} stays at the part that its loss needs, where a code that "
        "is not linear reaches the entropy, too"
    )
    return Result(claims, series, (note,))


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    steps, (wide, tight) = np.array(series["steps"]), series["widths"]
    for n, (name, label) in enumerate(
        (("same", "tokens, same concept"), ("matched", "context and token, same"), ("different", "different"))
    ):
        a.semilogx(steps, series[name], f"C{n}.-", label=f"width {wide}: {label}")
    a.semilogx(steps, series["tight"], "C3.-", label=f"width {tight}, least loss: tokens, same concept")
    for level in (0, 1):
        a.axhline(level, color="0.5", linestyle=":", label="linear representation" if level else None)
    a.set(title="Mean cosine of differences", xlabel="step")
    for name, width, color in (("gap", wide, "C0"), ("tight_gap", tight, "C3")):
        gap = np.maximum(series[name], 1e-9)
        b.loglog(steps, gap, f"{color}.", label=f"width {width}: measured")
        b.loglog(steps, gap[-1] * steps[-1] / steps, f"{color}:", label="a growing margin: 1 / steps")
    b.set(title="Loss above the entropy, nats", xlabel="step")
    c.imshow(np.array(series["table"]), vmin=-1, vmax=1, cmap="RdBu")
    c.set(title=f"Width {tight}: cosines by concepts", xticks=[], yticks=[])
    for (i, j), value in np.ndenumerate(np.array(series["table"])):
        c.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if abs(value) > 0.6 else "k")
    a.legend(fontsize="small", frameon=False, loc=(0.02, 0.08))
    b.legend(fontsize="small", frameon=False)
