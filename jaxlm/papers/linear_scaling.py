"""Scaling laws of linear-time language models beside softmax attention's (Shen et al. 2024, 2406.16690).

The paper's mixers in one block: attention, TNL, which decays at fixed rates, HGRN2, which decays as the data says, and
cosFormer2, which does not decay. Some widths of a few blocks learn the characters of tiny Shakespeare, for one and
the same number of tokens, less than an epoch. Nats on held-out text fall as a power of the weights between embedding
and readout, L = a N^-b: as in the paper without a floor, which so few sizes could not tell from the power. Errors are
standard errors of that fit. The paper: 70 million to 7 billion weights, 300 billion tokens, power laws of the compute.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.power_law import PowerLaw, fit_power_law
from jaxlm.blocks import Block, Stack
from jaxlm.data.bigrams import SHAKESPEARE
from jaxlm.errors import ConfigError
from jaxlm.layers.mlp import MLP
from jaxlm.mixers import HGRN2, TNL, Attention, CosFormer
from jaxlm.mixers.base import Mixer
from jaxlm.models import LM
from jaxlm.module import count, init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "Scaling laws of linear-time language models"
ROWS = (42,)
NEEDS = (SHAKESPEARE,)
HEADLINE = "TNL: exponent over attention's"
MIXERS: dict[str, Callable[[int], Mixer]] = {
    "attention": Attention,
    "TNL": TNL,
    "cosFormer2": lambda width: CosFormer(width, second=True),
    "HGRN2": HGRN2,
}


@dataclass(frozen=True)
class Settings:
    """mixers of MIXERS, the first the one that the others are compared with; widths; seeds of each size, all at one
    time; depth in blocks; length of a row in characters; rate of Adam at a width of 32, falling as the root of the
    width; test: rows of held-out text"""

    mixers: tuple[str, ...] = tuple(MIXERS)
    widths: tuple[int, ...] = (16, 24, 32, 48, 64)
    seeds: int = 2
    depth: int = 2
    length: int = 128
    batch: int = 8
    steps: int = 400
    rate: float = 0.01
    test: int = 128


BUDGETS = {
    "smoke": Settings(("TNL",), (4,), seeds=1, depth=1, length=8, batch=2, steps=2, test=2),
    "cpu": Settings(("attention", "TNL", "cosFormer2"), (16, 24, 32, 48)),
    "gpu": Settings(widths=(16, 32, 64, 128, 256), seeds=3, depth=4, length=256, batch=32, steps=8000, test=256),
}


def run(s: Settings, lab: Lab) -> Result:
    """Train every mixer at every size, and fit a power law to each."""
    _, ids = np.unique(np.array([lab.data.text(SHAKESPEARE)]).view(np.uint32), return_inverse=True)
    train, held = np.split(ids.astype(np.uint8), [len(ids) * 9 // 10])
    test = held[: s.test * (s.length + 1)].reshape(s.test, s.length + 1)
    models = {name: [model_of(name, w, int(ids.max()) + 1, s) for w in s.widths] for name in s.mixers}
    sizes = {name: [count(m.body) for m in found] for name, found in models.items()}
    losses, total = {}, sum(map(sum, sizes.values()))
    done = 0.0
    for name, found in models.items():
        losses[name] = []
        for model in found:
            part = lab.part(f"{name} {model.width}", done / total, (done + count(model.body)) / total)
            losses[name].append(learn(model, train, test, s, part))
            done += count(model.body)
    laws = {name: law(sizes[name], np.mean(losses[name], axis=1)) for name in s.mixers}
    fits = {name: {"a": p.a, "b": p.b, "error": p.error[1], "r2": p.r2} for name, p in laws.items()}
    series = {"sizes": sizes, "losses": losses, "laws": fits}
    said = f"{s.steps * s.batch * s.length:,} of {len(train):,} characters, {s.seeds} seeds of each size"
    return Result(_claims(laws, losses, s), series, (said,))


def model_of(name: str, width: int, vocab: int, s: Settings) -> LM:
    """Blocks of a mixer and an MLP between one matrix that embeds and reads out."""
    return LM(vocab, width, Stack(Block(MIXERS[name](width), MLP(width)), s.depth))


def learn(model: LM, train: np.ndarray, test: np.ndarray, s: Settings, lab: Lab) -> np.ndarray:
    """Nats a character of the test rows after training, of every seed.   (seeds,)"""
    text, rows = jnp.asarray(train), jnp.asarray(test, jnp.int32)

    def mean(params: Params, z: Array) -> Array:
        return jnp.mean(nats(model.apply(params, z[:, :-1])[0], z[:, 1:]))

    def loss(params: Params, key: Array, step: Array) -> Array:
        first = jax.random.randint(key, (s.batch, 1), 0, len(train) - s.length, jnp.int32)
        return mean(params, text[first + jnp.arange(s.length + 1, dtype=jnp.int32)[None]].astype(jnp.int32))

    def watch(params: Params, key: Array) -> Tree:
        return {"test": mean(params, rows)}

    rate = s.rate * math.sqrt(32 / model.width)
    found = fit(
        jax.random.split(lab.key, s.seeds),
        partial(init, model),
        loss,
        clipped(optax.adam(trapezoid(rate, s.steps), b2=0.98)),
        steps=s.steps,
        every=s.steps,
        watch=watch,
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "fit.npz",
    )
    return found.watched["test"][-1]


def law(sizes: list[int], losses: np.ndarray) -> PowerLaw:
    """The power law without a floor; of nan where there is none: too few sizes, or losses that do not fall."""
    try:
        return fit_power_law(sizes, losses, floor=0.0)
    except ConfigError:
        return PowerLaw(math.nan, math.nan, 0.0, (math.nan, math.nan, 0.0), math.nan)


def _claims(laws: Mapping[str, PowerLaw], losses: Mapping[str, list[np.ndarray]], s: Settings) -> tuple[Claim, ...]:
    first, *others = s.mixers
    claims = []
    for name, found in laws.items():
        claims += [
            Claim(f"{name}: exponent", found.b),
            Claim(f"{name}: standard error of the exponent", found.error[1]),
            Claim(f"{name}: R² of the power law", found.r2, low=0.95),
            Claim(f"{name}: nats at width {s.widths[-1]}", float(losses[name][-1].mean())),
        ]
    ratios = [Claim(f"{n}: exponent over {first}'s", laws[n].b / laws[first].b, low=0.8, high=1.2) for n in others]
    return (*ratios, *claims)


def draw(figure, series: Mapping[str, Any]) -> None:
    """Nats of every seed by the number of weights, and the laws as lines."""
    ax = figure.subplots()
    for i, (name, sizes) in enumerate(series["sizes"].items()):
        found = series["laws"][name]
        for size, seeds in zip(sizes, series["losses"][name], strict=True):
            ax.plot([size] * len(seeds), seeds, "o", color=f"C{i}", alpha=0.6, ms=4)
        b, error = (math.nan if found[k] is None else found[k] for k in ("b", "error"))
        a = math.nan if found["a"] is None else found["a"]
        line = np.geomspace(min(sizes), max(sizes), 20)
        ax.plot(line, a * line**-b, color=f"C{i}", label=f"{name}: $N^{{-{b:.3f} \\pm {error:.3f}}}$")
    ax.set(xscale="log", yscale="log", xlabel="weights between embedding and readout", ylabel="nats a character")
    ax.yaxis.set_minor_formatter("{x:.2f}")
    ax.legend()
