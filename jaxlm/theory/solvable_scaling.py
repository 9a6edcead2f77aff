"""A solvable model of neural scaling laws (Maloney, Roberts and Sully 2022): the loss in the smaller of N and T.

Linear random features of Gaussian latents with variances i^-(1 + alpha), ridge regression. The test loss of a draw is
exact in test points and labels; beside it stands the closed form, L = Δ / |1/N - 1/T| without ridge, df(Δ) = min(N, T).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.power_law import slope
from jaxlm.analysis.random_features import best_ridge, limit, measure, power_spectrum, predict, predict_ridgeless
from jaxlm.papers.result import Claim, Lab, Result

TITLE = "A solvable model of neural scaling laws"
QUESTION = "Why is the test loss a power law in the smaller of parameters and samples, and how large is it exactly?"
ROWS = (128,)
NEEDS = ()
HEADLINE = "ridgeless: largest |measured / predicted - 1|"

PLENTY = 5  # times as much of the other resource, where a slope is taken
RIDGED = ((40, 40, 3.0, 0.0), (80, 80, 1.0, 0.0), (80, 40, 10.0, 0.0), (40, 80, 10.0, 0.0), (80, 80, 3.0, 0.01))


@dataclass(frozen=True)
class Settings:
    """The model and its sizes.

    Args:
        latents: M of the slopes and of double descent.
        alphas: Exponents of the spectrum; double descent has the first.
        sizes: Of the resource that binds.
        plenty: Of the other one.
        pair: N and T that are close, for a check.
        peak: N of double descent.
        around: T of double descent, beside its peak.
        endless: Latents of the law's own slope, which is predicted alone.
        fewer: Latents of the formula with ridge.
        ridged: Its N, T, ridge and variance of the labels' noise.
        few: Latents of the plateau.
        beyond: N of the plateau.
        noise: Variance of the labels' noise on the plateau.
        draws: Of features and samples.
        more: Draws where errors are small beside the spread: of the pair, and with ridge.
    """

    latents: int = 1000
    alphas: tuple[float, ...] = (1.0, 0.5)
    sizes: tuple[int, ...] = (20, 40, 80, 160)
    plenty: int = 400
    pair: tuple[int, int] = (100, 120)
    peak: int = 80
    around: tuple[int, ...] = (20, 40, 60, 70, 90, 100, 120, 160, 320)
    endless: int = 1_000_000
    fewer: int = 400
    ridged: tuple[tuple[int, int, float, float], ...] = RIDGED
    few: int = 100
    beyond: tuple[int, ...] = (12, 25, 50, 75, 150, 200, 300)
    noise: float = 0.01
    draws: int = 40
    more: int = 320


BUDGETS = {
    "smoke": Settings(
        7, (1.0,), (1, 2), 10, (2, 10), 2, (10,), 1000, 7, ((2, 2, 1.0, 0.1),), 7, (2, 10), draws=2, more=2
    ),
    "cpu": Settings(),
    "gpu": Settings(draws=400, more=4000),
}


class Bench:
    """Measures and predicts side by side, and tells both while it goes."""

    def __init__(self, s: Settings, lab: Lab):
        points = len(s.alphas) * (2 * len(s.sizes) + 1) + len(s.ridged)
        points += len({*s.around, s.peak}) + len(s.sizes) + len(s.beyond)
        self.s, self.lab, self.done, self.points = s, lab, 0, points

    def __call__(self, spectrum: np.ndarray, n: int, t: int, ridge: float = 0.0, noise: float = 0.0, draws: int = 0):
        """-> [mean over the draws, its standard error, median, predicted] of the test loss."""
        key = jax.random.fold_in(self.lab.key, self.done)
        keys, ridges = jax.random.split(key, draws or self.s.draws), jnp.array([ridge], jnp.float64)
        found = np.asarray(measure(keys, jnp.asarray(spectrum), n, t, ridges, noise))[:, 0]
        want = predict(spectrum, n, t, ridge, noise)
        self.done += 1
        self.lab.tell(self.done / self.points, N=n, T=t, measured=found.mean(), predicted=want)
        return [found.mean(), found.std(ddof=1) / math.sqrt(len(found)), float(np.median(found)), want]


def run(s: Settings, lab: Lab) -> Result:
    with jax.enable_x64(True):
        bench, series = Bench(s, lab), {"sizes": s.sizes, "beyond": s.beyond, "few": s.few}
        claims = [*resources(s, bench, series), *ridged(s, bench), *descent(s, bench, series)]
        claims += plateau(s, bench, series)
    notes = (
        f"T = {s.plenty} makes the slope in N shallower by the factor 1 / (1 - N/T), few latents steepen it: slopes "
        f"are taken up to N = T / {PLENTY}",
        "near N = T the formula is of large sizes: least squares in T samples has the factor (T - 1) / (T - N - 1)",
    )
    return Result(tuple(claims), series, notes)


def resources(s: Settings, bench: Bench, series: dict) -> list[Claim]:
    """Either resource binds while there is plenty of the other."""
    ratios, swaps, near, claims = [], [], [], []
    for alpha in s.alphas:
        spectrum = power_spectrum(s.latents, alpha)
        by_n = np.array([bench(spectrum, n, s.plenty) for n in s.sizes])
        by_t = np.array([bench(spectrum, s.plenty, t) for t in s.sizes])
        close = bench(spectrum, *s.pair, draws=s.more)
        ratios += [*(by_n[:, 0] / by_n[:, 3]), *(by_t[:, 0] / by_t[:, 3])]
        near.append(close[0] / close[3])
        swaps += list(by_n[:, 0] / by_t[:, 0])
        series[f"alpha {alpha:g}"] = {"N binds": by_n[:, 0], "T binds": by_t[:, 0], "predicted": by_n[:, 3]}
        few = [n for n in s.sizes if n <= s.plenty / PLENTY]
        got, want = (slope(few, by_n[: len(few), i]) for i in (0, 3))
        claims += [
            Claim(f"alpha {alpha:g}: slope in N", got, -alpha - 0.15, -alpha + 0.15, paper=-alpha),
            Claim(f"alpha {alpha:g}: slope in N less the predicted one", got - want, -0.03, 0.03),
        ]
        endless = power_spectrum(s.endless, alpha)
        law = [predict_ridgeless(endless, n, math.inf) for n in s.sizes]
        name = f"alpha {alpha:g}: predicted slope at T = ∞ and M = {s.endless:,}"
        claims.append(Claim(name, slope(s.sizes, law), -alpha - 0.03, -alpha + 0.03, paper=-alpha))
        constant = law[-1] * s.sizes[-1] ** alpha
        claims.append(Claim(f"alpha {alpha:g}: its constant at N = {s.sizes[-1]}", constant, paper=limit(alpha)))
    off, swap = (float(np.abs(np.array(x) - 1).max()) for x in (ratios, swaps))
    n, t = s.pair
    finite = (t - 1) / (t - n - 1) * (1 - n / t)
    return [
        Claim(HEADLINE, off, high=0.05),
        Claim(f"N, T = {n}, {t}: the same", max(abs(r - 1) for r in near), high=0.05),
        Claim(f"N, T = {n}, {t}: with least squares' exact factor", max(abs(r / finite - 1) for r in near), high=0.05),
        Claim("N and T swapped: largest change", swap, high=0.05),
        *claims,
    ]


def ridged(s: Settings, bench: Bench) -> list[Claim]:
    """The formula with ridge and noise."""
    spectrum = power_spectrum(s.fewer, 1.0)
    found = [bench(spectrum, *setting, s.more) for setting in s.ridged]
    off = max(abs(got / want - 1) for got, _, _, want in found)
    return [Claim("with ridge: largest |measured / predicted - 1|", off, high=0.025)]


def descent(s: Settings, bench: Bench, series: dict) -> list[Claim]:
    """More samples hurt near N = T, unless the ridge is the best one; with that one both resources grow together."""
    spectrum = power_spectrum(s.latents, s.alphas[0])
    times = sorted({*s.around, s.peak})
    bare = np.array([bench(spectrum, s.peak, t) for t in times])
    tuned = [best_ridge(spectrum, s.peak, t)[1] for t in times]
    both = np.array([bench(spectrum, n, n, best_ridge(spectrum, n, n)[0]) for n in s.sizes])
    top, rate = times.index(s.peak), -s.alphas[0]
    series["descent"] = {"N": s.peak, "T": times, "median": bare[:, 2], "predicted": bare[:, 3], "best ridge": tuned}
    series["both"] = {"measured": both[:, 0], "predicted": both[:, 3]}
    least = predict(spectrum, s.peak, s.peak, best_ridge(spectrum, s.peak, s.peak)[0])
    gain = f"N = T = {s.peak}, median loss without ridge over that with the best"
    return [
        Claim(gain, bare[top, 2] / least, low=10),
        Claim("best ridge: largest rise of the predicted loss with T", float(np.max(np.diff(tuned))), high=0),
        Claim("best ridge: slope along N = T", slope(s.sizes, both[:, 0]), rate - 0.03, rate + 0.03, paper=rate),
    ]


def plateau(s: Settings, bench: Bench, series: dict) -> list[Claim]:
    """Features beyond the latents bring nothing: what is left is the noise, T / (T - M) times."""
    spectrum = power_spectrum(s.few, s.alphas[0])
    found = np.array([bench(spectrum, n, s.plenty, 0.0, s.noise) for n in s.beyond])
    series["plateau"] = {"measured": found[:, 0], "predicted": found[:, 3]}
    flat = found[np.array(s.beyond) > s.few, 0]
    level = s.noise / (1 - s.few / s.plenty)
    off = float(np.abs(found[:, 0] / found[:, 3] - 1).max())
    return [
        Claim("N beyond M: loss over its level, least", float(flat.min() / level), low=0.95),
        Claim("N beyond M: loss over its level, largest", float(flat.max() / level), high=1.05),
        Claim("on the way to it and there: largest |measured / predicted - 1|", off),
    ]


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    sizes = series["sizes"]
    laws = [name for name in series if name.startswith("alpha")]
    for color, name in zip(("C0", "C1", "C2"), laws, strict=False):
        a.loglog(sizes, series[name]["predicted"], color, label=f"{name}: predicted")
        a.loglog(sizes, series[name]["N binds"], color + "o", label="measured, N binds")
        a.loglog(sizes, series[name]["T binds"], color + "x", label="measured, T binds")
    a.loglog(sizes, series["both"]["predicted"], "k:", label="N = T, best ridge: predicted")
    a.loglog(sizes, series["both"]["measured"], "k.", label="measured")
    a.set(title="Either resource binds", xlabel="N or T", ylabel="test loss", ylim=(2e-3, None))
    one = series["descent"]
    b.loglog(one["T"], [np.nan if x is None else x for x in one["predicted"]], "C0", label="predicted, no ridge")
    b.loglog(one["T"], one["median"], "C0o", label="median, no ridge")
    b.loglog(one["T"], one["best ridge"], "C3", label="predicted, best ridge")
    b.axvline(one["N"], color="0.7", linewidth=1)
    b.set(title=f"Double descent at N = {one['N']}", xlabel="T")
    c.loglog(series["beyond"], series["plateau"]["predicted"], "C2", label="predicted")
    c.loglog(series["beyond"], series["plateau"]["measured"], "C2o", label="measured")
    c.axvline(series["few"], color="0.7", linewidth=1)
    c.set(title=f"Noisy labels, {series['few']} latents", xlabel="N")
    for axes, ticks in ((a, sizes), (b, one["T"][::2]), (c, series["beyond"])):
        axes.tick_params(which="minor", labelbottom=False)
        axes.set_xticks(ticks, map(str, ticks))
        axes.legend(fontsize="small", frameon=False, loc="lower left" if axes is a else "upper right")
