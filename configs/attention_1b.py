"""A language model of a billion weights: attention with grouped keys, in the shape of Llama.

command    jaxlm train configs/attention_1b.py --mesh fsdp=64 --text CORPUS --tokenizer tokenizer.json
plan       64 v5e, mesh fsdp=64: 3.1 GiB a chip, 9.0 hours and $692 at best (jaxlm plan attention_1b --chip v5e)
expected   not run: no pod was at hand; a tokenizer of up to 32,000 tokens, 21 billion tokens in all
"""

from jaxlm.blocks import Block, Stack
from jaxlm.data import Bytes, HuggingFace, StandardLibrary, Text, TextFiles
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import Attention
from jaxlm.models import LM
from jaxlm.train import Experiment
from jaxlm.train.optimizers import adamw, cosine

VOCAB = 32_000


def experiment(
    steps: int = 20_000,
    seed: int = 0,
    lr: float = 4e-4,
    batch: int = 512,
    mesh: str = "fsdp=64",
    length: int = 2048,
    text: tuple[str, ...] = (),
    tokenizer: str = "",
    remat: str = "full",
    accumulate: int = 1,
    save_every: int = 500,
    evaluate_every: int = 1000,
) -> Experiment:
    """A billion weights, attention.

    Args:
        steps: Updates of the weights.
        seed: Of the weights and the order of the data.
        lr: Highest learning rate (AdamW, warm-up and cosine).
        batch: Rows an update.
        mesh: Devices.
        length: Tokens a row.
        text: Files, folders or .gz to learn from; default: the Python standard library.
        tokenizer: A Hugging Face tokenizer.json; default: bytes.
        remat: What the backward pass computes again: none, dots, named or full.
        accumulate: Parts of a batch, run one after the other.
        save_every: Updates between checkpoints.
        evaluate_every: Updates between evaluations.
    """
    corpus = TextFiles(text) if text else StandardLibrary()
    data = Text(corpus, HuggingFace(tokenizer) if tokenizer else Bytes(), length)
    block = Block(Attention(2048, heads=16, kv_heads=8), SwiGLU(2048, 5632))
    model = LM(max(VOCAB, data.vocab), 2048, Stack(block, 20, remat), tied=False)
    return Experiment(
        name="attention_1b",
        model=model,
        optimizer=adamw(model, cosine(lr, steps)),
        data=data,
        steps=steps,
        batch=batch,
        seed=seed,
        accumulate=accumulate,
        dtype="bfloat16",
        mesh=mesh,
        save_every=save_every,
        evaluate_every=evaluate_every,
    )
