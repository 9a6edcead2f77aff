"""Causal softmax attention with grouped heads, windows, packed documents and a cache, one block of queries at a time.

Queries come scaled and rotated. The cache is that of `jaxlm.ops.cache`. A row spoiled by a non-finite token carries
that across a cut: NaN in the key of slot 0; windowed, in all of the row.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxlm.errors import ShapeError
from jaxlm.ops.cache import Cache, cache_size, documents, keep, positions
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, wide

Bias = Callable[[Array, Array], Array]
SPANS = 4  # stretches of query blocks, each against its own past only: at most 5/8 of all pairs instead of all


def attention(
    q: Array, k: Array, v: Array, cache: Cache | None = None, starts: Array | None = None,
    window: int | None = None, room: int = 0, block: int = 128, bias: Bias | None = None,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """softmax(q k^T) v over the visible past, block by block; the backward computes the probabilities again.

    q       queries, scaled and rotated     (b, t, h, k), h a multiple of g: head j reads group j // (h / g)
    k, v    keys (rotated) and values       (b, t, g, k), (b, t, g, v)
    cache   what came before, None: nothing (its slots and dtypes stay; see the module)
    starts  first tokens of documents       (b, t) bool, None: none
    window  a query sees itself and window-1 tokens before it; None: all of its document
    room    slots of the cache made when `cache` is None and there is no window: max(room, t)
    block   queries at a time (a long window takes longer blocks)
    bias    of the numbers in their document of queries (b or 1, q) and keys (b or 1, s): what is added to the scores,
            (b or 1, h or 1, q, s); -inf hides a key, but never a query's own
    ->      y (b, t, h, v) in v's dtype;  cache

    ShapeError when t exceeds the slots of a given cache without window; a row that outgrows them while running turns
    nan from that token to its document's end. So does a non-finite token.
    Memory is linear in t for a window, t times block without.
    Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (groups); Beltagy et al. 2020 (window); Rabe & Staats 2021 (blocks).
    """
    b, t = _check(q, k, v, cache, starts, window, block)
    dtype, place = v.dtype, positions(starts, None if cache is None else cache["length"], t)
    slots = cache["k"].shape[1] if cache is not None else cache_size(max(room, t), window)
    q, k, v, cache, ill = _enter(q, k, v, cache, starts, window)
    after = keep(k, v, cache, starts, jnp.broadcast_to(place, (b, t)), window, slots)
    if cache is not None and t == 1 and window is None:
        seen = jnp.arange(slots, dtype=jnp.int32)[None] <= place
        order = jnp.arange(slots, dtype=jnp.int32)[None]
        y = _attend(q, after["k"], after["v"], seen[:, None, None, None], bias and bias(place, order))
    else:
        y = _blockwise(q, k, v, cache, starts, place, window, block, bias)
    spoiled = ill | (place >= slots) if cache is not None and window is None else ill
    return spoil(spoiled, y.astype(dtype)), _mark(after, ill[:, -1], window)


def attention_fused(
    q: Array, k: Array, v: Array, starts: Array | None = None, window: int | None = None, room: int = 0,
    implementation=None,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """As `attention` from a fresh start, by `jax.nn.dot_product_attention`; `implementation` 'xla', 'cudnn' or None.

    Keys and values have one width. cuDNN asks for float16 or bfloat16.
    """
    b, t = _check(q, k, v, None, starts, window, 1)
    if k.shape[-1] != v.shape[-1]:
        raise ShapeError(f"v: got width {v.shape[-1]}, expected the width of k, {k.shape[-1]}")
    dtype = v.dtype
    q, k, v, _, ill = _enter(q, k, v, None, starts, window)
    place = jnp.broadcast_to(positions(starts, None, t), (b, t))
    after = keep(k, v, None, starts, place, window, cache_size(max(room, t), window))
    mask = None if starts is None else _same(documents(starts), documents(starts))[:, 0]
    local = None if window is None else (window - 1, 0)
    y = jax.nn.dot_product_attention(
        q.astype(k.dtype), k, v.astype(k.dtype), mask=mask, scale=1.0, is_causal=True, local_window_size=local,
        implementation=implementation,
    )  # fmt: skip
    return spoil(ill, y.astype(dtype)), _mark(after, ill[:, -1], window)


def attention_naive(
    q: Array, k: Array, v: Array, cache: Cache | None = None, starts: Array | None = None,
    window: int | None = None, room: int = 0, bias: Bias | None = None,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """The twin of `attention` for finite inputs: one dense mask over places and documents, nothing clever."""
    (b, t), r = _check(q, k, v, cache, starts, window, 1), q.shape[2] // k.shape[2]
    length = jnp.zeros((b,), jnp.int32) if cache is None else cache["length"]
    slots = cache["k"].shape[1] if cache is not None else cache_size(max(room, t), window)
    place, doc = positions(starts, length, t), jnp.zeros((b, t), jnp.int32) if starts is None else documents(starts)
    keys, values, places, docs = k, v, place, doc
    if cache is not None:
        first = jnp.zeros_like(length) if window is None else length - slots
        old = jnp.arange(slots, dtype=jnp.int32)[None] + first[:, None]
        keys = jnp.concatenate([cache["k"], k.astype(cache["k"].dtype)], axis=1)
        values = jnp.concatenate([cache["v"], v.astype(cache["v"].dtype)], axis=1)
        places = jnp.concatenate([old, place], axis=1)
        docs = jnp.concatenate([jnp.where((old >= 0) & (old < length[:, None]), 0, -1), doc], axis=1)
    gap = place[:, :, None] - places[:, None]
    seen = (gap >= 0) & (doc[:, :, None] == docs[:, None]) & (gap < (window or t + slots + 1))
    scores = jnp.einsum("bqhk,bshk->bhqs", wide(q), jnp.repeat(wide(keys), r, axis=2))
    scores = scores if bias is None else scores + bias(place, places).astype(scores.dtype)
    probs = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    y = jnp.einsum("bhqs,bshv->bqhv", probs, jnp.repeat(wide(values), r, axis=2)).astype(v.dtype)
    # Each slot looks for the one token of the last document that belongs into it.
    want = jnp.arange(slots, dtype=jnp.int32)[None] + (0 if window is None else place[:, -1:] + 1 - slots)
    pick = (want[:, :, None] == places[:, None]) & (docs == doc[:, -1:])[:, None]
    kept = {name: jnp.einsum("bjs,bsgx->bjgx", pick.astype(x.dtype), x) for name, x in (("k", keys), ("v", values))}
    over = (place >= slots) & (window is None)
    return spoil(over, y), {**kept, "length": place[:, -1] + 1}


def _same(q_doc: Array, k_doc: Array) -> Array:
    """(b, 1, 1, q, s): do query and key belong to one document?"""
    return (q_doc[:, :, None] == k_doc[:, None])[:, None, None]


def _enter(q, k, v, cache, starts, window):
    """Finite inputs in the cache's dtypes, and the spoiled tokens (b, t)."""
    if cache is not None:
        k, v = k.astype(cache["k"].dtype), v.astype(cache["v"].dtype)
    if window == 1:  # no memory that could carry the spoiling across a cut: each token is on its own
        starts = jnp.ones(q.shape[:2], bool)
    if cache is None or window is not None:
        (q, k, v), cache, ill = isolate(starts, (q, k, v), cache)
        return q, k, v, cache, ill
    # Decoding reads only the slot of the mark: a look at all of them would cost as much as the attention itself.
    marked = {"k": cache["k"][:, 0]} if q.shape[1] == 1 else {name: cache[name] for name in "kv"}
    (q, k, v), _, ill = isolate(starts, (q, k, v), marked)
    finite = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros((), x.dtype)), marked)
    if q.shape[1] == 1:
        finite = {"k": cache["k"].at[:, 0].set(finite["k"])}
    return q, k, v, {**cache, **finite}, ill


def _mark(cache: Cache, ill: Array, window: int | None) -> dict[str, Array]:
    """Make the rows (b) that end spoiled carry it on: NaN in all of a windowed row, else in the key of slot 0."""
    if window is not None:
        return dict(spoil(ill, cache))
    return {**cache, "k": cache["k"].at[:, 0].set(spoil(ill, cache["k"][:, 0]))}


def _attend(q: Array, k: Array, v: Array, seen: Array, bias: Array | None = None) -> Array:
    """Attention of q (b, q, h, k) over k, v (b, s, g, .) where `seen` (b or 1, 1, 1, q, s)."""
    b, t, h, _ = q.shape
    g = k.shape[2]
    dtype = np.promote_types(np.promote_types(q.dtype, k.dtype), np.float32)
    near = np.promote_types(q.dtype, k.dtype)
    groups = q.astype(near).reshape(b, t, g, h // g, -1)
    scores = jnp.einsum("bqgrk,bsgk->bgrqs", groups, k.astype(near), preferred_element_type=dtype)
    if bias is not None:
        split = (g, h // g) if bias.shape[1] == h else (1, 1)
        scores = scores + bias.astype(dtype).reshape(bias.shape[0], *split, *bias.shape[2:])
    # A finite floor: rows that only fill a block see nothing, and must not turn nan in the backward.
    probs = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(dtype).min), axis=-1)
    probs = checkpoint_name(probs, "attn.probs")
    y = jnp.einsum("bgrqs,bsgv->bqgrv", probs.astype(v.dtype), v, preferred_element_type=wide(v).dtype)
    return y.reshape(b, t, h, -1)


def _blockwise(q, k, v, cache, starts, place, window, block, bias) -> Array:
    """All of t over the cache's slots (orders -slots to -1) and the new tokens (orders 0 to t-1)."""
    b, t = q.shape[:2]
    c, q_doc = 0, None if starts is None else documents(starts)
    k_doc = q_doc
    q_num = k_num = None if bias is None else place
    if cache is not None:
        q_doc = jnp.zeros((b, t), jnp.int32) if q_doc is None else q_doc
        c = cache["k"].shape[1]
        k, v = jnp.concatenate([cache["k"], k], axis=1), jnp.concatenate([cache["v"], v], axis=1)
        slot = jnp.arange(c, dtype=jnp.int32)[None]
        filled = slot < cache["length"][:, None] if window is None else slot >= c - cache["length"][:, None]
        k_doc = jnp.concatenate([jnp.where(filled, 0, -1), q_doc], axis=1)
        if bias is not None:
            old = slot if window is None else slot + (cache["length"][:, None] - c)
            k_num = jnp.concatenate([jnp.broadcast_to(old, (b, c)), place], axis=1)
    size = block if window is None else window_block(window, block)
    n = -(-t // size)
    size = -(-t // n) if window is None or n == 1 else size

    def one(queries, first, keys, k_first):
        """Queries of orders first.. over keys of orders k_first.., of which those before -c do not exist."""
        (q, q_doc, q_num), (k, v, k_doc, k_num) = queries, keys
        order = k_first + jnp.arange(k.shape[1], dtype=jnp.int32)[None]
        gap = first + jnp.arange(q.shape[1], dtype=jnp.int32)[:, None] - order
        seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
        seen = (seen & (order >= -c))[None, None, None]
        seen = seen if q_doc is None else seen & _same(q_doc, k_doc)
        return _attend(q, k, v, seen, bias and bias(q_num, k_num))

    one = jax.checkpoint(one, prevent_cse=n == 1)  # a scan needs no barrier against merging
    if n == 1:
        return one((q, q_doc, q_num), jnp.int32(0), (k, v, k_doc, k_num), jnp.int32(-c))
    queries = cut((q, q_doc, q_num), n, size)
    orders = jnp.arange(n, dtype=jnp.int32) * size
    if window is None:
        y = _spans(one, queries, orders, (k, v, k_doc, k_num), c, size)
    else:
        m = -(-(window - 1) // size)
        around = neighbours((k, v, k_doc, k_num), n, size, m, c)
        body = lambda _, x: (None, one(x[0], x[1], x[2], x[1] - m * size))  # noqa: E731
        _, y = jax.lax.scan(body, None, (queries, orders, around))
    return jnp.moveaxis(y, 0, 1).reshape(b, n * size, *y.shape[3:])[:, :t]


def _spans(one, queries, orders, keys, c: int, size: int) -> Array:
    """Scan each of a few stretches of query blocks over the keys up to its own end: (n, b, size, h, v)."""
    n = orders.shape[0]
    # Over a cache they save little, and a scan of one turn, which compilers open, would keep its scores beside others'.
    spans = max(1, min(n // 2, SPANS)) if c else min(n, SPANS)
    bounds = [n * i // spans for i in range(spans + 1)]
    out = []
    for low, high in pairwise(bounds):
        past = jax.tree.map(lambda x, high=high: x[:, : c + high * size], keys)

        def body(_, x, past=past):
            return None, one(x[0], x[1], past, jnp.int32(-c))

        out.append(jax.lax.scan(body, None, jax.tree.map(lambda x, a=low, z=high: x[a:z], (queries, orders)))[1])
    return jnp.concatenate(out)


def window_block(window: int, block: int) -> int:
    """Queries at a time for a window: about the window, within `block`, but never so few that three blocks miss it."""
    size = min(block, max(window - 1, 32))
    return max(size, -(-(window - 1) // 2))


def cut(tree, n: int, size: int):
    """(b, t, ...) -> (n, b, size, ...), zeros at the end."""

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, n * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], n, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)


def neighbours(keys, n: int, size: int, m: int, c: int):
    """For each block its own keys and those of the m blocks before it: (n, b, (m+1) size, ...)."""

    def near(x):
        x = jnp.pad(x, [(0, 0), (m * size - c, n * size + c - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        x = jnp.moveaxis(x.reshape(x.shape[0], n + m, size, *x.shape[2:]), 1, 0)
        return jnp.concatenate([x[i : i + n] for i in range(m + 1)], axis=2)

    return jax.tree.map(near, keys)


def _check(q, k, v, cache, starts, window, block) -> tuple[int, int]:
    """Batch and time, after a look at every shape."""
    if q.ndim != 4 or 0 in q.shape:
        raise ShapeError(f"q: got {q.shape}, expected (b, t, h, k), none of them zero")
    b, t, h, width = q.shape
    if k.ndim != 4 or k.shape[:2] != (b, t) or k.shape[3] != width or not k.shape[2] or h % k.shape[2]:
        raise ShapeError(f"k: got {k.shape}, expected (b, t, g, k) = ({b}, {t}, a divisor of {h}, {width})")
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ShapeError(f"v: got {v.shape}, expected (b, t, g, v) = ({b}, {t}, {k.shape[2]}, v)")
    if starts is not None and starts.shape != (b, t):
        raise ShapeError(f"starts: got {starts.shape}, expected (b, t) = ({b}, {t})")
    if (window is not None and window < 1) or block < 1:
        raise ShapeError(f"window, block: got {window} and {block}, expected at least 1")
    if cache is None:
        return b, t
    slots = cache["k"].shape[1] if window is None else window - 1
    for name, want in (("k", (b, slots, *k.shape[2:])), ("v", (b, slots, *v.shape[2:])), ("length", (b,))):
        if cache[name].shape != want:
            raise ShapeError(f"cache {name}: got {cache[name].shape}, expected {want}")
    if window is None and t > slots:
        raise ShapeError(f"t: got {t} tokens, expected at most the {slots} slots of the cache (start with more room)")
    return b, t
