"""A small hybrid language model on the Python standard library's own text.

command    jaxlm train
cost       about three minutes on two CPU cores
"""

import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data import Text
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import make
from jaxlm.models import LM
from jaxlm.module import decay_mask
from jaxlm.train import Experiment


def experiment(
    steps: int = 600,
    seed: int = 0,
    lr: float = 3e-3,
    batch: int = 16,
    mesh: str = "",
    width: int = 128,
    depth: int = 2,
    length: int = 256,
    mixer: str = "",
    dtype: str = "float32",
    accumulate: int = 1,
    save_every: int = 200,
    evaluate_every: int = 200,
    sample: int = 400,
) -> Experiment:
    """A small language model of bytes.

    Args:
        steps: Updates of the weights.
        seed: Of the weights, the order of the data, and the sample.
        lr: Highest learning rate; warm-up, then cosine to a tenth.
        batch: Rows an update.
        mesh: Devices, for example data=4,tensor=2.
        width: Of the model.
        depth: Blocks.
        length: Tokens a row.
        mixer: Any registered mixer in every block; default: a pattern of GatedDeltaNet and windowed Attention.
        dtype: Of the computation.
        accumulate: Parts of a batch, run one after the other.
        save_every: Updates between checkpoints.
        evaluate_every: Updates between evaluations.
        sample: Tokens of text written at the end.
    """
    text = Text(length=length)
    names = [mixer] if mixer else ["GatedDeltaNet", "Attention"]
    model = LM(text.vocab, width, Stack(tuple(Block(make(n, width), SwiGLU(width)) for n in names), depth))
    rate = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, min(50, steps // 10)), steps, lr / 10)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.95, weight_decay=0.1, mask=decay_mask(model)),
    )
    return Experiment(
        name="quickstart",
        model=model,
        optimizer=optimizer,
        data=text,
        steps=steps,
        batch=batch,
        seed=seed,
        accumulate=accumulate,
        dtype=dtype,
        mesh=mesh,
        save_every=save_every,
        evaluate_every=evaluate_every,
        baselines=True,
        prompt="def ",
        sample=sample,
    )
