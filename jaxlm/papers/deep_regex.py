"""Descriptions in English to regular expressions, judged by what the expressions mean (Locascio et al. 2016).

Two LSTM layers read the description, two write the expression with attention over it. An answer is right if its
minimal automaton is that of the true expression. Differs from the paper: the grammar is reduced and its descriptions
can be read in one way only (see `jaxlm.data.regex_text`), no paraphrases by people, narrower layers, Adam, no dropout.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Stack
from jaxlm.data import regex_text
from jaxlm.data.automata import equivalent
from jaxlm.data.errors import DataError
from jaxlm.data.regex import parse
from jaxlm.mixers import LSTM
from jaxlm.models.seq2seq import END, NOTHING, Seq2Seq
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import clipped, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "Regular expressions from descriptions"
ROWS = (39,)
NEEDS = ()

FIRST = END + 1  # id of the first word
WATCHED = 256  # held-out pairs looked at after every chunk
STATES = 2000  # of an answer's automaton; beyond, it counts as wrong


@dataclass(frozen=True)
class Settings:
    """pairs: distinct ones, of which `held` are held out; depth: of logic in a description; longest: its words"""

    pairs: int = 10000
    held: int = 500
    depth: int = 1
    longest: int = 32
    width: int = 96
    layers: int = 2
    steps: int = 800
    batch: int = 64
    rate: float = 4e-3


BUDGETS = {
    "smoke": Settings(60, 6, 1, 32, 8, 1, 2, 4, 1e-3),
    "cpu": Settings(),
    "gpu": Settings(100000, 2000, 2, 64, 512, 2, 20000, 128, 1e-3),
}


def model_of(s: Settings) -> Seq2Seq:
    """LSTMs on both sides."""
    body = Stack(LSTM(s.width), s.layers) if s.layers > 1 else LSTM(s.width)
    reads, writes = (FIRST + len(regex_text.vocabulary(side)) for side in (0, 1))
    return Seq2Seq(reads, writes, body, body)


def arrays_of(s: Settings, pairs: list[regex_text.Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Sources (n, longest), filled up on the left; targets (n, longest + 1), with END."""
    words, signs = (regex_text.vocabulary(side) for side in (0, 1))
    source = regex_text.encode([p.words for p in pairs], words, FIRST, s.longest, left=True)
    target = regex_text.encode([p.signs for p in pairs], signs, FIRST, s.longest + 1, left=False)
    target[np.arange(len(pairs)), (target != NOTHING).sum(1)] = END
    return source, target


def text_of(ids: np.ndarray) -> str:
    """The expression that was written: what stands before END."""
    signs = regex_text.vocabulary(1)
    whole = [int(i) for i in ids[: list(ids).index(END)]] if END in ids else []
    return "".join(signs[i - FIRST] if i >= FIRST else "" for i in whole)


def judge(answer: str, truth: str) -> str:
    """'same' text, 'equal' automata, 'unlike', or 'broken': no expression, or one with a huge automaton."""
    if answer == truth:
        return "same"
    try:
        return "equal" if equivalent(parse(answer), parse(truth), STATES) else "unlike"
    except DataError:
        return "broken"


def train(s: Settings, lab: Lab, model: Seq2Seq, source: np.ndarray, target: np.ndarray) -> Any:
    """A Fit: trained on all but the first `held` pairs, watched on these."""
    reads, writes = jnp.asarray(source), jnp.asarray(target)

    def loss(params: Params, key: Array, step: Array) -> Array:
        rows = jax.random.randint(key, (s.batch,), s.held, s.pairs)
        total, count = model.loss(params, reads[rows], writes[rows])
        return total / count

    def watch(params: Params, key: Array) -> Tree:
        seen = slice(0, min(WATCHED, s.held))  # greedy decoding gives the text just if each next token is the greatest
        guess = jnp.argmax(model.apply(params, reads[seen], writes[seen]), axis=-1)
        right = (guess == writes[seen]) | (writes[seen] == NOTHING)
        return {"text": jnp.mean(jnp.all(right, axis=-1), dtype=jnp.float32)}

    every = max(n for n in range(1, 26) if s.steps % n == 0)
    tx = clipped(optax.adam(trapezoid(s.rate, s.steps, warmup=100)))
    keep = None if lab.folder is None else lab.folder / "progress.npz"
    own = lab.key[None]
    return fit(
        own, lambda k: init(model, k), loss, tx, steps=s.steps, every=every, watch=watch, tell=lab.tell, keep=keep
    )


def run(s: Settings, lab: Lab) -> Result:
    seed = int(jax.random.randint(lab.key, (), 0, 2**31 - 1))
    pairs = regex_text.distinct(seed, s.pairs, s.depth, s.longest)
    source, target = arrays_of(s, pairs)
    model = model_of(s)
    found = train(s, lab.part("train", 0, 0.95), model, source, target)
    params = jax.tree.map(lambda p: p[0], found.params)
    greedy = jax.jit(model.greedy, static_argnums=2)
    answers = [text_of(ids) for ids in np.asarray(greedy(params, source[: s.held], target.shape[1]))]
    held = pairs[: s.held]
    kinds = [judge(answer, p.expression) for answer, p in zip(answers, held, strict=True)]
    lab.tell(1.0)
    share = {kind: kinds.count(kind) / s.held for kind in ("same", "equal", "unlike", "broken")}
    by_length: dict[int, list[bool]] = {}
    for kind, p in zip(kinds, held, strict=True):
        by_length.setdefault(len(p.signs) // 5 * 5, []).append(kind in ("same", "equal"))
    claims = (
        Claim("held-out descriptions: equal automata", share["same"] + share["equal"], low=0.8),
        Claim("the same text", share["same"]),
        Claim("another text of the same meaning", share["equal"]),
        Claim("no expression at all", share["broken"]),
    )
    wrong = [(p, a) for p, a, kind in zip(held, answers, kinds, strict=True) if kind in ("unlike", "broken")]
    notes = [
        f"{s.pairs - s.held:,} pairs to learn from, {s.held} others to be tested on; {s.steps:,} steps of {s.batch}"
    ]
    notes += [f"{' '.join(p.words)}: {p.expression}, taken for {answer or 'nothing'}" for p, answer in wrong[:2]]
    every = s.steps // len(found.watched["text"])
    curves = {name: found.watched[name][:, 0] for name in ("loss", "text")}
    lengths = {str(n): [float(np.mean(ok)), len(ok)] for n, ok in sorted(by_length.items())}
    return Result(claims, {"curves": curves, "every": every, "lengths": lengths}, tuple(notes))


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    steps = series["every"] * np.arange(1, len(series["curves"]["text"]) + 1)
    left.plot(steps, series["curves"]["text"], label="held-out: the same text")
    left.plot(steps, series["curves"]["loss"], label="training: nats a sign")
    left.set(xlabel="steps of training", ylim=(0, 1))
    left.legend()
    names = [f"{n}-{int(n) + 4}" for n in series["lengths"]]
    right.bar(names, [share for share, _ in series["lengths"].values()])
    right.set(xlabel="signs of the expression", ylabel="share with equal automata", ylim=(0, 1))
