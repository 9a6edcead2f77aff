"""Scaling-law fits (Hoffmann et al. 2022): what the losses of some runs tell of the best use of compute.

L(N, D) = E + A N^-a + B D^-b is planted, seen with noise, and fitted by the Huber loss of its logarithm. Then the law
is fitted to the solvable model at the best ridge, whose loss is no such sum, and for which theory wants N ∝ T.
"""

from dataclasses import dataclass

import jax
import numpy as np

from jaxlm.analysis.loss_surface import LossSurface, fit_loss_surface
from jaxlm.analysis.random_features import best_ridge, power_spectrum
from jaxlm.papers.result import Claim, Lab, Result

TITLE = "Scaling-law fits"
QUESTION = "How well do the losses of some runs determine the law behind them, and with it the best size for a budget?"
ROWS = ()
NEEDS = ()
HEADLINE = "exponent of the best size in compute: largest error of the seeds"


@dataclass(frozen=True)
class Settings:
    """The planted law and its runs.

    Args:
        floor: E.
        big_a: A.
        big_b: B.
        a: Exponent of sizes.
        b: Exponent of tokens.
        points: Runs of a fit, of 1e6 to 1e9 parameters and 1e8 to 1e11 tokens.
        noise: Standard deviation of the logarithm of a loss.
        seeds: Fits.
        latents: Of the solvable model, with variances i^-2.
        sizes: Its N and T.
    """

    floor: float = 1.7
    big_a: float = 400.0
    big_b: float = 1800.0
    a: float = 0.34
    b: float = 0.37
    points: int = 120
    noise: float = 0.005
    seeds: int = 8
    latents: int = 1000
    sizes: tuple[int, ...] = (20, 30, 40, 60, 80, 120, 160)


BUDGETS = {
    "smoke": Settings(points=12, seeds=1, latents=40, sizes=(3, 5, 8)),
    "cpu": Settings(),
    "gpu": Settings(seeds=100, latents=10_000),
}


def planted(s: Settings) -> LossSurface:
    return LossSurface(s.floor, s.big_a, s.big_b, s.a, s.b, 0.0)


def runs(rng: np.random.Generator, s: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, tokens and noisy losses.   (points) each"""
    n, d = 10 ** rng.uniform(6, 9, s.points), 10 ** rng.uniform(8, 11, s.points)
    return n, d, planted(s)(n, d) * np.exp(s.noise * rng.normal(size=s.points))


def run(s: Settings, lab: Lab) -> Result:
    rng, truth = np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel()), planted(s)
    fits = []
    for seed in range(s.seeds):
        n, d, loss = runs(rng, s)
        fits.append(fit_loss_surface(n, d, loss))
        lab.tell((seed + 1) / (s.seeds + 1), measured=fits[-1].exponent, predicted=truth.exponent)
    grid = [(n, t, best_ridge(power_spectrum(s.latents, 1.0), n, t)[1]) for n in s.sizes for t in s.sizes]
    by_n, by_t, losses = np.array(grid).T
    model = fit_loss_surface(by_n, by_t, losses)
    lab.tell(1.0)
    compute = np.logspace(17, 24, 8)
    series = {
        "N": n, "D": d, "loss": loss, "fitted": fits[-1](n, d), "compute": compute, "best": truth.best(compute)[0],
        "best by fit": [f.best(compute)[0] for f in fits], "sizes": s.sizes,
        "model": losses.reshape(len(s.sizes), -1), "model fitted": model(by_n, by_t).reshape(len(s.sizes), -1),
    }  # fmt: skip
    return Result(claims(s, fits, model, losses, model(by_n, by_t)), series)


def claims(s: Settings, fits: list[LossSurface], model: LossSurface, losses, fitted) -> tuple[Claim, ...]:
    truth = planted(s)

    def worst(name: str) -> float:
        return max(abs(getattr(f, name) - getattr(truth, name)) for f in fits)

    return (
        Claim(HEADLINE, worst("exponent"), high=0.03),
        Claim("a: largest error of the seeds", worst("a"), high=0.03),
        Claim("E: largest error of the seeds", worst("floor"), high=0.03),
        Claim("b: largest error of the seeds", worst("b")),
        Claim("B: mean of the fits", float(np.mean([f.big_b for f in fits])), paper=s.big_b),
        Claim("B: standard deviation of the fits", float(np.std([f.big_b for f in fits]))),
        Claim("solvable model: exponent of the best N", model.exponent, 0.47, 0.53, paper=0.5),
        Claim("solvable model: exponent in N", model.a, paper=1),
        Claim("solvable model: largest |fitted / exact - 1|", float(np.abs(fitted / losses - 1).max())),
    )


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    a.plot([min(series["loss"]), max(series["loss"])], [min(series["loss"]), max(series["loss"])], "k:", label="equal")
    a.loglog(series["fitted"], series["loss"], "C0.", label="runs")
    a.set(title="Planted law, nats", xlabel="fitted loss", ylabel="loss")
    for n, best in enumerate(series["best by fit"]):
        b.loglog(series["compute"], best, "C0.", label=None if n else "by each fit")
    b.loglog(series["compute"], series["best"], "k:", label="planted")
    b.set(title="Best size for a budget", xlabel="compute C = 6 N D", ylabel="N")
    for n, size in enumerate(series["sizes"][::2]):
        c.loglog(series["sizes"], series["model"][2 * n], f"C{n}o", label=f"T = {size}: exact")
        c.loglog(series["sizes"], series["model fitted"][2 * n], f"C{n}", label="fitted sum of powers")
    c.set(title="Solvable model, best ridge", xlabel="N", ylabel="test loss")
    c.set_xticks(series["sizes"], map(str, series["sizes"]))
    c.tick_params(which="minor", labelbottom=False)
    for axes in (a, b, c):
        axes.legend(fontsize="small", frameon=False)
