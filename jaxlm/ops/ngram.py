"""What followed the last n tokens wherever they occurred before: a mean of vectors over matching places."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.ops.attention import cut
from jaxlm.ops.cache import documents, keep, positions
from jaxlm.typing import Array, wide


def ngram_mean(
    ids: Array, x: Array, n: int, cache: Mapping[str, Array], starts: Array | None = None, block: int = 128
) -> tuple[Array, dict[str, Array]]:
    """The mean of x_j over j < i with ids_{i-r} = ids_{j-1-r}, r = 0..n-1, all inside one document; 0 without a match.

    ids     tokens                                  (b, t) int32
    x       vectors, finite                         (b, t, d)
    cache   gram: the n tokens before each token    (b, slots, n) int32, the newest first
            x: their vectors                        (b, slots, d)
            recent: the last n tokens               (b, n) int32, the newest last
            length: tokens of the document          (b) int32
    starts  first tokens of documents               (b, t) bool, None: none
    block   queries at a time
    ->      y (b, t, d) in x's dtype;  cache

    ShapeError when t exceeds the slots; a row that outgrows them while running turns nan from there to its document's
    end. Time is quadratic in t, memory linear. Akyurek et al. 2024, section 5.
    """
    b, t = ids.shape
    slots = cache["gram"].shape[1]
    if t > slots:
        raise ShapeError(f"t: got {t} tokens, expected at most the {slots} slots of the cache (start with more room)")
    place = jnp.broadcast_to(positions(starts, cache["length"], t), (b, t))
    doc = jnp.zeros((b, t), jnp.int32) if starts is None else documents(starts)
    last, before, recent = _grams(ids, n, cache["recent"], place)
    held = jnp.arange(slots, dtype=jnp.int32)[None]
    k_doc = jnp.concatenate([jnp.where(held < cache["length"][:, None], 0, -1), doc], axis=1)
    number = jnp.concatenate([jnp.broadcast_to(held, (b, slots)), place], axis=1)
    grams = jnp.concatenate([cache["gram"], before], axis=1)
    values = wide(jnp.concatenate([cache["x"], x.astype(cache["x"].dtype)], axis=1))

    def one(queries):
        gram, place, doc = queries
        match = (doc[:, :, None] == k_doc[:, None]) & (number[:, None] < place[:, :, None])
        for r in range(n):
            match &= (gram[:, :, None, r] == grams[:, None, :, r]) & (gram[:, :, r] >= 0)[:, :, None]
        weights = match.astype(values.dtype)
        total = jnp.einsum("bqs,bsd->bqd", weights, values, precision=jax.lax.Precision.HIGHEST)
        return total / jnp.maximum(jnp.sum(weights, axis=-1), 1)[:, :, None]

    size = min(block, t)
    m = -(-t // size)
    one = jax.checkpoint(one, prevent_cse=False)
    _, y = jax.lax.scan(lambda _, queries: (None, one(queries)), None, cut((last, place, doc), m, size))
    y = jnp.moveaxis(y, 0, 1).reshape(b, m * size, -1)[:, :t]
    y = jnp.where((place >= slots)[:, :, None], jnp.nan, y).astype(x.dtype)
    old = {"k": cache["gram"][:, :, None], "v": cache["x"][:, :, None]}
    new = x.astype(cache["x"].dtype)[:, :, None]
    after = keep(before[:, :, None], new, {**old, "length": cache["length"]}, starts, place, None, slots)
    kept = {"gram": after["k"][:, :, 0], "x": after["v"][:, :, 0]}
    return y, {**kept, "recent": recent, "length": after["length"]}


def _grams(ids: Array, n: int, recent: Array, place: Array) -> tuple[Array, Array, Array]:
    """(the n tokens up to each, the n before each, the last n of all); -1 where the document is shorter.

    ->   (b, t, n), (b, t, n), the newest first;  (b, n) the newest last, 0 where the document is shorter
    """
    t = ids.shape[1]
    known = jnp.concatenate([recent, ids], axis=1)
    back = jnp.stack([known[:, n - r : n - r + t] for r in range(n + 1)], axis=-1)
    back = jnp.where(jnp.arange(n + 1, dtype=jnp.int32)[None, None] <= place[:, :, None], back, -1)
    age = jnp.arange(n - 1, -1, -1, dtype=jnp.int32)[None]
    return back[..., :n], back[..., 1:], jnp.where(age <= place[:, -1:], known[:, t:], 0)
