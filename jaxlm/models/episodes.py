"""Few-shot episodes, drawn on the device inside a compiled step: which class and item stands where, and its label."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.typing import Array


class Episodes(NamedTuple):
    """A batch of episodes. `images` are those of `take`; slots -1: no label is shown.

    images   (b, t, ...)        slots, targets (b, t) int
    """

    images: Array
    slots: Array
    targets: Array


def distinct(key: Array, count: int, batch: int, chosen: int) -> Array:
    """Rows of different numbers below `count`.   (batch, chosen) int"""
    if chosen > count:
        raise ShapeError(f"chosen = {chosen}: expected at most the {count} that there are")
    return jax.lax.top_k(jax.random.uniform(key, (batch, count)), chosen)[1]


def synchronous(key: Array, bank: Array, batch: int, ways: int, shots: int, queries: int = 1) -> Episodes:
    """Each image of the support beside its own label, in random order; then queries without (Irie et al. 2022, 4.2).

    bank     (classes, items, ...)      the support and the queries are drawn from its items, never the same twice
    queries  1 in the paper; more give more to learn from in an episode
    ->       t = ways * shots + queries
    """
    order, asked, drawn = jax.random.split(key, 3)
    support = _shuffled(order, batch, ways, shots)
    query = jax.random.randint(asked, (batch, queries), 0, ways, jnp.int32)
    targets = jnp.concatenate([support, query], axis=1)
    slots = jnp.concatenate([support, jnp.full_like(query, -1)], axis=1)
    return Episodes(_images(drawn, bank, targets, ways, shots + queries), slots, targets)


def delayed(key: Array, bank: Array, batch: int, ways: int, shots: int) -> Episodes:
    """Every image is asked for, and its label is shown beside the next one (Hochreiter et al. 2001; Irie et al. 2022).

    bank     (classes, items, ...)      the items of one class in an episode are all different
    ->       t = ways * shots, `shots` of each class in random order; no label beside the first
    """
    order, drawn = jax.random.split(key)
    targets = _shuffled(order, batch, ways, shots)
    slots = jnp.concatenate([jnp.full((batch, 1), -1, jnp.int32), targets[:, :-1]], axis=1)
    return Episodes(_images(drawn, bank, targets, ways, shots), slots, targets)


def instance(targets: Array, ways: int) -> Array:
    """How many of its class came before it.   (b, t) int -> (b, t) int"""
    hot = jax.nn.one_hot(targets, ways, dtype=jnp.int32)
    return jnp.sum((jnp.cumsum(hot, axis=1) - hot) * hot, axis=-1)


def two_tasks(key: Array, first: Array, second: Array, batch: int, ways: int, shots: int) -> Episodes:
    """A delayed-label episode of one bank, then one of the other; which comes first is drawn for every row.

    The labels of the second task are new, and nothing but the images tells where it begins: the last label of the
    first task is shown beside the first image of the second.   t = 2 * ways * shots
    """
    coin, *keys = jax.random.split(key, 3)
    parts = [delayed(k, bank, batch, ways, shots) for k, bank in zip(keys, (first, second), strict=True)]
    swap = jax.random.bernoulli(coin, shape=(batch,))

    def joined(a: Array, b: Array) -> Array:
        swapped = swap.reshape(batch, *(1,) * (a.ndim - 1))
        return jnp.concatenate([jnp.where(swapped, b, a), jnp.where(swapped, a, b)], axis=1)

    whole = Episodes(*map(joined, *parts))
    half = ways * shots
    return whole._replace(slots=whole.slots.at[:, half].set(whole.targets[:, half - 1]))


def _shuffled(key: Array, batch: int, ways: int, shots: int) -> Array:
    """`shots` of every label, each row in its own order.   (batch, ways * shots) int"""
    labels = jnp.tile(jnp.arange(ways, dtype=jnp.int32), shots)
    return jax.vmap(lambda k: jax.random.permutation(k, labels))(jax.random.split(key, batch))


def _images(key: Array, bank: Array, targets: Array, ways: int, most: int) -> Array:
    """A class of the bank for every label of a row, and of it a new item each time, up to `most`.   (b, t, ...)"""
    names, drawn = jax.random.split(key)
    b = targets.shape[0]
    classes = distinct(names, bank.shape[0], b, ways)
    items = distinct(drawn, bank.shape[1], b * ways, most).reshape(b, ways, most)
    item = items[jnp.arange(b, dtype=jnp.int32)[:, None], targets, instance(targets, ways)]
    return bank[jnp.take_along_axis(classes, targets, axis=1), item]
