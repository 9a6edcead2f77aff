"""LM2 and RMT (Kang et al. 2025; Bulatov et al. 2022) on bAbI stories that are longer than the model's window.

The window is one line: stories of task 1 (ten sentences, a question after every second) come line by line, and a model
sees one line at a time: the base decoder nothing else, LM2 also its banks, RMT its memory tokens. All three have the
same blocks and train alike, on the answers alone. The paper's models are Llama 3.2 of 1.2 billion weights with 2,048
slots, on bAbI stories spread in long text; there LM2 is 37.1 % above RMT on average, in ratio.
A window of two sentences was tried first, for 100 steps: no memory learned to help there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data.babi import NIL, Question, Vocabulary, path, read
from jaxlm.data.errors import DataError
from jaxlm.errors import ConfigError
from jaxlm.layers.heads import divisor
from jaxlm.layers.mlp import SwiGLU
from jaxlm.memory.lm2 import LM2
from jaxlm.memory.rmt import RMT
from jaxlm.mixers.attention import Attention
from jaxlm.models import LM
from jaxlm.module import count, init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params

TITLE = "LM2 and RMT: stories longer than the window"
ROWS = (138,)
TASK = 1
NEEDS = tuple(path(TASK, part, "en-10k") for part in ("train", "test"))
HEADLINE = "LM2 above the base, points"


@dataclass(frozen=True)
class Settings:
    """The three models and their training.

    Args:
        models: Which of base, LM2 and RMT are trained.
        width: Of the models.
        depth: Blocks.
        heads: Of the attention.
        slots: Of each bank of LM2.
        memory: Tokens of memory of RMT.
        steps: Of training.
        batch: Stories a step.
        rate: Of Adam, at its highest.
    """

    models: tuple[str, ...] = ("base", "LM2", "RMT")
    width: int = 64
    depth: int = 2
    heads: int = 2
    slots: int = 8
    memory: int = 4
    steps: int = 400
    batch: int = 32
    rate: float = 3e-3


SMOKE = Settings(("LM2",), width=8, depth=1, slots=2, memory=1, steps=2, batch=2)
BUDGETS = {"smoke": SMOKE, "cpu": Settings(), "gpu": Settings(width=128, depth=4, steps=6000, batch=64)}


class Stories(NamedTuple):
    """Stories line by line.

    tokens    (s, n, t) int32, NIL in front of what is shorter
    answers   (s, n) int32, NIL where the line is no question
    """

    tokens: np.ndarray
    answers: np.ndarray


def run(s: Settings, lab: Lab) -> Result:
    parts = [read(lab.data, TASK, part, "en-10k") for part in ("train", "test")]
    words = Vocabulary.of(parts[0] + parts[1])
    train, test = (stories(words, questions) for questions in parts)
    (_, lines, longest), found, claims = test.tokens.shape, {}, []
    chosen = models(s, len(words) + 2, longest)
    for i, (name, model) in enumerate(chosen.items()):
        found[name] = learn(model, train, test, s, lab.part(name, i / len(chosen), (i + 1) / len(chosen)))
        right, asked = found[name]["right"], test.answers != NIL
        found[name]["places"] = 100 * right.sum(0)[asked.any(0)] / asked.sum(0)[asked.any(0)]
        claims.append(Claim(f"{name}: % right", 100 * float(right[asked].mean())))
    ours = {name: claim.ours for name, claim in zip(chosen, claims, strict=True)}
    if {"base", "LM2"} <= ours.keys():
        claims.append(Claim(HEADLINE, ours["LM2"] - ours["base"], low=20))
    if {"base", "RMT"} <= ours.keys():
        claims.append(Claim("RMT above the base, points", ours["RMT"] - ours["base"]))
    if {"LM2", "RMT"} <= ours.keys():
        claims.append(Claim("LM2 in ratio to RMT", ours["LM2"] / ours["RMT"], paper=1.371))
    note = f"stories of {lines} lines, a window of one line ({longest} tokens); weights: "
    note += ", ".join(f"{name} {x['weights']:,}" for name, x in found.items())
    return Result(tuple(claims), {n: {k: x[k] for k in ("curve", "places")} for n, x in found.items()}, (note,))


def models(s: Settings, vocab: int, segment: int) -> dict[str, LM]:
    """The base decoder, which sees one segment alone, and the two that remember."""
    attention, mlp = Attention(s.width, s.heads), SwiGLU(s.width)
    plain = Stack(Block(attention, mlp), s.depth)
    bodies = {
        "base": RMT(plain, 0, segment),
        "LM2": Stack(Block(LM2(attention, s.slots, segment), mlp), s.depth),
        "RMT": RMT(plain, s.memory, segment),
    }
    for name in s.models:
        if name not in bodies:
            raise ConfigError(f"models = {name!r}: unknown; expected names of {', '.join(bodies)}")
    return {name: LM(vocab, s.width, body) for name, body in bodies.items() if name in s.models}


def learn(model: LM, train: Stories, test: Stories, s: Settings, lab: Lab) -> dict[str, Any]:
    """right (s, n): the test's lines that were answered right; curve: their share in training; weights."""
    tokens, answers = (jnp.asarray(x) for x in train)
    asked = test.answers != NIL

    def logits(params: Params, tokens: Array) -> Array:
        """At the end of each line.   (b, n, t) -> (b, n, vocab)"""
        b, n, t = tokens.shape
        return model.apply(params, tokens.reshape(b, n * t))[0].reshape(b, n, t, -1)[:, :, -1]

    def loss(params: Params, key: Array, step: Array) -> Array:
        rows = jax.random.randint(key, (s.batch,), 0, len(tokens), jnp.int32)
        weights = (answers[rows] != NIL).astype(jnp.float32)
        return jnp.sum(nats(logits(params, tokens[rows]), answers[rows]) * weights) / jnp.sum(weights)

    def right(params: Params) -> Array:
        return (jnp.argmax(logits(params, jnp.asarray(test.tokens)), axis=-1) == jnp.asarray(test.answers)) & asked

    def watch(params: Params, key: Array) -> dict[str, Array]:
        found = right(params)
        return {"lines": found, "right": 100 * jnp.sum(found.astype(jnp.float32)) / np.float32(asked.sum())}

    tx, every = clipped(optax.adam(trapezoid(s.rate, s.steps), b2=0.98)), divisor(s.steps, max(1, s.steps // 20))
    begin = lambda key: init(model, key)  # noqa: E731
    done = fit(jax.random.split(lab.key, 1), begin, loss, tx, steps=s.steps, every=every, watch=watch, tell=lab.tell)
    seen = {name: x[:, 0] for name, x in done.watched.items()}
    return {"right": seen["lines"][-1], "curve": seen["right"], "weights": count(model)}


def stories(words: Vocabulary, questions: Sequence[Question]) -> Stories:
    """Questions one after the other, told as lines: the sentences since the last question, then the question."""
    lines, answers, begins, before = [], [], [], ()
    for q in questions:
        if q.story[: len(before)] != before:
            before = ()
        if not before:
            begins.append(len(lines))
        for sentence in q.story[len(before) :]:
            lines.append([words.ids[w] for w in sentence] + [len(words)])
        lines.append([words.ids[w] for w in q.words] + [len(words) + 1])
        answers += [NIL] * (len(lines) - len(answers) - 1) + [words.ids[q.answer]]
        before = q.story
    n, t = len(lines) // len(begins), max(map(len, lines))
    if begins != list(range(0, len(lines), n)):
        raise DataError(f"bAbI {TASK}: stories begin at lines {begins[:5]}..., expected every {n}")
    tokens = np.array([[NIL] * (t - len(line)) + line for line in lines], np.int32)
    return Stories(tokens.reshape(-1, n, t), np.array(answers, np.int32).reshape(-1, n))


def draw(figure, series) -> None:
    """Accuracy while training, and by the question's place in its story."""
    left, right = figure.subplots(1, 2)
    for name, x in series.items():
        left.plot(np.linspace(0, 1, len(x["curve"]) + 1)[1:], x["curve"], label=name)
        right.plot(1 + np.arange(len(x["places"])), x["places"], "o-", label=name)
    left.set(xlabel="share of the training", ylabel="% right", ylim=(0, 102))
    right.set(xlabel="question of the story", ylabel="% right", ylim=(0, 102))
    left.legend()
