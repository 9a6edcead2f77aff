"""What gated linear recurrences can tell apart: flip-flops yes, parity only with negative eigenvalues.

Sarrof, Veitsman and Hahn 2024; Grazzi et al. 2024. A gate of (nearly) 0 or 1 holds or replaces: two minGRUs written by
hand answer flip-flops of any length. On ones alone a layer with gates a in [0, 1] is at h_t = c (1 - a^t), so that an
affine readout of n channels is a sum of n + 1 powers and changes its sign at most n times (Descartes), while parity
alternates: of the first T prefixes at most (T + n + 1) / 2 are right, which a polynomial in q^t with its zeros between
the first n + 1 attains. A delta rule with β up to 2 has the transition 1 - β = -1: one channel, s <- 2 v - s, swings
between 0 and 2 v for ever. At the gpu budget mixers of both kinds are also trained short and tested long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.mixers.deltanet import DeltaNet
from jaxlm.mixers.mingru import MinGRU
from jaxlm.module import abstract
from jaxlm.papers import _capability as capability
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks import FlipFlop, Parity
from jaxlm.tasks.base import accuracy
from jaxlm.typing import Array

TITLE = "The expressive capacity of state space models: a formal language perspective"
QUESTION = "Which languages do gated linear recurrences recognise at any length, and what do negative eigenvalues add?"
ROWS = (167,)
NEEDS = ()
HEADLINE = "parity by hand, eigenvalue -1: accuracy"

SURE = 40.0  # logit of a gate that is shut or open: what leaks is below the last digit of float32
LOUD = 100.0  # of a key before it is normalised, so that the norm's epsilon is below that digit, too


@dataclass(frozen=True)
class Settings:
    """The constructions, the bound, and the training.

    Args:
        length: Of the tests.
        trials: Sequences by hand.
        channels: n of the bound.
        ratio: q of the gates that attain it, q, q^2, ..., q^n.
        prefixes: T of the bound.
        flipflop: Mixers trained on flip-flops.
        parity: Mixers with eigenvalues in [0, 1] trained on parity.
        negative: Mixers with eigenvalues down to -1 trained on parity.
        short: Length of training.
        width: Of the trained models of two blocks.
        steps: Of their training.
        seeds: Of each.
        tests: Sequences that they are tested on.
    """

    length: int = 1000
    trials: int = 256
    channels: tuple[int, ...] = (1, 2, 4, 8)
    ratio: float = 0.7
    prefixes: tuple[int, ...] = (10, 30, 100, 300, 1000)
    flipflop: tuple[str, ...] = ("RGLRU",)
    parity: tuple[str, ...] = ("RGLRU",)
    negative: tuple[str, ...] = ("DeltaNet to -1",)
    short: int = 40
    width: int = 32
    steps: int = 600
    seeds: int = 3
    tests: int = 64


BUDGETS = {
    "smoke": Settings(8, 4, (1, 2), prefixes=(4, 8), flipflop=(), parity=(), negative=()),
    "cpu": Settings(flipflop=(), parity=(), negative=()),
    "gpu": Settings(
        flipflop=("RGLRU", "MinGRU", "GLA", "Mamba2"),
        parity=("RGLRU", "MinGRU", "GLA", "Mamba2", "DeltaNet"),
        negative=("DeltaNet to -1", "GatedDeltaNet to -1"),
        width=64,
        steps=4000,
        seeds=5,
        tests=1024,
    ),
}


def flipflop(tokens: Array) -> Array:
    """Answers to `FlipFlop` by two minGRUs: the last instruction, then the bit that was last written.

    tokens  (b, t)
    ->      logits (b, t, 2)
    """
    told, bit = np.array([1.0, 1, 1, 0, 0], np.float32), np.array([0.0, 0, 0, 1, 1], np.float32)
    first, second = MinGRU(3, inputs=5), MinGRU(1, inputs=8)
    x = jax.nn.one_hot(tokens, 5, dtype=jnp.float32)
    # z is open at an instruction, c is which one: h is the last instruction.
    into = np.stack([np.repeat(2 * SURE * told[:, None], 3, axis=1), np.eye(5, 3, dtype=np.float32)], axis=1)
    bias = np.array([[-SURE] * 3, [0] * 3], np.float32)
    last, _ = first.apply({"input": jnp.asarray(into), "bias": jnp.asarray(bias)}, x)
    # z is open at a bit whose instruction is write, c is that bit, -1 or 1.
    gate = 2 * SURE * np.concatenate([bit, [1, 0, 0]])
    new = np.array([0, 0, 0, -1, 1, 0, 0, 0], np.float32)
    into, bias = np.stack([gate, new], axis=1)[..., None].astype(np.float32), np.array([[-3 * SURE], [0]], np.float32)
    x = jnp.concatenate([x, last], axis=-1)
    held, _ = second.apply({"input": jnp.asarray(into), "bias": jnp.asarray(bias)}, x)
    return jnp.concatenate([-held, held], axis=-1)


def parity(tokens: Array, logit: Array) -> Array:
    """Answers to `Parity` by one head of a DeltaNet: at a one, s <- (1 - β) s + β v with β = 2 σ(logit); else it rests.

    tokens  (b, t)
    logit   ()      SURE: the eigenvalue 1 - β is -1; 0: it is 0
    ->      logits (b, t, 2)
    """
    mixer = DeltaNet(2, heads=2, beta_max=2.0)
    params = jax.tree.map(lambda w: np.zeros(w.shape, np.float32), abstract(mixer))
    for name, size in (("query", LOUD), ("key", LOUD), ("value", 1.0)):
        params[name][:, 0] = size
        params["conv"][name][-1] = 1
    params["norm"][:] = params["out"][0, 0, 0] = 1
    beta = jnp.stack([jnp.full(2, -SURE, jnp.float32), jnp.full(2, 1, jnp.float32) * logit])
    y, _ = mixer.apply(
        {**jax.tree.map(jnp.asarray, params), "beta": beta}, jax.nn.one_hot(tokens, 2, dtype=jnp.float32)
    )
    odd = y[..., :1] - 0.5
    return jnp.concatenate([-odd, odd], axis=-1)


def by_hand(s: Settings, key: Array) -> dict[str, float]:
    """Accuracies of the constructions at the tests' length."""

    @jax.jit
    def right(key: Array) -> Array:
        flips, bits = FlipFlop().sample(key, s.trials, s.length), Parity().sample(key, s.trials, s.length)
        said = jax.vmap(parity, (None, 0))(bits.tokens, jnp.array([SURE, 0.0], jnp.float32))
        held = accuracy(jnp.argmax(flipflop(flips.tokens), axis=-1), flips)
        return jnp.stack([held, *(accuracy(jnp.argmax(x, axis=-1), bits) for x in said)])

    names = ("flip-flop by hand, gates 0 and 1", HEADLINE, "parity by hand, the same with eigenvalue 0")
    return dict(zip(names, map(float, right(key)), strict=True))


def swinging(ratio: float, channels: int) -> np.ndarray:
    """Weights of 1, q^t, q^2t, ..., q^nt whose sum changes its sign between t and t + 1, t = 1 .. n.   -> (n + 1)"""
    return np.poly(ratio ** (np.arange(channels) + 1.5))[::-1]


def on_ones(s: Settings) -> np.ndarray:
    """Of minGRUs that read ones alone, with the readouts that swing most: how many of the first T prefixes are right.

    ->      (n, T)
    """
    keep, length = s.ratio ** np.arange(1, max(s.channels) + 1), max(s.prefixes)
    mixer = MinGRU(len(keep), inputs=1)
    with jax.enable_x64(True):
        into = jnp.zeros((1, 2, len(keep)))
        bias = jnp.asarray(np.stack([np.log((1 - keep) / keep), np.ones(len(keep))]))
        held = np.asarray(jax.jit(mixer.apply)({"input": into, "bias": bias}, jnp.ones((1, length, 1)))[0][0])
    odd, rows = np.arange(1, length + 1) % 2 == 1, []
    for n in s.channels:
        weights = swinging(s.ratio, n)
        said = weights.sum() - held[:, :n] @ weights[1:]  # q^it = 1 - h
        rows.append(np.cumsum((said > 0) == odd)[np.array(s.prefixes) - 1])
    return np.stack(rows)


def most_on_ones(channels: Sequence[int], prefixes: Sequence[int]) -> np.ndarray:
    """The most that n + 1 powers with bases in [0, 1] get right of T alternating answers.   -> (n, T)"""
    n, t = np.array(channels)[:, None], np.array(prefixes)[None]
    return np.minimum(t, (t + n + 1) // 2)


def trained(s: Settings, lab: Lab) -> dict[str, dict[str, np.ndarray]]:
    """Accuracies (seeds) at the training length and at the tests', of every pair of a mixer and a task."""
    asked = dict.fromkeys((*s.flipflop, *s.parity, *s.negative), ())
    asked |= {name: (*asked[name], FlipFlop()) for name in s.flipflop}
    asked |= {name: (*asked[name], Parity()) for name in (*s.parity, *s.negative)}
    how = capability.Settings(
        length=s.short,
        far=s.length // s.short,
        width=s.width,
        steps=s.steps,
        seeds=s.seeds,
        trials=s.tests,
        hidden=2 * s.width,
    )
    found = {}
    for i, (name, given) in enumerate(asked.items()):
        part = lab.part(name, 0.1 + 0.9 * i / len(asked), 0.1 + 0.9 * (i + 1) / len(asked))
        model = capability.model_of(capability.mixer_of(name, s.width), given, how)
        learned = capability.learn(model, given, how, part)
        found |= {f"{type(task).__name__}, {name}": ends for task, ends in zip(given, learned, strict=True)}
    return {pair: {where: ends[where] for where in ("near", "far")} for pair, ends in found.items()}


def run(s: Settings, lab: Lab) -> Result:
    hand = by_hand(s, jax.random.fold_in(lab.key, 1))
    flips, swings, stays = hand
    right, most = on_ones(s), most_on_ones(s.channels, s.prefixes)
    lab.tell(0.1)
    found = trained(s, lab)
    claims = [
        Claim(flips, hand[flips], low=1.0, paper=1.0),
        Claim(swings, hand[swings], low=1.0, paper=1.0),
        Claim(stays, hand[stays], 0.45, 0.55, paper=0.5),
        Claim("ones alone, gates in [0, 1]: prefixes right beyond the bound, most", (right - most).max(), high=0),
        Claim("ones alone: readouts that swing most, prefixes short of the bound, most", (most - right).max(), high=0),
    ]
    bands = {f"FlipFlop, {n}": {"low": 0.99, "paper": 1.0} for n in s.flipflop}
    bands |= {f"Parity, {n}": {"high": 0.55, "paper": 0.5} for n in s.parity}
    bands |= {f"Parity, {n}": {"low": 0.9, "paper": 1.0} for n in s.negative}
    for pair, ends in found.items():
        first = int(np.argmax(ends["near"]))
        claims.append(Claim(f"trained on {pair}: the best seed at {s.short} tokens", ends["near"][first]))
        claims.append(Claim(f"{pair}: that seed at {s.length} tokens", ends["far"][first], **bands[pair]))
    series = {"channels": s.channels, "prefixes": s.prefixes, "right": right, "hand": hand, "trained": found}
    return Result(tuple(claims), {**series, "length": s.length, "short": s.short})


def draw(figure, series) -> None:
    figure.set_size_inches(11, 4)
    a, b = figure.subplots(1, 2)
    prefixes = np.array(series["prefixes"])
    for i, n in enumerate(series["channels"]):
        a.semilogx(prefixes, most_on_ones([n], series["prefixes"])[0] / prefixes, f"C{i}--", lw=1)
        a.semilogx(prefixes, np.array(series["right"][i]) / prefixes, f"C{i}o", label=f"{n} channels, gates in [0, 1]")
    a.semilogx(prefixes, np.full(len(prefixes), series["hand"][HEADLINE]), "k-", label="eigenvalue -1, random bits")
    a.plot([], [], "k--", lw=1, label="bound")
    a.axhline(0.5, color="0.7", lw=1)
    a.set(xlabel="ones T", ylabel="prefixes right", ylim=(0.4, 1.05), title="Parity of ones alone")
    a.legend(frameon=False, fontsize="small")
    names, values = list(series["hand"]), list(series["hand"].values())
    names += [f"trained: {pair}" for pair in series["trained"]]
    far = [ends["far"][int(np.argmax(ends["near"]))] for ends in series["trained"].values()]
    b.barh(names, values + far, color=["C2"] * len(values) + ["C0"] * len(far))
    b.axvline(0.5, color="k", ls=":", lw=1)
    b.invert_yaxis()
    b.set(xlabel=f"accuracy at {series['length']} tokens", xlim=(0, 1.02), title="Languages")
