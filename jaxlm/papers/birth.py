"""How an induction head is born (Bietti et al. 2023): which associative memory is learned first, and when it works.

Sequences of 256 characters with the bigrams of tiny Shakespeare, in which five frequent characters (space, e, t, o, a)
are each followed by a random character of the sequence's own. The paper's simplified transformer of width 128, SGD of
rate 0.2, batch 128 (the authors' README: width 256, rate 0.03, batch 512), loss at known triggers. Beside it a model
with W_F that learns every token.
"""

import time
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.bigrams import SHAKESPEARE, Bigrams, shakespeare_bigrams
from jaxlm.memory.bigram_task import BigramTask
from jaxlm.memory.induction import MEMORIES, InductionTransformer
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Birth of a transformer: the order in which its memories are learned"
ROWS = (108,)
NEEDS = (SHAKESPEARE,)
LEARNED = 0.6  # share of its associations from which a memory counts as learned


@dataclass(frozen=True)
class Settings:
    """The model and its data; rate, momentum, decay of SGD; judged: sequences of an evaluation, after `every` steps.
    unfreeze: steps from which W_O^2, W_K^2, W_K^1, W_F are trained
    global_*: of the model with W_F, loss at every token"""

    width: int = 128
    length: int = 256
    triggers: int = 5
    fixed: bool = True
    outputs: str = "uniform"
    batch: int = 128
    rate: float = 0.2
    momentum: float = 0.9
    decay: float = 1e-4
    iterations: int = 200
    every: int = 10
    judged: int = 64
    unfreeze: tuple[int, int, int, int] = (0, 0, 0, 0)
    global_iterations: int = 200
    global_batch: int = 32


BUDGETS = {
    "smoke": Settings(
        width=32,
        length=32,
        batch=8,
        iterations=4,
        every=2,
        judged=8,
        global_iterations=4,
        global_batch=8,
    ),
    "cpu": Settings(),
    "gpu": Settings(width=256, batch=512, rate=0.03, iterations=1000, global_iterations=1000, global_batch=512),
}


def optimizer(
    model: InductionTransformer, rate: float, momentum: float, decay: float, unfreeze: tuple[int, ...] = (0, 0, 0, 0)
) -> optax.GradientTransformation:
    """SGD with weight decay on the trained matrices.

    unfreeze   steps from which W_O^2, W_K^2, W_K^1, W_F are trained: before, they keep value and momentum
    """
    sgd = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum))
    parts = {
        name: optax.transforms.conditionally_mask(sgd, lambda step, first=first, **_: jnp.asarray(step) >= first)
        for name, first in zip(MEMORIES, unfreeze, strict=True)
    }
    labels = {name: name if name in model.trained else "frozen" for name in model.params()}
    return optax.multi_transform({**parts, "frozen": optax.set_to_zero()}, labels)


def train(s: Settings, text: Bigrams, lab: Lab, everywhere: bool) -> Tree:
    """Everything that is watched in one training run.   leaves (evaluations,)

    everywhere   with W_F, loss at every token; else the loss is at known triggers
    """
    model = InductionTransformer(text.vocab, s.width, s.length, feed=everywhere)
    task = BigramTask(s.length, s.triggers, s.fixed, s.outputs)
    unigram, follow = jnp.asarray(text.unigram, jnp.float32), jnp.asarray(text.follow, jnp.float32)
    asked = jnp.asarray(text.frequent(s.triggers)) if s.fixed else None
    batch = s.global_batch if everywhere else s.batch

    def loss(params: Params, key: Array, step: Array) -> Array:
        return model.loss(params, task.draw(key, unigram, follow, batch), head_only=not everywhere)

    def watch(params: Params, key: Array) -> Tree:
        seen = model.measure(params, task.draw(key, unigram, follow, s.judged))
        return seen | model.recall(params, asked, follow=follow)

    found = fit(
        lab.key[None],
        lambda key: init(model, key),
        loss,
        optimizer(model, s.rate, s.momentum, s.decay, s.unfreeze),
        steps=s.global_iterations if everywhere else s.iterations,
        every=s.every,
        watch=watch,
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "birth.npz",
    )
    return {name: value[:, 0] for name, value in found.watched.items()}


def first(iterations: np.ndarray, reached: np.ndarray) -> float:
    """The first iteration at which something is reached; one evaluation after the last if it never is."""
    late = 2 * iterations[-1] - iterations[-2]
    return float(iterations[np.argmax(reached)] if reached.any() else late)


def run(s: Settings, lab: Lab) -> Result:
    text = shakespeare_bigrams(lab.data)
    began = time.perf_counter()
    own = train(s, text, lab.part("heads", 0.0, 0.75), everywhere=False)
    seconds = time.perf_counter() - began
    wide = train(s, text, lab.part("everywhere", 0.75, 1.0), everywhere=True)
    series = {"iteration": s.every * (1 + np.arange(len(own["accuracy"]))), **own, "vocab": text.vocab}
    series |= {f"everywhere_{k}": v for k, v in wide.items()}
    series |= {"everywhere_iteration": s.every * (1 + np.arange(len(wide["accuracy"]))), "entropy": text.entropies[1]}
    return Result((*events(series, seconds), *halves(series)), series)


def events(series: Tree, seconds: float) -> tuple[Claim, ...]:
    """What the first model reaches, and in which order."""
    at = series["iteration"]
    when = {k: first(at, series[k] >= LEARNED) for k in ("out2", "key2", "key2_all", "key1_early")}
    return (
        Claim(f"in-context accuracy after {at[-1]} iterations", series["accuracy"][-1], low=0.9),
        Claim("iterations to in-context accuracy 0.9", first(at, series["accuracy"] >= 0.9), high=200),
        Claim("seconds of training", seconds, high=600),
        Claim("recall of W_O^2 at the end", series["out2"][-1], low=0.95),
        Claim("recall of W_K^2 at the end", series["key2"][-1], low=0.95),
        Claim("recall of W_K^1 at the end, first 64 places", series["key1_early"][-1]),
        Claim("recall of W_K^1 at the end, all places", series["key1"][-1]),
        Claim(f"iterations to recall {LEARNED}: W_O^2", when["out2"]),
        Claim(f"iterations to recall {LEARNED}: W_K^2", when["key2"]),
        Claim(f"iterations to recall {LEARNED}: W_K^2 among all tokens", when["key2_all"]),
        Claim(f"iterations to recall {LEARNED}: W_K^1, first 64 places", when["key1_early"]),
        Claim("iterations from W_O^2 to W_K^1", when["key1_early"] - when["out2"], low=1),
        Claim("iterations from W_K^2 to W_K^1", when["key1_early"] - when["key2"], low=1),
    )


def halves(series: Tree) -> tuple[Claim, ...]:
    """When the second model is half-way from a uniform guess, in global and in in-context bigrams."""
    at, start = series["everywhere_iteration"], np.log(series["vocab"])
    everywhere = first(at, series["everywhere_global_loss"] <= (start + series["entropy"]) / 2)
    known = first(at, series["everywhere_in_context_loss"] <= start / 2)
    return (
        Claim("W_F: iterations to half-way from a uniform guess, global bigrams", everywhere),
        Claim("W_F: iterations to half-way from a uniform guess, in-context bigrams", known),
        Claim("W_F: iterations from global to in-context", known - everywhere, low=1),
        Claim("W_F: KL divergence from the bigrams at the end, nats", series["everywhere_feed"][-1]),
    )


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    at, later = series["iteration"], series["everywhere_iteration"]
    a.plot(at, series["accuracy"], "k", label="in-context accuracy")
    a.plot(at, series["previous"], "C0--", label="layer 1 looks back by one")
    a.plot(at, series["copied"], "C1--", label="layer 2 looks at the output")
    a.set(title="What the model does", xlabel="iteration", ylim=(-0.02, 1.02))
    for name, key, style in (
        ("W_O^2", "out2", "C1"),
        ("W_K^2", "key2", "C2"),
        ("W_K^2, all tokens", "key2_all", "C2:"),
        ("W_K^1, t ≤ 64", "key1_early", "C0"),
        ("W_K^1", "key1", "C0:"),
    ):
        b.plot(at, series[key], style, label=f"${name.split(',')[0]}$" + name[5:])
    b.set(title="What its matrices hold", xlabel="iteration", ylabel="recall", ylim=(-0.02, 1.45))
    c.plot(later, series["everywhere_global_loss"], "C3", label="global bigrams")
    c.plot(later, series["everywhere_in_context_loss"], "C0", label="in-context bigrams")
    c.axhline(series["entropy"], color="C3", linestyle=":", linewidth=1, label="bigram entropy")
    c.set(title="$W_F$, every token: global first", xlabel="iteration", ylabel="nats")
    for axes, columns in ((a, 1), (b, 2), (c, 1)):
        axes.legend(fontsize="small", frameon=False, ncols=columns, loc="upper left" if axes is b else "best")
