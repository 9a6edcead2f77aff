"""Sequential MNIST (Rusch et al. 2022, section 5, table 1), on the images at hand: LEM, LSTM and GRU, pixel by pixel.

NOT the usual setting: trained on 4,500 images of mnist_5k (500 more to look at on the way) instead of 57,000, tested on
the published 10,000. So the paper's accuracies are out of reach of every model here, and the order of the models is
what there is to see. The cpu budget is narrower and stops early; rate, step size and clipping are the paper's.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.mnist import FILES, mnist
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.gru import GRU
from jaxlm.mixers.lem import LEM
from jaxlm.mixers.lstm import LSTM
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import count, init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Sequential MNIST on 4,500 training images"
ROWS = (14,)
NEEDS = FILES
PAPER = {"LEM": 0.995, "LSTM": 0.989, "GRU": 0.991}


@dataclass(frozen=True)
class Settings:
    """Seeds, the models, their training; valid: images held out of training and looked at after `every` steps.

    rate   of Adam; a tenth of it in the last sixth of the steps
    clip   greatest norm of a gradient
    test   images of the test split that are judged, from its first
    side   pixels of an image's side: 28, or images averaged down to 14 or 7
    """

    seeds: int = 1
    width: int = 128
    dt: float = 0.21
    rate: float = 0.0018
    clip: float = 1.0
    batch: int = 128
    steps: int = 4200
    every: int = 70
    valid: int = 500
    test: int = 10000
    side: int = 28


BUDGETS = {
    "smoke": Settings(width=4, batch=4, steps=2, every=1, valid=10, test=20, side=7),
    "cpu": Settings(width=64, batch=64, steps=2000, every=50),
    "gpu": Settings(),
}


def sequences(images: np.ndarray, side: int) -> np.ndarray:
    """Pixels in [0, 1] in reading order.   (n, 28, 28) -> (n, side^2, 1) float32"""
    small = images.reshape(len(images), side, 28 // side, side, 28 // side).mean((2, 4)) / 255
    return small.reshape(len(images), -1, 1).astype(np.float32)


def train(body: Mixer, data: dict[str, tuple[np.ndarray, np.ndarray]], s: Settings, lab: Lab) -> Tree:
    """'valid' (seeds, chunks) and 'test' (seeds,): shares of right answers."""
    model = SequenceModel(body, 10)

    def right(params: Params, x: Array, labels: Array) -> Array:
        return jnp.mean((jnp.argmax(model.apply(params, x)[0], axis=-1) == labels).astype(jnp.float32))

    def loss(params: Params, key: Array, step: Array) -> Array:
        x, labels = (jnp.asarray(a) for a in data["train"])
        rows = jax.random.randint(key, (s.batch,), 0, len(labels))
        logits = model.apply(params, x[rows])[0]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    def watch(params: Params, key: Array) -> Tree:
        x, labels = jax.lax.optimization_barrier(tuple(map(jnp.asarray, data["valid"])))  # XLA would fold constants
        return {"valid": right(params, x, labels)}

    rate = optax.piecewise_constant_schedule(s.rate, {5 * s.steps // 6: 0.1})
    found = fit(
        jax.random.split(lab.key, s.seeds),
        lambda key: init(model, key),
        loss,
        optax.chain(optax.clip_by_global_norm(s.clip), optax.adam(rate)),
        steps=s.steps,
        every=s.every,
        watch=watch,
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "fit.npz",
    )
    judge = jax.jit(jax.vmap(right, (0, None, None)))
    parts = zip(*(np.array_split(a, -(-s.test // 500)) for a in data["test"]), strict=True)
    shares = [(len(y), np.asarray(judge(found.params, x, y))) for x, y in parts]
    return {"valid": found.watched["valid"].T, "test": sum(n * right for n, right in shares) / s.test}


def run(s: Settings, lab: Lab) -> Result:
    """The three models on the same images for the same number of steps."""
    bodies = {"LEM": LEM(s.width, inputs=1, dt=s.dt), "LSTM": LSTM(s.width, inputs=1), "GRU": GRU(s.width, inputs=1)}
    images = mnist(lab.data)
    x, labels = images["train"]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(x))
    x, labels = sequences(x[order], s.side), labels[order].astype(np.int32)
    data = {
        "valid": (x[: s.valid], labels[: s.valid]),
        "train": (x[s.valid :], labels[s.valid :]),
        "test": (sequences(images["test"][0][: s.test], s.side), images["test"][1][: s.test].astype(np.int32)),
    }
    found = {
        name: train(body, data, s, lab.part(name, i / len(bodies), (i + 1) / len(bodies)))
        for i, (name, body) in enumerate(bodies.items())
    }
    claims = [Claim(f"{name}, test accuracy", float(found[name]["test"].mean()), paper=PAPER[name]) for name in bodies]
    best = max(float(found[name]["test"].mean()) for name in ("LSTM", "GRU"))
    claims.append(Claim("LEM above the better of the others", float(found["LEM"]["test"].mean()) - best))
    sizes = ", ".join(f"{name} {count(SequenceModel(body, 10)):,}" for name, body in bodies.items())
    notes = (
        f"trained on {len(data['train'][1]):,} images (paper 57,000), tested on {s.test:,}; not the usual setting",
        f"width {s.width} (paper 128), {s.steps:,} steps of {s.batch} images, {s.seeds} seed(s); weights: {sizes}",
    )
    return Result(tuple(claims), {"step": s.every * (1 + np.arange(s.steps // s.every)), "found": found}, notes)


def draw(figure, series) -> None:
    """Accuracy on held-out images over training; the test accuracy in the legend."""
    axes = figure.subplots()
    for (name, found), color in zip(series["found"].items(), ("tab:blue", "tab:orange", "tab:green"), strict=True):
        for i, shares in enumerate(found["valid"]):
            label = f"{name}, test {np.mean(found['test']):.1%} (paper, 57,000 images: {PAPER[name]:.1%})"
            axes.plot(series["step"], shares, color=color, label=label if i == 0 else None)
    axes.set(xlabel="step", ylabel="share right, held-out training images", ylim=(0, 1), title=TITLE)
    axes.legend()
