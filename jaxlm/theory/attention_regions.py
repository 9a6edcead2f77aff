"""Reasoning in large language models: a geometric perspective (Cosentino & Shekkizhar 2024).

What a head gives is a convex combination of its t values, and heads add up: attention's output lies in a Minkowski sum
of hulls, of dimension m = min(d, h min(t - 1, k)) for values of size k. An MLP behind it is affine on regions, and
    f units make at most Σ_{j <= m} C(f, j) of them in m dimensions,
so that heads and tokens give one and the same MLP more of them. Exactly: all regions of some units in the sum of hulls,
by linear programs. On slices: the last token goes round a circle, softmax lays attention's output, normalised, along a
loop, and a unit with Gaussian weights cuts it length / π times in the mean, by Cauchy and Crofton; changes of the units
are counted on a fine grid of the circle. Then an MLP learns a sine of the angle from that loop.

An own setting: attention is as initialised, its scores `sharp` times as large, and is held while the MLP learns. With
scores as they are, softmax averages, and slices hardly gain from heads or tokens. The error falls with heads; tokens
alone do not make it fall reliably, though they make slices longer.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.ranks import rank_correlation
from jaxlm.analysis.regions import general_position, hull_regions, loop_crossings, loop_length, sum_dimension
from jaxlm.layers.mlp import MLP
from jaxlm.mixers import Attention
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params

TITLE = "Reasoning in large language models: a geometric perspective"
QUESTION = "Do more heads and a longer context give one and the same MLP more affine regions, and a better fit?"
ROWS = (149,)
NEEDS = ()
HEADLINE = "slices: regions with more heads over those with fewer, least, mean of seeds"


@dataclass(frozen=True)
class Settings:
    """The hulls, the slices, the fit.

    Args:
        heads: h, growing.
        tokens: t, growing, with the last token itself.
        few_heads: Of the hulls.
        few_tokens: Of the hulls.
        few_units: f of the MLP in the hulls.
        head: k.
        width: d.
        sharp: Scores of attention at initialisation are multiplied by it; the first is that of the fit.
        grid: Points of the circle.
        units: Of the MLP on slices.
        spread: Standard deviation of biases, over that of what a unit reads.
        hidden: f of the MLP that learns.
        frequency: Of the sine that it learns.
        points: That it learns from; as many between them judge it.
        steps: Of Adam.
        rate: Of Adam.
        seeds: Of tokens, attention and MLP.
    """

    heads: tuple[int, ...] = (1, 2, 4)
    tokens: tuple[int, ...] = (2, 4, 8, 16)
    few_heads: tuple[int, ...] = (1, 2, 4)
    few_tokens: tuple[int, ...] = (2, 3, 4)
    few_units: int = 8
    head: int = 16
    width: int = 64
    sharp: tuple[float, ...] = (4.0, 1.0)
    grid: int = 4096
    units: int = 1024
    spread: float = 0.5
    hidden: int = 32
    frequency: int = 8
    points: int = 256
    steps: int = 1000
    rate: float = 3e-3
    seeds: int = 3


SMALL = {"head": 2, "width": 6, "sharp": (4.0,), "grid": 16, "units": 4, "hidden": 2, "points": 4, "steps": 2}
BUDGETS = {
    "smoke": Settings((2,), (3,), (2,), (2, 3), 2, seeds=1, **SMALL),
    "cpu": Settings(),
    "gpu": Settings((1, 2, 4, 8), (2, 4, 8, 16, 32), few_units=12, head=32, width=256, hidden=128, seeds=10),
}


def dimensions(s: Settings, heads: tuple[int, ...], tokens: tuple[int, ...]) -> np.ndarray:
    """m of the sum of the hulls, tokens and weights in general position.   (heads, tokens)"""
    return np.minimum(s.width, np.outer(heads, np.minimum(np.array(tokens) - 1, s.head)))


def layer(s: Settings, heads: int) -> Attention:
    return Attention(s.width, heads=heads, head=s.head, position=None, cache_dtype="float64")


def draw_tokens(rng: np.random.Generator, s: Settings) -> np.ndarray:
    """The most tokens; a shorter context has the first of them.   (t, d)"""
    return rng.normal(size=(max(*s.tokens, *s.few_tokens), s.width))


def draw_units(rng: np.random.Generator, s: Settings, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of an MLP that reads numbers of variance 1.   (d, f), (f,)"""
    return rng.normal(size=(s.width, units)) / np.sqrt(s.width), s.spread * rng.normal(size=units)


def corners(params: Params, x: np.ndarray) -> list[np.ndarray]:
    """What each head gives for attending to one token alone.   x (t, d) -> h times (t, d)"""
    values = np.einsum("td,dhk,hke->hte", x, np.asarray(params["value"]), np.asarray(params["out"]))
    return list(values)


def loop(s: Settings, params: Params, x: np.ndarray, sharp: float) -> np.ndarray:
    """Attention's normalised output at the last token, that goes round a circle through the first two axes.

    x (t - 1, d), the tokens before it -> (grid, d) in float64
    """
    angle = 2 * np.pi * np.arange(s.grid) / s.grid
    last = np.zeros((s.grid, s.width))
    last[:, 0], last[:, 1] = np.cos(angle), np.sin(angle)
    params = {**params, "query": sharp * params["query"]}
    last *= np.sqrt(s.width)  # as long as the others
    z = np.asarray(attended(layer(s, params["query"].shape[1]), params, x, last))
    return z / np.sqrt(np.mean(z**2, axis=1, keepdims=True))


@partial(jax.jit, static_argnums=0)
def attended(mixer: Attention, params: Params, x: Array, last: Array) -> Array:
    """Attention's output at each of some last tokens.   x (t - 1, d), last (n, d) -> (n, d)"""
    _, state = mixer.apply(params, x[None], mixer.start(params, 1, room=len(x) + 1))
    return jax.vmap(lambda token: mixer.step(params, token[None], state)[0][0])(last)


def in_hulls(s: Settings, rng: np.random.Generator, attend: dict[int, Params], x: np.ndarray) -> dict[str, np.ndarray]:
    """Regions of the sums of hulls, most there can be, error of the told dimensions.   (few_heads, few_tokens)"""
    up, bias = draw_units(rng, s, s.few_units)
    told = dimensions(s, s.few_heads, s.few_tokens)
    regions, dimension = np.zeros_like(told), np.zeros_like(told)
    for i, j in np.ndindex(told.shape):
        hulls = corners(attend[s.few_heads[i]], x[: s.few_tokens[j]])
        regions[i, j], dimension[i, j] = len(hull_regions(hulls, up, bias)), sum_dimension(hulls)
    most = np.vectorize(general_position)(s.few_units, told)
    return {"regions": regions, "most": most, "off": np.abs(dimension - told)}


def on_slices(s: Settings, rng: np.random.Generator, attend: dict[int, Params], x: np.ndarray) -> dict[str, np.ndarray]:
    """Regions that units meet on the loops, all of them, on every second point, and as told; the first sharp's loops.

    ->   regions, coarse, told (sharp, heads, tokens); loops (heads, tokens, grid, d)
    """
    up, bias = draw_units(rng, s, s.units)
    shape = (len(s.sharp), len(s.heads), len(s.tokens))
    found = {name: np.zeros(shape) for name in ("regions", "coarse", "told")}
    loops = np.zeros((*shape[1:], s.grid, s.width))
    for n, i, j in np.ndindex(shape):
        z = loop(s, attend[s.heads[i]], x[: s.tokens[j] - 1], s.sharp[n])
        on = z @ up + bias > 0
        found["regions"][n, i, j] = loop_crossings(on)
        found["coarse"][n, i, j] = loop_crossings(on[::2])
        found["told"][n, i, j] = s.units * loop_length(z, s.spread * np.sqrt(s.width)) / np.pi
        if n == 0:
            loops[i, j] = z
    return {**found, "loops": loops}


def learn(s: Settings, loops: np.ndarray, lab: Lab) -> np.ndarray:
    """An MLP on every loop learns a sine of the circle's angle.   (r, grid, d) -> root mean square error (r)"""
    take = np.linspace(0, s.grid, 2 * s.points, endpoint=False).astype(int)
    mlp, z = MLP(s.width, s.hidden, "relu"), jnp.asarray(loops[:, take], jnp.float32)
    target = jnp.asarray(np.sin(2 * np.pi * s.frequency * take / s.grid), jnp.float32)

    def error(params: Params, z: Array, first: int) -> Array:
        says = jnp.mean(mlp.apply(params, z[first::2]), axis=-1) * np.sqrt(s.width)
        return jnp.mean((says - target[first::2]) ** 2)

    found = fit(
        jax.random.split(lab.key, len(z)),
        lambda key, z: init(mlp, key),
        lambda params, key, step, z: error(params, z, 0),
        optax.adam(optax.cosine_decay_schedule(s.rate, s.steps)),
        steps=s.steps,
        every=s.steps,
        watch=lambda params, key, z: {"judged": jnp.sqrt(error(params, z, 1))},
        tell=lab.tell,
        each=z,
    )
    return found.watched["judged"][-1]


def run(s: Settings, lab: Lab) -> Result:
    hulls, slices = [], []
    with jax.enable_x64(True):
        for seed in range(s.seeds):
            rng = np.random.default_rng([seed, *np.asarray(jax.random.key_data(lab.key)).ravel()])
            key = jax.random.fold_in(lab.key, seed)
            every = sorted({*s.heads, *s.few_heads})
            attend = {h: jax.tree.map(lambda w: w.astype(jnp.float64), init(layer(s, h), key)) for h in every}
            x = draw_tokens(rng, s)
            hulls.append(in_hulls(s, rng, attend, x))
            slices.append(on_slices(s, rng, attend, x))
            lab.tell(0.6 * (seed + 1) / s.seeds, regions=slices[-1]["regions"][0, -1, -1])
    inside = {k: np.array([x[k] for x in hulls]) for k in hulls[0]}
    along = {k: np.array([x[k] for x in slices]) for k in slices[0]}
    loops = along.pop("loops")
    error = learn(s, loops.reshape(-1, *loops.shape[3:]), lab.part("fit", 0.6, 1.0)).reshape(loops.shape[:3])
    series = {
        "heads": s.heads, "tokens": s.tokens, "few heads": s.few_heads, "few tokens": s.few_tokens, "sharp": s.sharp,
        "dimension": dimensions(s, s.heads, s.tokens),
        "inside": inside["regions"].mean(0), "most": inside["most"].mean(0),
        "units": s.units, "regions": along["regions"].mean(0), "told": along["told"].mean(0), "error": error,
    }  # fmt: skip
    return Result(claims(s, inside, along, error), series)


def rises(table: np.ndarray) -> tuple[float, float]:
    """The least ratio of neighbours, next to previous: by heads, by tokens; nan of one alone.   (h, t)"""
    ratios = table[1:] / table[:-1], table[:, 1:] / table[:, :-1]
    heads, tokens = (float(r.min()) if r.size else np.nan for r in ratios)
    return heads, tokens


def claims(s: Settings, inside: dict, along: dict, error: np.ndarray) -> tuple[Claim, ...]:
    regions, coarse = along["regions"].mean(0), (along["coarse"] / along["regions"]).min()
    off = np.abs(regions / along["told"].mean(0) - 1).max()
    dimension = dimensions(s, s.heads, s.tokens)
    fall, gain = max(rank_correlation(dimension, e) for e in error), (error[:, -1, -1] / error[:, 0, 0]).max()
    corners, slices, fits = rises(inside["regions"].mean(0)), rises(regions[0]), rises(1 / error.mean(0))
    out = [
        Claim(HEADLINE, slices[0], low=1.0),
        Claim("slices: regions with more tokens over those with fewer, least, mean of seeds", slices[1], low=1.0),
        Claim("slices: crossings over the length of the loop / π, farthest from 1", float(off), high=0.05),
        Claim("slices: crossings on half the points over all, least", float(coarse), low=0.98),
        Claim("hulls: regions with more heads over those with fewer, least, mean of seeds", corners[0], low=1.0),
        Claim("hulls: regions with more tokens over those with fewer, least, mean of seeds", corners[1], low=1.0),
        Claim("hulls: regions over Σ C(f, j), largest", float((inside["regions"] / inside["most"]).max()), high=1.0),
        Claim("hulls: dimension less min(d, h min(t - 1, k)), farthest", float(inside["off"].max()), high=0.0),
        Claim("fit: rank correlation of error and dimension, worst seed", fall, high=-0.5),
        Claim("fit: error with most heads and tokens over fewest, worst seed", float(gain), high=0.5),
        Claim("fit: error with more heads over that with fewer, largest, mean of seeds", 1 / fits[0], high=1.0),
        Claim("fit: error with more tokens over that with fewer, largest, mean of seeds", 1 / fits[1], high=1.0),
    ]
    for sharp, table in zip(s.sharp, regions, strict=True):
        name = f"slices, scores times {sharp:g}:"
        out.append(Claim(f"{name} regions with most heads and tokens over fewest", float(table[-1, -1] / table[0, 0])))
        out.append(Claim(f"{name} rank correlation of regions and dimension", rank_correlation(dimension, table)))
    return tuple(out)


def draw(figure, series) -> None:
    figure.set_size_inches(14, 4.2)
    a, b, c = figure.subplots(1, 3)
    for n, heads in enumerate(series["few heads"]):
        a.plot(series["few tokens"], series["most"][n], f"C{n}_", ms=14)
        a.semilogy(series["few tokens"], series["inside"][n], f"C{n}o-", label=f"h = {heads}")
    a.plot([], [], "k_", ms=14, label="at most, Σ C(f, j)")
    a.set(title="Regions of an MLP in the sum of hulls", xlabel="tokens", xticks=series["few tokens"])
    for n, heads in enumerate(series["heads"]):
        for sharp, measured, told in zip(series["sharp"], series["regions"], series["told"], strict=True):
            strong = sharp == series["sharp"][0]
            b.plot(series["tokens"], measured[n], f"C{n}o", mfc=None if strong else "none")
            b.plot(series["tokens"], told[n], f"C{n}" + ("-" if strong else ":"))
        c.loglog(series["dimension"][n], np.mean(series["error"], axis=0)[n], f"C{n}-", label=f"h = {heads}")
        for error in series["error"]:
            c.plot(series["dimension"][n], error[n], f"C{n}.")
    b.plot([], [], "k-", label="length of the loop / π")
    for n, sharp in enumerate(series["sharp"][:2]):
        b.plot([], [], "ko", mfc="none" if n else None, label=f"counted, scores times {sharp:g}")
    b.set(title=f"Crossings of {series['units']} units on a slice", xlabel="tokens", xscale="log")
    b.set_xticks(series["tokens"], map(str, series["tokens"]))
    c.set(title="A sine learned on the slice: error", xlabel="dimension of the hulls' sum")
    for axes in (a, b, c):
        axes.minorticks_off()
        axes.legend(fontsize=7, frameon=False)
