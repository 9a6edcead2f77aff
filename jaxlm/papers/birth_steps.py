"""Associative memories written without training (Bietti et al. 2023): by hand, and by three gradient steps.

By hand: the ideal outer products, at several widths, on the sequences of `birth`: 256 characters of tiny Shakespeare
with five triggers. Their first token can only look at itself, so that a trigger there seems to be followed by itself:
sequences that do not begin with a trigger are judged, all of them are shown. By gradients: from zero, one step each on
W_O^2, W_K^2, W_K^1 of the population loss (theorem 3), here the mean over many batches of uniform tokens with random
triggers. Embeddings are orthonormal: the theorem has them nearly so, in the limit of a large width. The loss is at all
known triggers, the theorem's at the last position: at one position its embedding is in every query, and W_K^2 learns
positions before tokens.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.bigrams import SHAKESPEARE, shakespeare_bigrams
from jaxlm.memory.bigram_task import BigramTask
from jaxlm.memory.induction import InductionTransformer
from jaxlm.memory.induction_steps import STEPS, three_steps
from jaxlm.module import init, materialize
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.typing import Array, Params, Tree

TITLE = "Birth of a transformer: memories written by hand and by three gradient steps"
ROWS = (108,)
NEEDS = (SHAKESPEARE,)


@dataclass(frozen=True)
class Settings:
    """widths, length, triggers of the models written by hand; vocab, steps_length, steps_triggers of the sequences of
    the gradient steps; batch and batches that a gradient is averaged over; rates of W_O^2, W_K^2, W_K^1"""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    length: int = 256
    triggers: int = 5
    judged: int = 32
    vocab: int = 32
    steps_length: int = 32
    steps_triggers: int = 4
    batch: int = 256
    batches: int = 96
    rates: tuple[float, float, float] = (200.0, 1e7, 8e6)


BUDGETS = {
    "smoke": Settings((32,), 32, judged=8, vocab=6, steps_length=8, steps_triggers=1, batch=32, batches=2),
    "cpu": Settings(),
    "gpu": Settings(judged=128, batches=1024),
}


def by_hand(s: Settings, lab: Lab) -> Tree:
    """What the ideal matrices do at each width.   leaves (widths,)"""
    text = shakespeare_bigrams(lab.data)
    unigram, follow = jnp.asarray(text.unigram, jnp.float32), jnp.asarray(text.follow, jnp.float32)
    task = BigramTask(s.length, s.triggers)
    asked = jnp.asarray(text.frequent(s.triggers))

    @partial(jax.jit, static_argnums=0)
    def measure(model: InductionTransformer, key: Array) -> Tree:
        params = model.ideal(materialize(model.params(), key), asked)
        found = task.draw(key, unigram, follow, s.judged)
        fair = found._replace(count=jnp.where(found.count[:, :1] > 0, 0, found.count))
        every = model.measure(params, found) | model.recall(params, asked)
        return {**every, "fair": model.measure(params, fair)["accuracy"]}

    seen = [measure(InductionTransformer(text.vocab, d, s.length), lab.key) for d in s.widths]
    return {k: np.array([x[k] for x in seen]) for k in seen[0]}


def by_steps(s: Settings, lab: Lab) -> Tree:
    """Accuracy, recalls and cosines with the ideal matrices after each step.   leaves (3,)"""
    n = s.vocab
    model = InductionTransformer(n, 3 * n + 2 * s.steps_length, s.steps_length)
    task = BigramTask(s.steps_length, s.steps_triggers, fixed=False, outputs="other")
    unigram, follow = jnp.full(n, 1 / n, jnp.float32), jnp.full((n, n), 1 / n, jnp.float32)

    def loss(params: Params, key: Array) -> Array:
        return model.loss(params, task.draw(key, unigram, follow, s.batch))

    @jax.jit
    def watch(params: Params, key: Array) -> Tree:
        ideal = model.ideal(params, jnp.arange(n))
        pairs = {f"cosine_{k}": (params[k], ideal[k]) for k in STEPS}
        cosines = {k: jnp.sum(w * v) / jnp.sqrt(jnp.sum(w * w) * jnp.sum(v * v)) for k, (w, v) in pairs.items()}
        return model.measure(params, task.draw(key, unigram, follow, 1024)) | model.recall(params) | cosines

    params = jax.jit(model.orthonormal)(init(model, lab.key), lab.key)
    seen = []
    for _, now in three_steps(params, loss, lab.key, s.rates, s.batches):
        seen.append(watch(now, jax.random.fold_in(lab.key, 9)))
        lab.tell(len(seen) / 3, accuracy=float(seen[-1]["accuracy"]))
    return {k: np.nan_to_num([x[k] for x in seen]) for k in seen[0]}  # a matrix that is still 0 has no direction


def run(s: Settings, lab: Lab) -> Result:
    hand = by_hand(s, lab.part("hand", 0.0, 0.2))
    steps = by_steps(s, lab.part("steps", 0.2, 1.0))
    series = {"widths": s.widths, **{f"hand_{k}": v for k, v in hand.items()}}
    series |= {f"steps_{k}": v for k, v in steps.items()}
    names = dict(zip(("W_O^2", "W_K^2", "W_K^1"), STEPS, strict=True))
    claims = []
    for d, every, fair in zip(s.widths, hand["accuracy"], hand["fair"], strict=True):
        low = 0.95 if d == s.widths[-1] else -np.inf
        claims.append(Claim(f"by hand, width {d}: in-context accuracy", every))
        claims.append(Claim(f"by hand, width {d}: in-context accuracy, no trigger at the start", fair, low=low))
    claims += [Claim(f"by hand, width {s.widths[-1]}: recall of {k}", hand[v][-1], low=0.95) for k, v in names.items()]
    for i, (k, v) in enumerate(names.items()):
        claims.append(Claim(f"step {i + 1}: recall of {k}", steps[v][i], low=(0.95, 0.95, 0.5)[i]))
        claims.append(Claim(f"step {i + 1}: cosine of {k} with the ideal", steps[f"cosine_{v}"][i]))
    claims.append(Claim("recall of W_K^1 by chance", 1 / (s.steps_length - 1)))
    claims += [Claim(f"step {i + 1}: in-context accuracy", a) for i, a in enumerate(steps["accuracy"])]
    return Result(tuple(claims), series)


def draw(figure, series) -> None:
    figure.set_size_inches(10, 4)
    a, b = figure.subplots(1, 2)
    a.semilogx(series["widths"], series["hand_accuracy"], "k:", base=2, label="in-context accuracy")
    a.semilogx(series["widths"], series["hand_fair"], "ko-", base=2, label="the same, no trigger at the start")
    a.semilogx(series["widths"], series["hand_previous"], "C0--", base=2, label="layer 1 looks back by one")
    a.semilogx(series["widths"], series["hand_copied"], "C1--", base=2, label="layer 2 looks at the output")
    a.set(title="Memories written by hand", xlabel="width", ylim=(-0.02, 1.02))
    for i, (key, name, color) in enumerate((("out2", "W_O^2", "C1"), ("key2", "W_K^2", "C2"), ("key1", "W_K^1", "C0"))):
        b.bar(np.arange(3) + 0.2 * i, series[f"steps_{key}"], 0.2, label=f"recall of ${name}$", color=color)
    b.plot(np.arange(3) + 0.2, series["steps_accuracy"], "ko-", label="in-context accuracy")
    b.set(title="Three gradient steps", ylim=(0, 1.3))
    b.set_xticks(np.arange(3) + 0.2, ["first", "second", "third"])
    a.legend(fontsize="small", frameon=False)
    b.legend(fontsize="small", frameon=False, ncols=2, loc="upper left")
