"""A config small enough to be trained in a test; found by path, as a user's own would be."""

import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data import Text, TextFiles
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import make
from jaxlm.models import LM
from jaxlm.train import Experiment


def experiment(
    steps: int = 12,
    seed: int = 0,
    lr: float = 1e-2,
    batch: int = 8,
    mesh: str = "",
    text: tuple[str, ...] = ("LICENSE",),
    layout: str = "rows",
    mixer: str = "LEM",
    width: int = 16,
    accumulate: int = 1,
    dropout: float = 0.1,
    save_every: int = 4,
    evaluate_every: int = 0,
    optimizer: str = "adamw",
    spike: float = 0.0,
) -> Experiment:
    data = Text(TextFiles(text), length=16, layout=layout)  # type: ignore[arg-type]
    body = Stack(Block(make(mixer, width), SwiGLU(width), dropout=dropout), depth=2)
    return Experiment(
        name="tiny",
        model=LM(256, width, body),
        optimizer=optax.adamw(lr) if optimizer == "adamw" else optax.sgd(lr),
        data=data,
        steps=steps,
        batch=batch,
        seed=seed,
        mesh=mesh,
        accumulate=accumulate,
        log_every=1,
        save_every=save_every,
        evaluate_every=evaluate_every,
        evaluate_rows=8,
        spike=spike,
        sample=8,
    )
