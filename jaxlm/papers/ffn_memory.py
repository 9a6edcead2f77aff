"""Feed-forward layers are key-value memories (Geva et al. 2021), seen in a small language model trained here.

Six layers of attention and a ReLU MLP on the characters of tiny Shakespeare; the paper looks into a 16-layer word
model of WikiText-103. Triggers are searched in the text it was trained on, shares of places taken on held-out text.
A key's triggers are compared by their last two characters, the paper's annotators looked for any pattern; the chance
of agreement is that of the same values dealt out anew to the same keys, the paper's is one word of its vocabulary.
With 65 characters, some memory of the many called up always votes as the layer does: the paper's share of layers that
vote as none of their memories is of 267,744 words, and cannot be seen here.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Stack
from jaxlm.data.errors import DataError
from jaxlm.layers.mlp import MLP
from jaxlm.lenses import key_value
from jaxlm.mixers.attention import Attention
from jaxlm.models.lm import LM
from jaxlm.module import init
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Feed-forward layers as key-value memories"
ROWS = (177,)
TEXT = "tinyshakespeare/input.txt.gz"
NEEDS = (TEXT,)


@dataclass(frozen=True)
class Settings:
    """The model; AdamW's rate after `warm` steps, down a cosine; searched: rows that triggers are sought in; top: of a
    key; suffix: characters that two must share; held_out: rows of the shares; examples of each layer"""

    width: int = 128
    hidden: int = 512
    depth: int = 6
    heads: int = 4
    length: int = 128
    batch: int = 16
    rate: float = 3e-3
    warm: int = 50
    steps: int = 600
    every: int = 50
    searched: int = 1024
    top: int = 10
    suffix: int = 2
    held_out: int = 16
    examples: int = 3


BUDGETS = {
    "smoke": Settings(16, 24, 2, 2, 16, 4, warm=1, steps=4, every=2, searched=32, top=3, held_out=4, examples=1),
    "cpu": Settings(),
    "gpu": Settings(512, 2048, 12, 8, 256, 64, 1e-3, 200, 4000, 200, 3072),
}


@dataclass(frozen=True)
class Characters:
    """Character numbers of a text: 90 % to train on, the rest held out, and what they stand for."""

    train: np.ndarray
    held_out: np.ndarray
    symbols: tuple[str, ...]

    def rows(self, length: int, count: int, held_out: bool = False) -> np.ndarray:
        """The first rows of a part, one after the other.   (count, length)"""
        ids = self.held_out if held_out else self.train
        if count * length > len(ids):
            raise DataError(f"rows = {count} of {length}: expected at most {len(ids)} characters")
        return ids[: count * length].reshape(count, length)

    def text(self, ids: np.ndarray) -> str:
        return "".join(self.symbols[i] for i in ids if i >= 0)


def characters(text: str) -> Characters:
    codes, ids = np.unique(np.array([text]).view(np.uint32), return_inverse=True)
    cut = 9 * len(ids) // 10
    return Characters(ids[:cut].astype(np.int32), ids[cut:].astype(np.int32), tuple(chr(c) for c in codes))


def train(s: Settings, text: Characters, lab: Lab) -> tuple[LM, Params, np.ndarray]:
    """(model, its weights, nats a character of held-out text after every chunk)"""
    block = Block(Attention(s.width, heads=s.heads), MLP(s.width, s.hidden, "relu"))
    model = LM(len(text.symbols), s.width, Stack(block, s.depth))
    tokens = jnp.asarray(text.train)
    judged = jnp.asarray(text.rows(s.length, s.held_out, held_out=True))

    def nats(params: Params, rows: Array) -> Array:
        inputs, targets = rows[:, :-1], rows[:, 1:]
        (total, weight), _ = model.loss(params, inputs, targets, jnp.ones(targets.shape, jnp.float32))
        return total / weight

    def loss(params: Params, key: Array, step: Array) -> Array:
        first = jax.random.randint(key, (s.batch, 1), 0, len(text.train) - s.length, jnp.int32)
        return nats(params, tokens[first + jnp.arange(s.length + 1, dtype=jnp.int32)[None]])

    rate = optax.warmup_cosine_decay_schedule(0.0, s.rate, s.warm, s.steps, s.rate / 10)
    found = fit(
        lab.key[None],
        lambda key: init(model, key),
        loss,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01)),
        steps=s.steps,
        every=s.every,
        watch=lambda params, key: {"held_out": nats(params, judged)},
        tell=lab.tell,
        keep=None if lab.folder is None else lab.folder / "lm.npz",
    )
    return model, jax.tree.map(lambda x: x[0], found.params), found.watched["held_out"][:, 0]


def run(s: Settings, lab: Lab) -> Result:
    text = characters(lab.data.text(TEXT))
    model, params, nats = train(s, text, lab.part("train", 0.0, 0.8))
    trained, shown = memories(s, model, params, text)
    lab.tell(0.9)
    untrained, _ = memories(s, model, init(model, jax.random.fold_in(lab.key, 1)), text)
    lab.tell(1.0)
    series = {"held_out": nats, "step": s.every * (1 + np.arange(len(nats))), **trained}
    series |= {f"untrained_{k}": untrained[k] for k in ("suffix", "agreement")}
    return Result(claims(s, series), {**series, "examples": shown})


def memories(s: Settings, model: LM, params: Params, text: Characters) -> tuple[Tree, list[dict]]:
    """What the lens sees, by layer, and examples of it."""
    rows = text.rows(s.length, s.searched)
    parts, said, chance = jax.device_get(values(model, params))
    found = key_value.triggers(model, params, rows, s.top, min(16, s.searched))
    shared, any_two = key_value.shared_suffix(rows, found, s.suffix)
    agree, dealt = key_value.agreement(rows, found, said)
    m, out, shares = jax.device_get(look(model, params, said, text.rows(s.length, s.held_out, held_out=True)))
    m, parts, out = jax.tree.map(lambda x: np.asarray(x, np.float64), (m, parts, out))
    total = np.einsum("lbtf,lfd->lbtd", m, parts.values, optimize=True) + parts.bias[:, None, None]
    error = np.abs(total - out).max((1, 2, 3)) / np.abs(out).max((1, 2, 3))
    seen = {"suffix": shared, "suffix_chance": any_two, "agreement": agree, "agreement_chance": dealt, "error": error}
    return {**seen, **shares}, examples(s, text, rows, found, said, chance)


@partial(jax.jit, static_argnums=0)
def values(model: LM, params: Params) -> tuple[key_value.Memories, Array, Array]:
    """The memories, each value's token and its probability."""
    parts = key_value.of(model, params)
    return parts, *key_value.top_tokens(model, params, parts.values)


@partial(jax.jit, static_argnums=0)
def look(model: LM, params: Params, said: Array, rows: Array) -> tuple[Array, Array, Tree]:
    """(coefficients, outputs, shares by layer) on some rows."""
    reading = key_value.read(model, params, rows)
    made = key_value.composition(model, params, reading, said)
    return reading.coefficients, reading.out, made | key_value.refinement(model, params, reading)


def examples(
    s: Settings, text: Characters, rows: np.ndarray, found: key_value.Triggers, said: np.ndarray, chance: np.ndarray
) -> list[dict]:
    """Of each layer, the keys whose triggers agree most: how their prefixes end, and what the value says."""
    ends = key_value.suffixes(rows, found, 12)
    same = (ends[:, :, :1, -s.suffix :] == ends[..., -s.suffix :]).all(-1).mean(-1)
    shown = []
    for layer, share in enumerate(same):
        for i in np.argsort(-share * (found.score[layer, :, -1] > 0), kind="stable")[: s.examples]:
            prefixes = [text.text(e) for e in ends[layer, i, :4]]
            value = {"token": text.symbols[int(said[layer, i])], "probability": float(chance[layer, i])}
            shown.append({"layer": layer + 1, "memory": int(i), "triggers": prefixes, "value": value})
    return shown


def claims(s: Settings, series: Tree) -> tuple[Claim, ...]:
    half = s.depth // 2
    agree, dealt = series["agreement"], series["agreement_chance"]
    lower, upper = agree[:half].mean(), agree[half:].mean()
    return (
        Claim("held-out nats a character", series["held_out"][-1]),
        Claim("output against Σ coefficient · value, largest relative error", series["error"].max(), high=1e-6),
        Claim(f"pairs of triggers with the same last {s.suffix} characters, least layer", series["suffix"].min()),
        Claim("times the share of any two prefixes", series["suffix"].min() / series["suffix_chance"], low=2.0),
        Claim("value agrees with the next token: upper half of the layers", upper),
        Claim("value agrees with the next token: lower half of the layers", lower),
        Claim("upper half less lower half", upper - lower, low=0.01),
        Claim("upper half less its chance", upper - dealt[half:].mean(), low=0.01),
        Claim("memories called up by a token, least layer", series["active"].min(), paper=0.1),
        Claim("memories called up by a token, greatest layer", series["active"].max(), paper=0.5),
        Claim("layer's token is none of its memories', least layer", series["new"].min(), paper=0.68),
        Claim("final token on top before the second layer", series["settled"][1], paper=0.33),
    )


def draw(figure, series) -> None:
    figure.set_size_inches(11, 7)
    (a, b), (c, d) = figure.subplots(2, 2)
    layer = 1 + np.arange(len(series["suffix"]))
    a.plot(layer, series["suffix"], "o-", label="triggers of one key")
    a.plot(layer, series["untrained_suffix"], "C0:", label="the same, untrained")
    a.axhline(series["suffix_chance"], color="0.5", linestyle="--", linewidth=1, label="any two prefixes")
    a.set(title="Keys: pairs of triggers that end alike", xlabel="layer", ylim=(0, None))
    b.plot(layer, series["agreement"], "o-C1", label="trained")
    b.plot(layer, series["agreement_chance"], "C1--", label="values dealt out anew")
    b.plot(layer, series["untrained_agreement"], "C1:", label="untrained")
    b.set(title="Values: top token = the trigger's next", xlabel="layer", ylim=(0, None))
    c.plot(layer, series["new"], "o-C2", label="layer's token is none of its memories'")
    c.plot(layer, series["active"], "s-C3", label="memories called up")
    c.set(title="A layer composes", xlabel="layer", ylim=(0, 1))
    bottom = np.zeros(len(layer))
    for name, label in (
        ("residual", "stream's"),
        ("both", "both agree"),
        ("layer", "layer's"),
        ("neither", "neither's"),
    ):
        d.bar(layer, series[name], bottom=bottom, label=label)
        bottom = bottom + np.asarray(series[name])
    d.plot(layer, series["settled"], "ko-", label="final token on top before")
    d.set(title="After a layer, the top token is", xlabel="layer", ylim=(0, 1))
    for axes in (a, b, c, d):
        axes.legend(fontsize="small", frameon=False)
