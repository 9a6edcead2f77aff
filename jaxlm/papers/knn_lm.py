"""kNN-LM (Khandelwal et al. 2020; Xu et al. 2023) and MLP memory (2025) on tiny Shakespeare.

A small language model over 512 word pieces; its datastore is the text it was trained on. The share λ of the neighbours'
votes and their temperature are chosen on one held-out text, everything is reported on another. The MLP memory reads the
residual stream at two thirds of the depth and has learned from the votes at a part of the training text, where a place
is no neighbour of its own. In the paper (WikiText-103, 100 million entries, temperature 1) perplexity falls from 18.65
to 16.12.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data.bigrams import SHAKESPEARE
from jaxlm.data.tokens import tokenizer_in
from jaxlm.layers.heads import divisor
from jaxlm.layers.mlp import MLP
from jaxlm.memory import knn_lm
from jaxlm.memory.mlp_memory import MLPMemory, imitation
from jaxlm.mixers.attention import Attention
from jaxlm.models import LM
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params

TITLE = "kNN-LM: a datastore of the training text, and an MLP in its place"
ROWS = (5, 220)
STORIES = "models/stories260K"
NEEDS = (SHAKESPEARE, STORIES)
HEADLINE = "kNN-LM: ratio to the base"


@dataclass(frozen=True)
class Settings:
    """The models and their texts.

    Args:
        width: Of the language model.
        depth: Of the language model.
        heads: Of the language model.
        length: Tokens of a row.
        rows: Of the training text, all of them in the datastore.
        tuned: Rows of the text that λ and temperature are chosen on.
        judged: Rows of the text that is reported.
        steps: Of the language model's training.
        batch: Rows a step.
        rate: Of Adam, at its highest.
        neighbours: That vote.
        temperatures: That are tried; 1 is among them.
        weights: Of the votes, λ, that are tried.
        taught: Rows of the training text that the MLP learns from.
        layers: Of the MLP memory.
        alpha: Of its loss, the share of the divergence from the votes.
        mlp_steps: Of its training, 512 places each.
    """

    width: int = 96
    depth: int = 3
    heads: int = 4
    length: int = 128
    rows: int = 768
    tuned: int = 24
    judged: int = 48
    steps: int = 240
    batch: int = 16
    rate: float = 4e-3
    neighbours: int = 64
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    weights: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
    taught: int = 160
    layers: int = 3
    alpha: float = 0.5
    mlp_steps: int = 400


SMOKE = Settings(16, 2, 2, 16, 12, 2, 2, 2, 2, neighbours=4, temperatures=(1.0, 10.0), taught=4, layers=1, mlp_steps=2)
GPU = Settings(384, 6, 6, rows=2560, steps=2000, batch=32, rate=1e-3, neighbours=256, taught=2560, mlp_steps=4000)
BUDGETS = {"smoke": SMOKE, "cpu": Settings(), "gpu": GPU}


class Votes(NamedTuple):
    """Places of a text: what the base says there, what is near, what came next.   (m, vocab), 2 (m, k), (m)"""

    logits: Array
    distance: Array
    tokens: Array
    targets: Array

    def shares(self, temperature: float) -> Array:
        """p_kNN.   (m, vocab)"""
        return knn_lm.vote(self.distance, self.tokens, self.logits.shape[-1], temperature)


def run(s: Settings, lab: Lab) -> Result:
    train, tuned, judged = texts(s, lab)
    model, params = trained(s, train, lab.part("base", 0.0, 0.4))
    store = knn_lm.memorise(model, params, train)
    votes = {"tuned": look(s, model, params, store, tuned), "judged": look(s, model, params, store, judged)}
    lab.tell(0.5)
    best, tried = choose(votes["tuned"], s)
    plain, _ = choose(votes["tuned"], dataclasses.replace(s, temperatures=(1.0,)))
    here = votes["judged"]
    found = {
        "base": perplexity(here, here.shares(1.0), 0.0),
        "kNN-LM, temperature 1": perplexity(here, here.shares(1.0), plain[1]),
        "kNN-LM": perplexity(here, here.shares(best[0]), best[1]),
    }
    lab.tell(0.55, **found)
    memory = imitate(s, model, params, store, train, best[0], lab.part("mlp", 0.55, 1.0))
    said = {name: memory(rows) for name, rows in (("tuned", tuned), ("judged", judged))}
    weight = min(s.weights, key=lambda w: perplexity(votes["tuned"], said["tuned"], w))
    found["MLP memory"] = perplexity(here, said["judged"], weight)
    shares = here.shares(best[0])
    apart = {"base": divergence(shares, jax.nn.softmax(here.logits)), "MLP memory": divergence(shares, said["judged"])}
    same = knn_lm.KNNLM(model, 0.0, entries=len(store["tokens"]), neighbours=s.neighbours)
    first = jnp.asarray(judged[:1])
    off = same.apply({"base": params, "store": store}, first)[0] - model.apply(params, first)[0]
    series = {"found": found, "apart": apart, "tried": tried, "temperatures": s.temperatures, "weights": s.weights}
    chosen = {"temperature": best[0], "weight": best[1], "MLP's weight": weight}
    return Result(claims(found, apart, float(jnp.max(jnp.abs(off))), chosen), series | {"chosen": chosen})


def texts(s: Settings, lab: Lab) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (r, length + 1) of the beginning of the text to train on, of its end to choose on and to report."""
    text, tokenizer = lab.data.open(SHAKESPEARE), tokenizer_in(lab.data.file(STORIES))

    def rows(text: bytes, count: int) -> np.ndarray:
        ids = np.asarray(tokenizer.encode(text), np.int32)[: count * s.length + 1]
        return ids[np.arange(count)[:, None] * s.length + np.arange(s.length + 1)[None]]

    enough = 4 * s.length + 1  # bytes that surely hold a row: a token has fewer than four
    held = rows(text[-enough * (s.tuned + s.judged + 1) :], s.tuned + s.judged)
    return rows(text[: enough * (s.rows + 1)], s.rows), held[: s.tuned], held[s.tuned :]


def trained(s: Settings, rows: np.ndarray, lab: Lab) -> tuple[LM, Params]:
    """The language model and its weights."""
    block = Block(Attention(s.width, s.heads), MLP(s.width))
    model = LM(512, s.width, Stack(block, s.depth))
    text = jnp.asarray(np.append(rows[:, :-1].ravel(), rows[-1, -1]))

    def loss(params: Params, key: Array, step: Array) -> Array:
        first = jax.random.randint(key, (s.batch, 1), 0, len(text) - s.length, jnp.int32)
        z = text[first + jnp.arange(s.length + 1, dtype=jnp.int32)[None]]
        total, size = model.loss(params, z[:, :-1], z[:, 1:], jnp.ones((s.batch, s.length), jnp.float32))[0]
        return total / size

    every = divisor(s.steps, s.steps // 10)
    done = fit(
        lab.key[None], lambda k: init(model, k), loss, adam(s.rate, s.steps), steps=s.steps, every=every, tell=lab.tell
    )
    return model, jax.tree.map(lambda p: p[0], done.params)


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    rate_at = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 12 + 1, steps + 2, rate / 10)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate_at, b2=0.98, weight_decay=0.05))


def look(s: Settings, model: LM, params: Params, store: knn_lm.Store, rows: np.ndarray, own: bool = False) -> Votes:
    """Search the datastore at every place of some rows.   own: they are the datastore's first, no place its own"""
    (logits, _), x = _read(model, knn_lm.TAP, -1, params, jnp.asarray(rows[:, :-1]))
    x = x.reshape(-1, x.shape[-1])
    near = _nearest(s.neighbours + own, x, store["keys"])
    far = knn_lm.distances(x, store["keys"], near)
    if own:
        far = jnp.where(near == jnp.arange(len(x), dtype=jnp.int32)[:, None], jnp.inf, far)
    return Votes(logits.reshape(len(x), -1), far, store["tokens"][near], jnp.asarray(rows[:, 1:].ravel()))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _read(model: LM, tap: str, at: int, params: Params, tokens: Array) -> Any:
    return knn_lm.activation(model, tap, at)(params, tokens, None, None)


@partial(jax.jit, static_argnums=0)
def _nearest(k: int, x: Array, keys: Array) -> Array:
    return knn_lm.Exact().nearest(x, keys, k)


def perplexity(votes: Votes, p: Array, weight: float) -> float:
    """Of the targets, with a share `weight` of p."""
    logits = knn_lm.mixed(votes.logits, p, weight) if weight else jax.nn.log_softmax(votes.logits)
    told = jnp.take_along_axis(logits, votes.targets[:, None], axis=-1)
    return math.exp(-float(jnp.mean(told)))


def choose(votes: Votes, s: Settings) -> tuple[tuple[float, float], np.ndarray]:
    """((temperature, weight) of least perplexity, perplexities by temperature and weight)."""
    tried = np.array([[perplexity(votes, p, w) for w in s.weights] for p in map(votes.shares, s.temperatures)])
    i, j = np.unravel_index(np.argmin(tried), tried.shape)
    return (s.temperatures[i], s.weights[j]), tried


def imitate(
    s: Settings, model: LM, params: Params, store: knn_lm.Store, rows: np.ndarray, temperature: float, lab: Lab
) -> Any:
    """rows -> p of an MLP memory (m, vocab), trained on the votes at the first rows of the training text."""
    at = 2 * s.depth * 2 // 3 - 1  # of the streams after each half of a block
    memory = MLPMemory(s.width, model.vocab, s.layers)
    votes = look(s, model, params, store, rows[: s.taught], own=True)
    shares = jax.nn.softmax(-votes.distance / temperature, axis=-1)

    def stream(rows: np.ndarray) -> Array:
        return _read(model, "resid", at, params, jnp.asarray(rows[:, :-1]))[1].reshape(-1, s.width)

    x = stream(rows[: s.taught])
    lab.tell(0.4)

    def loss(p: Params, key: Array, step: Array) -> Array:
        pick = jax.random.randint(key, (512,), 0, len(x), jnp.int32)
        told = imitation(memory.apply(p, x[pick]), shares[pick], votes.tokens[pick], votes.targets[pick], s.alpha)
        return jnp.mean(told)

    every = divisor(s.mlp_steps, s.mlp_steps // 10)
    begin, tell = lambda key: init(memory, key), lab.part("steps", 0.4, 1.0).tell
    done = fit(lab.key[None], begin, loss, adam(2e-3, s.mlp_steps), steps=s.mlp_steps, every=every, tell=tell)
    learned = jax.tree.map(lambda p: p[0], done.params)
    return lambda rows: jax.nn.softmax(memory.apply(learned, stream(rows)))


def divergence(p: Array, q: Array) -> float:
    """Mean KL(p ‖ q), nats.   (m, vocab)"""
    terms = jnp.where(p > 0, p * (jnp.log(jnp.where(p > 0, p, 1.0)) - jnp.log(q)), 0.0)
    return float(jnp.mean(jnp.sum(terms, axis=-1)))


def claims(found: dict, apart: dict, off: float, chosen: dict) -> tuple[Claim, ...]:
    base, plain, tuned, mlp = found.values()
    return (
        Claim("perplexity, base", base),
        Claim("perplexity, kNN-LM of temperature 1", plain),
        Claim("perplexity, kNN-LM", tuned),
        Claim(HEADLINE, tuned / base, high=0.995, paper=16.12 / 18.65),
        Claim("kNN-LM: ratio to temperature 1", tuned / plain, high=0.9999),
        Claim("kNN-LM: temperature, chosen on other text", chosen["temperature"]),
        Claim("kNN-LM: λ, chosen on other text", chosen["weight"]),
        Claim("kNN-LM of λ = 0: farthest logit from the base's", off, high=0.0),
        Claim("perplexity, base with the MLP memory", mlp),
        Claim("MLP memory: ratio to kNN-LM", mlp / tuned, high=1.05),
        Claim("divergence from the votes, nats: base", apart["base"]),
        Claim("divergence from the votes, nats: MLP memory", apart["MLP memory"]),
        Claim("divergence from the votes: MLP memory less base", apart["MLP memory"] - apart["base"], high=0.0),
    )


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    for t, curve in zip(series["temperatures"], series["tried"], strict=True):
        left.plot(series["weights"], curve, "o-", label=f"temperature {t:g}")
    left.set(xlabel="λ", ylabel="perplexity, where they are chosen", yscale="log")
    left.legend()
    names, values = list(series["found"]), list(series["found"].values())
    right.barh(names[::-1], values[::-1], color=["C2", "C0", "C1", "0.6"])
    right.bar_label(right.containers[0], fmt="%.2f")
    right.set(xlabel="perplexity, where they are reported", xlim=(0, 1.2 * max(values)))
