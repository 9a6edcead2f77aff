"""Linear recurrences followed by nonlinear maps are universal (Orvieto, De, Gulcehre, Pascanu and Smith 2023).

After L inputs from a fresh start the state of an LRU of n channels is V x, a Vandermonde matrix in its eigenvalues. Its
2n real numbers determine the window as soon as 2n >= L; below, a linear map leaves exactly the share 1 - 2n / L of a
white input. So memory is linear, and what is nonlinear is left to an MLP on the state. On y = a x + x B x - tr B a
linear readout stalls at the second-order share 2 |B|^2; f hidden units see x in at most f directions, so that they
leave at least 2 sum_{r > f} μ_r^2, μ the eigenvalues of B by size: for white Gaussian x and any function of P x, P a
projection, the error is at least |a|^2 + 2 |B|^2 - |P a|^2 - 2 |P B P|^2.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.layers.mlp import MLP
from jaxlm.mixers.lru import LRU
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import trapezoid
from jaxlm.typing import Array, Params

TITLE = "On the universality of linear recurrences followed by nonlinear projections"
QUESTION = "What must a linear recurrence keep of its inputs, and what is left to the MLP that reads it?"
ROWS = (120,)
NEEDS = ()
HEADLINE = "widest MLP: error over the linear readout's"


@dataclass(frozen=True)
class Settings:
    """The recurrence, the map to learn, and the readouts.

    Args:
        window: L.
        states: Channels n of the recurrence, two real numbers each; the readouts of the map have the most.
        low: Least radius of the eigenvalues.
        high: Greatest radius.
        angle: Greatest phase of the eigenvalues, over 2 pi.
        share: Of the map's variance that is of second order.
        decay: Exponent of the fall of the eigenvalues of B.
        widths: Hidden units f of the MLP.
        seeds: Of recurrences, maps and MLPs.
        steps: Of Adam.
        batch: Windows a step.
        rate: Of Adam.
        trials: Windows of a test.
    """

    window: int = 16
    states: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
    low: float = 0.8
    high: float = 0.99
    angle: float = 1.0
    share: float = 0.5
    decay: float = 1.0
    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    seeds: int = 3
    steps: int = 3000
    batch: int = 256
    rate: float = 3e-3
    trials: int = 100_000


BUDGETS = {
    "smoke": Settings(4, (1, 2), widths=(1, 2), seeds=1, steps=2, batch=4, trials=64),
    "cpu": Settings(),
    "gpu": Settings(widths=(2, 4, 8, 16, 32, 64, 256), seeds=10, steps=20_000, batch=1024),
}


@partial(jax.jit, static_argnums=0)
def states(mixer: LRU, params: Params, windows: Array) -> Array:
    """What a recurrence holds after each window, channel by channel.   (b, L) -> (b, 2 n)"""
    held = mixer.apply(params, windows[..., None])[1]["h"]
    return jnp.swapaxes(held, 1, 2).reshape(len(windows), -1)


def white(rng: np.random.Generator, window: int, times: int = 4) -> np.ndarray:
    """Windows whose second moments are exactly the identity.   (times L, L)"""
    turns = [np.linalg.qr(rng.normal(size=(window, window)))[0] for _ in range(times)]
    return np.concatenate(turns) * math.sqrt(window)


def left(held: np.ndarray, windows: np.ndarray, readout: np.ndarray) -> float:
    """Share of the windows' squares that a linear readout of the states leaves."""
    return float(np.sum((windows - held @ readout) ** 2) / np.sum(windows**2))


def rebuild(s: Settings, mixer: LRU, params: Params, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What the best linear map of the first channels leaves of the window.

    ->      exact, drawn, coarse (states): of exactly white windows; of Gaussian ones, states in float64 and float32
            condition (states): singular values of that part of V, greatest over least
    """
    even, drawn = white(rng, s.window), rng.normal(size=(256, s.window))
    with jax.enable_x64(True):
        fine = jax.tree.map(lambda w: w.astype(jnp.float64), params)
        held, seen = (np.asarray(states(mixer, fine, jnp.asarray(x))) for x in (even, drawn))
    rough = np.asarray(states(mixer, params, jnp.asarray(drawn, jnp.float32)), np.float64)
    rows = []
    for n in s.states:
        readout = np.linalg.lstsq(held[:, : 2 * n], even, rcond=None)[0]
        sizes = np.linalg.svd(held[:, : 2 * n], compute_uv=False)[: min(s.window, 2 * n)]
        ends = [left(x[:, : 2 * n], y, readout) for x, y in ((held, even), (seen, drawn), (rough, drawn))]
        rows.append([*ends, sizes[0] / sizes[-1]])
    return dict(zip(("exact", "drawn", "coarse", "condition"), np.array(rows).T, strict=True))


def volterra(a: Array, b: Array, x: Array) -> Array:
    """y = a x + x B x - tr B.   (L,), (L, L), (n, L) -> (n,)"""
    return x @ a + jnp.sum((x @ b) * x, axis=-1) - jnp.trace(b)


def some_map(rng: np.random.Generator, window: int, share: float, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """a (L,) and a symmetric B (L, L) of a map of variance 1, eigenvalues ± r^-decay."""
    turn, a = np.linalg.qr(rng.normal(size=(window, window)))[0], rng.normal(size=window)
    sizes = rng.choice([-1.0, 1.0], window) * np.arange(1.0, window + 1) ** -decay
    sizes *= math.sqrt(share / 2 / np.sum(sizes**2))
    return a * math.sqrt((1 - share) / np.sum(a**2)), (turn * sizes) @ turn.T


def least(b: np.ndarray, units: int) -> float:
    """The error below which no function of `units` directions of a white Gaussian window gets."""
    squares = np.sort(np.linalg.eigvalsh(b) ** 2)[::-1]
    return float(2 * np.sum(squares[units:]))


def guess(params: Params, held: Array, mask: Array) -> Array:
    """What an MLP whose hidden units are masked makes of the states.   (n, 2 n'), (f,) -> (n,)"""
    mlp = MLP(held.shape[-1], len(mask))
    return mlp.apply({**params, "down": params["down"] * mask[:, None]}, held)[:, 0]


def learn(s: Settings, each: dict[str, Array], lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Train MLPs of all widths on the states of all seeds at once.

    each    state (r, L, 2n), a (r, L), b (r, L, L), mask (r, f)
    ->      errors on the way (looks, r), at the end (r)
    """
    body = MLP(2 * max(s.states), max(s.widths))

    def error(params: Params, key: Array, count: int, each: dict[str, Array]) -> Array:
        x = jax.random.normal(key, (count, s.window), jnp.float32)
        return jnp.mean((guess(params, x @ each["state"], each["mask"]) - volterra(each["a"], each["b"], x)) ** 2)

    keys = jax.random.split(lab.key, s.seeds)[np.tile(np.arange(s.seeds), len(s.widths))]
    every = next(n for n in range(max(1, s.steps // 12), s.steps + 1) if s.steps % n == 0)
    found = fit(
        keys,
        lambda key, each: init(body, key),
        lambda params, key, step, each: error(params, key, s.batch, each),
        optax.adam(trapezoid(s.rate, s.steps)),
        steps=s.steps,
        every=every,
        tell=lab.tell,
        each=each,
    )
    test = jax.jit(lambda found, key, each: jax.lax.map(lambda x: error(x[0], key, s.trials, x[1]), (found, each)))
    return found.watched["loss"], np.asarray(test(found.params, jax.random.fold_in(lab.key, 1), each))


def stalled(v: np.ndarray, a: np.ndarray, b: np.ndarray, windows: np.ndarray) -> float:
    """The error of the best linear readout of the states, fitted to half of the windows and tested on the others."""
    y = np.asarray(volterra(*(jnp.asarray(z, jnp.float32) for z in (a, b, windows))), np.float64)
    held, half = np.concatenate([windows @ v, np.ones((len(windows), 1))], axis=1), len(windows) // 2
    readout = np.linalg.lstsq(held[:half], y[:half], rcond=None)[0]
    return float(np.mean((y[half:] - held[half:] @ readout) ** 2))


def run(s: Settings, lab: Lab) -> Result:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel())
    mixer = LRU(1, max(s.states), s.low, s.high, 2 * math.pi * s.angle)
    rebuilt, each, linear, floor = [], [], [], []
    for key in jax.random.split(jax.random.fold_in(lab.key, 1), s.seeds):
        params = init(mixer, key)
        rebuilt.append(rebuild(s, mixer, params, rng))
        v = np.asarray(states(mixer, params, jnp.eye(s.window, dtype=jnp.float32)), np.float64)
        v /= np.linalg.norm(v, axis=0)
        a, b = some_map(rng, s.window, s.share, s.decay)
        each.append({"state": v, "a": a, "b": b})
        linear.append(stalled(v, a, b, rng.normal(size=(s.trials, s.window))))
        floor.append([least(b, f) for f in s.widths])
    lab.tell(0.1)
    stack = {
        k: jnp.tile(jnp.asarray(np.stack([e[k] for e in each]), jnp.float32), (len(s.widths),) + (1,) * z.ndim)
        for k, z in each[0].items()
    }
    mask = np.repeat(np.arange(max(s.widths))[None] < np.array(s.widths)[:, None], s.seeds, axis=0)
    curve, ends = learn(s, {**stack, "mask": jnp.asarray(mask, jnp.float32)}, lab.part("MLP", 0.1, 1.0))
    shape, means = (len(s.widths), s.seeds), {k: np.stack([r[k] for r in rebuilt]) for k in rebuilt[0]}
    ends, curve = ends.reshape(shape), curve.reshape(-1, *shape).mean(-1)
    return Result(
        (*of_windows(s, means), *of_maps(s, ends, np.array(linear), np.array(floor).T)),
        {
            "window": s.window,
            "channels": s.states,
            "widths": s.widths,
            "share": s.share,
            "floor": np.mean(floor, axis=0),
            "linear": linear,
            "errors": ends,
            "curve": curve.T,
            "steps": s.steps,
            **{k: np.exp(np.mean(np.log(np.maximum(x, 1e-35)), axis=0)) for k, x in means.items()},
        },
        ("of exactly white windows (orthogonal matrices) the share is exact; a fresh Gaussian draw moves it",),
    )


def of_windows(s: Settings, found: dict[str, np.ndarray]) -> list[Claim]:
    """What is known of the window."""
    want = np.maximum(0, 1 - 2 * np.array(s.states) / s.window)
    whole = want == 0
    return [
        Claim("share left of the window, farthest from 1 - 2n / L", np.abs(found["exact"] - want).max(), high=1e-9),
        Claim("2n >= L: window rebuilt, largest relative error", found["drawn"][:, whole].max() ** 0.5, high=1e-4),
        Claim("2n >= L: the same of states in float32", found["coarse"][:, whole].max() ** 0.5),
        Claim("2n = L: condition of V, largest", found["condition"][:, np.argmax(whole)].max()),
        Claim("most states: condition of V, largest", found["condition"][:, -1].max()),
    ]


def of_maps(s: Settings, ends: np.ndarray, linear: np.ndarray, floor: np.ndarray) -> list[Claim]:
    """What is known of the readouts.   ends, floor (widths, seeds), linear (seeds)"""
    means, bounded, off = ends.mean(axis=1), floor > 0, np.abs(linear / s.share - 1).max()
    return [
        Claim(HEADLINE, means[-1] / linear.mean(), high=0.25),
        Claim("linear readout: error over its exact share, farthest from 1", off, high=0.05),
        Claim("MLP: largest rise of the mean error from a width to the next", np.diff(means).max(), high=0.0),
        Claim("MLP: least error over the bound of its width", (ends[bounded] / floor[bounded]).min(), low=0.95),
        *(Claim(f"MLP of {f}: error, mean over seeds", mean) for f, mean in zip(s.widths, means, strict=True)),
    ]


def draw(figure, series) -> None:
    figure.set_size_inches(12, 4)
    a, b, c = figure.subplots(1, 3)
    reals, window = 2 * np.array(series["channels"]), series["window"]
    a.plot([0, window, max(reals)], [1, 0, 0], "k--", lw=1, label="1 - 2n / L")
    a.plot(reals, series["exact"], "C0o", label="measured")
    a.set(xlabel="real numbers of the state, 2n", ylabel="share left of the window", title="Linear memory")
    b.semilogy(reals, series["condition"], "C2.-", label="condition of V")
    b.semilogy(reals, np.sqrt(series["coarse"]), "C1o-", label="error left, states in float32")
    b.semilogy(reals, np.sqrt(series["drawn"]), "C0o-", label="error left, in float64")
    b.axvline(window, color="0.7", lw=1)
    b.set(xlabel="real numbers of the state, 2n", title="How well it is conditioned")
    c.axhline(series["share"], color="k", ls=":", label="second-order share")
    c.plot(series["widths"], [np.mean(series["linear"])] * len(series["widths"]), "C3x", label="linear readout")
    floor = np.array(series["floor"])
    some = floor > 0
    c.plot(np.array(series["widths"])[some], floor[some], "k--", lw=1, label="bound of f directions")
    for i, run in enumerate(np.array(series["errors"]).T):
        c.plot(series["widths"], run, "C0o", ms=4, label="" if i else "MLP, each seed")
    c.set(xlabel="hidden units f", ylabel="error", xscale="log", yscale="log", title="A nonlinear map of the window")
    c.minorticks_off()
    c.set_xticks(series["widths"], map(str, series["widths"]))
    for axes in (a, b, c):
        axes.legend(frameon=False, fontsize="small")
