"""Bits of a coin that is exchanged at unknown times: five sources, and the exact mixtures over all exchanges.

A segment has its own P(1) = θ ~ Beta(½, ½). The mixtures know neither θ nor where segments begin: KT has one segment,
PTW halves time again and again, LIN exchanges after l bits of a segment with probability 1/(2l).
Genewein et al. 2023; Krichevsky & Trofimov 1981; Veness et al. 2013 (PTW); Willems 1996 (LIN).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxlm.errors import ShapeError
from jaxlm.typing import Array

PERIOD = 20  # bits, of the regular source; the mean of the uniform one


class Bits(NamedTuple):
    """bits (b, t) int32, theta (b, t): P(1) at each place."""

    bits: Array
    theta: Array


def chance(bit: Array, zeros: Array, ones: Array) -> Array:
    """ln P of a bit after so many of its segment, θ integrated out: (n_bit + ½) / (n + 1).   any shape -> nats"""
    same = jnp.where(bit == 1, ones, zeros)
    return jnp.log((same + 0.5) / (zeros + ones + 1))


def kt(bits: Array) -> Array:
    """ln P of every prefix, one segment (Krichevsky & Trofimov 1981).   (b, t) int -> (b, t) nats"""
    ones = jnp.asarray(jnp.cumsum(bits, axis=1, dtype=jnp.int32) - bits, float)
    zeros = jnp.asarray(jnp.arange(bits.shape[1], dtype=jnp.int32), float)[None] - ones
    return jnp.cumsum(chance(bits, zeros, ones), axis=1)


def ptw(bits: Array, depth: int) -> Array:
    """ln P of every prefix under partition tree weighting: W_d = ½ KT + ½ W_(d-1)(left half) W_(d-1)(right half).

    bits    (b, t) int    t <= 2^depth, at most
    ->      (b, t) nats   O(depth) a bit: one counter for the block of each level that the bit falls into
    Raises ShapeError for more bits. Veness et al. 2013, definition 1.
    """
    if bits.shape[1] > 1 << depth:
        raise ShapeError(f"bits: got {bits.shape[1]}, expected at most 2^{depth}")
    size = jnp.asarray([1 << j for j in range(depth + 1)], jnp.int32)

    def step(carry: tuple[Array, ...], at: tuple[Array, Array]) -> tuple[tuple[Array, ...], Array]:
        ones, whole, weight, left = carry  # of each level's block so far; left: W of its first half, 0 while it lasts
        i, bit = at
        fresh, turns = i % size == 0, i % size == size // 2
        below = jnp.concatenate([jnp.zeros_like(weight[:, :1]), weight[:, :-1]], axis=1)
        left = jnp.where(fresh[None], 0.0, jnp.where(turns[None], below, left))
        ones, whole = (jnp.where(fresh[None], 0.0, x) for x in (ones, whole))
        zeros = jnp.asarray(i % size, float)[None] - ones
        whole = whole + chance(bit[:, None], zeros, ones)
        levels = [whole[:, 0]]
        for j in range(1, depth + 1):
            levels.append(jnp.logaddexp(whole[:, j], left[:, j] + levels[-1]) - math.log(2))
        return (ones + bit[:, None].astype(ones.dtype), whole, jnp.stack(levels, axis=1), left), levels[-1]

    zeros = jnp.zeros((bits.shape[0], depth + 1), float)
    times = jnp.arange(bits.shape[1], dtype=jnp.int32)
    return jax.lax.scan(step, (zeros,) * 4, (times, bits.T))[1].T


def lin(bits: Array) -> Array:
    """ln P of every prefix when a segment of l bits ends with probability 1/(2l): a sum over all its beginnings.

    (b, t) int -> (b, t) nats, O(t) a bit. Willems 1996, the linear-complexity transition diagram.
    """
    b, t = bits.shape
    begins = jnp.arange(t, dtype=jnp.int32)
    before = jnp.concatenate([jnp.zeros((b, 1), jnp.int32), jnp.cumsum(bits, axis=1, dtype=jnp.int32)], axis=1)

    def step(weight: Array, i: Array) -> tuple[Array, Array]:
        age = jnp.asarray(i - begins, float)  # bits of the segment before this one
        goes = 1 / (2 * jnp.maximum(age, 1))
        new = logsumexp(weight + jnp.log(goes)[None], axis=1)  # those not begun weigh nothing
        new = jnp.where(i == 0, jnp.zeros_like(new), new)
        weight = jnp.where((begins == i)[None], new[:, None], weight + jnp.log1p(-goes)[None])
        ones = jnp.where((age > 0)[None], jnp.asarray(before[:, i][:, None] - before[:, :t], float), 0.0)
        zeros = jnp.maximum(age, 0)[None] - ones
        weight = weight + chance(bits[:, i][:, None], zeros, ones)
        return weight, logsumexp(weight, axis=1)

    return jax.lax.scan(step, jnp.full((b, t), -jnp.inf, float), begins)[1].T


def lin_naive(bits: np.ndarray) -> float:
    """ln P of one sequence (t) under LIN: the sum over all 2^(t-1) patterns of switches, in plain Python."""

    def segment(part: np.ndarray) -> float:
        a, b = len(part) - part.sum(), part.sum()
        return math.lgamma(a + 0.5) + math.lgamma(b + 0.5) - math.lgamma(a + b + 1) - 2 * math.lgamma(0.5)

    terms = []
    for pattern in itertools.product((False, True), repeat=len(bits) - 1):
        total, age = 0.0, 1
        for switch in pattern:
            total += math.log(1 / (2 * age) if switch else 1 - 1 / (2 * age))
            age = 1 if switch else age + 1
        cuts = [0, *(i + 1 for i, switch in enumerate(pattern) if switch), len(bits)]
        terms.append(total + sum(segment(bits[a:b]) for a, b in itertools.pairwise(cuts)))
    return float(np.logaddexp.reduce(terms))


def _static(key: Array, length: int) -> Array:
    return jnp.zeros(length, jnp.bool_)


def _regular(key: Array, length: int) -> Array:
    return jnp.arange(length) % PERIOD == 0


def _uniform(key: Array, length: int) -> Array:
    gaps = jax.random.randint(key, (length,), 1, 2 * PERIOD, jnp.int32)
    return jnp.zeros(length, jnp.bool_).at[jnp.cumsum(gaps, dtype=jnp.int32)].set(True, mode="drop")


def _ptw(key: Array, length: int) -> Array:
    depth = max(length - 1, 0).bit_length()
    out, split = jnp.zeros(1 << depth, jnp.bool_), jnp.ones(1, jnp.bool_)
    for level in range(depth):
        split = split & jax.random.bernoulli(jax.random.fold_in(key, level), shape=split.shape)
        size = 1 << (depth - level)
        out = out.at[size // 2 :: size].set(split)
        split = jnp.repeat(split, 2)
    return out[:length]


def _lin(key: Array, length: int) -> Array:
    def step(age: Array, u: Array) -> tuple[Array, Array]:
        ends = 2 * age * u < 1
        return jnp.where(ends, 1.0, age + 1), ends

    draws = jax.random.uniform(key, (length,), jnp.float32)
    ends = jax.lax.scan(step, jnp.float32(1), draws)[1]
    return jnp.concatenate([jnp.zeros(1, jnp.bool_), ends[: length - 1]])


# (key, length) -> (t) bool, where a new segment begins; the first always does
SOURCES: dict[str, Callable[[Array, int], Array]] = {
    "static": _static,
    "PTW": _ptw,
    "LIN": _lin,
    "regular": _regular,
    "uniform": _uniform,
}


def draw(key: Array, source: str, batch: int, length: int) -> Bits:
    """Sequences of one of SOURCES, with the θ of every place."""

    def one(key: Array) -> Bits:
        of_changes, of_coins, of_bits = jax.random.split(key, 3)
        changes = SOURCES[source](of_changes, length)
        place = jnp.where(changes, jnp.arange(length, dtype=jnp.int32), 0)
        coins = jnp.sin(jnp.pi / 2 * jax.random.uniform(of_coins, (length,), jnp.float32)) ** 2  # Beta(½, ½)
        theta = coins[jax.lax.associative_scan(jnp.maximum, place)]
        return Bits((jax.random.uniform(of_bits, (length,), jnp.float32) < theta).astype(jnp.int32), theta)

    return jax.vmap(one)(jax.random.split(key, batch))


def truth(x: Bits) -> Array:
    """ln P of every prefix for who knows every θ.   (b, t) nats"""
    return jnp.cumsum(jnp.where(x.bits == 1, jnp.log(x.theta), jnp.log1p(-x.theta)), axis=1)
