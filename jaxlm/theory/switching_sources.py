"""Sequence models trained on a coin that is exchanged become the Bayes mixture over when (Genewein et al. 2023).

Redundancy = nats more than who knows every coin pays. First the exact mixtures of `jaxlm.analysis.switching`, against
the sum over all patterns of switches, and on four sources; then models of several mixers trained on the LIN source,
whose Bayes mixture is LIN: nothing that knows the past alone can do better. (The paper: length 256, Adam 1e-4, up to
hundreds of thousands of steps; its numbers are in figures. What ours are held to is an independent simulation.)
"""

import itertools
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis import switching
from jaxlm.analysis.switching import SOURCES, kt, lin, lin_naive, ptw, truth
from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers._capability import mixer_of
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params

TITLE = "Memory-based meta-learning on sources that switch"
QUESTION = "Do sequence models trained by log loss become the Bayes mixture over unobserved switches?"
ROWS = (197,)
NEEDS = ()
HEADLINE = "LSTM: redundancy, ratio to LIN's"

# Means of KT, PTW, LIN over 200 sequences of 256 bits: an independent simulation.
SIMULATED = 200
REFERENCE = {
    "static": (2.57, 3.19, 4.47),
    "PTW": (30.6, 8.7, 11.3),
    "LIN": (47.5, 24.6, 19.9),
    "regular": (76.9, 37.7, 33.3),
}
EXACT = ("KT", "PTW", "LIN")


@dataclass(frozen=True)
class Settings:
    """What is measured and trained.

    Args:
        sources: Of the exact mixtures' table, LIN among them.
        mixers: Names of the models' mixers.
        width: Of the models.
        hidden: Units of their MLPs.
        depth: Blocks.
        length: Bits of a training sequence.
        batch: Sequences a step.
        steps: Of Adam.
        rate: Its step size.
        seeds: Models of each mixer.
        looks: Times at which the models are judged in training.
        far: Bits of a test sequence, and of the table of exact mixtures.
        trials: Test sequences of each.
    """

    sources: tuple[str, ...] = tuple(SOURCES)
    mixers: tuple[str, ...] = ("GRU", "LSTM", "Attention", "GLA", "DeltaNet", "LEM", "SRWM")
    width: int = 24
    hidden: int = 48
    depth: int = 2
    length: int = 64
    batch: int = 32
    steps: int = 300
    rate: float = 5e-3
    seeds: int = 3
    looks: int = 10
    far: int = 256
    trials: int = 600


BUDGETS = {
    "smoke": Settings(("LIN",), ("GRU",), 4, 4, 1, length=8, batch=4, steps=2, seeds=1, looks=1, far=8, trials=8),
    "cpu": Settings(),
    "gpu": Settings(width=64, hidden=128, length=256, batch=128, steps=10000, rate=1e-3, far=1024, trials=4000),
}


def exact(bits: Array) -> Array:
    """ln P of every prefix under KT, PTW, LIN.   (b, t) -> (3, b, t) nats"""
    return jnp.stack([kt(bits), ptw(bits, (bits.shape[1] - 1).bit_length()), lin(bits)])


def identities(length: int) -> tuple[float, float]:
    """Largest gaps, in float64, of LIN to the sum over patterns and of the mixtures' sums over all sequences to 1."""
    every = np.array(list(itertools.product((0, 1), repeat=length)), np.int32)
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(exact)(jnp.asarray(every)))[..., -1]
    some = np.linspace(0, len(every) - 1, 4).astype(int)
    off = [found[2, i] - lin_naive(every[i]) for i in some]
    return float(np.abs(off).max()), float(np.abs(np.exp(found).sum(1) - 1).max())


@partial(jax.jit, static_argnums=(1, 2, 3))
def measured(key: Array, sources: tuple[str, ...], trials: int, length: int) -> tuple[Array, ...]:
    """New sequences of the sources: bits (s, b, t), ln P by the truth (s, b, t) and by KT, PTW, LIN (3, s, b, t)."""
    drawn = [switching.draw(key, source, trials, length) for source in sources]
    x = jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)
    found = x.bits, truth(x), exact(x.bits)
    return tuple(a.reshape(*a.shape[:-2], len(sources), trials, length) for a in found)


def model_of(mixer: str, s: Settings) -> SequenceModel:
    """Bit by bit: reads the bit before (none at the first place), gives logits of the next."""
    body = Stack(Block(mixer_of(mixer, s.width), MLP(s.width, s.hidden)), s.depth)
    return SequenceModel(body, outputs=2, inputs=2, readout="every")


def paid(model: SequenceModel, params: Params, bits: Array) -> Array:
    """-ln P of every bit given those before.   (b, t) nats"""
    x = jnp.pad(jax.nn.one_hot(bits[:, :-1], 2, dtype=jnp.float32), ((0, 0), (1, 0), (0, 0)))
    return nats(model.apply(params, x)[0], bits)


def learn(mixer: str, s: Settings, bits: Array, lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Train on the LIN source, and judge on given bits (b, t).

    ->   nats above LIN of the training sequences (looks, seeds); -ln P of every prefix (seeds, b, t)
    """
    model = model_of(mixer, s)

    def loss(params: Params, key: Array, step: Array) -> Array:
        bits = switching.draw(key, "LIN", s.batch, s.length).bits
        return jnp.mean(paid(model, params, bits)) + jnp.mean(lin(bits)[:, -1]) / s.length  # 0 at its least

    tx, keys = clipped(optax.adam(trapezoid(s.rate, s.steps))), jax.random.split(lab.key, s.seeds)
    keep = None if lab.folder is None else lab.folder / "progress.npz"
    how = {"steps": s.steps, "every": s.steps // s.looks, "tell": lab.tell, "keep": keep}
    found = fit(keys, partial(init, model), loss, tx, **how)
    judge = jax.jit(lambda params, bits: jax.lax.map(lambda p: jnp.cumsum(paid(model, p, bits), axis=1), params))
    return found.watched["loss"] * s.length, np.asarray(judge(found.params, bits))


def run(s: Settings, lab: Lab) -> Result:
    off, sums = identities(min(10, s.length))
    claims = [
        Claim("LIN: largest gap to the sum over all patterns of switches", off, high=1e-10),
        Claim("mixtures: sum over all sequences, gap to 1", sums, high=1e-10),
    ]
    key, n, own = jax.random.fold_in(lab.key, 1), s.length, s.sources.index("LIN")
    bits, known, mixed = measured(key, s.sources, s.trials, s.far)
    table = {name: np.asarray(known[i][None] - mixed[:, i]) for i, name in enumerate(s.sources)}
    claims += of_table({name: x[..., -1] for name, x in table.items()}, s)
    short = measured(key, s.sources, s.trials, n)  # PTW knows the length
    near = np.asarray(short[1][own][None] - short[2][:, own])[..., -1]
    lab.tell(0.05)
    claims += [Claim(f"{n} bits of LIN, {name}: redundancy", r) for name, r in zip(EXACT, near.mean(1), strict=True)]
    ratio = near[0].mean() / near[2].mean()
    claims.append(Claim("KT, that never switches: redundancy, ratio to LIN's", ratio, low=1.2))
    learned, looks, part = {}, {}, 0.95 / len(s.mixers)
    for i, mixer in enumerate(s.mixers):
        looks[mixer], paid = learn(mixer, s, bits[own], lab.part(mixer, 0.05 + part * i, 0.05 + part * (i + 1)))
        found = np.asarray(known[own])[None] + paid
        learned[mixer] = found.mean((0, 1))
        claims += of_mixer(mixer, found, near, table["LIN"][2], n)
    means = {name: x.mean(1) for name, x in table.items()}
    series = {"exact": means["LIN"], "table": {k: v[:, -1] for k, v in means.items()}, "learned": learned}
    return Result(tuple(claims), {**series, "looks": looks, "steps": s.steps, "length": n})


def of_table(table: dict[str, np.ndarray], s: Settings) -> list[Claim]:
    """Redundancies (3, trials) of the exact mixtures by source: their order, and against the reference."""
    claims, gaps = [], []
    for source, found in table.items():
        known = REFERENCE.get(source) if s.far == 256 else None
        error = found.std(1) * math.sqrt(1 / s.trials + 1 / SIMULATED)
        for i, name in enumerate(EXACT):
            paper = None if known is None else known[i]
            claims.append(Claim(f"{s.far} bits of {source}, {name}: redundancy", float(found[i].mean()), paper=paper))
            gaps += [] if paper is None else [abs(found[i].mean() - paper) / error[i]]
    means = {source: dict(zip(EXACT, found.mean(1).tolist(), strict=True)) for source, found in table.items()}
    for source, of in means.items():
        other = "LIN" if source == "PTW" else "PTW"
        if source in EXACT:
            claims.append(Claim(f"{source} source: {other} less {source}", of[other] - of[source], low=0.5))
        if source != "static":
            claims.append(
                Claim(f"{source} source: KT less the worse mixture", of["KT"] - max(of["PTW"], of["LIN"]), low=0.5)
            )
    if s.far == 256 and "static" in means:
        limit = 0.5 * math.log(s.far / (2 * math.pi * math.e)) + math.log(math.pi)
        claims.append(
            Claim("static source: KT less its asymptote", means["static"]["KT"] - limit, low=-0.15, high=0.25)
        )
        claims.append(Claim("table: largest gap to the reference, in standard errors", float(max(gaps)), high=4.0))
    return claims


def of_mixer(mixer: str, found: np.ndarray, near: np.ndarray, far: np.ndarray, n: int) -> list[Claim]:
    """Redundancies (seeds, b, t) of models against LIN's on the same sequences, far (b, t); near (3, b): at n bits."""
    at, best = found[..., n - 1].mean(), far[:, n - 1].mean()
    gap = (found[..., n - 1] - far[:, n - 1][None]).mean()
    row, sheet = mixer in ("LSTM", "Attention"), mixer == "GRU"
    return [
        Claim(f"{mixer}: redundancy, ratio to LIN's", float(at / best), **({"high": 1.1} if row else {})),
        Claim(f"{mixer}: nats above LIN", float(gap), **({"low": -0.02, "high": 0.25} if sheet else {"low": -0.02})),
        Claim(f"{mixer}: PTW less it", float(near[1].mean() - at), low=0.0),
        Claim(f"{mixer}: {found.shape[-1]} bits, ratio to LIN's", float(found[..., -1].mean() / far[:, -1].mean())),
    ]


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    places = np.arange(1, len(series["exact"][0]) + 1)
    for i, (mixer, curve) in enumerate(series["learned"].items()):
        left.plot(places, curve, f"C{i}", lw=2, alpha=0.7, label=mixer)
        looks = np.asarray(series["looks"][mixer], float)
        at = np.linspace(0, series["steps"], len(looks) + 1)[1:]
        right.semilogy(at, np.maximum(looks.mean(1), 1e-3), f"C{i}o-", ms=3, label=mixer)
    for name, curve, style in zip(EXACT, series["exact"], (":", "--", "-"), strict=True):
        left.plot(places, curve, "k" + style, lw=1, label=f"{name}, exact")
    left.axvline(series["length"], color="0.7", lw=0.8)
    top = max(series["exact"][0][-1], series["exact"][1][-1])
    left.set(xlabel="bits read (line: length of training)", ylabel="redundancy, nats", ylim=(0, top))
    left.set(title="a source that switches after $l$ bits with 1/(2l)")
    right.set(xlabel="steps", ylabel="nats above the exact mixture", title="at the length of training")
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False)
