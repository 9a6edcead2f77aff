"""Why do language models attend to the first token? (Barbero et al. 2025): a sink is a brake on mixing.

In the linear surrogate v <- v + A v every token looks at the first, whose value is 0, with weight s, and evenly at its
past with 1 - s. After L layers the others' part in token i is a sum over paths,
    Σ_k C(L, k) (1 - s)^k (1 - h_{k-1}(1, 1/2, .., 1/i) / i - i^-k)
where h, complete homogeneous symmetric polynomials, counts paths that begin at the first token and the last term those
that stay at i. It grows with i and L and falls with s. Trained decoders, each document behind a begin token: does its
weight grow with the context, and does one changed letter change less of the rest as long as it is there?
"""

from dataclasses import dataclass
from math import comb

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import taps
from jaxlm.blocks import Block, Stack
from jaxlm.data.bigrams import SHAKESPEARE
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import Attention
from jaxlm.models import LM
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.papers.result import Claim, Lab, Result
from jaxlm.train.fit import fit
from jaxlm.train.optimizers import adamw, trapezoid
from jaxlm.typing import Array, Params

TITLE = "Why do LLMs attend to the first token?"
QUESTION = "Are attention sinks a brake on the mixing of tokens, and do longer contexts call for more of it?"
ROWS = (150,)
NEEDS = (SHAKESPEARE,)
HEADLINE = "sink rate at the longest context less that at the shortest"


@dataclass(frozen=True)
class Settings:
    """The surrogate and the decoders.

    Args:
        tokens: T of the surrogate.
        surrogate: Its layers L.
        sinks: s.
        contexts: Tokens of a document, divisors of the last; equal tokens in all.
        width: Of the decoders.
        heads: Of attention.
        layers: Of the decoders.
        limit: A head whose mean weight on the first token is above it is a sink.
        seeds: Of weights and batches.
        steps: Of AdamW.
        rows: Of the longest context, a step.
        rate: Of AdamW.
        looks: Times that the decoders are looked at, a divisor of the steps.
        held: Rows they are looked at with.
    """

    tokens: int = 64
    surrogate: int = 6
    sinks: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95)
    contexts: tuple[int, ...] = (32, 128)
    width: int = 32
    heads: int = 2
    layers: int = 2
    limit: float = 0.3
    seeds: int = 3
    steps: int = 2000
    rows: int = 2
    rate: float = 5e-3
    looks: int = 10
    held: int = 8


BUDGETS = {
    "smoke": Settings(6, 2, (0.0, 0.5), (4, 8), 4, 1, 1, seeds=1, steps=2, rows=1, looks=1, held=1),
    "cpu": Settings(),
    "gpu": Settings(contexts=(32, 128, 512), width=128, heads=4, layers=6, steps=20_000, rows=16, rate=2e-3),
}


def mixing(tokens: int, layers: int, s: float) -> np.ndarray:
    """What the surrogate's last values hold of its first: a product of layers.   (T, T), row reads column"""
    even = (1 - s) * np.tril(np.ones((tokens, tokens))) / np.arange(1.0, tokens + 1)[:, None]
    even[:, 0] = 0  # the first value is 0, whether it is looked at as the sink or as one of the past
    return np.linalg.matrix_power(np.eye(tokens) + even, layers)


def influence(tokens: int, layers: int, s: float | np.ndarray) -> np.ndarray:
    """The sum off the diagonal of `mixing`, mean over rows behind the first, in closed form."""
    share, h, out = 1 - np.asarray(s, float), np.zeros(layers), np.zeros(np.shape(s))
    h[0] = 1.0
    for i in range(1, tokens + 1):
        for k in range(1, layers):
            h[k] += h[k - 1] / i  # h_k(1, .., 1/i) = h_k(1, .., 1/(i-1)) + h_{k-1}(1, .., 1/i) / i
        if i > 1:
            out = out + sum(comb(layers, k) * share**k * (1 - h[k - 1] / i - i**-k) for k in range(1, layers + 1))
    return out / (tokens - 1)


def decoder(s: Settings, letters: int) -> LM:
    """Tokens are letters, and the begin token after the last of them."""
    block = Block(Attention(s.width, heads=s.heads), SwiGLU(s.width))
    return LM(letters + 1, s.width, Stack(block, s.layers))


def spread(before: Array, after: Array) -> Array:
    """By what share values changed.   (..., d) twice -> (...)"""
    return jnp.linalg.norm(after - before, axis=-1) / jnp.linalg.norm(before, axis=-1)


def whole(sites: tuple[Array, ...], t: int) -> Array:
    """All of attention, from the blocks it was computed in.   (l, [blocks,] b, g, r, q, keys) -> (l, b, h, t, t)"""
    blocks = [x if x.ndim == 7 else x[:, None] for x in sites]
    padded = [jnp.pad(x, [(0, 0)] * 6 + [(0, t - x.shape[-1])]) for x in blocks]
    x = jnp.moveaxis(jnp.concatenate(padded, axis=1), 1, 4)
    return x.reshape(*x.shape[:2], -1, t, t)


def look(model: LM, params: Params, chars: Array, other: Array, context: Array, limit: float) -> dict[str, Array]:
    """A decoder with the begin token in place, and without it.

    chars, other  (b, t + 1)      documents side by side, and letters to put in place of one in each
    ->            rate ()         share of heads that are sinks
                  weight (l, h)   on the first token, mean over queries
                  kept, dropped (l)      change of later tokens, by layers, when a letter at a quarter changes
                  known, lost ()  nats a letter, with and without the begin token
    """
    b, t, begin = len(chars), chars.shape[1] - 1, model.vocab - 1
    order = jnp.arange(t, dtype=jnp.int32)
    place, hit = order % context, jnp.arange(t + 1, dtype=jnp.int32) % context == context // 4
    starts = jnp.broadcast_to((place == 0)[None], (b, t))
    both = lambda c: [jnp.where(starts, begin, c[:, :-1]), c[:, 1:]]  # noqa: E731
    run = taps.capture(lambda x: model.apply(params, x, starts=jnp.tile(starts, (4, 1)))[0], ("resid", "attn.probs"))
    logits, seen = run(jnp.concatenate([*both(chars), *both(jnp.where(hit[None], other, chars))]))
    resid, probs = seen["resid"][-1], whole(seen["attn.probs"], t)
    l, d = resid.shape[0], resid.shape[-1]
    first = (order - place)[None, None, None, :, None]
    weight = jnp.take_along_axis(probs.reshape(l, 4, b, -1, t, t)[:, 0], first, axis=-1)
    weight = jnp.mean(weight, axis=(1, 3, 4))
    kept, dropped, kept_new, dropped_new = jnp.moveaxis(resid.reshape(l, 4, b, t, d), 1, 0)
    targets = jnp.stack([chars[:, 1:], jnp.roll(chars, -2, axis=1)[:, :-1]])
    paid = nats(logits.reshape(4, b, t, -1)[:2], targets)
    later, own = (place[1:] > context // 4)[None], (place[1:] > 0)[None]
    mean = lambda x, mask: jnp.sum(x * mask, axis=(-2, -1)) / (jnp.sum(mask) * b)  # noqa: E731
    later, own = later.astype(jnp.float32), own.astype(jnp.float32)
    return {
        "rate": jnp.mean(weight > limit, dtype=jnp.float32),
        "weight": weight,
        "kept": mean(spread(kept, kept_new)[:, :, 1:], later[None]),
        "dropped": mean(spread(dropped, dropped_new)[:, :, :-1], later[None]),  # one place further on the left
        "known": mean(paid[0, :, 1:], own),
        "lost": mean(paid[1, :, :-1], own),
    }


def train(s: Settings, ids: np.ndarray, lab: Lab) -> dict[str, np.ndarray]:
    """Decoders of all contexts and seeds at once, looked at on the way.   (n) ints -> (looks, contexts, seeds, ...)

    Documents of shorter contexts lie side by side in rows of the longest one, so that every step has equal tokens.
    """
    letters, split, length = int(ids.max()) + 1, len(ids) * 9 // 10, max(s.contexts)
    model, text = decoder(s, letters), jnp.asarray(ids, jnp.int32)
    order = jnp.arange(length + 1, dtype=jnp.int32)[None]

    def rows(key: Array, count: int, low: int, high: int) -> Array:
        return text[jax.random.randint(key, (count, 1), low, high - length) + order]

    def loss(params: Params, key: Array, step: Array, context: Array) -> Array:
        chars = rows(key, s.rows, 0, split)
        starts = jnp.broadcast_to(order[:, :-1] % context == 0, (s.rows, length))
        logits, _ = model.apply(params, jnp.where(starts, letters, chars[:, :-1]), starts=starts)
        return jnp.mean(nats(logits, chars[:, 1:]))

    def watch(params: Params, key: Array, context: Array) -> dict[str, Array]:
        where, which = jax.random.split(key)
        chars = rows(where, s.held, split, len(ids))
        other = (chars + jax.random.randint(which, chars.shape, 1, letters)) % letters
        return look(model, params, chars, other, context, s.limit)

    found = fit(
        jnp.concatenate([jax.random.split(lab.key, s.seeds)] * len(s.contexts)),
        lambda key, context: init(model, key),
        loss,
        adamw(model, trapezoid(s.rate, s.steps)),
        steps=s.steps,
        every=s.steps // s.looks,
        watch=watch,
        each=jnp.repeat(jnp.array(s.contexts, jnp.int32), s.seeds),
        tell=lab.tell,
    )
    return {k: v.reshape(len(v), len(s.contexts), s.seeds, *v.shape[2:]) for k, v in found.watched.items()}


def run(s: Settings, lab: Lab) -> Result:
    matrices = [mixing(s.tokens, s.surrogate, sink) for sink in s.sinks]
    measured = np.array([(m.sum() - np.trace(m)) / (s.tokens - 1) for m in matrices])
    told, grid = influence(s.tokens, s.surrogate, np.array(s.sinks)), np.linspace(0, 1, 41)
    _, ids = np.unique(np.array([lab.data.text(SHAKESPEARE)]).view(np.uint32), return_inverse=True)
    found = train(s, ids, lab)
    tokens = (s.tokens // 2, s.tokens, 2 * s.tokens)
    series = {
        "sinks": s.sinks, "measured": measured, "grid": grid, "contexts": s.contexts, "steps": s.steps,
        "tokens": tokens, "told": [influence(n, s.surrogate, grid) for n in tokens],
        "rate": found["rate"].mean(2), "weight": found["weight"].mean((2, 3, 4)),
        "kept": found["kept"][-1].mean(1), "dropped": found["dropped"][-1].mean(1),
    }  # fmt: skip
    claims = (
        Claim("surrogate: layers' product, farthest from the closed form", np.abs(measured - told).max(), high=1e-10),
        Claim("surrogate: most that is left of influence at the next s", float(np.max(told[1:] / told[:-1])), high=1),
        *(Claim(f"surrogate: influence at s = {a:g}", float(b)) for a, b in zip(s.sinks, told, strict=True)),
        *of_decoders(s, {k: v[-1] for k, v in found.items()}),
    )
    return Result(claims, series)


def of_decoders(s: Settings, last: dict[str, np.ndarray]) -> list[Claim]:
    """What was seen at the end.   leaves (contexts, seeds, ...)"""
    rates = last["rate"].mean(1)
    claims = [Claim(HEADLINE, float(rates[-1] - rates[0]), low=0.01)]
    for i, context in enumerate(s.contexts):
        weight, even = last["weight"][i], np.mean(1 / np.arange(1, context + 1))
        changed = last["kept"][i, :, -1] / last["dropped"][i, :, -1]
        values = {
            f"sink rate, more than {s.limit:g} on the first token": rates[i],
            "weight on the first token over that of even attention": weight.mean() / even,
            "strongest head, the same": weight.max((1, 2)).mean() / even,
            "nats a letter": last["known"][i].mean(),
            "nats a letter without the begin token": last["lost"][i].mean(),
        }
        name = f"context {context}: spread of a change, with the begin token over without"
        claims += [Claim(f"context {context}: {k}", float(v)) for k, v in values.items()]
        claims.append(Claim(name, float(changed.mean()), high=1))
    return claims


def draw(figure, series) -> None:
    figure.set_size_inches(13, 4)
    a, b, c = figure.subplots(1, 3)
    for n, row in zip(series["tokens"], series["told"], strict=True):
        a.plot(series["grid"], row, label=f"{n} tokens: sum over paths")
    a.plot(series["sinks"], series["measured"], "C1o", label="product of layers")
    a.set(xlabel="weight s on the sink", ylabel="influence of other tokens", yscale="log", ylim=(0.05, None))
    a.set(title="A sink is a brake")
    rate, weight = np.array(series["rate"]), np.array(series["weight"])
    at = np.linspace(series["steps"] / len(rate), series["steps"], len(rate))
    depth = np.arange(1, len(series["kept"][0]) + 1)
    for i, context in enumerate(series["contexts"]):
        even = np.mean(1 / np.arange(1, context + 1))
        b.plot(at, rate[:, i], f"C{i}o-", label=f"context {context}: sink rate")
        b.plot(at, weight[:, i], f"C{i}.-", alpha=0.5, label="mean weight on the first token")
        b.axhline(even, color=f"C{i}", linestyle=":", label="of even attention")
        c.plot(depth, series["kept"][i], f"C{i}o-", label=f"context {context}: begin token kept")
        c.plot(depth, series["dropped"][i], f"C{i}x--", label="dropped")
    b.set(xlabel="step", title="Trained decoders")
    b.set_ylim(-0.02, 1.8 * b.get_ylim()[1])
    c.set(xlabel="layer", ylabel="share by which later tokens change", title="One changed letter", xticks=depth)
    for axes in (a, b, c):
        axes.legend(frameon=False, fontsize="small")
