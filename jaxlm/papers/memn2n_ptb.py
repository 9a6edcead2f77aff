"""Penn Treebank perplexity of the MemN2N language model (Sukhbaatar et al. 2015, table 2: six hops, memory 100).

The recipe of the authors' code: random windows, SGD on the summed loss, the rate cut by 1.5 after an epoch that did not
lower the validation cost. Perplexity is over the words that have a full memory before them. One run, where the paper
takes the best of ten by validation. `cpu` is the learning curve of the first epochs; `gpu` runs to the end.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.cost import flops
from jaxlm.data.ptb import penn_treebank
from jaxlm.memory.memn2n_lm import MemN2NLM
from jaxlm.module import abstract, init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train import progress
from jaxlm.typing import Array, Params

TITLE = "MemN2N language model on Penn Treebank"
ROWS = (64,)
NEEDS = ("ptb",)
PIECES = 20  # of an epoch: how often progress is told
ROW = 1024  # words of a text that are scored at once
LAST_RATE = 1e-5


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of the paper's table 2 and of its code.

    Args:
        width: Of the state, d.
        linear: Entries of it that are not rectified.
        hops: Reads of the memory.
        memory: Words in it.
        batch: Windows a step.
        rate: Of SGD on the summed loss.
        clip: Largest norm of the gradient.
        epochs: At most.
        words: Words of each split that are used; 0: all.
    """

    width: int = 150
    linear: int = 75
    hops: int = 6
    memory: int = 100
    batch: int = 128
    rate: float = 0.01
    clip: float = 50.0
    epochs: int = 100
    words: int = 0


BUDGETS = {
    "smoke": Settings(width=8, linear=4, hops=2, memory=10, batch=16, epochs=2, words=1500),
    "cpu": Settings(epochs=2),
    "gpu": Settings(),
}


def run(s: Settings, lab: Lab) -> Result:
    bank = penn_treebank(lab.data)
    model = MemN2NLM(len(bank.vocabulary), s.width, s.hops, s.memory, s.linear)
    train, valid, test = (x[: s.words or None] for x in (bank.train, bank.valid, bank.test))
    steps = -(-len(train) // s.batch)
    params, curve, file = init(model, lab.key), [], None if lab.folder is None else lab.folder / "progress.npz"
    plan = {k: v for k, v in dataclasses.asdict(s).items() if k != "epochs"}  # more epochs go on from fewer
    if file is not None and file.exists():
        params, _, curve = progress.resume(file, params, plan)
    go, score = (
        trainer(model, jnp.asarray(train), s),
        jax.jit(lambda p, rows: jnp.sum(jax.lax.map(_scorer(model, p), rows))),
    )
    held, last = rows(valid, s.memory), rows(test, s.memory)
    while len(curve) < s.epochs and rate_after(s.rate, curve) >= LAST_RATE:
        params, cost = _epoch(go, params, s, lab, len(curve), steps, rate_after(s.rate, curve))
        now = {"train": cost, "valid": float(score(params, held)) / (len(valid) - s.memory)}
        now["rate"] = rate_after(s.rate, curve)
        if now["valid"] <= min((c["valid"] for c in curve), default=math.inf):
            now["test"] = float(score(params, last)) / (len(test) - s.memory)
        curve.append(now)
        if file is not None:
            progress.keep(file, params, plan, {}, curve)
    step = flops(jax.grad(model.window_loss), abstract(model), jax.ShapeDtypeStruct((s.batch, s.memory + 1), jnp.int32))
    return _result(s, curve, unigram(train, valid, len(bank.vocabulary)), step * steps)


def trainer(model: MemN2NLM, text: Array, s: Settings) -> Callable[..., tuple[Params, Array]]:
    """go(params, key, rate, first, last) -> params, summed nats: these steps of SGD on random windows of the text."""

    def step(n: Array, carry: tuple[Params, Array], key: Array, rate: Array) -> tuple[Params, Array]:
        params, total = carry
        at = jax.random.randint(jax.random.fold_in(key, n), (s.batch,), 0, text.shape[0] - s.memory)
        windows = text[at[:, None] + jnp.arange(s.memory + 1, dtype=jnp.int32)[None]]
        nats, grads = jax.value_and_grad(model.window_loss)(params, windows)
        scale = rate * jnp.minimum(1.0, s.clip / optax.tree.norm(grads))
        return jax.tree.map(lambda p, g: p - scale * g, params, grads), total + nats

    def go(params: Params, key: Array, rate: Array, first: Array, last: Array) -> tuple[Params, Array]:
        body = lambda n, carry: step(n, carry, key, rate)  # noqa: E731
        return jax.lax.fori_loop(first, last, body, (params, jnp.zeros(())))

    return jax.jit(go)


def _epoch(go, params: Params, s: Settings, lab: Lab, epoch: int, steps: int, rate: float) -> tuple[Params, float]:
    """One epoch: (params, mean nats a word while training)."""
    key, total = jax.random.fold_in(lab.key, epoch), 0.0
    for piece in range(PIECES):
        first, last = steps * piece // PIECES, steps * (piece + 1) // PIECES
        params, nats = go(params, key, jnp.float32(rate), jnp.int32(first), jnp.int32(last))
        total += float(nats)
        done = (epoch + (piece + 1) / PIECES) / s.epochs
        lab.tell(done, epoch=epoch + 1, rate=rate, train_perplexity=math.exp(total / max(last, 1) / s.batch))
    return params, total / steps / s.batch


def rate_after(rate: float, curve: list[dict]) -> float:
    """The rate after some epochs: cut by 1.5 whenever the validation cost came out above 0.9999 of the one before."""
    costs = [c["valid"] for c in curve]
    return rate / 1.5 ** sum(now > 0.9999 * before for before, now in pairwise(costs))


def rows(text: np.ndarray, memory: int) -> dict[str, np.ndarray]:
    """A text in rows that overlap by the memory; each word that has a full memory before it is weighed once.

    ->      words (rows, memory + ROW) int32;  weights (rows, ROW) float32
    """
    n = len(text) - memory
    size = min(ROW, n)
    at = np.arange(0, n, size, dtype=np.int32)[:, None] + np.arange(memory + size, dtype=np.int32)
    return {"words": text[np.minimum(at, len(text) - 1)], "weights": (at[:, memory:] < len(text)).astype(np.float32)}


def _scorer(model: MemN2NLM, params: Params) -> Callable[..., Array]:
    """Summed nats of one row."""
    m = model.memory

    def score(row: dict[str, Array]) -> Array:
        words = row["words"][None]
        state = {"words": words[:, : m - 1], "length": jnp.full((1,), m - 1, jnp.int32)}
        return model.loss(params, words[:, m - 1 : -1], words[:, m:], row["weights"][None], state)[0][0]

    return score


def unigram(train: np.ndarray, held: np.ndarray, kinds: int) -> float:
    """Perplexity of held-out words by their frequency in train, each counted once more."""
    count = np.bincount(train, minlength=kinds) + 1
    return float(np.exp(-np.mean(np.log(count[held] / count.sum()))))


def _result(s: Settings, curve: list[dict], floor: float, work: float) -> Result:
    best = min(range(len(curve)), key=lambda i: curve[i]["valid"])
    valid, test = math.exp(curve[best]["valid"]), math.exp(curve[best]["test"])
    done = rate_after(s.rate, curve) < LAST_RATE or len(curve) >= 100  # a whole run: only that has a published number
    claims = [Claim(f"valid perplexity, epoch {i + 1}", math.exp(c["valid"])) for i, c in enumerate(curve[:5])]
    claims += [
        Claim(
            "epochs that lowered the validation cost, first 3",
            sum(np.diff([c["valid"] for c in curve[:3]]) < 0),
            low=min(s.epochs, 3) - 1,
        ),
        Claim("valid perplexity, of a unigram model's", valid / floor, high=1.0),
        Claim("valid perplexity, best epoch", valid, high=128 if done else math.inf, paper=122 if done else None),
        Claim("test perplexity, same epoch", test, high=120 if done else math.inf, paper=115 if done else None),
    ]
    series = {name: [math.exp(c[name]) for c in curve] for name in ("train", "valid")}
    series |= {"rate": [c["rate"] for c in curve], "unigram": floor, "best": [best + 1, valid, test]}
    return Result(tuple(claims), series, (f"{work / 1e12:.1f} TFLOP an epoch, counted over the jaxpr",))


def draw(figure, series) -> None:
    """Perplexity by epoch, against the published ends."""
    axes = figure.subplots()
    epochs = np.arange(1, len(series["valid"]) + 1)
    axes.plot(epochs, series["train"], "o-", label="train, while learning")
    axes.plot(epochs, series["valid"], "o-", label="valid")
    axes.axhline(series["unigram"], color="gray", linestyle=":", label="unigram, valid")
    axes.axhline(122, color="black", linestyle="--", label="paper, valid, at the end")
    axes.set(xlabel="epoch", ylabel="perplexity", yscale="log")
    axes.legend()
