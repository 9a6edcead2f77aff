"""A small hybrid language model on the Python standard library's own text.

command    jaxlm train
cost       about three minutes on two CPU cores
expected   examples/results/quickstart.json, which this command wrote
"""

from jaxlm.blocks import Block, Stack
from jaxlm.data import Bytes, HuggingFace, StandardLibrary, Text, TextFiles
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import Attention, make
from jaxlm.models import LM
from jaxlm.train import Experiment
from jaxlm.train.optimizers import clipped, muon, trapezoid


def experiment(
    steps: int = 1700,
    seed: int = 0,
    lr: float = 0.02,
    batch: int = 8,
    mesh: str = "",
    width: int = 128,
    depth: int = 2,
    length: int = 128,
    mixer: str = "",
    text: tuple[str, ...] = (),
    tokenizer: str = "",
    remat: str = "none",
    dtype: str = "float32",
    accumulate: int = 1,
    save_every: int = 200,
    evaluate_every: int = 425,
    sample: int = 400,
) -> Experiment:
    """A small language model of bytes.

    Args:
        steps: Updates of the weights.
        seed: Of the weights, the order of the data, and the sample.
        lr: Highest learning rate of the matrices (Muon); embeddings and gains learn at 0.15 of it (Adam).
        batch: Rows an update.
        mesh: Devices, for example data=4,tensor=2.
        width: Of the model.
        depth: Blocks.
        length: Tokens a row.
        mixer: Any registered mixer in every block; default: GRU and windowed Attention in turn.
        text: Files, folders or .gz to learn from; default: the Python standard library.
        tokenizer: A Hugging Face tokenizer.json; default: bytes.
        remat: What the backward pass computes again: none, dots, named or full.
        dtype: Of the computation.
        accumulate: Parts of a batch, run one after the other.
        save_every: Updates between checkpoints.
        evaluate_every: Updates between evaluations.
        sample: Tokens of text written at the end.
    """
    corpus = TextFiles(text) if text else StandardLibrary()
    data = Text(corpus, HuggingFace(tokenizer) if tokenizer else Bytes(), length)
    mixers = [make(mixer, width)] if mixer else [make("GRU", width), Attention(width, window=max(1, length // 2))]
    pattern = tuple(Block(m, SwiGLU(width, 2 * width)) for m in mixers)
    model = LM(data.vocab, width, Stack(pattern, depth, remat))
    optimizer = muon(model, trapezoid(lr, steps), trapezoid(0.15 * lr, steps))
    return Experiment(
        name="quickstart",
        model=model,
        optimizer=clipped(optimizer),
        data=data,
        steps=steps,
        batch=batch,
        seed=seed,
        accumulate=accumulate,
        dtype=dtype,
        mesh=mesh,
        save_every=save_every,
        evaluate_every=evaluate_every,
        evaluate_rows=16,
        evaluate_length=1024,
        baselines=True,
        prompt="def ",
        sample=sample,
    )
