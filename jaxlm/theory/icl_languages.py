"""Is a random automaton inferred from its strings, and by which algorithm? (Akyürek et al. 2024)

Exact n-gram predictors that count in the sequence alone, with back-off to shorter contexts, at the published sizes.
Then models on smaller languages, each sequence with a language of its own: Attention, gated linear attention, and this
with heads that look up what followed the last one and two tokens. (The paper: 5,000 automata, 200 epochs.)
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.context_counts import back_off, followed
from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.mixers.ngram_head import NGramHead
from jaxlm.models.lm import LM
from jaxlm.models.ngram_lm import NGramLM
from jaxlm.module import init, materialize
from jaxlm.ops.losses import nats
from jaxlm.papers._capability import mixer_of
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks import InContextLanguages
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params

TITLE = "In-context language learning: random automata"
QUESTION = "Can a model infer a random automaton from strings that it has just read, and by which algorithm?"
ROWS = (68,)
NEEDS = ()
HEADLINE = "with 1- and 2-gram heads: accuracy above halfway from without to Attention"

# Accuracy and total variation of in-context n-grams, n = 1 .. 4: an independent simulation of 150 problems.
REFERENCE = ((0.47, 0.63), (0.82, 0.29), (0.935, 0.19), (0.95, 0.21))


@dataclass(frozen=True)
class Settings:
    """What is measured and trained.

    Args:
        problems: Languages of the exact predictors.
        reads: Tokens of each.
        symbols: At most, of the languages that are trained on.
        states: At most.
        longest: Symbols of a string, at most.
        length: Tokens of a sequence.
        transformer: Name of the mixer that sets the mark.
        mixer: Name of the mixer that gets heads.
        orders: Of the heads.
        width: Of the models.
        hidden: Units of their MLPs.
        batch: Sequences a step.
        steps: Of AdamW.
        rate: Its step size.
        seeds: Models of each kind.
        looks: Losses that are kept.
        trials: Sequences of the test.
    """

    problems: int = 150
    reads: int = 384
    symbols: int = 8
    states: int = 6
    longest: int = 12
    length: int = 80
    transformer: str = "Attention"
    mixer: str = "GLA"
    orders: tuple[int, ...] = (1, 2)
    width: int = 32
    hidden: int = 64
    batch: int = 16
    steps: int = 400
    rate: float = 4e-3
    seeds: int = 3
    looks: int = 5
    trials: int = 200


BUDGETS = {
    "smoke": Settings(4, 24, 4, 4, 4, 12, "MinGRU", "MinGRU", (1,), 4, 4, 2, 2, seeds=1, looks=1, trials=4),
    "cpu": Settings(),
    "gpu": Settings(1000, 384, 18, 12, 49, 384, width=128, hidden=256, batch=64, steps=10000, rate=1e-3, trials=1000),
}


@partial(jax.jit, static_argnums=(1, 2, 3))
def drawn(key: Array, task: InContextLanguages, count: int, length: int) -> tuple[Array, Array, Array]:
    """Sequences, whether each next token is asked, and the letters that may come.   (b, t), (b, t), (b, t, classes)"""
    sample = task.sample(key, count, length)
    return sample.tokens, sample.weights, task.legal(key, count, length)


def exact(tokens: np.ndarray, weights: np.ndarray, legal: np.ndarray, order: int) -> tuple[float, float, float]:
    """Of the n-gram predictor with `order` tokens of context: accuracy, total variation, accuracy after 8 strings."""
    vocab = legal.shape[-1] + 1
    law = np.stack([back_off(x, order, vocab, without=vocab - 1) for x in tokens])[..., :-1]
    right = np.take_along_axis(legal, law.argmax(-1)[..., None], axis=-1)[..., 0]
    far = np.abs(law - legal / legal.sum(-1, keepdims=True)).sum(-1) / 2
    late = weights * (np.cumsum(tokens == vocab - 1, axis=1) >= 8)
    mean = lambda x, w: float((x * w).sum() / max(w.sum(), 1))  # noqa: E731
    return mean(right, weights), mean(far, weights), mean(right, late)


def head_gap(tokens: np.ndarray, order: int, vocab: int) -> float:
    """Largest gap between an n-gram head on one-hot vectors and the frequencies of what followed."""
    head, ids = NGramHead(vocab, order), jnp.asarray(tokens)
    eye, zero = jnp.eye(vocab, dtype=jnp.float32), jnp.zeros(vocab, jnp.float32)
    params = {"followed": eye, "followed_bias": zero, "own": 0 * eye, "own_bias": zero}
    state = materialize(head.state(*ids.shape), jax.random.key(0))
    found = np.asarray(jax.jit(head.apply)(params, jnp.take(eye, ids, axis=0), ids, state)[0], np.float64)
    counts = np.stack([followed(x, order, vocab) for x in tokens])
    return float(np.abs(found - counts / np.maximum(counts.sum(-1, keepdims=True), 1)).max())


def model_of(mixer: str, orders: tuple[int, ...], vocab: int, s: Settings) -> LM:
    """Two blocks of the mixer; the heads stand between them."""
    block = Block(mixer_of(mixer, s.width), MLP(s.width, s.hidden))
    if not orders:
        return LM(vocab, s.width, Stack(block, 2))
    return NGramLM(vocab, s.width, Stack(block, 1), below=Stack(block, 1), orders=orders)


def learn(
    model: LM, task: InContextLanguages, test: tuple[Array, Array, Array], s: Settings, lab: Lab
) -> tuple[np.ndarray, np.ndarray]:
    """Train on fresh languages: the loss on the way (looks, seeds); the share of legal guesses in a test (seeds,)."""

    def logits(params: Params, tokens: Array) -> Array:
        return model.apply(params, tokens)[0][..., : task.classes]

    def loss(params: Params, key: Array, step: Array) -> Array:
        sample = task.sample(key, s.batch, s.length)
        return jnp.sum(sample.weights * nats(logits(params, sample.tokens), sample.targets)) / jnp.sum(sample.weights)

    def right(params: Params, tokens: Array, weights: Array, legal: Array) -> Array:
        guesses = jnp.argmax(logits(params, tokens), axis=-1)[..., None]
        hits = jnp.take_along_axis(legal, guesses, axis=-1)[..., 0].astype(jnp.float32)
        return jnp.sum(weights * hits) / jnp.sum(weights)

    tx, keys = clipped(optax.adamw(trapezoid(s.rate, s.steps), weight_decay=0.1)), jax.random.split(lab.key, s.seeds)
    every = s.steps // s.looks
    found = fit(keys, partial(init, model), loss, tx, steps=s.steps, every=every, tell=lab.tell)
    judge = jax.jit(lambda params, *test: jax.lax.map(lambda p: right(p, *test), params))
    return found.watched["loss"], np.asarray(judge(found.params, *test))


def run(s: Settings, lab: Lab) -> Result:
    claims, orders, published = [], range(len(REFERENCE)), InContextLanguages()
    problems = tuple(map(np.asarray, drawn(jax.random.fold_in(lab.key, 1), published, s.problems, s.reads)))
    lines = [exact(*problems, order=order) for order in orders]
    for n, (found, (accuracy, far)) in enumerate(zip(lines, REFERENCE, strict=True)):
        band = {"low": accuracy - 0.05, "high": accuracy + 0.05} if n else {}
        claims.append(Claim(f"in-context {n + 1}-grams: accuracy", found[0], **band, paper=accuracy))
        claims.append(Claim(f"in-context {n + 1}-grams: total variation", found[1], paper=far))
        claims.append(Claim(f"in-context {n + 1}-grams: accuracy after 8 strings", found[2]))
    gap = max(head_gap(problems[0][:2], n, published.vocab) for n in s.orders)
    claims.append(Claim("n-gram heads: largest gap to the counts in the context", gap, high=1e-6))
    lab.tell(0.1)
    task = InContextLanguages(s.symbols, s.states, longest=s.longest)
    with_heads = f"{s.mixer} with heads"
    kinds = {s.transformer: (s.transformer, ()), s.mixer: (s.mixer, ()), with_heads: (s.mixer, s.orders)}
    test, curves, ends = drawn(jax.random.fold_in(lab.key, 2), task, s.trials, s.length), {}, {}
    small = [exact(*map(np.asarray, test), order=order)[0] for order in orders]
    for i, (name, (mixer, heads)) in enumerate(kinds.items()):
        part = lab.part(name, 0.1 + 0.9 * i / len(kinds), 0.1 + 0.9 * (i + 1) / len(kinds))
        curves[name], right = learn(model_of(mixer, heads, task.vocab, s), task, test, s, part)
        ends[name] = float(right.mean())
    top, low, high = (ends[name] for name in (s.transformer, s.mixer, with_heads))
    claims += [
        Claim(HEADLINE, high - (top + low) / 2, low=0.0),
        *(Claim(f"{name}: accuracy", end) for name, end in ends.items()),
        Claim("with heads less without", high - low, low=0.0),
        Claim(f"{s.transformer} less {s.mixer}", top - low),
        Claim("with heads: distance below the best in-context n-grams", max(small) - high, low=-0.02),
    ]
    series = {"lines": lines, "small": small, "steps": s.steps, "ends": ends}
    return Result(tuple(claims), {**series, "curves": {n: c.mean(1) for n, c in curves.items()}})


def draw(figure, series) -> None:
    left, middle, right = figure.subplots(1, 3)
    n = np.arange(1, len(series["lines"]) + 1)
    for column, (name, colour) in enumerate((("accuracy", "C0"), ("total variation", "C1"))):
        left.plot(n, [line[column] for line in series["lines"]], f"{colour}o", label=f"{name}, measured")
        left.plot(n, [r[column] for r in REFERENCE], f"{colour}-", lw=1, label=f"{name}, expected")
    left.set(xlabel="n", xticks=n, title="exact n-grams of the context", ylim=(0, 1.02))
    for i, (name, curve) in enumerate(series["curves"].items()):
        middle.plot(np.linspace(0, series["steps"], len(curve) + 1)[1:], curve, f"C{i}o-", ms=3, label=name)
        right.bar(i, series["ends"][name], color=f"C{i}")
    middle.set(xlabel="steps", ylabel="loss, nats", title="trained on small languages")
    for order, value in enumerate(series["small"]):
        right.axhline(value, color="k", lw=0.8, ls=(":", "-.", "--", "-")[order], label=f"{order + 1}-grams, exact")
    right.set(xticks=[], ylabel="legal guesses", title="at the end", ylim=(0, 1.02))
    for axes in (left, middle, right):
        axes.legend(fontsize=7, frameon=False)
