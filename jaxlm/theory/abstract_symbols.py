"""What a template needs to hold for symbols never met: diversity, or two numbers per head (Boix-Adsera et al. 2024).

Same or different: two symbols and a mark, the answer ±1 read at the mark; the symbols of the test are none of those of
training. Copy: α β α, and the answer is α itself, by the matrix that embeds. Beside Attention, its W_Q W_K^T + a I,
for what is equal, and its W_V W_O + b I, for what is copied. Adam, a fresh batch each step, learned positions.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.blocks import Block, Chain, Stack
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import RMSNorm
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.identity_attention import IdentityAttention
from jaxlm.mixers.tokenwise import Tokenwise
from jaxlm.models.sequence import SequenceModel
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers._capability import mixer_of
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.typing import Array, Params, Tree

TITLE = "Reasoning with abstract symbols"
QUESTION = "How diverse must training be for a template to hold for unseen symbols, and what makes it cheaper?"
ROWS = (78,)
NEEDS = ()
HEADLINE = "copy: unseen symbols, widest, with b"

# Same or different, accuracy on unseen symbols by the number of training symbols: an independent simulation.
REFERENCE = {4: (0.50, 0.50), 8: (0.59, 0.61), 16: (0.69, 0.79), 32: (0.75, 0.88), 64: (0.77, 0.85)}


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Args:
        mixer: Name of the plain models' mixer; the two numbers are Attention's alone.
        alphabets: Symbols of training, same or different.
        unseen: Symbols of the test.
        width: Of the models, same or different.
        head: Width of a head.
        depth: Blocks.
        batch: Examples a step.
        steps: Of Adam, same or different.
        rate: Its step size.
        seeds: Models of each kind.
        trials: Examples of a test.
        widths: Of the models that copy, ascending.
        copied: Symbols of their training.
        copy_steps: Steps of their training.
        looks: Times at which they are judged.
    """

    mixer: str = "Attention"
    alphabets: tuple[int, ...] = (4, 32)
    unseen: int = 100
    width: int = 64
    head: int = 16
    depth: int = 2
    batch: int = 32
    steps: int = 400
    rate: float = 1e-3
    seeds: int = 3
    trials: int = 1000
    widths: tuple[int, ...] = (16, 64)
    copied: int = 32
    copy_steps: int = 200
    looks: int = 10


BUDGETS = {
    "smoke": Settings("Attention", (4,), 8, 4, 2, 1, 4, 1, seeds=1, trials=8, widths=(4,), copy_steps=1, looks=1),
    "cpu": Settings(),
    "gpu": Settings(alphabets=(4, 8, 16, 32, 64, 128), batch=256, steps=3000, widths=(16, 32, 64, 128, 256)),
}


def pairs(key: Array, count: int, first: Array | int, size: Array | int, mark: int) -> tuple[Array, Array]:
    """Two symbols of [first, first + size) and the mark; 1 if they are the same, as half are, else -1.

    ->   (b, 3) int32, (b,) float32
    """
    a, b, c = jax.random.split(key, 3)
    one, apart = (jax.random.randint(k, (count,), low, size, jnp.int32) for k, low in ((a, 0), (b, 1)))
    same = jax.random.bernoulli(c, shape=(count,))
    two = (one + jnp.where(same, 0, apart)) % size
    tokens = jnp.stack([first + one, first + two, jnp.full(count, mark, jnp.int32)], axis=1)
    return tokens, jnp.where(same, 1.0, -1.0)


def model_of(s: Settings, width: int, outputs: int) -> SequenceModel:
    """Reads vectors, answers at the last."""
    heads = max(1, width // s.head)
    mixer: Mixer = (
        IdentityAttention(width, heads, position=None) if s.mixer == "Attention" else mixer_of(s.mixer, width)
    )
    body = Chain((Stack(Block(mixer, MLP(width, 2 * width)), s.depth), Tokenwise(RMSNorm(width))))
    return SequenceModel(body, outputs)


def begin(model: SequenceModel, vocab: int, length: int, key: Array) -> Params:
    """The model's weights beside embeddings of symbols, entries of unit size on entry, and of places."""
    a, b, c = jax.random.split(key, 3)
    d = model.body.width
    embed = jax.random.normal(b, (vocab, d), jnp.float32) * d**-0.5
    return {"model": init(model, a), "embed": embed, "place": jax.random.normal(c, (length, d), jnp.float32)}


def read(model: SequenceModel, params: Params, tokens: Array, used: dict[str, Array]) -> Array:
    """What the model gives at the last token.   used: 1 or 0 by 'a' and 'b'   (b, t) -> (b, outputs)"""

    def leaf(path: tuple, p: Array) -> Array:
        return p * used[path[-1].key] if path[-1].key in used else p

    x = jnp.take(params["embed"], tokens, axis=0) * model.body.width**0.5 + params["place"][None]
    return model.apply(jax.tree_util.tree_map_with_path(leaf, params["model"]), x)[0]


def kinds(s: Settings) -> tuple[str, ...]:
    return ("plain", "scalar") if s.mixer == "Attention" else ("plain",)


def same_or_different(s: Settings, lab: Lab) -> np.ndarray:
    """Accuracy on unseen symbols.   (alphabets, kinds, seeds)"""
    most, model = max(s.alphabets), model_of(s, s.width, 1)
    mark, shape = most + s.unseen, (len(s.alphabets), len(kinds(s)), s.seeds)
    size, scalar, _ = (a.reshape(-1) for a in np.meshgrid(s.alphabets, range(shape[1]), range(s.seeds), indexing="ij"))
    each = {"size": jnp.asarray(size, jnp.int32), "a": jnp.asarray(scalar, jnp.float32)}

    def answers(params: Params, tokens: Array, each: Tree) -> Array:
        return read(model, params, tokens, {"a": each["a"], "b": jnp.float32(0)})[:, 0]

    def loss(params: Params, key: Array, step: Array, each: Tree) -> Array:
        tokens, y = pairs(key, s.batch, 0, each["size"], mark)
        return jnp.mean((answers(params, tokens, each) - y) ** 2)

    def watch(params: Params, key: Array, each: Tree) -> Tree:
        tokens, y = pairs(key, s.trials, most, s.unseen, mark)
        return {"unseen": jnp.mean(answers(params, tokens, each) * y > 0, dtype=jnp.float32)}

    keys, every = jax.random.split(lab.key, len(size)), max(1, s.steps // 5)
    start = lambda key, each: begin(model, mark + 1, 3, key)  # noqa: E731
    tx, how = optax.adam(s.rate), {"steps": s.steps, "every": every, "each": each}
    return fit(keys, start, loss, tx, watch=watch, tell=lab.tell, **how).watched["unseen"][-1].reshape(shape)


def copy(s: Settings, width: int, lab: Lab) -> np.ndarray:
    """Accuracy of α β α -> α on unseen symbols, among these, over training among its own.   (looks, kinds, seeds)"""
    mark, model = s.copied + s.unseen, model_of(s, width, width)
    used = {"b": jnp.repeat(jnp.arange(len(kinds(s)), dtype=jnp.float32), s.seeds)}

    def drawn(key: Array, count: int, first: int, size: int) -> tuple[Array, Array]:
        two = first + jax.vmap(lambda k: jax.random.choice(k, size, (2,), replace=False))(jax.random.split(key, count))
        return jnp.stack([two[:, 0], two[:, 1], two[:, 0], jnp.full(count, mark)], axis=1), two[:, 0]

    def logits(params: Params, tokens: Array, used: Tree) -> Array:
        return read(model, params, tokens, {**used, "a": jnp.float32(0)}) @ params["embed"].T

    def loss(params: Params, key: Array, step: Array, used: Tree) -> Array:
        tokens, y = drawn(key, s.batch, 0, s.copied)
        return jnp.mean(nats(logits(params, tokens, used)[:, : s.copied], y))

    def watch(params: Params, key: Array, used: Tree) -> Tree:
        tokens, y = drawn(key, s.trials, s.copied, s.unseen)
        guesses = s.copied + jnp.argmax(logits(params, tokens, used)[:, s.copied : mark], axis=1)
        return {"unseen": jnp.mean(guesses == y, dtype=jnp.float32)}

    keys = jax.random.split(lab.key, len(used["b"]))
    start = lambda key, used: begin(model, mark + 1, 4, key)  # noqa: E731
    how = {"steps": s.copy_steps, "every": s.copy_steps // s.looks, "each": used}
    found = fit(keys, start, loss, optax.adam(s.rate), watch=watch, tell=lab.tell, **how)
    return found.watched["unseen"].reshape(s.looks, len(kinds(s)), s.seeds)


def without_attention(s: Settings, lab: Lab) -> float:
    """Accuracy on unseen symbols of an MLP that reads two one-hot symbols: their weights were never trained."""
    known, vocab = max(s.alphabets), max(s.alphabets) + s.unseen
    model = SequenceModel(Tokenwise(MLP(s.width, s.width)), 1, inputs=2 * vocab)

    def answers(params: Params, tokens: Array) -> Array:
        hot = jax.nn.one_hot(tokens[:, :2], vocab, dtype=jnp.float32).reshape(len(tokens), 1, 2 * vocab)
        return model.apply(params, hot)[0][:, 0]

    def loss(params: Params, key: Array, step: Array) -> Array:
        tokens, y = pairs(key, s.batch, 0, known, 0)
        return jnp.mean((answers(params, tokens) - y) ** 2)

    def watch(params: Params, key: Array) -> Tree:
        tokens, y = pairs(key, 4 * s.trials, known, s.unseen, 0)
        return {"unseen": jnp.mean(answers(params, tokens) * y > 0, dtype=jnp.float32)}

    steps = max(1, s.steps // 4)
    found = fit(
        jax.random.split(lab.key, s.seeds),
        partial(init, model),
        loss,
        optax.adam(s.rate),
        steps=steps,
        every=steps,
        watch=watch,
    )
    return float(found.watched["unseen"][-1].mean())


def run(s: Settings, lab: Lab) -> Result:
    mlp = without_attention(s, lab)
    claims = [Claim("same or different: an MLP on one-hot symbols, unseen", mlp, 0.45, 0.55)]
    found = same_or_different(s, lab.part("same", 0.02, 0.6))
    curves = found.mean(2)
    for k, accuracies in zip(s.alphabets, curves, strict=True):
        for name, value, paper in zip(("plain", "with a"), accuracies, REFERENCE.get(k, (None, None)), strict=False):
            claims.append(Claim(f"same or different: {k} symbols, {name}, unseen", float(value), paper=paper))
    if 4 in s.alphabets and 32 in s.alphabets:
        few, many = (curves[s.alphabets.index(k)] for k in (4, 32))
        claims.append(Claim("same or different: 4 symbols, plain", float(few[0]), high=0.55))
        claims.append(Claim("same or different: 32 symbols, plain", float(many[0]), low=0.68))
        if len(many) > 1:
            claims.append(Claim("same or different: 32 symbols, with a less plain", float(many[1] - many[0]), low=0.05))
    runs, parts = {}, len(s.widths)
    for i, width in enumerate(s.widths):
        runs[width] = copy(s, width, lab.part(f"copy {width}", 0.6 + 0.4 * i / parts, 0.6 + 0.4 * (i + 1) / parts))
        for name, value in zip(("plain", "with b"), runs[width][-1].mean(-1), strict=False):
            claims.append(Claim(f"copy: unseen symbols, width {width}, {name}", float(value)))
    claims += of_copies(s, runs)
    series = {"alphabets": s.alphabets, "same": found, "mlp": mlp, "steps": s.copy_steps}
    return Result(tuple(claims), {**series, "copy": {w: r.mean(-1) for w, r in runs.items()}})


def of_copies(s: Settings, runs: dict[int, np.ndarray]) -> list[Claim]:
    """Width hurts the plain model, and b makes it cheap."""
    narrow, wide = runs[min(s.widths)].mean(-1), runs[max(s.widths)].mean(-1)
    claims = [Claim("copy: plain, narrowest less widest", float(narrow[-1, 0] - wide[-1, 0]), low=0.1)]
    if len(kinds(s)) < 2:
        return claims
    reached = [np.flatnonzero(wide[:, i] >= 0.95) for i in (0, 1)]
    first = [int(r[0]) + 1 if len(r) else s.looks + 1 for r in reached]  # never: as if it were the next look
    ratio = first[1] / min(first[0], s.looks)
    return [
        Claim(HEADLINE, float(wide[-1, 1]), low=0.95),
        *claims,
        Claim("copy: samples to 95% with b, by the plain one's or all that it saw", ratio, high=0.2),
    ]


def draw(figure, series) -> None:
    left, right = figure.subplots(1, 2)
    same = np.asarray(series["same"], float)
    sizes = series["alphabets"]
    for i, (name, colour) in enumerate((("plain", "C0"), ("with a", "C1"))[: same.shape[1]]):
        left.plot(sizes, same[:, i].mean(1), f"{colour}o-", label=name)
        left.plot(np.repeat(sizes, same.shape[2]), same[:, i].reshape(-1), f"{colour}.", alpha=0.4)
        left.plot(list(REFERENCE), [v[i] for v in REFERENCE.values()], f"{colour}x:", lw=1, label=f"{name}, expected")
    left.plot(sizes, [0.5] * len(sizes), "k:", label="MLP, expected")
    left.plot(sizes, [series["mlp"]] * len(sizes), "k--", lw=1, label="MLP on one-hot symbols")
    left.set_xscale("log", base=2)
    left.set(xlabel="symbols of training", ylabel="accuracy, unseen symbols", title="same or different")
    for i, (width, curve) in enumerate(series["copy"].items()):
        curve = np.asarray(curve, float)
        at = np.linspace(0, series["steps"], len(curve) + 1)[1:]
        for j, style in enumerate(("-", "--")[: curve.shape[1]]):
            right.plot(at, curve[:, j], f"C{i}{style}", label=f"width {width}, {('plain', 'with b')[j]}")
    right.set(xlabel="steps", ylim=(0, 1.02), title="copy: α β α → α")
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False)
