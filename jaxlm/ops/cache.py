"""Places of tokens in their documents, and the cache of keys and values that attention reads.

The cache is a dict: `k` (b, slots, g, k) and `v` (b, slots, g, v), stale slots zero, and `length` (b) int32, the
uncapped number of tokens of the current document. Unbounded: slot j holds token j of the document. Window w: the last
w-1 tokens, the newest at the end.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlm.typing import Array

Cache = Mapping[str, Array]


def cache_size(room: int, window: int | None) -> int:
    """Slots of a cache: `room` tokens, or the window-1 tokens that a later query can see."""
    return room if window is None else window - 1


def positions(starts: Array | None, length: Array | None, t: int) -> Array:
    """Place of each token in its own document, counted from 0: what rotary angles are made of.

    starts  first tokens of documents       (b, t) bool, None: none
    length  tokens of the document so far   (b) int32, None: 0
    ->      (b, t) int32;  (1, t) where both are None
    """
    place = jnp.arange(t, dtype=jnp.int32)[None]
    on = place if length is None else place + length[:, None]
    if starts is None:
        return on
    last = jax.lax.cummax(jnp.where(starts, place, -1), axis=1)
    return jnp.where(last < 0, on, place - last)


def documents(starts: Array) -> Array:
    """(b, t) int32: number of the document, 0 for the one that goes on from before."""
    return jnp.cumsum(starts, axis=1, dtype=jnp.int32)


def keep(k, v, cache, starts, place, window, slots) -> dict[str, Array]:
    """The cache after these tokens."""
    b, t = place.shape
    length = place[:, -1] + 1
    if window is not None:
        alive = length[:, None] >= jnp.arange(slots, 0, -1, dtype=jnp.int32)[None]

        def last(x, old):
            if old is not None and t < slots:
                x = jnp.concatenate([old[:, t:], x], axis=1)
            x = jnp.pad(x, [(0, 0), (max(slots - x.shape[1], 0), 0), (0, 0), (0, 0)])[:, -slots or x.shape[1] :]
            return jnp.where(alive[:, :, None, None], x, jnp.zeros((), x.dtype))

        return {"k": last(k, cache and cache["k"]), "v": last(v, cache and cache["v"]), "length": length}
    if cache is None and starts is None:
        pad = [(0, 0), (0, slots - t), (0, 0), (0, 0)]
        return {"k": jnp.pad(k, pad), "v": jnp.pad(v, pad), "length": length}
    slot, new = place, None
    if starts is not None:  # only the last document is kept; what lies beyond the slots is dropped
        doc = documents(starts)
        slot, new = jnp.where(doc == doc[:, -1:], place, slots), jnp.any(starts, axis=1)
    if cache is None:
        cache = {n: jnp.zeros((b, slots, *x.shape[2:]), x.dtype) for n, x in (("k", k), ("v", v))}
    return {"k": write(cache["k"], slot, k, new), "v": write(cache["v"], slot, v, new), "length": length}


def upto(cache: Cache, k: Array, v: Array, starts: Array | None, place: Array, n: Array) -> dict[str, Array]:
    """The cache after the first `n` of these tokens: what `keep` gives for them alone, without a window.

    k, v    of all tokens, in any dtype     (b, t, g, k), (b, t, g, v)
    starts  first tokens of documents       (b, t) bool, None: none
    place   of each in its own document     (b or 1, t) int32
    n       0 to t, may be traced           () int32
    """
    b, t = k.shape[:2]
    slots = cache["k"].shape[1]
    here = jnp.arange(t, dtype=jnp.int32)[None] < n
    place = jnp.broadcast_to(place, (b, t))
    before = jax.lax.dynamic_index_in_dim(place, jnp.maximum(n - 1, 0), 1, False)
    length, new = jnp.where(n > 0, before + 1, cache["length"]), None
    if starts is not None:
        doc = documents(starts)
        last = jnp.max(jnp.where(here, doc, 0), axis=1)
        here, new = here & (doc == last[:, None]), last > 0
    slot = jnp.where(here, place, slots)
    k, v = k.astype(cache["k"].dtype), v.astype(cache["v"].dtype)
    return {"k": write(cache["k"], slot, k, new), "v": write(cache["v"], slot, v, new), "length": length}


def write(old: Array, slot: Array, x: Array, new: Array | None) -> Array:
    """Tokens into their slots, dropped beyond the last; rows in a new document forget what they held.

    old (b, slots, ...), slot (b, t) int, x (b, t, ...), new (b) bool or None: none
    """
    if new is not None:
        old = jnp.where(new[:, None, None, None], jnp.zeros((), old.dtype), old)
    return jax.vmap(lambda old, slot, x: old.at[slot].set(x, mode="drop"))(old, slot, x)
