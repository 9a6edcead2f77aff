"""Resona (Wang et al. 2025): recall of more pairs than a recurrent state holds, with and without a retrieval branch.

Multi-query associative recall (Arora et al. 2024): keys and values, then every key once more. The base is as in
Griffin (De et al. 2024): attention to the last three tokens, which lets a value know its key, then a gated linear
recurrence, here with fewer numbers in its state than there are pairs. The augmented model is the same with `Resona`
around the recurrence. Both train on the same fresh sequences, and are tested on others, and on longer ones.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.blocks import Block, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.mixers import RGLRU, Attention, Mixer, Resona
from jaxlm.models.sequence import SequenceModel
from jaxlm.papers import _capability as card
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.tasks import MQAR

TITLE = "Resona: retrieval beside a linear recurrence"
ROWS = (46,)
NEEDS = ()
HEADLINE = "recall, augmented"


@dataclass(frozen=True)
class Settings:
    """The task, the models and their training.

    Args:
        pairs: Of a key and its value.
        vocab: Tokens; half are keys, half values.
        width: Of both models.
        hidden: Numbers in the state of the recurrence.
        window: Tokens that the attention below sees.
        mlp: Width of the MLP.
        chunk: Tokens of a chunk.
        top: Chunks that a head reads for a token.
        steps: Of training.
        batch: Sequences a step.
        rate: Of Adam, at its highest.
        trials: Sequences of a test.
        far: Length of a second test, times that of training.
    """

    pairs: int = 24
    vocab: int = 64
    width: int = 64
    hidden: int = 8
    window: int = 3
    mlp: int = 128
    chunk: int = 4
    top: int = 12
    steps: int = 600
    batch: int = 32
    rate: float = 3e-3
    trials: int = 256
    far: int = 2


BUDGETS = {
    "smoke": Settings(4, 16, 8, 2, mlp=8, chunk=4, top=1, steps=4, batch=2, trials=4, far=1),
    "cpu": Settings(),
    "gpu": Settings(pairs=128, vocab=512, width=128, hidden=64, mlp=256, chunk=16, top=16, steps=4000, batch=64),
}


def run(s: Settings, lab: Lab) -> Result:
    task, length = MQAR(s.vocab, s.pairs), 4 * s.pairs
    base = RGLRU(s.width, s.hidden)
    same = {name: getattr(s, name) for name in ("far", "batch", "steps", "rate", "trials")}
    how = dataclasses.replace(card.Settings(), length=length, seeds=1, **same)
    mixers = {"augmented": (Resona(s.width, base, s.chunk, s.top), 0.0, 0.75), "base": (base, 0.75, 1.0)}
    found = {}
    for name, (mixer, low, high) in mixers.items():
        # One key for all: the same sequences in the same order.
        own = dataclasses.replace(lab.part(name, low, high), key=lab.key)
        (found[name],) = card.learn(model_of(s, mixer, task), [task], how, own)
    near, far = ({n: float(x[where][0]) for n, x in found.items()} for where in ("near", "far"))
    claims = (
        Claim("recall, base", near["base"], high=0.6),
        Claim(HEADLINE, near["augmented"], low=0.95),
        Claim(f"recall at {s.far} times the length, base", far["base"]),
        Claim(f"recall at {s.far} times the length, augmented", far["augmented"]),
        Claim("chance", task.chance(length)),
        Claim("pairs over numbers in the recurrent state", s.pairs / s.hidden, low=1),
    )
    return Result(claims, {"steps": s.steps, "curves": {n: x["loss"][:, 0] for n, x in found.items()}})


def model_of(s: Settings, mixer: Mixer, task: MQAR) -> SequenceModel:
    """Attention to the last tokens, then the mixer and an MLP."""
    near = Attention(s.width, 2, window=s.window)
    body = Stack((Block(near), Block(mixer, MLP(s.width, s.mlp))), 2)
    return SequenceModel(body, task.classes, task.vocab, readout="every")


def draw(figure, series: Mapping[str, Any]) -> None:
    """What is paid for an answer over training."""
    ax = figure.subplots()
    for name, curve in series["curves"].items():
        ax.plot((np.arange(len(curve)) + 1) * series["steps"] / len(curve), curve, "o-", label=name)
    ax.set(xlabel="step", ylabel="nats a pair", ylim=(0, None))
    ax.legend()
