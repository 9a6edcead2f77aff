"""One layer of attention and a wide enough MLP come as near as wanted to a continuous map of four tokens.

Four heads, written as those of compiled n-gram models, gather the numbers of a sequence at its last place; softmax
leaks far less than the error that is asked. The MLP reads them by random ReLU units, and only what it gives is solved
for, by least squares: nothing else is fitted, and a wider MLP keeps the units of a narrower one. The error is the
largest over a grid with the corners of the cube, and over random points. An own setting: the theorem has no numbers.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.ngram_compiler import Unchanged, copying_heads, place_codes, slot
from jaxlm.blocks import Block, Chain
from jaxlm.layers.mlp import MLP
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.positions import LearnedPositions
from jaxlm.models.sequence import SequenceModel
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.taps import capture
from jaxlm.typing import Array, Params

TITLE = "Universal approximation by a single layer of a transformer"
QUESTION = "How near does one layer of attention, with an MLP that grows, come to a continuous map of four tokens?"
ROWS = (146,)
NEEDS = ()
HEADLINE = "largest error at the largest width, worst seed"
LENGTH = 4
BETA = 25.0  # of the heads: what they leak, 2 exp(-β), is far below every error here
RATE = -1 / 2 - 3 / (2 * LENGTH)  # of ReLU units chosen at their best, in mean square
WIDTH = slot(1, LENGTH) + 1  # the number, (t, t², 1), four slots, the answer


@dataclass(frozen=True)
class Settings:
    """The fit.

    Args:
        widths: Hidden units of the MLP, growing.
        points: Sequences that the answer is solved from, denser near the faces of the cube.
        grid: Points a side of the grid of the test.
        random: Further points of the test, at least.
        ridge: Of least squares, a point.
        seeds: Draws of the hidden units and points.
        rows: Sequences at a time.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    points: int = 8000
    grid: int = 7
    random: int = 4000
    ridge: float = 1e-11
    seeds: int = 3
    rows: int = 1000


BUDGETS = {
    "smoke": Settings((4, 8, 16), 50, 2, 30, seeds=2, rows=50),
    "cpu": Settings(),
    "gpu": Settings((16, 64, 256, 1024, 4096, 8192), points=32000, seeds=5),
}


def target(x: np.ndarray) -> np.ndarray:
    """A continuous map to which the order of the tokens matters.   x (n, 4) in [0, 1] -> (n,)"""
    a, b, c, d = x.T
    return np.sin(2 * a + b) / 2 + c * d / 2 - np.cos(d - 2 * a) / 4


def transformer(rng: np.random.Generator, hidden: int) -> tuple[SequenceModel, Params]:
    """One layer that gathers the tokens and folds the cube at random places; what it gives is still 0."""
    attend, norm = Attention(WIDTH, LENGTH, head=2, position=None), Unchanged(WIDTH)
    body = Chain((LearnedPositions(WIDTH, LENGTH), Block(attend, MLP(WIDTH, hidden, "relu"), norm)))
    across = rng.normal(size=(LENGTH, hidden))
    across /= np.linalg.norm(across, axis=0)
    up = np.zeros((WIDTH, hidden))
    up[[slot(1, h) for h in reversed(range(LENGTH))]] = across
    mlp = {"up": up, "up_bias": -np.sum(rng.random((hidden, LENGTH)).T * across, axis=0)}
    mlp |= {"down": np.zeros((hidden, WIDTH)), "down_bias": np.zeros(WIDTH)}
    heads = copying_heads(1, WIDTH, 2, BETA, list(range(LENGTH)), by_one=False)
    parts = {"norm": {}, "mixer": heads, "mlp_norm": {}, "mlp": mlp}
    params = {
        "body": {"part0": {"table": place_codes(1, WIDTH, LENGTH)}, "part1": parts},
        "input": np.eye(1, WIDTH),
        "input_bias": np.zeros(WIDTH),
        "readout": np.eye(WIDTH, 1, 1 - WIDTH),
        "readout_bias": np.zeros(1),
    }
    return SequenceModel(body, 1, inputs=1), params


@partial(jax.jit, static_argnums=0)
def inside(model: SequenceModel, params: Params, x: Array) -> tuple[Array, Array]:
    """What the model says, and the hidden units at the last place.   x (b, 4) -> (b,), (b, f)"""
    (y, _), seen = capture(model.apply, ["mlp.hidden"])(params, x[..., None])
    return y[:, 0], seen["mlp.hidden"][0][:, -1]


def pieces(model: SequenceModel, params: Params, x: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`inside` of many sequences, some at a time; their number divides."""
    found = [inside(model, params, jnp.asarray(part)) for part in x.reshape(-1, rows, LENGTH)]
    return np.concatenate([y for y, _ in found]), np.concatenate([h for _, h in found])


def errors(rng: np.random.Generator, s: Settings) -> tuple[np.ndarray, float]:
    """Largest error at each width, and at the last one the distance of the model itself from its units' sum."""
    model, params = transformer(rng, s.widths[-1])
    x = (1 - np.cos(np.pi * rng.random((s.points, LENGTH)))) / 2
    sides = np.stack(np.meshgrid(*[np.linspace(0, 1, s.grid)] * LENGTH), axis=-1).reshape(-1, LENGTH)
    more = s.random + -(len(sides) + s.random) % s.rows
    asked = np.concatenate([sides, rng.random((more, LENGTH))])
    units, tested = (
        np.pad(pieces(model, params, p, s.rows)[1], ((0, 0), (1, 0)), constant_values=1.0) for p in (x, asked)
    )
    gram, right, want = units.T @ units, units.T @ target(x), target(asked)
    found = []
    for width in s.widths:
        k = width + 1  # the bias comes first
        give = np.linalg.solve(gram[:k, :k] + s.ridge * s.points * np.eye(k), right[:k])
        found.append(np.abs(tested[:, :k] @ give - want).max())
    mlp = params["body"]["part1"]["mlp"]
    mlp["down_bias"][-1], mlp["down"][:, -1] = give[0], give[1:]
    says, _ = pieces(model, params, asked, s.rows)
    return np.array(found), float(np.abs(says - tested @ give).max())


def run(s: Settings, lab: Lab) -> Result:
    found, gaps = [], []
    with jax.enable_x64(True):
        for i in range(s.seeds):
            rng = np.random.default_rng([i, *np.asarray(jax.random.key_data(lab.key)).ravel()])
            error, gap = errors(rng, s)
            found.append(error)
            gaps.append(gap)
            lab.tell((i + 1) / s.seeds, error=error[-1])
    error = np.array(found)
    slope, level = np.polyfit(np.log(s.widths), np.log(error).mean(axis=0), 1)
    claims = (
        Claim(HEADLINE, error[:, -1].max(), high=0.01),
        Claim("error over that of the width before, largest", (error[:, 1:] / error[:, :-1]).max(), high=0.999),
        Claim("the transformer itself and its hidden units: farthest", max(gaps), high=1e-10),
        Claim("exponent of the error in the width", slope),
    )
    return Result(claims, {"widths": s.widths, "error": error, "law": [np.exp(level), slope]})


def draw(figure, series) -> None:
    axes, widths = figure.subplots(), np.array(series["widths"], float)
    for n, error in enumerate(series["error"]):
        axes.loglog(widths, error, "o-", color=f"C{n}", label="largest error, one line a seed" if n == 0 else None)
    a, b = series["law"]
    axes.loglog(widths, a * widths**b, "k:", label=f"fit, width$^{{{b:.2f}}}$")
    guide = np.mean(series["error"], axis=0)[0] * (widths / widths[0]) ** RATE
    axes.loglog(widths, guide, "k--", label=f"width$^{{{RATE:.2f}}}$, the best units (Siegel & Xu 2022)")
    axes.axhline(0.01, color="0.6", linewidth=1)
    axes.set(xlabel="hidden units of the MLP", ylabel="largest error", title="A continuous map of four tokens")
    axes.legend(frameon=False)
