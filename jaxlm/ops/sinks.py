"""Attention to the last tokens and to the first ones of a document, blockwise: memory that never grows, at any length.

Keys come and stay un-turned: the last ones are turned at use by their order in the call, so that angles stay small; the
first ones, where they are beyond the window, by places that the caller fixes.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxlm.ops.attention import cut, neighbours, window_block
from jaxlm.ops.cache import documents, keep, positions
from jaxlm.typing import Array, wide

Turn = Callable[[Array, Array], Array]


def sink_attention(
    q: Array, k: Array, v: Array, cache: Mapping[str, Array], starts: Array | None, window: int, turn: Turn,
    far: tuple[Callable[[Array], Array], Callable[[Array], Array]], block: int = 128,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """softmax over the last `window` tokens, itself among them, and the first tokens of the document.

    q       queries, scaled                     (b, t, h, k)
    k, v    keys, values                        (b, t, g, k), (b, t, g, v);  not turned
    cache   k, v: the last window-1 tokens      (b, window-1, g, .), the newest at the end; zero where among the first
            first_k, first_v                    (b, s, g, .)
            length: tokens of the document      (b) int32
    starts  first tokens of documents           (b, t) bool, None: none
    turn    (x (b, t, ., k), places (b or 1, t)) -> x turned
    far     of a query's and of a first key's number in the document: the places by which they are turned where the key
            is beyond the window; within it both have their true distance
    ->      y (b, t, h, v) in v's dtype;  cache

    Inputs are finite. Time and memory are linear in t. Xiao et al. 2024 (sinks); Han et al. 2024 (the Lambda mask).
    """
    b, t = q.shape[:2]
    s, c, dtype = cache["first_k"].shape[1], window - 1, v.dtype
    k, v = k.astype(cache["k"].dtype), v.astype(cache["v"].dtype)
    place = jnp.broadcast_to(positions(starts, cache["length"], t), (b, t))
    doc = jnp.zeros((b, t), jnp.int32) if starts is None else documents(starts)
    old = jnp.arange(c, dtype=jnp.int32)[None] + (cache["length"][:, None] - c)  # numbers of the cached tokens
    number = jnp.concatenate([old, place], axis=1)
    order = jnp.arange(c + t, dtype=jnp.int32)[None]
    last = {x: jnp.where(*_among(old, s, cache[f"first_{x}"]), cache[x]) for x in "kv"}
    keys, values = jnp.concatenate([last["k"], k], axis=1), jnp.concatenate([last["v"], v], axis=1)
    queries = (turn(q, order[:, c:]), turn(q, far[0](place)), doc)
    known = jnp.concatenate([jnp.where(old < 0, -1, 0), doc], axis=1)
    past = (turn(keys, order), turn(keys, far[1](number)), values, known, number)
    # All that a later query may need of the first tokens: those of before, then the new ones.
    held = jnp.broadcast_to(jnp.arange(s, dtype=jnp.int32)[None], (b, s))
    first = turn(cache["first_k"], far[1](held)), cache["first_v"]
    source = tuple(jnp.concatenate([f, new[:, c:]], axis=1) for f, new in zip(first, past[1:3], strict=True))

    size = window_block(window, block)
    n = -(-t // size)
    size, m = (t, 0) if n == 1 else (size, -(-c // size))
    reach = jnp.arange(n, dtype=jnp.int32) * size - (
        c if n == 1 else m * size
    )  # the order at which a block's keys begin
    ahead = _ahead(source, place, doc, cache["length"], reach, s, c)

    def one(queries, keys, ahead, first, begin):
        return _one(queries, keys, ahead, first, begin, window, s, c)

    one = jax.checkpoint(one, prevent_cse=n == 1)
    if n == 1:
        ahead = jax.tree.map(lambda x: x[0], ahead)
        y = one(queries, past, ahead, jnp.int32(0), reach[0])
    else:
        xs = (
            cut(queries, n, size),
            neighbours(past, n, size, m, c),
            ahead,
            jnp.arange(n, dtype=jnp.int32) * size,
            reach,
        )
        _, y = jax.lax.scan(lambda _, x: (None, one(*x)), None, xs)
        y = jnp.moveaxis(y, 0, 1).reshape(b, n * size, *y.shape[3:])[:, :t]
    after = keep(k, v, last, starts, place, window, c)
    # Each token is held once, else the gradient of a state would depend on where the text was cut.
    number = jnp.arange(c, dtype=jnp.int32)[None] + (after["length"][:, None] - c)
    once = (number >= s)[:, :, None, None]
    after |= {x: jnp.where(once, after[x], jnp.zeros((), k.dtype)) for x in "kv"}
    return y.astype(dtype), {**after, **_first(k, v, cache, place, s)}


def _among(number: Array, s: int, first: Array) -> tuple[Array, Array]:
    """(which tokens are among the first s, those of `first` at their places).   (b, c), (b, s, g, .)"""
    if s == 0:
        return jnp.zeros((1, 1, 1, 1), bool), jnp.zeros((1, 1, 1, 1), first.dtype)
    place = jnp.clip(number, 0, s - 1)
    return ((number >= 0) & (number < s))[:, :, None, None], jax.vmap(lambda x, i: x[i])(first, place)


def _one(queries, keys, ahead, first, begin, window: int, s: int, c: int) -> Array:
    """A block of queries of orders first.. over the keys of orders begin.. and the first tokens ahead of them."""
    (q, q_far, q_doc), (k, k_far, v, k_doc, number), (a_k, a_v, a_doc) = queries, keys, ahead
    order = begin + jnp.arange(k.shape[1], dtype=jnp.int32)
    gap = first + jnp.arange(q.shape[1], dtype=jnp.int32)[:, None] - order[None]
    near = (gap < window)[None]
    seen = ((gap >= 0) & (order >= -c)[None])[None] & (near | (number < s)[:, None])
    seen &= q_doc[:, :, None] == k_doc[:, None]
    scores = jnp.where(near[:, None, None], _scores(q, k), _scores(q_far, k_far))
    before = q_doc[:, :, None] == a_doc[:, None]
    scores = jnp.concatenate([_scores(q_far, a_k), scores], axis=-1)
    seen = jnp.concatenate([before, seen], axis=-1)[:, None, None]
    probs = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min), axis=-1)
    probs = checkpoint_name(probs, "attn.probs")
    values = jnp.concatenate([a_v, v], axis=1)
    y = jnp.einsum("bgrqs,bsgv->bqgrv", probs.astype(v.dtype), values, preferred_element_type=wide(v).dtype)
    return y.reshape(*q.shape[:3], -1)


def _scores(q: Array, k: Array) -> Array:
    """q (b, q, h, k), k (b, s, g, k) -> (b, g, h / g, q, s), at least float32"""
    dtype = np.promote_types(q.dtype, k.dtype)
    groups = q.astype(dtype).reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    wider = np.promote_types(dtype, np.float32)
    return jnp.einsum("bqgrk,bsgk->bgrqs", groups, k.astype(dtype), preferred_element_type=wider)


def _ahead(source, place: Array, doc: Array, length: Array, reach: Array, s: int, c: int):
    """For each block the first tokens, before all its keys, of the document in which these begin.

    ->   keys, values (n, b, s, g, .), their document (n, b, s), -2 where there is none
    """
    at = jnp.clip(reach, 0, place.shape[1] - 1)
    inside = (reach >= 0)[None]
    start = jnp.where(inside, at[None] - jnp.take(place, at, axis=1), -length[:, None])  # (b, n): its first order
    own = jnp.where(inside, jnp.take(doc, at, axis=1), 0)
    order = start[:, :, None] + jnp.arange(s, dtype=jnp.int32)[None, None]
    found = order < jnp.maximum(reach, -c)[None, :, None]
    own = jnp.where(found, own[:, :, None], -2)
    picked = [_pick(x, order) for x in source]
    return tuple(jnp.moveaxis(x, 1, 0) for x in (*picked, own))


def _pick(source: Array, order: Array) -> Array:
    """Tokens by their order: before 0, the j-th of the last axis is held at j.   (b, s + t, ...), (b, n, s)"""
    s = order.shape[-1]
    index = jnp.where(order < 0, jnp.arange(s, dtype=jnp.int32)[None, None], s + order)
    index = jnp.clip(index, 0, source.shape[1] - 1)
    return jax.vmap(lambda x, i: x[i])(source, index)


def _first(k: Array, v: Array, cache: Mapping[str, Array], place: Array, s: int) -> dict[str, Array]:
    """The first tokens of the last document, as the cache keeps them; zeros where it is shorter."""
    t = place.shape[1]
    order = (t - 1 - place[:, -1:] + jnp.arange(s, dtype=jnp.int32)[None])[:, None]
    there = (order < t)[:, 0, :, None, None]

    def kept(old: Array, new: Array) -> Array:
        x = _pick(jnp.concatenate([old, new], axis=1), order)[:, 0]
        return jnp.where(there, x, jnp.zeros((), x.dtype))

    return {"first_k": kept(cache["first_k"], k), "first_v": kept(cache["first_v"], v)}
