"""A language model of 0.2 billion weights over Long Expressive Memory (Rusch et al. 2022).

command    jaxlm train configs/lem_200m.py --mesh data=16 --text CORPUS --tokenizer tokenizer.json
plan       16 v5e, mesh data=16: 5.6 GiB a chip, 1.73 hours and $33 at best (jaxlm plan lem_200m --chip v5e)
           33 % of the products: for every token the recurrent weights are read again, in 17,022 turns of loops an
           update, one after the other; what it costs to begin a turn is not counted
expected   not run: no pod was at hand; a tokenizer of up to 32,000 tokens, 4 billion tokens in all
"""

from jaxlm.blocks import Block, Stack
from jaxlm.data import Bytes, HuggingFace, StandardLibrary, Text, TextFiles
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import LEM
from jaxlm.models import LM
from jaxlm.train import Experiment
from jaxlm.train.optimizers import adamw, cosine

VOCAB = 32_000


def experiment(
    steps: int = 8_000,
    seed: int = 0,
    lr: float = 6e-4,
    batch: int = 1024,
    mesh: str = "data=16",
    length: int = 512,
    text: tuple[str, ...] = (),
    tokenizer: str = "",
    remat: str = "full",
    accumulate: int = 1,
    save_every: int = 500,
    evaluate_every: int = 1000,
) -> Experiment:
    """Two hundred million weights, LEM.

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
    block = Block(LEM(1024), SwiGLU(1024, 4096))
    model = LM(max(VOCAB, data.vocab), 1024, Stack(block, 8, remat))
    return Experiment(
        name="lem_200m",
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
