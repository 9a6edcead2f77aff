"""Transformers need glasses: what a decoder's last token can still tell of a long past (Barbero et al. 2024).

n copies of a token and then another one, beside n + 1 copies: with bounded position codes and any weights the last
representations approach each other. Pure averaging gives 1/((n + 1)(n + 2)) exactly, so a number format of p bits
tells hardly any pair apart from about n = 2^(p/2) on. A change of the first token fades, too, as one of n + 1 terms.

A counter that is trained need not break there: it may hold the last token's share, 1/(n + 1), in an entry of its own,
whose relative precision lasts to n = 2^p. So the row's claim that it breaks is judged, and fails at these lengths.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.power_law import slope
from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import Attention
from jaxlm.models import LM
from jaxlm.module import cast, init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params

TITLE = "Transformers need glasses: over-squashing in language tasks"
QUESTION = "Do two inputs that differ only in the amount of repetition become indistinguishable at the last token?"
ROWS = (53,)
NEEDS = ()
HEADLINE = "n against n + 1 copies: slope of the distance, steepest"

COPY, LAST, OTHER = 0, 1, 2  # tokens


@dataclass(frozen=True)
class Settings:
    """The decoder and the counter.

    Args:
        width: Of both.
        heads: Of both.
        layers: Of the decoder.
        lengths: n.
        seeds: Of random weights, and of counters.
        most: The counter learns n from 1 to this.
        steps: Of its training.
        batch: Examples a step.
        rate: Of Adam.
    """

    width: int = 32
    heads: int = 4
    layers: int = 3
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    seeds: int = 3
    most: int = 48
    steps: int = 2000
    batch: int = 64
    rate: float = 3e-3


BUDGETS = {
    "smoke": Settings(8, 2, 1, (2, 4, 40), 2, 4, 2, 4),
    "cpu": Settings(),
    "gpu": Settings(seeds=10, most=256, steps=20_000),
}


def decoder(s: Settings, layers: int, vocab: int) -> LM:
    return LM(vocab, s.width, Stack(Block(Attention(s.width, heads=s.heads), SwiGLU(s.width)), layers))


def repeats(lengths: tuple[int, ...] | np.ndarray, most: int, first: int = COPY) -> np.ndarray:
    """A row for each n: n copies (the first of them perhaps another token), the last token at place n; then padding."""
    n = np.asarray(lengths)[:, None]
    tokens = np.where(np.arange(most + 1)[None] == n, LAST, COPY)
    tokens[:, 0] = first
    return tokens.astype(np.int32)


def last(model: LM, params: Params, tokens: Array, lengths: Array) -> Array:
    """The last block's output at place n; what follows it does not matter.   (r, t), (r) -> (r, d)"""
    x = jnp.take(params["embed"], tokens, axis=0) * model.width**0.5
    y, _ = model.body.apply(params["body"], x)
    return jnp.take_along_axis(y, lengths[:, None, None], axis=1)[:, 0]


def distances(s: Settings, lab: Lab) -> dict[str, np.ndarray]:
    """Largest difference of an entry: of n and n + 1 copies, and of two first tokens.   -> (seeds, n) each"""
    model, most = decoder(s, s.layers, 3), max(s.lengths) + 1
    n = np.array(s.lengths)
    rows = np.concatenate([repeats(n, most), repeats(n + 1, most), repeats(n, most, OTHER)])
    places = np.concatenate([n, n + 1, n])

    @jax.jit
    def one(key: Array) -> Array:
        # Weights of unit gain, as in a trained decoder; those of `init` would do as well.
        params = jax.tree.map(lambda w: w.astype(jnp.float64), init(model, key))
        y = last(model, params, jnp.asarray(rows), jnp.asarray(places)).reshape(3, len(n), -1)
        return jnp.max(jnp.abs(y[1:] - y[0][None]), axis=-1)

    found = np.stack([np.asarray(one(k)) for k in jax.random.split(lab.key, s.seeds)])
    lab.tell(1.0)
    return {"repeats": found[:, 0], "first": found[:, 1]}


def averaging(most: int) -> np.ndarray:
    """Does one averaging head tell n from n + 1 copies of 1 before a 0, in bfloat16?   -> (most) bool, from n = 1"""
    n = np.arange(1, most + 2)
    mean = (n / (n + 1)).astype(jnp.bfloat16)
    return np.asarray(mean[1:] != mean[:-1])


def blindness() -> int:
    """The first n at which 1/((n + 1)(n + 2)) is below half of the spacing of bfloat16 under 1."""
    half = float(jnp.finfo(jnp.bfloat16).epsneg) / 2
    return next(n for n in range(1, 10**6) if (n + 1) * (n + 2) > 1 / half)


def counting(s: Settings, lab: Lab) -> dict[str, np.ndarray]:
    """Accuracy of decoders that learned to say n, in float32 and in bfloat16.   -> (seeds, n) each"""
    model = decoder(s, 1, s.most + 1)
    tokens = jnp.asarray(repeats(np.arange(s.most + 1), s.most))

    def logits(params: Params, n: Array) -> Array:
        y, _ = model.apply(params, tokens[n])
        return jnp.take_along_axis(y, n[:, None, None], axis=1)[:, 0]

    def loss(params: Params, key: Array, step: Array) -> Array:
        n = jax.random.randint(key, (s.batch,), 1, s.most + 1)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, n), n))

    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, s.rate, max(s.steps // 20, 1), s.steps))
    keys = jax.random.split(lab.key, s.seeds)
    trained = fit(keys, lambda k: init(model, k), loss, tx, steps=s.steps, every=s.steps // 2, tell=lab.tell).params
    n = jnp.arange(1, s.most + 1)
    right = lambda params: jnp.argmax(logits(params, n), axis=-1) == n  # noqa: E731
    low = lambda params: right(cast(model, params, jnp.bfloat16))  # noqa: E731
    return {
        "float32": np.asarray(jax.jit(jax.vmap(right))(trained)),
        "bfloat16": np.asarray(jax.jit(jax.vmap(low))(trained)),
    }


def run(s: Settings, lab: Lab) -> Result:
    with jax.enable_x64(True):
        far = distances(s, lab.part("distances", 0.0, 0.3))
    told = averaging(max(s.lengths))
    counted = counting(s, lab.part("counting", 0.3, 1.0))
    slopes = {name: [slope(s.lengths, row) for row in d] for name, d in far.items()}
    blind = blindness()
    n = np.arange(1, s.most + 1)
    after = n >= min(blind, s.most)
    share = {name: float(np.mean(c[:, after])) for name, c in counted.items()}
    claims = (
        Claim(HEADLINE, min(slopes["repeats"]), low=-2.4, high=-1.7, paper=-2.0),
        Claim("n against n + 1 copies: slope of the distance, flattest", max(slopes["repeats"]), low=-2.4, high=-1.7),
        Claim("another first token: slope of the distance, steepest", min(slopes["first"]), low=-1.1, high=-0.5),
        Claim("another first token: slope of the distance, flattest", max(slopes["first"]), low=-1.1, high=-0.5),
        Claim("averaging in bfloat16: n whose step is below half a spacing", blind, low=16, high=33),
        Claim("from that n on: share of pairs that averaging tells apart", float(told[blind:].mean()), high=0.1),
        Claim("up to half of that n: share", float(told[: blind // 2].mean()), low=1),
        Claim("a counter in float32: accuracy", float(np.mean(counted["float32"])), low=0.9),
        Claim("in bfloat16, before that n: accuracy", float(np.mean(counted["bfloat16"][:, ~after]))),
        Claim("from that n on: accuracy lost in bfloat16", share["float32"] - share["bfloat16"], low=0.2),
    )
    series = {"lengths": s.lengths, **far, "blind": blind, "n": n, **counted}
    return Result(claims, series)


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    n = np.array(series["lengths"], float)
    for i, (name, power, label) in enumerate((("repeats", 2, "n and n + 1 copies"), ("first", 1, "two first tokens"))):
        rows = np.array(series[name])
        left.loglog(n, rows.T, "o", color=f"C{i}", alpha=0.6)
        middle = np.exp(np.log(rows).mean())
        law = 1 / ((n + 1) * (n + 2)) if power == 2 else 1 / (n + 1)
        left.loglog(
            n, law * middle / np.exp(np.log(law).mean()), "k--" if i == 0 else "k:", label=f"averaging: {label}"
        )
        left.plot([], [], "o", color=f"C{i}", label=label)
    left.set(xlabel="copies n", ylabel="largest difference at the last token", title="Representations collapse")
    left.legend(frameon=False, fontsize="small")
    for name in ("float32", "bfloat16"):
        right.plot(series["n"], np.array(series[name], float).mean(axis=0), label=name)
    right.axvline(series["blind"], color="k", linestyle="--", label="averaging head is blind")
    right.set(xlabel="copies n", ylabel="accuracy", title="A trained counter")
    right.legend(frameon=False)
