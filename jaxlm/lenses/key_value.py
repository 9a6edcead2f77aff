"""Feed-forward layers read as key-value memories (Geva et al. 2021).

FF(x) = f(x Kᵀ) V = Σ_i m_i v_i: a row k_i of K is a key, the row v_i its value, m_i = f(x · k_i) how far x calls it up.

    memories = of(model, params)                       keys and values of every layer
    reading  = read(model, params, tokens)             coefficients and the residual stream on some text
    found    = triggers(model, params, rows, top=10)   where in a text each key is called up most

Layers are counted from the input. A model is an LM over a Block or a Stack of Blocks, each with an MLP or a GatedMLP.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.blocks import Block, Stack
from jaxlm.errors import ConfigError
from jaxlm.layers.mlp import MLP, GatedMLP
from jaxlm.models.lm import LM
from jaxlm.taps import capture
from jaxlm.typing import Array, Params


class Memories(NamedTuple):
    """Keys and values of all layers.

    keys     (l, f, d)
    gates    (l, f, d)    the second keys of a GatedMLP, whose activation multiplies; None for an MLP
    values   (l, f, d)
    bias     (l, d)       added whatever is called up; 0 where there is none
    """

    keys: Array
    gates: Array | None
    values: Array
    bias: Array


class Reading(NamedTuple):
    """What the feed-forward layers do on a text.

    coefficients   (l, b, t, f)    m
    before         (l, b, t, d)    the residual stream that a layer adds to
    out            (l, b, t, d)    what it adds
    after          (l, b, t, d)    the sum
    logits         (b, t, vocab)
    """

    coefficients: Array
    before: Array
    out: Array
    after: Array
    logits: Array


class Triggers(NamedTuple):
    """The prefixes of a text that call up each key most, the strongest first.

    score    (l, f, n)    coefficient
    row      (l, f, n)    of the text
    place    (l, f, n)    of the prefix's last token in its row
    """

    score: np.ndarray
    row: np.ndarray
    place: np.ndarray


def blocks(model: LM) -> tuple[Block, ...]:
    """The pattern of blocks; ConfigError unless each is a Block with an MLP or a GatedMLP."""
    found: Any = model.body.pattern if isinstance(model.body, Stack) else (model.body,)
    for block in found:
        if not isinstance(block, Block) or not isinstance(block.mlp, MLP | GatedMLP):
            raise ConfigError(f"body = {block!r}: expected Blocks with an MLP or a GatedMLP")
    return found


def of(model: LM, params: Params) -> Memories:
    """The memories of a model's feed-forward layers; all layers must have equally many."""
    found = blocks(model)
    body = params["body"]
    stacked = isinstance(model.body, Stack)
    parts = [
        body[f"block{i}"]["mlp"] if stacked else jax.tree.map(lambda w: w[None], body["mlp"]) for i in range(len(found))
    ]
    gated = {isinstance(b.mlp, GatedMLP) for b in found}
    if len(gated) > 1 or len({p["down"].shape for p in parts}) > 1:
        raise ConfigError(f"body = {model.body!r}: expected one kind and width of feed-forward layer")

    def layers(name: str) -> Array:
        return _interleave([p[name] for p in parts])

    values = layers("down")
    bias = layers("down_bias") if "down_bias" in parts[0] else jnp.zeros_like(values[:, 0])
    gates = jnp.swapaxes(layers("gate"), 1, 2) if gated == {True} else None
    return Memories(jnp.swapaxes(layers("up"), 1, 2), gates, values, bias)


def read(model: LM, params: Params, tokens: Array) -> Reading:
    """Run the model on tokens (b, t) and read its feed-forward layers."""
    size = len(blocks(model))
    seen = capture(lambda p, z: model.apply(p, z)[0], ["mlp.hidden", "mlp.out", "resid"])
    logits, taps = seen(params, tokens)

    def layers(sites: tuple[Array, ...]) -> Array:
        return _interleave([s if isinstance(model.body, Stack) else s[None] for s in sites])

    hidden, out, resid = taps["mlp.hidden"], taps["mlp.out"], taps["resid"]
    if (len(hidden), len(out), len(resid)) != (size, size, 2 * size):
        raise ConfigError(f"body = {model.body!r}: expected mixers that hold no feed-forward layer themselves")
    after = layers(resid[1::2])
    return Reading(layers(hidden), layers(resid[0::2]), layers(out), after, logits)


def recombine(memories: Memories, coefficients: Array) -> Array:
    """Σ_i m_i v_i, and the bias: what a layer adds.   (l, b, t, f) -> (l, b, t, d)"""
    return jnp.einsum("lbtf,lfd->lbtd", coefficients, memories.values) + memories.bias[:, None, None]


def top_tokens(model: LM, params: Params, x: Array) -> tuple[Array, Array]:
    """The most likely token, and its probability, if the readout read x as the residual stream.   (..., d) -> 2 (...)

    For values v_i this is 'the value's token'. The last norm comes first, as it does for the residual stream.
    """
    readout = model.readout(params)

    def one(x: Array) -> tuple[Array, Array]:
        logits = model.normalise.apply(params["norm"], x) @ readout
        return jnp.argmax(logits, axis=-1), jnp.exp(jnp.max(logits, -1) - jax.nn.logsumexp(logits, axis=-1))

    flat = x.reshape(-1, x.shape[-1])
    found = jax.lax.map(one, flat, batch_size=1024)  # the vocabulary may be large
    return found[0].reshape(x.shape[:-1]), found[1].reshape(x.shape[:-1])


def triggers(model: LM, params: Params, rows: np.ndarray, top: int = 10, batch: int = 16) -> Triggers:
    """Search a text for the prefixes that call up each key most.

    rows     (n, t)    tokens; every row stands alone, every place of it ends a prefix
    top      prefixes to keep of each key
    batch    rows at a time; the last ones that do not fill a batch are left out
    """
    n, t = rows.shape
    if n < batch or top > batch * t:
        raise ConfigError(
            f"rows {rows.shape}, batch = {batch}, top = {top}: expected a full batch and top of its places"
        )

    shape = (*jax.eval_shape(lambda p: of(model, p).values, params).shape[:2], top)
    best = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
    for i in range(0, n - batch + 1, batch):
        best = _merge(model, best, params, jnp.asarray(rows[i : i + batch]), jnp.int32(i * t))
    score, place = (np.asarray(a) for a in best)
    return Triggers(score, place // t, place % t)


@partial(jax.jit, static_argnums=0)
def _merge(model: LM, best: tuple[Array, Array], params: Params, rows: Array, first: Array) -> tuple[Array, Array]:
    """The best so far, (l, f, n) scores and places, and the best of these rows, whose places begin at `first`."""
    m = read(model, params, rows).coefficients
    m = jnp.moveaxis(m, -1, 1).reshape(m.shape[0], m.shape[-1], -1)
    score, place = jax.lax.top_k(m, best[0].shape[-1])
    score, place = (jnp.concatenate(x, axis=-1) for x in zip(best, (score, first + place), strict=True))
    score, order = jax.lax.top_k(score, best[0].shape[-1])
    return score, jnp.take_along_axis(place, order, axis=-1)


def suffixes(rows: np.ndarray, found: Triggers, length: int) -> np.ndarray:
    """The last tokens of each trigger prefix; -1 where the prefix is shorter.   (l, f, n, length)"""
    padded = np.concatenate([np.full((len(rows), length - 1), -1), rows], axis=1)
    ahead = np.arange(length)
    return padded[found.row[..., None], found.place[..., None] + ahead]


def shared_suffix(rows: np.ndarray, found: Triggers, length: int) -> tuple[np.ndarray, float]:
    """How often two triggers of a key end in the same tokens: (share by layer (l,), that of any two prefixes).

    Keys that are never called up (no positive coefficient) do not count; nor do prefixes shorter than `length`.
    """
    ends = _numbers(suffixes(rows, found, length))
    live = (found.score > 0)[..., None, :] & (found.score > 0)[..., :, None]
    upper = np.triu(np.ones(live.shape[-2:], bool), 1)
    same = (ends[..., None, :] == ends[..., :, None]) & (ends[..., None] >= 0)
    pairs = live & upper
    by_key = (same & pairs).sum((-1, -2)) / np.maximum(pairs.sum((-1, -2)), 1)
    counted = pairs.any((-1, -2))
    every = np.lib.stride_tricks.sliding_window_view(rows, length, axis=1)
    counts = np.unique(_numbers(every).ravel(), return_counts=True)[1].astype(float)
    chance = float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))
    return (by_key * counted).sum(1) / np.maximum(counted.sum(1), 1), chance


def agreement(
    rows: np.ndarray, found: Triggers, value_tokens: np.ndarray, rank: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How often a value's token is the one that follows its key's trigger: (share by layer (l,), its chance (l,)).

    The chance is the share if the layer's values were dealt out anew to its keys, so that frequent tokens gain nothing.

    value_tokens    (l, f)    from `top_tokens`
    rank            which trigger, 0 = the strongest; those at the end of a row, or never called up, do not count
    """
    place = found.place[..., rank]
    counts = (place + 1 < rows.shape[1]) & (found.score[..., rank] > 0)
    after = rows[found.row[..., rank], np.minimum(place + 1, rows.shape[1] - 1)]
    n = np.maximum(counts.sum(1), 1)
    share = ((after == value_tokens) & counts).sum(1) / n
    dealt = [
        np.mean(v[c][:, None] == a[c][None]) if c.any() else 0.0
        for v, a, c in zip(value_tokens, after, counts, strict=True)
    ]
    return share, np.array(dealt)


def composition(model: LM, params: Params, reading: Reading, value_tokens: Array) -> dict[str, Array]:
    """How a layer's output is made of its memories', by layer (l,).

    active    share of the memories with a positive coefficient
    new       share of the places where the layer's token is that of no memory called up there (coefficient not 0)
    """
    layer, _ = top_tokens(model, params, reading.out)

    def one(args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        m, token, values = args
        voted = jnp.any((m != 0) & (values[None, None] == token[..., None]), axis=-1)
        return jnp.mean((m > 0).astype(jnp.float32)), 1 - jnp.mean(voted.astype(jnp.float32))

    active, new = jax.lax.map(one, (reading.coefficients, layer, jnp.asarray(value_tokens)))
    return {"active": active, "new": new}


def refinement(model: LM, params: Params, reading: Reading) -> dict[str, Array]:
    """How the residual stream comes to the prediction, by layer (l,): shares of the places.

    settled       the stream before the layer already has the model's final token on top
    probability   which it gives to that token, on average
    Of the stream's token after the layer:
    residual, layer, both, neither     it is that of the stream before alone, of the layer's output alone...
    """
    final = jnp.argmax(reading.logits, axis=-1)
    readout = model.readout(params)

    def chance(x: Array) -> Array:
        logits = jax.nn.log_softmax(model.normalise.apply(params["norm"], x) @ readout, axis=-1)
        return jnp.mean(jnp.exp(jnp.take_along_axis(logits, final[..., None], axis=-1)))

    before, out, after = (top_tokens(model, params, x)[0] for x in (reading.before, reading.out, reading.after))
    stays, moved = after == before, after == out

    def share(x: Array) -> Array:
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))

    return {
        "settled": share(before == final[None]),
        "probability": jax.lax.map(chance, reading.before),
        "residual": share(stays & ~moved),
        "layer": share(moved & ~stays),
        "both": share(stays & moved),
        "neither": share(~stays & ~moved),
    }


def _interleave(parts: list[Array]) -> Array:
    """The layers of each place of a pattern, in the order of the model.   each (units, ...) -> (l, ...)"""
    x = jnp.stack(parts, axis=1)
    return x.reshape(-1, *x.shape[2:])


def _numbers(ends: np.ndarray) -> np.ndarray:
    """One number per sequence of tokens, -1 for those that hold a -1.   (..., n) -> (...)"""
    base = int(ends.max()) + 1
    if base ** ends.shape[-1] >= 2**63:
        raise ConfigError(f"length = {ends.shape[-1]}: expected fewer tokens for a vocabulary of {base}")
    number = ends @ base ** np.arange(ends.shape[-1])
    return np.where((ends < 0).any(-1), -1, number)
