"""CAMELoT (He et al. 2024): a frozen language model, a window of 128 tokens, and a memory beside each attention head.

Two frozen models on long text. One is small, trained here on sequences of 128 characters in which some bigrams hold for
that sequence only (Bietti et al. 2023); its long text repeats such bigrams over thousands of characters. The other is
stories260K with its public weights, reading tiny Shakespeare. Each reads segments of 128 tokens that do not see each
other, with and without the memory; the threshold R is chosen on other text than that reported. A sliding window of 128
tokens stands beside them, which reads each token with twice the context that a segment gives it on average.
The paper's models have 7 billion weights; its best case is 29.7 % lower perplexity (arXiv articles).
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.bridges.huggingface import load
from jaxlm.data.bigrams import SHAKESPEARE, shakespeare_bigrams
from jaxlm.data.tokens import tokenizer_in
from jaxlm.layers.heads import divisor
from jaxlm.layers.mlp import SwiGLU
from jaxlm.memory.bigram_task import BigramTask
from jaxlm.memory.camelot import CamelotAttention
from jaxlm.mixers.attention import Attention
from jaxlm.models import LM
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params

TITLE = "CAMELoT: a consolidated memory for frozen language models"
ROWS = (49,)
STORIES = "models/stories260K"
NEEDS = (SHAKESPEARE, STORIES)


@dataclass(frozen=True)
class Settings:
    """The memory, the texts, and the small model that is trained.

    Args:
        segment: Tokens that a model sees at once.
        novelties: Thresholds R that are tried; above 1 nothing is merged.
        nearest: Modes that a query calls up.
        behind: Places from the modes to a segment's first token.
        rows: Long texts that are read side by side.
        length: Tokens of each.
        slots: Modes of each key head of the small model.
        story_slots: Modes of each key head of stories260K.
        triggers: Characters whose successor is a text's own.
        width: Of the small model.
        depth: Of the small model.
        heads: Of the small model.
        steps: Of its training.
        batch: Sequences a step.
        rate: Of Adam, at its highest.
    """

    segment: int = 128
    novelties: tuple[float, ...] = (0.8, 0.9, 0.95, 0.99, 2.0)
    nearest: int = 1
    behind: int = 32
    rows: int = 8
    length: int = 2048
    slots: int = 64
    story_slots: int = 256
    triggers: int = 5
    width: int = 64
    depth: int = 2
    heads: int = 4
    steps: int = 400
    batch: int = 32
    rate: float = 5e-3


SMOKE = Settings(segment=16, novelties=(0.9,), rows=2, length=32, slots=8, story_slots=8, width=16, steps=4, batch=2)
BUDGETS = {"smoke": SMOKE, "cpu": Settings(), "gpu": Settings(rows=16, length=8192)}


def run(s: Settings, lab: Lab) -> Result:
    repeated = _compare(*_trained(s, lab.part("train", 0, 0.4)), s, s.slots, lab.part("bigrams", 0.4, 0.6))
    stories = _compare(*_stories(s, lab), s, s.story_slots, lab.part("stories", 0.6, 1.0))
    claims = []
    for name, found, segment, window in (
        ("repeated bigrams", repeated, 0.92, 0.97),
        ("tiny Shakespeare", stories, 0.98, math.inf),
    ):
        alone, sliding, memory = (found[n] for n in ("segment", "window", "memory"))
        claims += [
            Claim(f"{name}: perplexity, segments of {s.segment}", alone),
            Claim(f"{name}: perplexity, with the memory", memory),
            Claim(f"{name}: ratio", memory / alone, high=segment, paper=1 - 0.297),
            Claim(f"{name}: ratio to a sliding window's", memory / sliding, high=window),
            Claim(f"{name}: R, chosen on other text", found["novelty"]),
        ]
    series = {"novelties": list(s.novelties), "repeated": repeated, "stories": stories}
    return Result(tuple(claims), series)


def _trained(s: Settings, lab: Lab) -> tuple[LM, Params, np.ndarray, np.ndarray]:
    """The small model, its weights, long texts (rows, length + 1) to choose R on and to report."""
    bigrams = shakespeare_bigrams(lab.data)
    language = jnp.asarray(bigrams.unigram, jnp.float32), jnp.asarray(bigrams.follow, jnp.float32)
    task = BigramTask(s.segment, s.triggers, outputs="other")
    model = LM(bigrams.vocab, s.width, Stack(Block(Attention(s.width, s.heads), SwiGLU(s.width)), s.depth))

    def loss(params: Params, key: Array, step: Array, language: tuple[Array, Array]) -> Array:
        text = task.draw(key, *language, s.batch)
        weights = jnp.where(text.count > 0, 1.0, 0.2)  # what follows the other characters is soon known
        total, size = model.loss(params, text.inputs, text.targets, weights)[0]
        return total / size

    rate = optax.warmup_cosine_decay_schedule(0.0, s.rate, s.steps // 12 + 1, s.steps + 2, s.rate / 10)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))
    begin, each = (lambda key, _: init(model, key)), jax.tree.map(lambda x: x[None], language)
    every = divisor(s.steps, s.steps // 20)
    done = fit(jax.random.split(lab.key, 1), begin, loss, tx, steps=s.steps, every=every, tell=lab.tell, each=each)
    draw = jax.jit(dataclasses.replace(task, length=s.length).draw, static_argnums=3)
    chosen, text = (np.asarray(draw(jax.random.fold_in(lab.key, i), *language, s.rows).tokens) for i in (1, 2))
    return model, jax.tree.map(lambda p: p[0], done.params), chosen, text


def _stories(s: Settings, lab: Lab) -> tuple[LM, Params, np.ndarray, np.ndarray]:
    """stories260K, its weights, and tiny Shakespeare: its beginning to choose R on, its end to report."""
    folder = lab.data.file(STORIES)
    model, params = load(folder)
    text, size = lab.data.open(SHAKESPEARE), s.rows * s.length + 1
    enough = 4 * size  # bytes: a token has fewer
    first, last = (tokenizer_in(folder).encode(t).astype(np.int32) for t in (text[:enough], text[-enough:]))
    at = np.arange(s.rows)[:, None] * s.length + np.arange(s.length + 1)[None]
    return model, params, first[:size][at], last[-size:][at]


def _compare(
    model: LM, params: Params, chosen: np.ndarray, text: np.ndarray, s: Settings, slots: int, lab: Lab
) -> dict[str, Any]:
    """Perplexities of a text: `segment` alone, `window` sliding, `memory` with the R that is best on `chosen`."""
    short, block = s.segment, model.body.blocks  # type: ignore[attr-defined]

    def reading(mixer: Any) -> LM:
        body = dataclasses.replace(model.body, blocks=dataclasses.replace(block, mixer=mixer))
        return dataclasses.replace(model, body=body)

    def alone(text: np.ndarray) -> np.ndarray:
        pieces = [x.reshape(-1, short) for x in (text[:, :-1], text[:, 1:])]
        return np.asarray(_nats(model, params, *pieces)).reshape(len(text), -1)

    def remembered(novelty: float, text: np.ndarray) -> np.ndarray:
        mixer = CamelotAttention(block.mixer, slots, short, novelty, s.nearest, s.behind)
        return np.asarray(_nats(reading(mixer), params, text[:, :-1], text[:, 1:]))

    tried = []
    for i, novelty in enumerate(s.novelties):
        tried.append(float(remembered(novelty, chosen).mean()))
        lab.tell((i + 1) / (len(s.novelties) + 1), R=novelty, perplexity=math.exp(tried[-1]))
    best = s.novelties[int(np.argmin(tried))]
    without, memory = alone(text), remembered(best, text)
    window = _nats(reading(dataclasses.replace(block.mixer, window=short)), params, text[:, :-1], text[:, 1:])
    found = {"segment": without, "window": np.asarray(window), "memory": memory}
    place = {f"{n}_by_place": found[n].reshape(-1, short).mean(0) for n in ("segment", "memory")}
    tuned = {"tried": np.exp(tried), "tried_without": math.exp(alone(chosen).mean()), "novelty": best}
    return {n: math.exp(x.mean()) for n, x in found.items()} | place | tuned


@partial(jax.jit, static_argnums=0)
def _nats(model: LM, params: Params, inputs: Array, targets: Array) -> Array:
    """Nats of each target.   (b, t), (b, t) -> (b, t)"""
    return nats(model.apply(params, inputs)[0], targets)


def draw(figure, series) -> None:
    """Above: perplexity by R, where it was chosen. Below: nats by the place in a segment, where it is reported."""
    axes = figure.subplots(2, 2)
    for side, name in enumerate(("repeated", "stories")):
        found, (above, below) = series[name], axes[:, side]
        marks = [f"{r:g}" if r <= 1 else "none" for r in series["novelties"]]
        above.plot(marks, found["tried"], "o-", label="with memory")
        above.axhline(found["tried_without"], color="black", linestyle="--", label="segments alone")
        above.set(title=name, xlabel="R: merged from this cosine on", ylabel="perplexity")
        below.plot(found["segment_by_place"], "k--", label="segments alone")
        below.plot(found["memory_by_place"], label="with memory")
        below.set(xlabel="place in the segment", ylabel="nats a token")
        for ax in (above, below):
            ax.legend()
