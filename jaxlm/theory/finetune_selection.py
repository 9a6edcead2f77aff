"""LensLLM (Zeng et al. 2025): what a fine-tuned model will cost, told from little data, and which model to choose.

Small language models, of several texts and stages of training, are fine-tuned on more and more windows of another text;
the loss of each is that of its best look, the model before fine-tuning being the first. What a model already knows
keeps that loss flat while the windows are few (pre-power phase), then it falls as a power:
    L(D) = B / (F t + D^β) + E          plain power law: t = 0
The smaller half of the sizes is fitted, the larger half is told. F comes from the tangent kernel K of the losses of
some windows at the model as it is, before any fine-tuning,
    F = mean K_xx / mean K_xy, x ≠ y,
the number of windows from which on what they share moves the weights more than what each has for itself; t is one
number for all models. So the curve of a model has as many free numbers as a plain power law, B, β and E. (An own
reading: in the paper F is a test loss that the kernel predicts, and models have up to 7 billion weights.)
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
HEADLINE = "larger half: error of the rectified curve over that of the power law, all seeds"


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
        sizes: Windows of fine-tuning, growing; the first half is fitted.
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
    sizes: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    steps: int = 120
    tune_rate: float = 2e-3
    looks: int = 24
    held: int = 48
    kernel: int = 12
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


def laws(s: Settings, losses: np.ndarray, kernels: np.ndarray) -> dict[str, RectifiedLaw]:
    """Curves of all models from the smaller half of the sizes.   (models, sizes), (models)

    free   with a shift of each model's own, fitted like the rest
    """
    half, times = len(s.sizes) // 2, np.append(0.0, np.logspace(-2, 3, 5 * s.times))
    sizes, seen = s.sizes[:half], losses[:, :half]
    alone = [fit_rectified_law(sizes, row[None], [1.0], times) for row in seen]
    scale, exponent, floor, shift = (np.concatenate(x) for x in zip(*[law[:4] for law in alone], strict=True))
    return {
        "power": fit_rectified_law(sizes, seen, kernels, (0.0,)),
        "rectified": fit_rectified_law(sizes, seen, kernels, times),
        "free": RectifiedLaw(scale, exponent, floor, shift, np.nan, sum(law.squares for law in alone)),
    }


def run(s: Settings, lab: Lab) -> Result:
    return study(s, {k: lab.data.text(file) for k, file in SOURCES.items()}, lab.data.text(SHAKESPEARE), lab)


def study(s: Settings, sources: Mapping[str, str], text: str, lab: Lab) -> Result:
    """The experiment on any texts: what models learn first, by name, and what they are fine-tuned on."""
    (*learned, last), letters = encoded([*sources.values(), text])
    model = LM(letters, s.width, Stack(Block(Attention(s.width, s.heads), SwiGLU(s.width)), s.layers))
    models = candidates(s, model, learned, lab.part("models", 0.0, 0.2))
    losses, kernels = tuned(s, model, models, last, lab.part("tuned", 0.2, 1.0))
    fits = laws(s, losses[..., 1:].reshape(-1, len(s.sizes)), kernels.ravel())
    told = {name: law(s.sizes).reshape(losses[..., 1:].shape) for name, law in fits.items()}
    names = [f"{name}, {stage} steps" for name in sources for stage in s.stages]
    series = {
        "sizes": s.sizes, "models": names, "initial": losses[..., 0], "losses": losses[..., 1:], "kernels": kernels,
        "told": told, "time": fits["rectified"].time,
    }  # fmt: skip
    return Result((*claims(s, losses, kernels, told), Claim("t", fits["rectified"].time)), series)


def claims(s: Settings, losses: np.ndarray, kernels: np.ndarray, told: dict[str, np.ndarray]) -> tuple[Claim, ...]:
    half, last = len(s.sizes) // 2, losses[..., -1]
    squares = {k: np.mean((x - losses[..., 1:])[..., half:] ** 2, axis=(1, 2)) for k, x in told.items()}  # (seeds,)
    error = {k: float(np.sqrt(x.mean())) for k, x in squares.items()}
    ratio = np.sqrt(squares["rectified"] / squares["power"])
    out = [
        Claim(HEADLINE, error["rectified"] / error["power"], high=1.0),
        Claim("the same, worst seed", float(ratio.max()), high=1.0),
        *(Claim(f"larger half: error of the {k} curve, nats", x) for k, x in error.items()),
        Claim("F, least", float(kernels.min())),
        Claim("F, largest", float(kernels.max())),
    ]
    guesses = {"rectified curve": told["rectified"][..., -1], "power law": told["power"][..., -1]}
    guesses |= {"largest size that was fitted": losses[..., half], "loss before fine-tuning": losses[..., 0]}
    for name, guess in guesses.items():
        order = np.mean([rank_correlation(a, b) for a, b in zip(guess, last, strict=True)])
        chosen = np.take_along_axis(last, np.argmin(guess, axis=1)[:, None], axis=1)[:, 0]
        out.append(Claim(f"models by {name}: rank correlation with the largest size's losses, mean", float(order)))
        out.append(Claim(f"models by {name}: nats above the best one, mean", float(np.mean(chosen - last.min(axis=1)))))
    return tuple(out)


def draw(figure, series) -> None:
    figure.set_size_inches(12, 4.5)
    a, b = figure.subplots(1, 2)
    sizes, half = np.array(series["sizes"]), len(series["sizes"]) // 2
    for n, name in enumerate(series["models"]):
        losses = np.array(series["losses"][0][n])
        a.plot(sizes[:half], losses[:half], f"C{n}o", label=name)
        a.plot(sizes[half:], losses[half:], f"C{n}o", mfc="none")
        a.plot(sizes, series["told"]["rectified"][0][n], f"C{n}-", lw=1)
        a.plot(sizes, series["told"]["power"][0][n], f"C{n}:", lw=1)
        for seed, told in zip(series["losses"], series["told"]["rectified"], strict=True):
            b.plot(told[n][-1], seed[n][-1], f"C{n}o")
    a.axvline(np.sqrt(sizes[half - 1] * sizes[half]), color="0.7", lw=1)
    a.plot([], [], "k-", lw=1, label="rectified curve, of the left half")
    a.plot([], [], "k:", lw=1, label="power law, of the left half")
    a.set(title="Fine-tuning of one seed's models", xlabel="windows D", ylabel="nats a character", xscale="log")
    low, high = np.min(series["losses"], axis=(0, 1))[-1], np.max(series["losses"], axis=(0, 1))[-1]
    b.plot([low, high], [low, high], "k:", label="equal")
    b.set(
        title=f"{sizes[-1]} windows: told and measured, nats", xlabel="told by the rectified curve", ylabel="measured"
    )
    for axes in (a, b):
        axes.legend(fontsize=7, frameon=False)
