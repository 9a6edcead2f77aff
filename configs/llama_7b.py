"""The shape of Llama 2 7B (Touvron et al. 2023), from scratch.

command    jaxlm train configs/llama_7b.py --mesh fsdp=256 --text CORPUS --tokenizer tokenizer.json
plan       256 v5p, mesh fsdp=256: 8.4 GiB a chip, 26.0 hours and $27,933 at best (jaxlm plan llama_7b --chip v5p)
expected   not run: no pod was at hand; a tokenizer of up to 32,000 tokens, 138 billion tokens in all
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
    steps: int = 33_000,
    seed: int = 0,
    lr: float = 3e-4,
    batch: int = 1024,
    mesh: str = "fsdp=256",
    length: int = 4096,
    text: tuple[str, ...] = (),
    tokenizer: str = "",
    remat: str = "full",
    accumulate: int = 1,
    save_every: int = 500,
    evaluate_every: int = 1000,
) -> Experiment:
    """The 7B shape of Llama.

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
    block = Block(Attention(4096, heads=32), SwiGLU(4096, 11_008))
    model = LM(max(VOCAB, data.vocab), 4096, Stack(block, 32, remat), tied=False)
    return Experiment(
        name="llama_7b",
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
