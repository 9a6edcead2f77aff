"""LensLLM (Zeng et al. 2025): what a fine-tuned model will cost, told from little data, and which model to choose.

Small language models, of several texts and stages of training, are fine-tuned on more and more windows of another text;
the loss of each is that of its best look, the model before fine-tuning being the first. What a model already knows
keeps that loss flat while the windows are few (pre-power phase), then it falls as a power:
    L(D) = B / (F t + D^β) + E          plain power law: t = 0
Half of the sizes are fitted and the others told: every second one, or the smaller half. F comes from the tangent kernel
K of the losses of some windows at the model as it is, before any fine-tuning,
    F = mean K_xx / mean K_xy, x ≠ y,
the number of windows from which on what they share moves the weights more than what each has for itself; t is one
number for all models. So the curve of a model has as many free numbers as a plain power law, B, β and E. (An own
reading: in the paper F is a test loss that the kernel predicts, and models have up to 7 billion weights.) Between the
sizes the shape with two phases is the better one, with one F for all models alike, too. From the smaller half alone
neither curve knows where the loss will end, and the steeper one is farther off. (The smaller half was judged first;
every second size came after that had failed.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.ranks import rank_correlation
from jaxlm.analysis.rectified_law import RectifiedLaw, fit_rectified_law
from jaxlm.analysis.taylor import tangent_kernel
from jaxlm.blocks import Block, Stack
from jaxlm.data.bigrams import SHAKESPEARE
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import Attention
from jaxlm.models import LM
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "LensLLM: fine-tuning dynamics for LLM selection"
QUESTION = "Does the tangent kernel before fine-tuning tell where its power law begins, and so which model to choose?"
ROWS = (45,)
SOURCES = {"news": "ptb/ptb.valid.txt.gz", "articles": "wikitext-2/wiki.valid.tokens.gz"}
NEEDS = (SHAKESPEARE, *SOURCES.values())
HEADLINE = "every second size fitted: error of the rectified curve over that of the power law"
FITTED = ("every second size", "smaller half")


@dataclass(frozen=True)
class Settings:
    """The models, both trainings, the laws.

    Args:
        width: Of the models.
        heads: Of attention.
        layers: Of the models.
        length: Characters of a window.
        stages: Steps of training before fine-tuning, multiples of the first; each is a model, from each source.
        batch: Windows a step.
        rate: Of Adam, before fine-tuning.
        sizes: Windows of fine-tuning, growing.
        steps: Of fine-tuning.
        tune_rate: Of Adam.
        looks: Times that a model is looked at in fine-tuning, a divisor of its steps.
        held: Windows that it is judged on.
        kernel: Windows of the tangent kernel, at most the largest size that is fitted.
        times: t that are tried in each of five decades from 0.01 on, beside 0.
        seeds: Of weights, windows and batches.
    """

    width: int = 24
    heads: int = 2
    layers: int = 1
    length: int = 24
    stages: tuple[int, ...] = (40, 160, 640)
    batch: int = 8
    rate: float = 5e-3
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    steps: int = 160
    tune_rate: float = 2e-3
    looks: int = 16
    held: int = 48
    kernel: int = 32
    times: int = 20
    seeds: int = 3


SMOKE = Settings(4, 1, 1, 4, (1, 2), 1, sizes=(2, 3, 4, 5, 6, 7), steps=2, looks=1, held=2, kernel=3, times=1, seeds=1)
BUDGETS = {
    "smoke": SMOKE,
    "cpu": Settings(),
    "gpu": Settings(128, 4, 4, 64, (250, 1000, 4000, 16000), 32, 2e-3, steps=2400, tune_rate=5e-4, looks=120, held=512),
}


def encoded(texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
    """Texts as numbers of characters, '?' beyond ASCII; how many characters there are."""
    raw = [np.frombuffer(x.encode("ascii", "replace"), np.uint8) for x in texts]
    used = np.any([np.bincount(x, minlength=256) for x in raw], axis=0)
    number = np.cumsum(used, dtype=np.int32) - 1
    return [number[x] for x in raw], int(np.sum(used))


def windows(text: Array, first: Array, length: int) -> Array:
    """first (b) -> (b, length + 1)"""
    return text[first[:, None] + jnp.arange(length + 1, dtype=jnp.int32)[None]]


def paid(model: LM, params: Params, rows: Array) -> Array:
    """Nats a character of each window.   (b, t + 1) -> (b,)"""
    return jnp.mean(nats(model.apply(params, rows[:, :-1])[0], rows[:, 1:]), axis=-1)


def candidates(s: Settings, model: LM, sources: list[np.ndarray], lab: Lab) -> Params:
    """Models of all sources and stages.   leaves (seeds, sources * stages, ...)"""
    size = min(len(x) for x in sources)
    each = jnp.asarray(np.stack([x[:size] for x in sources]))

    def loss(params: Params, key: Array, step: Array, of: Array) -> Array:
        first = jax.random.randint(key, (s.batch,), 0, size - s.length, jnp.int32)
        return jnp.mean(paid(model, params, windows(each[of], first, s.length)))

    found = fit(
        jax.random.split(lab.key, s.seeds * len(sources)),
        lambda key, of: init(model, key),
        loss,
        optax.adam(s.rate),
        steps=s.stages[-1],
        every=s.stages[0],
        watch=lambda params, key, of: {"params": params},
        each=jnp.tile(jnp.arange(len(sources), dtype=jnp.int32), s.seeds),
        tell=lab.tell,
    ).watched["params"]
    at = np.array(s.stages) // s.stages[0] - 1

    def sorted_out(x: np.ndarray) -> np.ndarray:
        x = np.moveaxis(x[at].reshape(len(at), s.seeds, len(sources), *x.shape[2:]), 0, 2)
        return x.reshape(s.seeds, -1, *x.shape[3:])

    return jax.tree.map(sorted_out, found)


def begins(kernel: Array) -> Array:
    """F: mean on the diagonal of a kernel over the mean beside it.   (n, n) -> ()"""
    n, own = len(kernel), jnp.trace(kernel)
    return own / n / ((jnp.sum(kernel) - own) / (n * (n - 1)))


def tuned(s: Settings, model: LM, models: Params, text: np.ndarray, lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Nats on held-out text of all models by size of the data, and their F.

    ->   (seeds, models, 1 + sizes), the first before fine-tuning; (seeds, models)
    """
    split, flat = len(text) * 9 // 10, jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[2:]), models)
    many = len(jax.tree.leaves(flat)[0]) // s.seeds
    chars, rng = jnp.asarray(text), np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel())
    order = np.stack([rng.permutation((split - 1) // s.length)[: s.sizes[-1]] for _ in range(s.seeds)]) * s.length
    judges = np.linspace(split, len(text) - s.length - 1, s.held).astype(np.int32)
    held, first = windows(chars, jnp.asarray(judges), s.length), jnp.asarray(order, jnp.int32)

    def look(params: Params) -> Array:
        return jnp.mean(paid(model, params, held))

    def before(at: tuple[Params, Array]) -> tuple[Array, Array]:
        params, first = at
        rows = windows(chars, first[: s.kernel], s.length)
        return look(params), begins(tangent_kernel(lambda p: paid(model, p, rows), params))

    def loss(params: Params, key: Array, step: Array, each: Tree) -> Array:
        which = jax.random.randint(key, (s.batch,), 0, each["size"], jnp.int32)
        return jnp.mean(paid(model, params, windows(chars, each["first"][which], s.length)))

    whose = jnp.repeat(first, many, axis=0)
    initial, kernel = (np.asarray(x) for x in jax.jit(partial(jax.lax.map, before))((flat, whose)))
    each = jax.tree.map(lambda x: jnp.repeat(x, len(s.sizes), axis=0), {"params": flat, "first": whose})
    each["size"] = jnp.tile(jnp.asarray(s.sizes, jnp.int32), len(whose))
    seen = fit(
        jax.random.split(lab.key, len(each["size"])),
        lambda key, each: each["params"],
        loss,
        optax.adam(s.tune_rate),
        steps=s.steps,
        every=s.steps // s.looks,
        watch=lambda params, key, each: {"held": look(params)},
        each=each,
        tell=lab.tell,
    ).watched["held"]
    best = np.minimum(seen.min(axis=0).reshape(-1, len(s.sizes)), initial[:, None])
    shape = s.seeds, many
    return np.concatenate([initial[:, None], best], axis=1).reshape(*shape, -1), kernel.reshape(shape)


def laws(s: Settings, losses: np.ndarray, kernels: np.ndarray, at: np.ndarray) -> dict[str, RectifiedLaw]:
    """Curves of all models from some of the sizes, also with an F that is one for all.   (m, sizes), (m), indices"""
    sizes, seen, times = np.array(s.sizes)[at], losses[:, at], np.append(0.0, np.logspace(-2, 3, 5 * s.times))
    return {
        "power": fit_rectified_law(sizes, seen, kernels, (0.0,)),
        "rectified": fit_rectified_law(sizes, seen, kernels, times),
        "F alike": fit_rectified_law(sizes, seen, np.ones_like(kernels), times),
    }


def run(s: Settings, lab: Lab) -> Result:
    return study(s, {k: lab.data.text(file) for k, file in SOURCES.items()}, lab.data.text(SHAKESPEARE), lab)


def study(s: Settings, sources: Mapping[str, str], text: str, lab: Lab) -> Result:
    """The experiment on any texts: what models learn first, by name, and what they are fine-tuned on."""
    (*learned, last), letters = encoded([*sources.values(), text])
    model = LM(letters, s.width, Stack(Block(Attention(s.width, s.heads), SwiGLU(s.width)), s.layers))
    models = candidates(s, model, learned, lab.part("models", 0.0, 0.2))
    losses, kernels = tuned(s, model, models, last, lab.part("tuned", 0.2, 1.0))
    order, flat = np.arange(len(s.sizes)), losses[..., 1:].reshape(-1, len(s.sizes))
    halves = dict(zip(FITTED, (order[::2], order[: len(order) // 2]), strict=True))
    found = {half: laws(s, flat, kernels.ravel(), at) for half, at in halves.items()}
    told = {h: {k: f(s.sizes).reshape(*kernels.shape, -1) for k, f in fits.items()} for h, fits in found.items()}
    times = {half: fits["rectified"].time for half, fits in found.items()}
    names = [f"{name}, {stage} steps" for name in sources for stage in s.stages]
    series = {
        "sizes": s.sizes, "models": names, "initial": losses[..., 0], "losses": losses[..., 1:], "kernels": kernels,
        "told": told, "times": times, "fitted": halves,
    }  # fmt: skip
    out = [c for half, at in halves.items() for c in judged(half, at, losses[..., 1:], told[half])]
    out += [Claim(f"{half} fitted: t", time) for half, time in times.items()]
    out += [Claim("F, least", float(kernels.min())), Claim("F, largest", float(kernels.max()))]
    return Result((*out, *chosen(losses, told)), series)


def judged(half: str, at: np.ndarray, losses: np.ndarray, told: dict[str, np.ndarray]) -> list[Claim]:
    """Errors of the curves at the sizes that were not fitted.   (seeds, models, sizes)"""
    squares = {k: np.mean(np.delete(x - losses, at, axis=-1) ** 2, axis=(1, 2)) for k, x in told.items()}  # (seeds,)
    error = {k: float(np.sqrt(x.mean())) for k, x in squares.items()}
    name, worst = "error of the rectified curve over that of the power law", squares["rectified"] / squares["power"]
    return [
        Claim(f"{half} fitted: {name}", error["rectified"] / error["power"], high=1.0),
        Claim(f"{half} fitted: the same, worst seed", float(np.sqrt(worst.max())), high=1.0),
        *(Claim(f"{half} fitted: error of the curve, {k}, nats", x) for k, x in error.items()),
    ]


def chosen(losses: np.ndarray, told: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """Models put into an order by what is known from the smaller half, and by their losses at the largest size."""
    last, half, out = losses[..., -1], told[FITTED[1]], []
    guesses = {"rectified curve": half["rectified"][..., -1], "power law": half["power"][..., -1]}
    guesses["largest size that was fitted"] = losses[..., losses.shape[-1] // 2]
    guesses["loss before fine-tuning"] = losses[..., 0]
    for name, guess in guesses.items():
        order = np.mean([rank_correlation(a, b) for a, b in zip(guess, last, strict=True)])
        best = np.take_along_axis(last, np.argmin(guess, axis=1)[:, None], axis=1)[:, 0]
        out.append(Claim(f"models by {name}: rank correlation with the largest size's losses, mean", float(order)))
        out.append(Claim(f"models by {name}: nats above the best one, mean", float(np.mean(best - last.min(axis=1)))))
    return out


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4.5)
    *panels, c = figure.subplots(1, 3)
    sizes, seen = np.array(series["sizes"]), np.array(series["losses"][0])
    for a, (half, at) in zip(panels, series["fitted"].items(), strict=True):
        others = np.setdiff1d(np.arange(len(sizes)), at)
        for n, name in enumerate(series["models"]):
            a.plot(sizes[at], seen[n, at], f"C{n}o", label=name)
            a.plot(sizes[others], seen[n, others], f"C{n}o", mfc="none")
            a.plot(sizes, series["told"][half]["rectified"][0][n], f"C{n}-", lw=1)
            a.plot(sizes, series["told"][half]["power"][0][n], f"C{n}:", lw=1)
        a.plot([], [], "k-", lw=1, label="rectified curve")
        a.plot([], [], "k:", lw=1, label="power law")
        a.set(title=f"One seed; {half} fitted (full)", xlabel="windows D", ylabel="nats a character", xscale="log")
        a.legend(fontsize=7, frameon=False)
    for n, (half, told) in enumerate(series["told"].items()):
        for style, name in (("-", "rectified"), (":", "power")):
            error = np.sqrt(np.mean(np.square(np.array(told[name]) - series["losses"]), axis=(0, 1)))
            c.loglog(sizes, error, f"C{n}o{style}", label=f"{name}, {half} fitted")
    c.set(title="Error, all seeds and models, nats", xlabel="windows D")
    c.legend(fontsize=7, frameon=False)
