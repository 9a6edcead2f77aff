"""A matrix that rewrites itself: the recurrence of SRWM token by token, and as Picard sweeps over chunks of time.

[y_n, q_n, k_n, β_n] = x_n W_{n-1}            κ_n = softmax(k_n)   δ_n = softmax(q_n) - κ_n   η_n = σ(β_n)
W_n = W_{n-1} + κ_n' (η_n * δ_n W_{n-1})      each column of W has the rate η of its block, or all have one

Rows of W are inputs (x W), its columns the blocks y, q, k, β side by side. What is carried is the shift W_n - W_0.
"""

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.chunks import bounds, chosen, cut, paste, places
from jaxlm.ops.delta import unit_inverse
from jaxlm.ops.scan import scan
from jaxlm.typing import Array


def sequential(
    x: Array, learned: Array, shift: Array, starts: Array | None = None, every: int = 32
) -> tuple[Array, Array]:
    """Token by token; the gradient keeps one shift per `every` tokens.

    x        what W reads                   (b, t, h, k)
    learned  W_0                            (h, k, n), n = 3 k + rates; rates 4, or 1 for all blocks
    shift    W - W_0 before the first token (b, h, k, n)
    starts   first tokens of documents      (b, t) bool; the shift is zero before them
    ->       y (b, t, h, k), read BEFORE the update; the last shift
    Source: Irie et al. 2022 (2202.05780), eqs. 5-8.
    """
    k = _width(x, learned, shift)

    def step(x: Array, shift: Array) -> tuple[Array, Array]:
        weights = learned[None] + shift
        y, key, change, rate = _meaning(jnp.einsum("bhk,bhkn->bhn", x, weights), k)
        # What is stored under the query less what is stored under the key, for both are linear in W.
        write = _rated(rate, jnp.einsum("bhk,bhkn->bhn", change, weights), k)
        return y, shift + key[..., :, None] * write[..., None, :]

    return scan(step, x, shift, starts, every=every)


def picard(
    x: Array, learned: Array, shift: Array, starts: Array | None = None, sweeps: int | None = None, chunk: int = 32
) -> tuple[Array, Array]:
    """As `sequential`, by fixed-point sweeps over chunks: all tokens of a chunk at once, in matrix products.

    sweeps   per chunk, 1 or more; None: as many as the chunk has tokens, then the result is exact
    chunk    a power of two

    Given all keys, changes and rates the recurrence is linear, and one triangular system gives what each token writes:
    U = (I - diag(η) tril(Δ K', -1))^{-1} diag(η) Δ W. But they are outputs of W themselves: they are first read from
    the chunk's incoming W, and every sweep reads them again. The first token's are right at once, and each sweep makes
    one more right, so that s sweeps give s + 1 right outputs of a chunk, and the right shift after s tokens.
    """
    k, t = _width(x, learned, shift), x.shape[1]
    c = places(t, chunk)
    sweeps = c if sweeps is None else sweeps
    if sweeps < 1:
        raise ConfigError(f"sweeps = {sweeps}: expected at least 1, or None")
    real = jnp.ones((1, t), bool)
    pieces = jax.tree.map(lambda a: cut(a, c), (x, real, starts))

    @jax.checkpoint
    def body(shift: Array, piece: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
        return _chunk(shift, learned, *piece, k, sweeps)

    shift, y = jax.lax.scan(body, shift, pieces)
    return paste(y, t), shift


def _chunk(
    shift: Array, learned: Array, x: Array, real: Array, starts: Array | None, k: int, sweeps: int
) -> tuple[Array, Array]:
    """One chunk: x (b, h, c, k) -> the shift at its end, y (b, h, c, k)."""
    own, c = bounds(starts, x.shape[2]), x.shape[2]
    before = own.pair & jnp.tril(jnp.ones((c, c), bool), -1)[None, None]

    def at_first(rows: Array) -> Array:
        """rows times the W that the chunk begins with, or W_0 after a start."""
        old = jnp.einsum("bhck,bhkn->bhcn", chosen(own.head, rows), shift)
        return jnp.einsum("bhck,hkn->bhcn", rows, learned) + old

    def written(out: Array) -> tuple[Array, Array]:
        """Keys (b, h, c, k), and what each token writes under its key (b, h, c, n), if outputs were `out`."""
        _, key, change, rate = _meaning(out, k)
        rate = chosen(real[:, None, :, None], rate)
        felt = chosen(before, jnp.einsum("bhik,bhjk->bhij", change, key))
        each = jnp.moveaxis(rate, -1, 2)  # (b, h, rates, c)
        inverse = unit_inverse(-each[..., None] * felt[:, :, None])
        right = _rated(rate, at_first(change), k)
        parts = _blocks(right, k) if rate.shape[-1] > 1 else [right]
        parts = [jnp.einsum("bhij,bhjn->bhin", inverse[:, :, i], part) for i, part in enumerate(parts)]
        return key, jnp.concatenate(parts, axis=-1)

    first = at_first(x)

    @jax.checkpoint
    def sweep(guess: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        key, write = written(guess[0])
        seen = chosen(before, jnp.einsum("bhik,bhjk->bhij", x, key))
        return (first + jnp.einsum("bhij,bhjn->bhin", seen, write), key, write), None

    nothing = (first, jnp.zeros_like(x), jnp.zeros_like(first))
    (out, key, write), _ = jax.lax.scan(sweep, nothing, None, length=sweeps)
    added = jnp.einsum("bhck,bhcn->bhkn", chosen(own.tail, key), write)
    return chosen(own.whole, shift) + added, out[..., :k]


def _meaning(out: Array, k: int) -> tuple[Array, Array, Array, Array]:
    """(y, key κ, change δ, rate η) of the outputs of W.   (..., 3 k + rates)"""
    y, query, key, rate = _blocks(out, k)
    key = jax.nn.softmax(key, axis=-1)
    return y, key, jax.nn.softmax(query, axis=-1) - key, jax.nn.sigmoid(rate)


def _blocks(x: Array, k: int) -> list[Array]:
    """The blocks y, q, k, β of the last axis."""
    return jnp.split(x, (k, 2 * k, 3 * k), axis=-1)


def _rated(rate: Array, x: Array, k: int) -> Array:
    """Each block of x times its own rate, or all times the only one."""
    if rate.shape[-1] == 1:
        return rate * x
    return jnp.concatenate([rate[..., i : i + 1] * part for i, part in enumerate(_blocks(x, k))], axis=-1)


def _width(x: Array, learned: Array, shift: Array) -> int:
    """k, after a look at every shape."""
    if x.ndim != 4 or 0 in x.shape:
        raise ShapeError(f"x: got {x.shape}, expected (b, t, h, k), none empty")
    b, _, h, k = x.shape
    if learned.shape not in ((h, k, 3 * k + 4), (h, k, 3 * k + 1)):
        raise ShapeError(f"learned: got {learned.shape}, expected {(h, k, 3 * k + 4)}, or {(h, k, 3 * k + 1)}")
    if shift.shape != (b, *learned.shape):
        raise ShapeError(f"shift: got {shift.shape}, expected {(b, *learned.shape)}")
    return k
