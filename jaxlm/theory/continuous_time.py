"""Language models in continuous time (Marro et al. 2025): tokens that last longer or shorter than one step.

Exact: a token of duration k is k copies of it at one place, through a whole model; tokens of duration 1 are the
ordinary model. Then models that were trained to count: after n times `a` among other letters, a mark asks for n. Never
having seen a fraction of a letter, they are asked while each `a` lasts for a share s of its time. Attention is an
average: what it can tell of N letters is the share of time that is `a`, and N s n / (s n + N - n) is that count.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis import durations as time
from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Language models are implicitly continuous"
QUESTION = "What does a transformer say when a token lasts for half its time, or for three times as long?"
ROWS = ()
NEEDS = ()
HEADLINE = "a token of duration k and k copies at its place: farthest logit"
PAD, LETTER, ASK = 0, 1, 2  # tokens; then the counts


@dataclass(frozen=True)
class Settings:
    """The models.

    Args:
        most: The largest count, and the letters of a sequence.
        width: Of the residual stream.
        depth: Blocks.
        batch: Sequences of a step.
        steps: Of Adam.
        rate: Its step size.
        seeds: Trained side by side.
        shares: Durations of a letter that are asked, from small to 1.
        copies: Durations that are compared with copies.
    """

    most: int = 8
    width: int = 32
    depth: int = 2
    batch: int = 64
    steps: int = 1200
    rate: float = 3e-3
    seeds: int = 3
    shares: int = 91
    copies: tuple[int, ...] = (2, 3, 5)


BUDGETS = {
    "smoke": Settings(3, 4, 1, 4, 1, 1e-3, 2, 3, (2,)),
    "cpu": Settings(),
    "gpu": Settings(most=16, width=128, depth=4, steps=10000, shares=901),
}


def model_of(s: Settings) -> LM:
    """A rotary transformer over the letters and the counts 0 to most."""
    return LM(ASK + 2 + s.most, s.width, Stack(Block(Attention(s.width, heads=2), MLP(s.width)), s.depth))


def sequences(key: Array, counts: Array, most: int) -> Array:
    """Letters at random places among others, the mark at the end.   counts (b,) -> (b, most + 1) int32"""
    order = jax.vmap(lambda k: jax.random.permutation(k, most))(jax.random.split(key, len(counts)))
    letters = jnp.where(order < counts[:, None], LETTER, PAD)
    return jnp.concatenate([letters, jnp.full((len(counts), 1), ASK)], axis=1).astype(jnp.int32)


def train(s: Settings, lab: Lab) -> tuple[LM, Params]:
    """Models that count, leaves (seeds, ...)."""
    model = model_of(s)

    def loss(params: Params, key: Array, step: Array) -> Array:
        counts = jax.random.randint(key, (s.batch,), 0, s.most + 1)
        logits, _ = model.apply(params, sequences(jax.random.fold_in(key, 1), counts, s.most))
        return jnp.mean(nats(logits[:, -1], ASK + 1 + counts))

    keys, every = jax.random.split(lab.key, s.seeds), max(s.steps // 10, 1)
    found = fit(keys, partial(init, model), loss, optax.adam(s.rate), steps=s.steps, every=every, tell=lab.tell)
    return model, found.params


@partial(jax.jit, static_argnums=0)
def answers(model: LM, params: Params, tokens: Array, lasts: Array) -> Array:
    """Probabilities of the counts, of a continuous model.   tokens, durations (b, t) -> (b, most + 1)"""
    logits, _ = time.run(model.apply, lasts)(params, tokens)
    return jax.nn.softmax(logits[:, -1, ASK + 1 :], axis=-1)


@partial(jax.jit, static_argnums=0)
def logits(model: LM, params: Params, tokens: Array, lasts: Array, places: Array) -> Array:
    return time.run(model.apply, lasts, places)(params, tokens)[0][0, -1]


def copies(model: LM, params: Params, tokens: np.ndarray, at: int, k: int) -> tuple[Array, Array]:
    """Last logits of a token that lasts for k, and of k copies of it at one place.   tokens (t,)"""
    each = np.ones_like(tokens)
    each[at] = k
    ends, ones = np.cumsum(each) - 1.0, np.ones(len(tokens) + k - 1)
    one = logits(model, params, tokens[None], each[None].astype(float), ends[None])
    many = logits(model, params, np.repeat(tokens, each)[None], ones[None], np.repeat(ends, each)[None])
    return one, many


def exact(s: Settings, model: LM, params: Params, key: Array) -> tuple[float, float]:
    """Farthest logits: of durations k from copies, of durations 1 from the ordinary model.   One model, float64"""
    tokens = np.asarray(sequences(key, jnp.array([s.most // 2]), s.most)[0])
    smooth = time.continuous(model)
    pairs = [copies(smooth, params, tokens, at, k) for k in s.copies for at in (0, s.most // 2)]
    copied = max(float(jnp.abs(a - b).max()) for a, b in pairs)
    t = np.arange(len(tokens))[None]
    plain = jax.jit(model.apply)(params, tokens[None])[0][0, -1]
    unit = logits(smooth, params, tokens[None], np.ones_like(t, float), t.astype(float))
    return copied, float(jnp.abs(plain - unit).max())


def sweep(s: Settings, model: LM, params: Params, key: Array) -> Tree:
    """Answers while the letters shrink, for every count, mean over the seeds.

    ->   shares (m,); answer (seeds, most, m), expected; time (most, m), what the share of time says
         probs (most + 1, m), first seed, all letters but one; jump (), largest change of a probability
    """
    shares = np.linspace(0.1, 1.0, s.shares)
    counts = np.arange(1, s.most + 1)
    tokens = np.asarray(sequences(key, jnp.asarray(counts), s.most)).repeat(s.shares, axis=0)
    lasts = np.where(tokens == LETTER, np.tile(shares, s.most)[:, None], 1.0).astype(np.float32)
    probs = jax.vmap(partial(answers, time.continuous(model)), (0, None, None))(params, tokens, jnp.asarray(lasts))
    probs = np.asarray(probs, float).reshape(s.seeds, s.most, s.shares, -1)
    jump = np.abs(np.diff(probs, axis=2)).max()
    share = counts[:, None] * shares / (counts[:, None] * shares + s.most - counts[:, None])
    answer = {"answer": probs @ np.arange(s.most + 1), "time": s.most * share}
    return {"shares": shares, **answer, "probs": probs[0, -2].T, "jump": jump}


def run(s: Settings, lab: Lab) -> Result:
    model, params = train(s, lab.part("train", 0.0, 0.8))
    key = jax.random.fold_in(lab.key, 1)
    found = sweep(s, model, params, key)
    lab.tell(0.9)
    with jax.enable_x64(True):
        first = jax.tree.map(lambda x: x[0].astype(jnp.float64), params)
        copied, unit = exact(s, model, first, key)
    answer, shares = found["answer"], found["shares"]
    whole, half = answer[..., -1], answer[..., np.argmin(abs(shares - 0.5))]
    some, off = (half / whole)[:, 1:-1], np.abs(answer - found["time"][None])
    missed = np.abs(whole - np.arange(1, s.most + 1)).max()
    claims = (
        Claim(HEADLINE, copied, high=1e-10),
        Claim("tokens of duration 1 and the ordinary model: farthest logit", unit, high=1e-10),
        Claim("expected count, whole letters: farthest from n", missed, high=0.5),
        Claim("expected count of halved letters among others, over that of whole ones: mean", some.mean()),
        Claim("the same, largest", some.max(), high=0.999),
        Claim("expected count, all shares: mean distance from the share of time", off.mean()),
        Claim("largest change of a probability in a step of 1 %", found["jump"]),
    )
    return Result(claims, found)


def draw(figure, series) -> None:
    figure.set_size_inches(11, 4)
    a, b = figure.subplots(1, 2)
    shares, answer = np.array(series["shares"]), np.array(series["answer"])
    most = answer.shape[1]
    for n in range(most):
        a.plot(shares, answer[:, n].T, color=f"C{n}", linewidth=1)
        a.plot(shares, series["time"][n], "--", color=f"C{n}", linewidth=1)
    a.plot([], [], "k-", label="the models' expected count")
    a.plot([], [], "k--", label="by the share of time")
    a.set(xlabel="duration of each letter", ylabel="count", title="Letters that shrink, for n = 1, 2, ...")
    a.set_ylim(0, 1.3 * most)
    a.legend(frameon=False, loc="upper left")
    for count, p in enumerate(series["probs"]):
        b.plot(shares, p, label=str(count))
    b.set(
        xlabel="duration of each letter",
        ylabel="probability",
        title=f"Answers to {most - 1} letters and another, first seed",
    )
    b.legend(frameon=False, fontsize="small", title="count")
