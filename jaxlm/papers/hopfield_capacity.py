"""How much Hopfield networks hold, against the formulas: classical, dense and modern.

Classical (Amit et al. 1985; McEliece et al. 1987): 0.138 n patterns with few errors, n / (2 ln n) with one pattern
free of error, n / (4 ln n) with all. Dense (Krotov & Hopfield 2016): D^(a-1) / (2 (2a-3)!! ln D) for the power a;
2^(D/2) for the exponential (Demircigil et al. 2017). Modern (Ramsauer et al. 2021): the error of one update falls as
exp(-β Δ), and the number of patterns grows exponentially in d. All patterns are random and independent.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.power_law import slope
from jaxlm.memory.hopfield import (
    Exponential,
    Power,
    dense_update,
    error_bound,
    hebb,
    modern_update,
    separation,
    settle,
    sweep,
    update,
)
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.typing import Array

TITLE = "Capacity of Hopfield networks"
ROWS = ()
NEEDS = ()


@dataclass(frozen=True)
class Settings:
    """units: n of the classical network; networks drawn, more where n is smaller; tested: patterns looked at in each;
    sizes: D of the dense one; bits: D with the exponential; dims: d of the modern one"""

    units: tuple[int, ...] = (250, 500, 1000)
    networks: int = 6
    tested: int = 64
    sizes: tuple[int, ...] = (32, 64, 128)
    bits: tuple[int, ...] = (16, 20, 24)
    dims: tuple[int, ...] = (8, 10, 12, 14, 16)


BUDGETS = {
    "smoke": Settings((50,), 1, 8, (12, 16), (8,), (10, 12)),
    "cpu": Settings(),
    "gpu": Settings((500, 1000, 2000, 4000), 20, 64, (32, 64, 128, 192), (16, 20, 24, 28), (8, 10, 12, 14, 16, 18, 20)),
}
LOADS = (0.1, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2)
CROWDS = (0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
BETAS = (0.25, 0.3, 0.35, 0.4)


def signs(key: Array, *shape: int) -> Array:
    return jax.random.rademacher(key, shape, jnp.float32)


def mean_field() -> tuple[np.ndarray, np.ndarray]:
    """Load and overlap with a retrieved pattern at zero temperature, down to the last one that exists.

    sqrt(2 load) = erf(y) / y - 2 e^(-y²) / sqrt(π), overlap = erf(y)       (Amit, Gutfreund & Sompolinsky 1985)
    """
    y = np.linspace(1.2, 4, 20001)
    erf = np.vectorize(math.erf)(y)
    load = (erf / y - 2 / math.sqrt(math.pi) * np.exp(-(y**2))) ** 2 / 2
    return load[load.argmax() :], erf[load.argmax() :]


def crossing(x, y, level: float) -> float:
    """Where y(x), going from one side of the level to the other, first passes it: linear between neighbours."""
    above = np.asarray(y) > level
    i = int(np.argmax(above != above[0]))
    if above.all() or not above.any():
        return math.nan
    return float(x[i - 1] + (level - y[i - 1]) * (x[i] - x[i - 1]) / (y[i] - y[i - 1]))


def tail(z: float) -> float:
    """P(N(0, 1) > z)."""
    return math.erfc(z / math.sqrt(2)) / 2


def stored(key: Array, n: int, most: int, count: Array) -> tuple[Array, Array]:
    """The first `count` of `most` random patterns in a classical network.   (most, n), (n, n)"""
    xi = signs(key, most, n)
    return xi, hebb(xi * (jnp.arange(most) < count).astype(xi.dtype)[:, None])


@partial(jax.jit, static_argnums=(1, 2, 3))
def overlaps(key: Array, n: int, most: int, tested: int, count: Array) -> Array:
    """Mean overlap with the patterns from which a network was let go, when it has settled.   ()"""
    xi, w = stored(key, n, most, count)
    end, _ = settle(partial(sweep, w), xi[:tested], key)
    return jnp.mean(xi[:tested] * end)


@partial(jax.jit, static_argnums=(1, 2))
def exact(key: Array, n: int, most: int, count: Array) -> tuple[Array, Array]:
    """Share of the stored patterns that no unit would leave; whether it is all of them."""
    xi, w = stored(key, n, most, count)
    good = jnp.sum(jnp.all(update(w, xi) == xi, axis=1) & (jnp.arange(most) < count), dtype=jnp.int32)
    return good.astype(jnp.float32) / count.astype(jnp.float32), good == count


def settled(key: Array, n: int, networks: int, tested: int) -> np.ndarray:
    """Mean overlap after settling, at the loads LOADS.   (loads)"""
    counts = [round(load * n) for load in LOADS]
    seen = []
    for i, count in enumerate(counts):
        keys = jax.random.split(jax.random.fold_in(key, i), networks)
        one = [overlaps(k, n, max(counts), min(tested, min(counts)), jnp.int32(count)) for k in keys]
        seen.append(np.mean(one))
    return np.array(seen)


def classical(s: Settings, lab: Lab, series: dict) -> list[Claim]:
    """The load at which patterns are lost, and the loads at which they are still exact.

    Mean field ends at a load of 0.138 with 1.6 % of the units wrong. A finite network rounds that edge: the load where
    this share is passed lies below, the load where half is lost above, nearer the more units there are.
    """
    n, claims = max(s.units), []
    loads, theory = mean_field()
    series |= {"loads": LOADS, "theory load": loads[::200], "theory overlap": theory[::200]}
    last, edge = float(theory[0]), float(loads[0])
    for i, units in enumerate(s.units):
        mean = settled(jax.random.fold_in(lab.key, units), units, s.networks * n // units, s.tested)
        lab.tell(0.5 * (i + 1) / len(s.units), units=units, overlap=float(mean[-1]))
        series[f"overlap, n = {units}"] = mean
        band = (0.12, 0.145) if units == n else ()
        name = f"classical, n = {units}: load where "
        claims.append(Claim(name + "1.6 % of the units are wrong", crossing(LOADS, mean, last), *band, paper=edge))
        # 0.35: what remains of a lost pattern
        claims.append(Claim(name + "half is lost", crossing(LOADS, mean, (last + 0.35) / 2), paper=edge))
    kept, mean = float(np.interp(0.1, loads[::-1], theory[::-1])), series[f"overlap, n = {n}"]
    claims.append(Claim("classical: overlap at load 0.1", float(mean[LOADS.index(0.1)]), kept - 0.02, 1.0, paper=kept))
    for name, share in (("n / (4 ln n)", 1 / 4), ("n / (2 ln n)", 1 / 2), ("n / ln n", 1.0)):
        count = round(share * n / math.log(n))
        keys = jax.random.split(jax.random.fold_in(lab.key, 100 + count), 10 * s.networks)
        shares, whole = np.array([exact(k, n, round(n / math.log(n)), jnp.int32(count)) for k in keys]).T
        one = math.exp(-n * tail(math.sqrt(n / count)))  # no unit of n beyond its noise, Gaussian of variance count / n
        if share == 1 / 4:
            claims.append(Claim(f"classical, {name} patterns: networks that keep all", float(whole.mean()), low=0.95))
        band = (one - 0.06, one + 0.06)
        claims.append(Claim(f"classical, {name} patterns: share kept", float(shares.mean()), *band, paper=one))
    return claims


def capacity(d: int, a: int) -> float:
    """D^(a-1) / (2 (2a-3)!! ln D) (Krotov & Hopfield 2016)."""
    return d ** (a - 1) / (2 * math.prod(range(2 * a - 3, 0, -2)) * math.log(d))


@partial(jax.jit, static_argnums=(1, 2, 3))
def wrong(key: Array, d: int, a: int, tested: int) -> Array:
    """Wrong bits per stored pattern after one update of all units, at the loads CROWDS.   (loads)"""
    counts = np.array([max(round(c * capacity(d, a)), 2) for c in CROWDS])
    xi, f = signs(key, int(counts.max()), d), Power(a)
    there = jnp.asarray(np.arange(counts.max())[:, None] < counts[None], jnp.float32)

    def one(s: Array) -> Array:
        rest = (xi @ s)[None] - xi.T * s[:, None]  # (d, patterns)
        gap = f.relative(rest + xi.T, rest) - f.relative(rest - xi.T, rest)
        return jnp.sum((gap @ there) * s[:, None] < 0, axis=0).astype(jnp.float32)

    of = there[:tested]
    return jnp.sum(jax.lax.map(one, xi[:tested]) * of, axis=0) / jnp.sum(of, axis=0)


def dense(s: Settings, lab: Lab, series: dict) -> list[Claim]:
    """The number of patterns at which the formula's own rate of errors is met, over the formula; its growth with D."""
    claims, series["crowds"] = [], CROWDS
    for a in (2, 3, 4):
        held, sizes = [], [d * (8 if a == 2 else 1) for d in s.sizes]  # squares hold few: more units, for a number
        for d in sizes:
            keys = jax.random.split(jax.random.fold_in(lab.key, 1000 * a + d), 2 * s.networks)
            got = np.mean([wrong(k, d, a, s.tested) for k in keys], axis=0)
            rate = d * tail(math.sqrt(2 * math.log(d)))
            ratio = math.exp(crossing(np.log(CROWDS), np.log(got + 1e-6), math.log(rate)))
            held.append(ratio * capacity(d, a) * math.log(d))
            series[f"a = {a}, D = {d}"] = got
            band = (0.8, 1.25) if d == max(sizes) else ()
            claims.append(Claim(f"dense, a = {a}, D = {d}: capacity over the formula", ratio, *band, paper=1.0))
        power = slope(sizes, held)
        claims.append(Claim(f"dense, a = {a}: power of D in capacity · ln D", power, a - 1.2, a - 0.8, paper=a - 1))
        lab.tell(0.5 + 0.1 * a, power=power)
    for d in s.bits:
        xi = signs(jax.random.fold_in(lab.key, d), round(2 ** (d / 2)), d)
        start = xi[: s.tested * s.networks]
        share = float((jax.jit(partial(dense_update, f=Exponential()))(xi, start) == start).all(1).mean())
        low = (0.97,) if d == max(s.bits) else ()
        claims.append(Claim(f"dense, exponential, D = {d}, 2^(D/2) patterns: share kept", share, *low, paper=1.0))
    return claims


def modern(s: Settings, lab: Lab, series: dict) -> list[Claim]:
    """The error of one update against separation, and how many patterns on a sphere of radius √(d-1) it tells apart."""
    with jax.enable_x64(True):  # the errors are as small as exp(-25)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(100, 64)))
        gap = np.asarray(separation(x))
        off = np.array([jnp.linalg.norm(modern_update(x, x, b) - x, axis=1) for b in BETAS])
        bound = np.array([error_bound(x, b) for b in BETAS])
    scale = np.outer(BETAS, gap)
    rate = float(np.median(np.diff(np.log(off), axis=0) / np.diff(scale, axis=0)))
    held = [most(jax.random.fold_in(lab.key, d), d, max(s.dims), s.tested) for d in s.dims]
    growth, _ = np.polyfit(s.dims, np.log(held), 1)
    straight = float(np.corrcoef(s.dims, np.log(held))[0, 1] ** 2)
    series |= {"exponent": scale[:, ::4], "error": off[:, ::4], "bound": bound[:, ::4], "dims": s.dims, "held": held}
    w = 0.0
    for _ in range(100):  # Lambert's W of 2 K² β / 5 at K = β = 1: the theorem's log c / 4 tends to W / 4
        w = 0.4 * math.exp(-w)
    return [
        Claim("modern: largest error over its bound", float((off / bound).max()), high=1.0),
        Claim("modern: slope of log error in β Δ", rate, -1.15, -0.95, paper=-1.0),
        Claim(
            "modern: growth of log capacity per dimension (theorem: at least)", float(growth), low=w / 4, paper=w / 4
        ),
        Claim("modern: log capacity linear in d, R²", straight, low=0.98),
    ]


def most(key: Array, d: int, width: int, tested: int) -> float:
    """The number of patterns at which half of them come back to within a tenth of their length, β = 1.

    They fill d of `width` dimensions, so that all d share their programs.
    """
    counts, look = [2**i for i in range(2, d + 2)], jax.jit(modern_update)
    found = np.zeros(len(counts))
    for k in jax.random.split(key, 4):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(k)).ravel())
        x = rng.normal(size=(counts[-1], d))
        x = np.pad(x / np.linalg.norm(x, axis=1, keepdims=True) * math.sqrt(d - 1), [(0, 0), (0, width - d)])
        x = jnp.asarray(x, jnp.float32)
        off = [np.asarray(look(x[:n], x[: min(tested, n)], 1.0) - x[: min(tested, n)]) for n in counts]
        found += [np.mean(np.linalg.norm(o, axis=1) < 0.1 * math.sqrt(d - 1)) / 4 for o in off]
    return math.exp(crossing(np.log(counts), found, 0.5))


def run(s: Settings, lab: Lab) -> Result:
    series: dict = {}
    claims = [*classical(s, lab, series), *dense(s, lab, series), *modern(s, lab, series)]
    return Result(tuple(claims), series)


def draw(figure, series) -> None:
    first, second, third, fourth = figure.subplots(2, 2).ravel()
    first.plot(series["theory load"], series["theory overlap"], "k:", label="mean field")
    for name, values in series.items():
        if name.startswith("overlap"):
            first.plot(series["loads"], values, "o-", ms=3, label=name.removeprefix("overlap, "))
    first.set(xlabel="patterns / n", ylabel="overlap", title="classical", ylim=(0, 1.05), xlim=(0.05, 0.21))
    for name, values in series.items():
        if name.startswith("a = "):
            share = np.array(values) / int(name.split("D = ")[1])
            second.semilogy(series["crowds"], np.where(share > 0, share, np.nan), "o-", ms=2, label=name)
    second.set(xlabel="patterns over the formula", ylabel="share of wrong bits", title="dense")
    third.semilogy(np.ravel(series["exponent"]), np.ravel(series["error"]), ".", ms=3, label="one update")
    third.semilogy(np.ravel(series["exponent"]), np.ravel(series["bound"]), "k.", ms=1, label="bound")
    third.set(xlabel="β Δ", ylabel="error", title="modern")
    fourth.semilogy(series["dims"], series["held"], "o-")
    fourth.set(xlabel="d", ylabel="patterns held", title="modern, radius √(d-1), β = 1")
    for axes in (first, second, third):
        axes.legend(fontsize=6)
