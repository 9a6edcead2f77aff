"""Which Boolean functions are learned in context, and what a teaching sequence does (Bhattamishra et al. 2023).

Simple learners on 28 variables; then models trained on 6, where Bayes over all 728 conjunctions is exact. A prompt is
x_1 y_1 x_2 y_2 ..., every label is asked. Half of the conjunctions that a model trains on begin with their teaching
sequence. (The paper: 28 variables, 70 points, 12 layers of width 256, 15,000 steps and more.)
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis import boolean
from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.papers._capability import mixer_of
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks.boolean import ANDS, BooleanFunctions, Prompt
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "In-context learning of Boolean functions"
QUESTION = "Which classes of Boolean functions are learned in context, and do teaching sequences help?"
ROWS = (113,)
NEEDS = ()
HEADLINE = "conjunctions: accuracy right after a teaching sequence"

AT = (5, 10, 20, 40, 69)  # examples before the one that is asked
# Accuracies of an independent simulation of 600 functions over 28 variables, after AT.
SIMULATED = 600
REFERENCE = {
    ("conjunction", "nearest neighbour"): (0.71, 0.72, 0.80, 0.83, 0.81),
    ("conjunction", "majority label"): (0.62, 0.66, 0.70, 0.68, 0.70),
    ("conjunction", "least squares"): (0.63, 0.71, 0.72, 0.79, 0.91),
    ("conjunction", "elimination"): (0.69, 0.74, 0.92, 0.99, 1.00),
    ("disjunction", "nearest neighbour"): (0.72, 0.75, 0.75, 0.82, 0.81),
    ("sparse majority", "nearest neighbour"): (0.55, 0.62, 0.63, 0.64, 0.67),
    ("sparse majority", "least squares"): (0.58, 0.67, 0.69, 0.75, 0.86),
    ("half-space", "nearest neighbour"): (0.59, 0.59, 0.64, 0.64, 0.65),
    ("DNF", "nearest neighbour"): (0.62, 0.69, 0.71, 0.71, 0.75),
    ("DNF", "least squares"): (0.65, 0.69, 0.70, 0.72, 0.82),
}


@dataclass(frozen=True)
class Settings:
    """What is measured and trained.

    Args:
        families: Of the simple learners.
        variables: Of these.
        functions: Drawn of each family, and of the trained models' tests.
        mixer: Name of the models' mixer.
        small: Variables of the models' functions.
        points: Of a prompt.
        width: Of the models.
        hidden: Units of their MLPs.
        depth: Blocks.
        batch: Prompts a step.
        steps: Of Adam.
        rate: Its step size.
        seeds: Models of conjunctions; one more learns parities.
        looks: Times at which they are judged.
    """

    families: tuple[str, ...] = ("conjunction", "disjunction", "sparse majority", "half-space", "DNF", "sparse parity")
    variables: int = 28
    functions: int = 600
    mixer: str = "Attention"
    small: int = 6
    points: int = 20
    width: int = 32
    hidden: int = 64
    depth: int = 2
    batch: int = 64
    steps: int = 800
    rate: float = 3e-3
    seeds: int = 3
    looks: int = 5


BUDGETS = {
    "smoke": Settings(("conjunction",), 6, 8, small=3, points=6, width=4, hidden=4, batch=2, steps=2, seeds=1, looks=1),
    "cpu": Settings(),
    "gpu": Settings(small=10, points=70, width=256, hidden=1024, depth=6, steps=15000, rate=1e-4),
}


@partial(jax.jit, static_argnums=(1, 2, 3))
def prompts(key: Array, task: BooleanFunctions, count: int, points: int) -> Prompt:
    """Independent functions with their points."""
    return jax.vmap(lambda k: task.draw(k, points))(jax.random.split(key, count))


def simple(x: np.ndarray, y: np.ndarray, family: str, at: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Accuracy of the simple learners after so many examples."""
    guesses = {"nearest neighbour": boolean.nearest(x, y), "majority label": boolean.majority(y)}
    if family == "conjunction":
        guesses["elimination"] = boolean.elimination(x, y)
    if family == "disjunction":
        guesses["elimination"] = 1 - boolean.elimination(x, 1 - y)
    out = {name: (guess == y).mean(0)[list(at)] for name, guess in guesses.items()}
    return {**out, "least squares": np.array([(boolean.least_squares(x, y, n) == y[:, n]).mean() for n in at])}


def model_of(s: Settings) -> SequenceModel:
    """x_1 y_1 x_2 ... as vectors of n + 1 numbers, a logit at each."""
    body = Stack(Block(mixer_of(s.mixer, s.width), MLP(s.width, s.hidden)), s.depth)
    return SequenceModel(body, outputs=1, inputs=s.small + 1, readout="every")


def logits(model: SequenceModel, params: Params, p: Prompt) -> Array:
    """Of label 1 at every point.   prompts of m points -> (b, m)"""
    b, m, n = p.x.shape
    label = jnp.pad((2 * p.y - 1).astype(jnp.float32)[..., None], ((0, 0), (0, 0), (n, 0)))
    point = jnp.pad(p.x, ((0, 0), (0, 0), (0, 1)))
    x = jnp.stack([point, label], axis=2).reshape(b, 2 * m, n + 1)[:, :-1]
    return model.apply(params, x)[0][:, ::2, 0]


def _either(which: Array, a: Prompt, b: Prompt) -> Prompt:
    """Prompts of a where `which` (b,) says so, else of b."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b), a, b)


def train(s: Settings, lab: Lab) -> tuple[dict[str, Prompt], dict[str, np.ndarray]]:
    """Models of conjunctions, half of them taught, the last one of parities.

    ->   the test prompts, plain and taught; right: of all models on the conjunctions, looks (looks, r, m), plain,
         taught (r, b, m), and parity (r, m), a mean
    """
    model, ands, odd = model_of(s), BooleanFunctions("conjunction", s.small), BooleanFunctions("parity", s.small)
    tests = {"plain": prompts(lab.key, ands, s.functions, s.points)}
    tests["taught"] = jax.jit(jax.vmap(ands.teach))(tests["plain"])
    parities = prompts(lab.key, odd, s.functions, s.points)

    def loss(params: Params, key: Array, step: Array, parity: Array) -> Array:
        p, other = (prompts(key, task, s.batch, s.points) for task in (ands, odd))
        half = jnp.arange(s.batch) % 2 == 0
        taught = _either(half, jax.vmap(ands.teach)(p), p)
        p = _either(jnp.full(s.batch, parity), other, taught)
        sign = 1 - 2 * p.y.astype(jnp.float32)
        return jnp.mean(jax.nn.softplus(sign * logits(model, params, p)))

    def right(params: Params, p: Prompt) -> Array:
        return (logits(model, params, p) > 0) == (p.y == 1)

    def watch(params: Params, key: Array, parity: Array) -> Tree:
        return {"right": jnp.mean(right(params, prompts(key, ands, s.batch * 4, s.points)), axis=0)}

    keys, kinds = jax.random.split(lab.key, s.seeds + 1), jnp.arange(s.seeds + 1) == s.seeds
    keep = None if lab.folder is None else lab.folder / "progress.npz"
    tx = clipped(optax.adam(trapezoid(s.rate, s.steps, warmup=100)))
    how = {"steps": s.steps, "every": s.steps // s.looks, "watch": watch, "tell": lab.tell, "keep": keep}
    found = fit(keys, lambda key, parity: init(model, key), loss, tx, each=kinds, **how)
    judge = jax.jit(lambda params, p: jax.lax.map(lambda params: right(params, p), params))
    plain, taught, parity = (np.asarray(judge(found.params, p)) for p in (*tests.values(), parities))
    ends = {"plain": plain, "taught": taught, "parity": parity.mean(1)}
    return tests, {"looks": found.watched["right"], **ends}


def run(s: Settings, lab: Lab) -> Result:
    claims, table, gaps, at = [], {}, [], tuple(n for n in AT if n < max(s.variables * 2.5, 6))
    for family in s.families:
        p = prompts(lab.key, BooleanFunctions(family, s.variables), s.functions, max(at) + 1)
        table[family] = simple(np.asarray(p.x), np.asarray(p.y), family, at)
        for name, found in table[family].items():
            if s.variables == 28 and (family, name) in REFERENCE:
                paper = np.array(REFERENCE[family, name])
                error = np.sqrt(paper * (1 - paper) * (1 / s.functions + 1 / SIMULATED) + 1e-4)
                gaps += list(np.abs(found - paper) / error)
    if gaps:
        claims.append(Claim("simple learners: largest gap to the reference, in standard errors", max(gaps), high=4.0))
    for name, found in table["conjunction"].items():
        band = {"low": 0.95} if name == "elimination" else {}
        claims.append(Claim(f"{s.variables} variables, {name}, conjunctions after {at[-1]}", float(found[-1]), **band))
    lab.tell(0.1)
    tests, found = train(s, lab.part("train", 0.1, 1.0))
    x, y = (np.asarray(a) for a in tests["plain"][:2])
    _, absent, forced = ANDS["conjunction"]
    lines = {
        "Bayes": ((boolean.bayes_conjunctions(x, y, absent, forced) > 0.5) == y).mean(0),
        "nearest neighbour": (boolean.nearest(x, y) == y).mean(0),
        "elimination": (boolean.elimination(x, y) == y).mean(0),
    }
    claims += of_models(s, tests["taught"], found, lines)
    series = {"lines": lines, "looks": found["looks"][:, : s.seeds].mean(1), "table": table}
    taught = found["taught"][: s.seeds].mean((0, 1))
    ends = {"plain": found["plain"][: s.seeds].mean((0, 1)), "taught": taught, "parity": found["parity"][-1]}
    return Result(tuple(claims), {**series, **ends, "at": at, "mixer": s.mixer})


def of_models(s: Settings, taught: Prompt, found: dict[str, np.ndarray], lines: dict[str, np.ndarray]) -> list[Claim]:
    """What is said of the trained models."""
    plain, last = found["plain"][: s.seeds].mean((0, 1)), s.points - 1
    size = (np.asarray(taught.w) != 0).sum((1, 2)) + 2
    after = np.minimum(size, last)
    told = found["taught"][: s.seeds][:, np.arange(len(size)), after]
    same = found["plain"][: s.seeds][:, np.arange(len(size)), after]
    few, many = min(8, last), min(15, last)
    gain = [float(plain[n] - lines["nearest neighbour"][n]) for n in (few, many)]
    return [
        Claim(HEADLINE, float(told.mean()), low=0.99),
        Claim("conjunctions: as many examples, not chosen", float(same.mean())),
        Claim(f"conjunctions, {few} examples: model less nearest neighbour", gain[0], low=0.0),
        Claim(f"conjunctions, {many} examples: model less nearest neighbour", gain[1], low=0.0),
        Claim("conjunctions: most that the model is above Bayes", float((plain - lines["Bayes"]).max()), high=0.08),
        Claim(f"conjunctions, {last} examples: Bayes", float(lines["Bayes"][last])),
        Claim(f"conjunctions, {last} examples: model", float(plain[last])),
        Claim(f"parities, {last} examples: model", float(found["parity"][-1, last]), 0.4, 0.6),
    ]


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    for (name, line), style in zip(series["lines"].items(), ("k-", "k:", "k--"), strict=True):
        left.plot(line, style, lw=1, label=name)
    left.plot(series["plain"], "C0o-", ms=3, label=f"{series['mixer']}, trained")
    left.plot(series["taught"], "C1o-", ms=3, label="after a teaching sequence")
    left.plot(series["parity"], "C3o-", ms=3, label="trained on parities")
    left.set(xlabel="examples", ylabel="accuracy", ylim=(0.4, 1.02), title="6 variables")
    styles = {"nearest neighbour": ":", "elimination": "--", "least squares": "-"}
    for i, (family, found) in enumerate(series["table"].items()):
        for name in styles.keys() & found.keys():
            right.plot(series["at"], found[name], f"C{i}{styles[name]}")
        right.plot([], [], f"C{i}", label=family)
    for name, style in styles.items():
        right.plot([], [], f"k{style}", label=name)
    right.set(xlabel="examples", ylim=(0.4, 1.02), title="simple learners, 28 variables")
    left.legend(fontsize=7, frameon=False)
    right.legend(fontsize=6, frameon=False, ncols=2)
