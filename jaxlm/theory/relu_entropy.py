"""ReLU's revival: on the entropic overload in normalization-free LLMs (Jha & Reagen 2024), in small.

Without norms nothing says how large the inputs of a layer are, and they begin small. A head with scores of variance v
over its keys has entropy log n - v / 2 + ..., so small inputs are near the maximum; and GELU looks linear from nearby:
of its variance at inputs N(0, s^2) a line leaves the share
    1 - (1/4) / (1/4 + (asin(u) + 2u / √(1 + 2s^2)) / 2π - u / 2π),   u = s^2 / (1 + s^2)
which is 0 at s = 0; ReLU, which has no scale, leaves 1 - (1/4) / (1/2 - 1 / 2π) = 0.27 at every s. Decoders of
characters with one or the other, in blocks without norms (the last one, before the readout, stays, as in the authors'
code) and in blocks with them.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import taps
from jaxlm.analysis.attention_entropy import attention_entropy
from jaxlm.blocks import Block, Stack
from jaxlm.data.bigrams import SHAKESPEARE
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm, NoNorm
from jaxlm.mixers import Attention
from jaxlm.models import LM
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import adamw, trapezoid
from jaxlm.typing import Array, Params, Tree

TITLE = "ReLU's revival: on the entropic overload in normalization-free LLMs"
QUESTION = "Without norms, does ReLU learn better than GELU, and does GELU leave early heads at maximum entropy?"
ROWS = (111,)
NEEDS = (SHAKESPEARE,)
HEADLINE = "without norms: perplexity of ReLU below GELU's, share"
KINDS = {"relu": "ReLU", "gelu_erf": "GELU"}


@dataclass(frozen=True)
class Settings:
    """The decoders and their training.

    Args:
        kinds: Activations of KINDS; the first is compared with the last.
        width: Of the residual stream.
        depth: Blocks; the first half of them is early.
        heads: Of attention.
        scale: Length of a token's embedding on entry; root of the width: entries of unit size.
        normed: Also blocks with LayerNorm.
        length: Characters of a row.
        batch: Rows a step.
        steps: Of AdamW.
        rate: Of AdamW.
        seeds: Of weights and batches.
        held: Rows of held-out text they are judged by.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    width: int = 32
    depth: int = 4
    heads: int = 4
    scale: float = 1.0
    normed: bool = True
    length: int = 64
    batch: int = 8
    steps: int = 300
    rate: float = 4e-3
    seeds: int = 3
    held: int = 128


BUDGETS = {
    "smoke": Settings(("gelu_erf",), 4, 2, 1, 1.0, False, 4, 1, 1, 1e-3, 1, 2),
    "cpu": Settings(),
    "gpu": Settings(tuple(KINDS), 256, 12, 8, 1.0, True, 128, 64, 10_000, 1e-3, 3, 512),
}


def unlinear(kind: str, s: np.ndarray) -> np.ndarray:
    """The share of an activation's variance at inputs N(0, s^2) that the best line leaves, in closed form."""
    if kind == "relu":
        return np.full(np.shape(s), 1 - 0.25 / (0.5 - 0.5 / np.pi))
    u = s**2 / (1 + s**2)
    curved = (np.arcsin(u) + 2 * u / np.sqrt(1 + 2 * s**2) - u) / (2 * np.pi)
    return curved / (0.25 + curved)


def decoder(s: Settings, kind: str, normed: bool, letters: int) -> LM:
    """Blocks of attention and an MLP; a norm before the readout."""
    norm = LayerNorm(s.width) if normed else NoNorm(s.width)
    block = Block(Attention(s.width, heads=s.heads), MLP(s.width, activation=kind, bias=False), norm=norm)
    return LM(letters, s.width, Stack(block, s.depth), norm=LayerNorm(s.width), scale=s.scale)


def look(model: LM, kind: str, params: Params, chars: Array) -> Tree:
    """The loss on some rows, and the inside of the blocks.   chars (b, t + 1)

    paid             nats a letter                                                      ()
    entropy, share   of attention in nats, and of its maximum; means over queries       (layers, heads)
    size             of the hidden units' inputs, over tokens                           (layers)
    line             share of the activation's variance that a line leaves, mean        (layers)
    """
    run = taps.capture(lambda x: model.apply(params, x)[0], ("attn.probs", "mlp.in"))
    logits, seen = run(chars[:, :-1])
    (probs,) = seen["attn.probs"]
    probs = probs.reshape(*probs.shape[:2], -1, *probs.shape[-2:])  # heads are in groups
    entropy, share = (jnp.mean(x[..., 1:], axis=(1, 3)) for x in attention_entropy(probs))
    into = jnp.einsum("lbtd,ldf->lfbt", seen["mlp.in"][0], params["body"]["block0"]["mlp"]["up"])
    into = into.reshape(*into.shape[:2], -1)
    out = ACTIVATIONS[kind](into)
    off = lambda x: x - jnp.mean(x, axis=-1, keepdims=True)  # noqa: E731
    x, y = off(into), off(out)
    both, own, other = (jnp.mean(p, axis=(1, 2)) for p in (x * y, x * x, y * y))
    return {
        "paid": jnp.mean(nats(logits, chars[:, 1:])),
        "entropy": entropy,
        "share": share,
        "size": jnp.sqrt(own),
        "line": 1 - both**2 / (own * other),
    }


def compare(s: Settings, kind: str, normed: bool, ids: np.ndarray, lab: Lab) -> dict[str, Tree]:
    """`look` at decoders at their first weights and trained, leaves (seeds, ...)."""
    model, text, split = decoder(s, kind, normed, int(ids.max()) + 1), jnp.asarray(ids, jnp.int32), len(ids) * 9 // 10
    order = np.arange(s.length + 1, dtype=np.int32)[None]

    def loss(params: Params, key: Array, step: Array, first: Params) -> Array:
        begin = jax.random.randint(key, (s.batch, 1), 0, split - s.length)
        chars = text[begin + order]
        return jnp.mean(nats(model.apply(params, chars[:, :-1])[0], chars[:, 1:]))

    keys, every = jax.random.split(lab.key, s.seeds), max(s.steps // 10, 1)
    first, tx = jax.lax.map(partial(init, model), keys), adamw(model, trapezoid(s.rate, s.steps))
    found = fit(keys, lambda key, first: first, loss, tx, steps=s.steps, every=every, each=first, tell=lab.tell)
    held = np.int32(ids[np.linspace(split, len(ids) - s.length - 1, s.held, dtype=int)[:, None] + order])
    see = jax.jit(jax.vmap(lambda params: look(model, kind, params, jnp.asarray(held))))
    return {"first": jax.device_get(see(first)), "trained": jax.device_get(see(found.params))}


def run(s: Settings, lab: Lab) -> Result:
    _, ids = np.unique(np.array([lab.data.text(SHAKESPEARE)]).view(np.uint32), return_inverse=True)
    kinds = [(kind, normed) for normed in ((False, True) if s.normed else (False,)) for kind in s.kinds]
    found = {}
    for i, (kind, normed) in enumerate(kinds):
        part = lab.part("decoders", i / len(kinds), (i + 1) / len(kinds))  # one name: equal keys, equal batches
        found[f"{KINDS[kind]}{', norms' if normed else ''}"] = compare(s, kind, normed, ids, part)
    size = np.geomspace(0.01, 10, 61)
    curves = {KINDS[kind]: unlinear(kind, size) for kind in s.kinds}
    means = {n: {k: {m: v.mean(0) for m, v in x.items()} for k, x in f.items()} for n, f in found.items()}
    paid = {name: np.exp(f["trained"]["paid"]) for name, f in found.items()}
    return Result(claims(s, found), {"size": size, "curves": curves, "mean": means, "perplexity": paid})


def claims(s: Settings, found: dict[str, dict[str, Tree]]) -> tuple[Claim, ...]:
    """The first activation against the last, without norms and with them; only the former is judged."""
    early = {n: {k: f[k]["share"][:, : s.depth // 2] for k in f} for n, f in found.items()}
    one, other = KINDS[s.kinds[0]], KINDS[s.kinds[-1]]
    out = []
    for end in ("", ", norms") if s.normed else ("",):
        below = 1 - np.exp(found[one + end]["trained"]["paid"] - found[other + end]["trained"]["paid"])
        nearer = np.mean(early[other + end]["trained"]) - np.mean(early[one + end]["trained"])
        any_layer = np.mean(found[other + end]["trained"]["share"] - found[one + end]["trained"]["share"])
        where, least, more = ("with norms", -np.inf, -np.inf) if end else ("without norms", 0.03, 0.0)
        paper = None if end else 0.082
        out += [
            Claim(f"{where}: perplexity of {one} below {other}'s, share", below.mean(), low=least, paper=paper),
            Claim(f"{where}: the same, least of the seeds", below.min()),
            Claim(f"{where}: early heads' share of maximum entropy, {other} less {one}", nearer, low=more),
            Claim(f"{where}: the same of all heads", any_layer),
        ]
    for name, f in found.items():
        out += [
            Claim(f"{name}: perplexity a letter", np.exp(f["trained"]["paid"]).mean()),
            Claim(f"{name}: early heads' share of maximum entropy", np.mean(early[name]["trained"])),
            Claim(f"{name}: the same at first", np.mean(early[name]["first"])),
            Claim(f"{name}: early heads above 0.9 of it", np.mean(early[name]["trained"] > 0.9)),
        ]
    for kind in s.kinds:
        first = found[KINDS[kind]]["first"]
        off = np.abs(first["line"] - unlinear(kind, first["size"]))
        out.append(Claim(f"{KINDS[kind]}: share left by a line at first, farthest from the closed form", off.max()))
    return tuple(Claim(c.name, float(c.ours), c.low, c.high, c.paper) for c in out)


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    for n, (name, seen) in enumerate(series["mean"].items()):
        for when, line in (("first", ":"), ("trained", "-")):
            share = np.mean(seen[when]["share"], axis=-1)
            a.plot(np.arange(1, len(share) + 1), share, f"C{n}o{line}", ms=4, label=name if when == "trained" else None)
    a.plot([], [], "k:", label="at first")
    a.xaxis.get_major_locator().set_params(integer=True)
    a.set(xlabel="layer", ylabel="entropy of attention, of its maximum", title="Heads, mean")
    for n, (name, curve) in enumerate(series["curves"].items()):
        b.semilogx(series["size"], curve, f"C{n}-", label=f"{name}, closed form")
        for when, face in (("first", "none"), ("trained", f"C{n}")):
            seen = series["mean"][name][when]
            b.plot(seen["size"], seen["line"], f"C{n}o", mfc=face, label=f"layers, {when}, no norms")
    b.set(xlabel="size s of the inputs", ylabel="share of variance that a line leaves", title="What a line leaves")
    for n, paid in enumerate(series["perplexity"].values()):
        c.plot([n] * len(paid), paid, f"C{n}o", alpha=0.6)
        c.plot([n - 0.2, n + 0.2], [np.mean(paid)] * 2, f"C{n}-")
    c.set_xticks(range(len(series["perplexity"])), [n.replace(", ", ",\n") for n in series["perplexity"]])
    c.set(ylabel="perplexity a letter, held out", title="Seeds and their mean")
    for axes in (a, b):
        axes.legend(frameon=False, fontsize="small")
