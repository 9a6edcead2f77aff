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
    slot = place
    if starts is not None:  # only the last document is kept; what lies beyond the slots is dropped
        doc = documents(starts)
        slot = jnp.where(doc == doc[:, -1:], place, slots)

    def write(x, old):
        old = jnp.zeros((b, slots, *x.shape[2:]), x.dtype) if old is None else old
        if starts is not None:
            old = jnp.where(jnp.any(starts, axis=1)[:, None, None, None], jnp.zeros((), old.dtype), old)
        return jax.vmap(lambda old, slot, x: old.at[slot].set(x, mode="drop"))(old, slot, x)

    return {"k": write(k, cache and cache["k"]), "v": write(v, cache and cache["v"]), "length": length}
