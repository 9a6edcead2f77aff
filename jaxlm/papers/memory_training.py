"""Associative memories trained by gradient descent (Cabannes et al. 2024): the published grid of runs.

100 inputs with Zipf frequencies (alpha 2), output x mod 5; all weights start as N(0, 1/d); one pass over independent
examples; the error is that of the whole population. Per width the best of 4 learning rates and 4 batch sizes, by the
mean over seeds. Published values are means over the authors' raw results, 10 seeds.
Their Adam has betas (0, 0): it keeps no moments, a step is the gradient over its size, times the rate over d (matrix)
or √d (embeddings). So SGD, Adam, all rates and all seeds are one program per width and batch size.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.zipf import Zipf
from jaxlm.memory.outer import OuterMemory, embeddings, error, power, recall, threshold
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Training associative memories"
ROWS = (126,)
NEEDS = ()

RATES = (0.1, 1.0, 10.0, 100.0)
RULES = ("SGD", "Adam")
PUBLISHED = {  # 10,240 examples, width: error
    "SGD": {10: 0.0306, 20: 0.0140, 50: 0.0055, 100: 0.0024, 200: 0.0013, 500: 0.0014, 1000: 0.0013},
    "Adam": {10: 0.0318, 20: 0.0156, 50: 0.0063, 100: 0.0034, 200: 0.0019, 500: 0.0016, 1000: 0.0013},
    "SGD + LN": {10: 0.0393, 20: 0.0199, 50: 0.0081, 100: 0.0049, 200: 0.0030, 500: 0.0021, 1000: 0.0014},
    "Adam + LN": {10: 0.0399, 20: 0.0208, 50: 0.0095, 100: 0.0053, 200: 0.0031, 500: 0.0023, 1000: 0.0015},
}
TABLE = {  # 10,240 examples, d = 100: rows are rates, columns batches 16, 64, 256, 1024
    "SGD": (
        (0.044, 0.071, 0.108, 0.210),
        (0.0185, 0.031, 0.056, 0.073),
        (0.0059, 0.0124, 0.0227, 0.0393),
        (0.0024, 0.0047, 0.0117, 0.0247),
    ),
    "Adam": (
        (0.0245, 0.0335, 0.0663, 0.139),
        (0.0121, 0.0089, 0.0130, 0.0458),
        (0.0045, 0.0043, 0.0035, 0.0051),
        (0.0034, 0.0039, 0.0059, 0.0081),
    ),
}


@dataclass(frozen=True)
class Settings:
    """examples: T; batches: sizes, each a divisor of T; seeds; widths: d of the matrix model, with and without LN;
    others: d of the models with trained embeddings"""

    inputs: int = 100
    outputs: int = 5
    examples: int = 10240
    batches: tuple[int, ...] = (16, 64, 256, 1024)
    seeds: int = 10
    widths: tuple[int, ...] = (10, 20, 50, 100, 200)
    others: tuple[int, ...] = (10, 20)


BUDGETS = {
    "smoke": Settings(20, 5, 128, (16, 64), 2, (10,), ()),
    "cpu": Settings(),
    "gpu": Settings(widths=(10, 20, 50, 100, 200, 500, 1000), others=(10, 20, 50, 100)),
}


def pace(scales: dict[str, float]) -> optax.GradientTransformation:
    """SGD where params['adam'] is 0, else Adam with betas (0, 0) and eps 1e-8; the rate is params['rate'].

    scales   factors of Adam's rate by weight
    """

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        assert params is not None

        def step(g: Array, scale: float) -> Array:
            return -params["rate"] * jnp.where(params["adam"] > 0, scale * g / (jnp.abs(g) + 1e-8), g)

        moves = {n: step(g, scales[n]) for n, g in updates["model"].items()}
        return {"model": moves, "rate": jnp.zeros(()), "adam": jnp.zeros(())}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def starts(key: Array, s: Settings, model: OuterMemory) -> Tree:
    """The weights and the examples of every run, seeds the last of (rules, rates, seeds).   leaves (runs, ...)"""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    facts = Zipf(s.inputs, 2.0, s.outputs)
    drawn = [init(model, jax.random.fold_in(key, i)) for i in range(s.seeds)]  # vmapped it compiles three times as long
    seeds = {
        "model": jax.tree.map(lambda *x: np.stack(x), *drawn),
        "x": np.stack([facts.draw(rng, s.examples)[0] for _ in drawn]),
    }
    adam, rate = np.meshgrid((0.0, 1.0), RATES, indexing="ij")
    own = {"adam": adam.ravel(), "rate": rate.ravel()}
    runs = {n: jnp.asarray(np.repeat(v, s.seeds), jnp.float32) for n, v in own.items()}
    return {**runs, **jax.tree.map(lambda v: jnp.concatenate([jnp.asarray(v)] * adam.size), seeds)}


def grid(s: Settings, model: OuterMemory, batch: int, each: Tree) -> np.ndarray:
    """Population errors after one pass over the examples of `starts`.   (rules, rates, seeds)"""
    facts, n = Zipf(s.inputs, 2.0, s.outputs), s.inputs
    p, y = jnp.asarray(facts.p, jnp.float32), jnp.asarray(facts.y)

    def loss(params: Params, key: Array, step: Array, each: Tree) -> Array:
        x = jax.lax.dynamic_slice_in_dim(each["x"], step * batch, batch)
        if batch < n:
            return model.loss(params["model"], x, y[x], jnp.full(batch, 1 / batch, jnp.float32))
        share = jnp.bincount(x, length=n).astype(jnp.float32) / batch  # a batch larger than the world is its counts
        return model.loss(params["model"], jnp.arange(n), y, share)

    def watch(params: Params, key: Array, each: Tree) -> dict[str, Array]:
        return {"error": error(p, jnp.argmax(model.apply(params["model"], jnp.arange(n)), axis=-1), y)}

    def begin(key: Array, each: Tree) -> Params:
        return {name: each[name] for name in ("model", "rate", "adam")}

    keys = jax.random.split(jax.random.key(0), each["rate"].size)  # fit asks for them; nothing here is random
    steps = s.examples // batch
    found = fit(keys, begin, loss, pace(model.rates()), steps=steps, every=steps, watch=watch, each=each)
    return found.watched["error"][-1].reshape(len(RULES), len(RATES), s.seeds)


def closed(key: Array, s: Settings, d: int) -> dict[str, float]:
    """Mean error of memories that are written down from T examples instead of trained."""
    facts = Zipf(s.inputs, 2.0, s.outputs)
    p, y = jnp.asarray(facts.p, jnp.float32), jnp.asarray(facts.y)
    ways = {f"q = p^{rho}": partial(power, rho=rho) for rho in (1.0, 0.5, 0.25)}
    ways["threshold"] = partial(threshold, kept=max(d // 8, 1))

    @jax.jit
    def trial(key: Array, seen: Array) -> dict[str, Array]:
        a, b = jax.random.split(key)
        e, u = embeddings(a, s.inputs, d), embeddings(b, s.outputs, d)
        return {name: error(p, recall(e, u, y, way(seen)), y) for name, way in ways.items()}

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    seen = [jnp.asarray(facts.counts(rng, s.examples), jnp.int32) for _ in range(10 * s.seeds)]
    found = [trial(jax.random.fold_in(key, i), c) for i, c in enumerate(seen)]
    return {n: float(np.mean([f[n] for f in found])) for n in ways}


def run(s: Settings, lab: Lab) -> Result:
    plan = [("matrix", norm, d) for norm, d in product((False, True), s.widths)]
    plan += [(form, False, d) for form, d in product(("learnable", "exponential"), s.others)]
    best, tables = {}, {}
    for i, (form, norm, d) in enumerate(plan):
        model = OuterMemory(s.inputs, s.outputs, d, form, norm)
        each = starts(jax.random.fold_in(lab.key, d), s, model)
        found = np.stack([grid(s, model, b, each) for b in s.batches], axis=2)  # (rules, rates, batches, seeds)
        lab.tell((i + 1) / len(plan), width=d, best=float(found.mean(-1).min()))
        for rule, errors in zip(RULES, found, strict=True):
            name = rule + " + LN" * norm if form == "matrix" else f"{form}, {rule}"
            table = errors.mean(-1)
            at = np.unravel_index(table.argmin(), table.shape)
            spread = errors[at].std(ddof=1) / np.sqrt(s.seeds)
            best.setdefault(name, {})[d] = (float(table[at]), float(spread), RATES[at[0]], s.batches[at[1]])
            tables.setdefault(name, {})[d] = table
    drawn = {d: closed(jax.random.fold_in(lab.key, d + 1), s, d) for d in s.widths}
    series = {
        "widths": s.widths,
        "best": {n: list(b.values()) for n, b in best.items() if len(b) == len(s.widths)},
        "closed": {name: [drawn[d][name] for d in s.widths] for name in drawn[s.widths[0]]},
        "tables": {f"{n}, d = {d}": t for n, per in tables.items() for d, t in per.items()},
        "floor": Zipf(s.inputs, 2.0, s.outputs).unseen(s.examples) * (1 - 1 / s.outputs),
    }
    return Result((*judged(s, best), *laws(s, tables), *compared(best, drawn)), series)


def judged(s: Settings, best: dict) -> list[Claim]:
    """The published rows: without LN within 35 % up to d = 200, the rest beside them."""
    claims = []
    for name, per in best.items():
        for d, (value, *_) in per.items():
            paper = PUBLISHED.get(name, {}).get(d) if s.examples == 10240 else None
            band = (0.65 * paper, 1.35 * paper) if paper is not None and name in RULES and d <= 200 else ()
            claims.append(Claim(f"{name}, d = {d}: best error", value, *band, paper=paper))
    return claims


def laws(s: Settings, tables: dict) -> list[Claim]:
    """The table at d = 100: its distance to the published one, and its two laws for SGD."""
    if 100 not in s.widths or s.examples != 10240 or s.batches != (16, 64, 256, 1024):
        return []
    sgd, claims = tables["SGD"][100], []
    for name, want in TABLE.items():
        off = np.abs(np.log(tables[name][100] / np.array(want)))
        claims.append(
            Claim(f"{name}, d = 100, 16 cells: median factor to the published", float(np.exp(np.median(off))))
        )
        claims.append(Claim(f"{name}, d = 100, 16 cells: largest factor off", float(np.exp(off.max()))))
    falls, rises = float((np.diff(sgd, axis=0) < 0).mean()), float((np.diff(sgd, axis=1) > 0).mean())
    claims.append(Claim("SGD, d = 100: share of steps up in rate that lower the error", falls, low=1.0, paper=1.0))
    claims.append(Claim("SGD, d = 100: share of steps up in batch that raise it", rises, low=1.0, paper=1.0))
    return claims


def compared(best: dict, drawn: dict) -> list[Claim]:
    """Trained against written down, at the largest width."""
    d = max(drawn)
    return [Claim(f"written down, {name}, d = {d}: error", value) for name, value in drawn[d].items()]


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    widths = series["widths"]
    for name, values in series["best"].items():
        errors, spread = np.array(values, float)[:, :2].T
        line = left.errorbar(widths, errors, spread, fmt="o-" if "LN" not in name else "s--", ms=3, label=name)
        paper = {d: v for d, v in PUBLISHED.get(name, {}).items() if d in widths}
        left.plot(list(paper), list(paper.values()), "x", color=line[0].get_color())
    left.axhline(series["floor"], color="k", lw=0.8, label="unseen mass × 4/5")
    left.set(xscale="log", yscale="log", xlabel="width d", ylabel="error", title="trained (crosses: published)")
    for name, values in series["closed"].items():
        right.plot(widths, values, "o-", ms=3, label=f"written down, {name}")
    right.plot(widths, np.array(series["best"]["SGD"], float)[:, 0], "k--", label="SGD")
    right.axhline(series["floor"], color="k", lw=0.8)
    right.set(xscale="log", yscale="log", xlabel="width d", title="written down from the same examples")
    for axes in (left, right):
        axes.legend(fontsize=7)
