"""Liger (Lan et al. 2025): a pretrained softmax model read as a gated recurrence with its own weights, tuned a little.

stories260K, a Llama of 260,032 weights, is converted: each attention becomes a window of 64 tokens and a gated linear
recurrence that share the weights it had. Then LoRA adapters are trained on text that the teacher itself wrote, as long
as its context. The same with α = 1, where nothing is ever forgotten, stands beside it. Perplexities are of further text
by the teacher. In two shorter runs (200 steps, 160 texts, of 256 and of 512 tokens) the ungated one was 1.048 and 1.031
times the gated one, and in the second the gated one 1.14 times the teacher.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.bridges.huggingface import load
from jaxlm.bridges.liger import linearise
from jaxlm.generate import Sampling, generate
from jaxlm.layers.lora import LoRA
from jaxlm.models import LM
from jaxlm.module import abstract, count, init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params

TITLE = "Liger: a softmax model linearised to a gated recurrence"
ROWS = (206,)
NEEDS = ("models/stories260K",)
HEADLINE = "gated: perplexity over the teacher's"
FIRST = 1  # the token that begins a story


@dataclass(frozen=True)
class Settings:
    """The text, the adapters and their training.

    Args:
        texts: Texts that the teacher writes to train on.
        tests: Texts to report on.
        length: Tokens of each, after the first.
        window: Of the softmax attention that stays.
        rank: Of the adapters.
        steps: Of training.
        batch: Texts a step.
        rate: Of Adam, at its highest.
        students: Names of STUDENTS, the first the one that is compared with the teacher.
    """

    texts: int = 800
    tests: int = 16
    length: int = 511
    window: int = 64
    rank: int = 16
    steps: int = 600
    batch: int = 4
    rate: float = 3e-3
    students: tuple[str, ...] = ("gated", "ungated")


BUDGETS = {
    "smoke": Settings(texts=4, tests=2, length=12, window=4, rank=2, steps=2, batch=2, students=("gated",)),
    "cpu": Settings(),
    "gpu": Settings(texts=8192, tests=256, steps=2000, batch=32),
}
STUDENTS = {"gated": 16.0, "ungated": math.inf}  # τ


def run(s: Settings, lab: Lab) -> Result:
    teacher, params = load(lab.data.file(NEEDS[0]))
    begin = jnp.full((s.texts + s.tests, 1), FIRST, jnp.int32)
    written, _ = generate(teacher, params, begin, s.length, lab.key, Sampling(temperature=1.0))
    texts = jnp.concatenate([begin, written], axis=1)
    train, test = texts[: s.texts], texts[s.texts :]
    lab.tell(0.1)
    by_place = {"teacher": _by_place(teacher, params, test)}
    curves, added = {}, 0
    for i, name in enumerate(s.students):
        student = linearise(teacher, s.window, STUDENTS[name])
        added = max(added, count(student) - count(teacher), int(abstract(student) != abstract(teacher)))
        by_place[f"{name}, untuned"] = _by_place(student, params, test)
        own = lab.part(name, *(0.1 + 0.9 * n / len(s.students) for n in (i, i + 1)))
        # One key for all: the same first adapters, the same texts in the same order.
        tuned, curves[name] = _tuned(student, params, train, s, dataclasses.replace(own, key=lab.key))
        by_place[name] = _by_place(student, tuned, test)
    ppl = {name: math.exp(x.mean()) for name, x in by_place.items()}
    claims = (
        Claim("weights that the conversion adds", added, 0, 0, 0),
        Claim("weights of the adapters", count(LoRA(teacher, s.rank))),
        *(Claim(f"perplexity: {name}", x) for name, x in ppl.items()),
        Claim(HEADLINE, ppl["gated"] / ppl["teacher"], high=1.10),
        *(Claim(f"{n}: perplexity over the gated's", ppl[n] / ppl["gated"], low=1.05) for n in s.students[1:]),
    )
    return Result(claims, {"steps": s.steps, "curves": curves, "by_place": by_place})


def _tuned(student: LM, params: Params, texts: Array, s: Settings, lab: Lab) -> tuple[Params, np.ndarray]:
    """The student's weights with trained adapters, and its loss over training."""
    lora = LoRA(student, s.rank)

    def loss(adapters: Params, key: Array, step: Array) -> Array:
        rows = texts[jax.random.randint(key, (s.batch,), 0, len(texts))]
        logits = student.apply(lora.merge(params, adapters), rows[:, :-1])[0]
        return jnp.mean(nats(logits, rows[:, 1:]))

    every = next(n for n in range(max(1, s.steps // 20), s.steps + 1) if s.steps % n == 0)
    tx, keys = clipped(optax.adam(trapezoid(s.rate, s.steps))), jax.random.split(lab.key, 1)
    keep = None if lab.folder is None else lab.folder / "fit.npz"
    done = fit(keys, partial(init, lora), loss, tx, steps=s.steps, every=every, tell=lab.tell, keep=keep)
    return lora.merge(params, jax.tree.map(lambda a: a[0], done.params)), done.watched["loss"][:, 0]


@partial(jax.jit, static_argnums=0)
def _nats(model: LM, params: Params, texts: Array) -> Array:
    return jnp.mean(nats(model.apply(params, texts[:, :-1])[0], texts[:, 1:]), axis=0)


def _by_place(model: LM, params: Params, texts: Array) -> np.ndarray:
    """Mean nats of each place.   (n, t + 1) -> (t)"""
    return np.asarray(_nats(model, params, texts))


def draw(figure, series: Mapping[str, Any]) -> None:
    """Left: the loss over tuning. Right: nats by the place in a text, above the teacher's."""
    left, right = figure.subplots(1, 2)
    for name, curve in series["curves"].items():
        left.plot((np.arange(len(curve)) + 1) * series["steps"] / len(curve), curve, label=name)
    left.set(xlabel="step", ylabel="nats a token", title="tuning the adapters")
    teacher = np.asarray(series["by_place"]["teacher"])
    for name in series["curves"]:
        gap = np.asarray(series["by_place"][name]) - teacher
        size = max(1, len(gap) // 16)
        cut = gap[: len(gap) // size * size].reshape(-1, size).mean(axis=1)
        right.plot((np.arange(len(cut)) + 0.5) * size, cut, label=name)
    right.axhline(0, color="0.6", ls="--", lw=1)
    right.set(xlabel="place in the text", ylabel="nats above the teacher's")
    for ax in (left, right):
        ax.legend()
