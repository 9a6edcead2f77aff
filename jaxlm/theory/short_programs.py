"""Data with a short description is learned from few samples by who looks for it (Chatterjee & Sudijono 2024).

A program for primality, written as a deep ReLU network. Boolean expression trees by their length: the error of the
shortest one that agrees with the samples stays below Occam's bound. And the parity of four bits of eight: the shortest
tree is soon right everywhere; wide networks that are trained to a quarter of all inputs are wrong on a third to a half
of the others. (Half of all inputs help them, too: of seven bits, 64 samples of 128 led to errors of 0.05 to 0.36.)
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.boolean_trees import Trees, occam, truth
from jaxlm.analysis.programs import PRIMALITY_VARIABLES, compile_program, primality, tokens
from jaxlm.layers.mlp import MLP
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Neural networks generalize on low complexity data"
QUESTION = "Does the shortest description that fits the samples generalise where a wide trained network does not?"
ROWS = (191,)
NEEDS = ()
HEADLINE = "compiled primality network: numbers that it gets wrong"


@dataclass(frozen=True)
class Settings:
    """The programs and their samples.

    Args:
        largest: Number that the primality network is asked.
        inputs: Bits of the Boolean functions.
        leaves: Of the longest trees, and bits of the parity.
        sizes: Samples.
        draws: Of targets and samples for the bound.
        delta: Probability with which the bound may fail.
        hidden: Units of the trained networks.
        steps: Of gradient descent.
        rate: Its step size.
        seeds: Networks for each number of samples.
    """

    largest: int = 200
    inputs: int = 8
    leaves: int = 4
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    draws: int = 200
    delta: float = 0.05
    hidden: int = 512
    steps: int = 2000
    rate: float = 0.5
    seeds: int = 3


BUDGETS = {
    "smoke": Settings(12, 3, 2, (2, 4), 3, hidden=4, steps=2, seeds=1),
    "cpu": Settings(),
    "gpu": Settings(largest=1000, draws=1000, hidden=4096, steps=10000),
}


def is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, math.isqrt(n) + 1))


def numbers(largest: int) -> tuple[int, int, int]:
    """(numbers from 0 to largest that the network gets wrong, its layers, tokens of the program)"""
    program = primality(largest)
    net = compile_program(program, PRIMALITY_VARIABLES)
    says = np.asarray(net.run(n=jnp.arange(largest + 1, dtype=jnp.float32))["prime"])
    return int((says != [is_prime(n) for n in range(largest + 1)]).sum()), len(net.biases), tokens(program)


def bound(s: Settings, trees: Trees, rng: np.random.Generator) -> Tree:
    """Errors of shortest consistent trees for random targets of most leaves, and Occam's bounds.   (sizes, draws)"""
    error, limit = np.zeros((2, len(s.sizes), s.draws))
    targets = rng.choice(np.flatnonzero(trees.leaves == s.leaves), s.draws)
    for i, n in enumerate(s.sizes):
        for j, target in enumerate(trees.tables[targets]):
            asked = rng.integers(len(target), size=n)
            found = trees.shortest(asked, target[asked], rng)
            error[i, j] = (trees.tables[found] != target).mean()
            limit[i, j] = occam(trees.bits(int(trees.leaves[found])), n, s.delta)
    return {"error": error, "limit": limit}


def samples(s: Settings, rng: np.random.Generator) -> np.ndarray:
    """Which inputs are seen, different ones.   (seeds, sizes, 2^k) bool"""
    order = rng.random((s.seeds, 1, 2**s.inputs)).argsort(axis=-1).argsort(axis=-1)
    return order < np.array(s.sizes)[None, :, None]


def parity(s: Settings) -> np.ndarray:
    """Of the first `leaves` bits.   (2^k,) bool"""
    return truth(s.inputs)[: s.leaves].sum(axis=0) % 2 == 1


def trained(s: Settings, seen: np.ndarray, lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Errors of wide networks on the inputs that they saw and on the others.   (seeds, sizes) each"""
    model, want = MLP(s.inputs, s.hidden, "relu"), parity(s)
    x, sign = jnp.asarray(1.0 - 2.0 * truth(s.inputs).T, jnp.float32), jnp.asarray(2.0 * want - 1, jnp.float32)
    masks = jnp.asarray(seen.reshape(-1, seen.shape[-1]), jnp.float32)

    def loss(params: Params, key: Array, step: Array, mask: Array) -> Array:
        return jnp.sum(mask * jax.nn.softplus(-sign * model.apply(params, x)[:, 0])) / jnp.sum(mask)

    fold, every = lambda key, _: init(model, key), max(s.steps // 10, 1)
    keys, tx = jax.random.split(lab.key, len(masks)), optax.sgd(s.rate)
    found = fit(keys, fold, loss, tx, steps=s.steps, every=every, tell=lab.tell, each=masks)
    wrong = np.asarray(jax.jit(jax.vmap(lambda p: model.apply(p, x)[:, 0] * sign <= 0))(found.params))
    wrong = wrong.reshape(seen.shape)
    return (wrong & seen).sum(-1) / seen.sum(-1), (wrong & ~seen).sum(-1) / (~seen).sum(-1)


def described(s: Settings, trees: Trees, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors of the shortest trees on the inputs that they did not see.   (seeds, sizes)"""
    want = parity(s)

    def error(mask: np.ndarray) -> float:
        asked = np.flatnonzero(mask)
        return float((trees.tables[trees.shortest(asked, want[asked], rng)] != want)[~mask].mean())

    return np.array([[error(mask) for mask in row] for row in seen])


def run(s: Settings, lab: Lab) -> Result:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(lab.key)).ravel())
    wrong, layers, length = numbers(s.largest)
    trees = Trees.up_to(s.inputs, s.leaves)
    lab.tell(0.1)
    occams, seen = bound(s, trees, rng), samples(s, rng)
    short = described(s, trees, seen, rng)
    fitted, wide = trained(s, seen, lab.part("train", 0.3, 1.0))
    claims = (
        Claim(HEADLINE, wrong, high=0),
        Claim("its layers, over the tokens of the program", layers / length),
        Claim("Boolean functions by descriptions", len(trees.tables)),
        Claim("share of draws beyond Occam's bound", (occams["error"] > occams["limit"]).mean(), high=s.delta),
        Claim(f"parity, {s.sizes[0]} samples: unseen error of shortest trees, mean", short[:, 0].mean(), low=0.2),
        Claim(f"parity, {s.sizes[-1]} samples: unseen error of shortest trees, largest", short[:, -1].max(), high=0.01),
        Claim(f"parity, {s.sizes[-1]} samples: unseen error of wide networks, least", wide[:, -1].min(), low=0.3),
        Claim("parity: error of wide networks on their samples, largest", fitted.max(), high=0.0),
    )
    series = {"sizes": s.sizes, "short": short, "wide": wide, "delta": s.delta}
    series |= {f"occam_{k}": v.mean(axis=1) for k, v in occams.items()} | {"occam_worst": occams["error"].max(axis=1)}
    return Result(claims, series)


def draw(figure, series) -> None:
    figure.set_size_inches(10, 4)
    a, b = figure.subplots(1, 2)
    sizes = series["sizes"]
    a.loglog(sizes, series["occam_limit"], "k--", label=r"$(B \ln 2 + \ln 1/\delta)/n$, mean")
    a.loglog(sizes, np.maximum(series["occam_error"], 1e-4), "o-", label="shortest consistent tree, mean")
    a.loglog(sizes, np.maximum(series["occam_worst"], 1e-4), "s", mfc="none", label="the worst of all draws")
    a.set(xlabel="samples", ylabel="error", title="Occam's bound, random targets")
    for n, (name, label) in enumerate((("short", "shortest tree"), ("wide", "wide network, trained"))):
        b.semilogx(sizes, np.array(series[name]).T, "o", color=f"C{n}", mfc="none")
        b.semilogx(sizes, np.mean(series[name], axis=0), color=f"C{n}", label=label)
    b.axhline(0.5, color="k", linestyle="--", linewidth=1, label="a guess")
    b.set(xlabel="samples", ylabel="error on unseen inputs", title="The parity of four bits")
    for axes in (a, b):
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")
