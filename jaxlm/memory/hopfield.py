"""Hopfield networks: patterns as the minima of an energy, and the descent that finds them.

Classical (Hopfield 1982): E = -½ sᵀ W s, W = (1/n) Σ ξ ξᵀ without diagonal.
Dense (Krotov & Hopfield 2016; Demircigil et al. 2017): E = -Σ_μ F(ξ^μ · s), F a power or the exponential.
Modern, continuous (Ramsauer et al. 2021): a log-sum-exp energy, whose descent is softmax attention.
Binary states are ±1 of a floating dtype; a unit whose field is 0 stays as it is, so no energy ever rises.
"""

import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.module import Module
from jaxlm.ops.dense import dense, merge
from jaxlm.typing import Array, Params, wide


def _sign(field: Array, s: Array) -> Array:
    return jnp.where(field == 0, s, jnp.sign(field).astype(s.dtype))


# Classical


def hebb(patterns: Array) -> Array:
    """(1/n) Σ_μ ξ^μ ξ^μᵀ with a zero diagonal.   patterns (p, n) of ±1 -> (n, n)"""
    n = patterns.shape[1]
    w = patterns.T @ patterns / n
    return w * (1 - jnp.eye(n, dtype=w.dtype))


def energy(w: Array, s: Array) -> Array:
    """-½ sᵀ W s.   s (..., n) -> (...)"""
    return -jnp.sum((s @ w) * s, axis=-1) / 2


def update(w: Array, s: Array) -> Array:
    """All units at once; it may fall into a cycle of two states.   s (..., n) -> (..., n)"""
    return _sign(s @ w, s)


def sweep(w: Array, s: Array, order: Array) -> Array:
    """Units one by one, each seeing those before it; E never rises.   s (..., n), order (n) int -> (..., n)"""

    w = jnp.asarray(w)

    def one(s: Array, i: Array) -> tuple[Array, None]:
        return s.at[..., i].set(_sign(s @ w[i], s[..., i])), None

    return jax.lax.scan(one, jnp.asarray(s), order)[0]


def settle(step: Callable[[Array, Array], Array], s: Array, key: Array, most: int = 100) -> tuple[Array, Array]:
    """Sweep in random orders until nothing changes, at most `most` times.

    step    (s, order) -> s, e.g. partial(sweep, w)
    s       (..., n)
    ->      s (..., n);  sweeps, () int32
    """

    def go(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        s, _, n = carry
        order = jax.random.permutation(jax.random.fold_in(key, n), s.shape[-1])
        return step(s, order), s, n + 1

    def moving(carry: tuple[Array, Array, Array]) -> Array:
        s, before, n = carry
        return (n < most) & jnp.any(s != before)

    s, _, n = jax.lax.while_loop(moving, go, (s, jnp.full_like(s, jnp.nan), jnp.int32(0)))
    return s, n


# Dense associative memory


class Separation(Protocol):
    """The F of a dense memory."""

    def __call__(self, x: Array) -> Array: ...

    def relative(self, x: Array, rest: Array) -> Array:
        """F(x) up to a positive factor that rest (..., p) sets, so that it stays finite: all that a sign needs."""
        ...


class Power(Module):
    """F(x) = x^a, or ReLU(x)^a (Krotov & Hopfield 2016). a = 2 is the classical network."""

    a: int
    rectified: bool = False

    def __post_init__(self):
        self.check(self.a > 0, "a", "a positive integer")

    def __call__(self, x: Array) -> Array:
        return (jax.nn.relu(x) if self.rectified else x) ** self.a

    def relative(self, x: Array, rest: Array) -> Array:
        largest = jnp.max(jnp.abs(rest), axis=-1, keepdims=True) + 1
        return self(jnp.ldexp(x, -jnp.frexp(largest)[1]))  # a power of two keeps integers exact: a tie stays a tie


class Exponential(Module):
    """F(x) = e^x (Demircigil et al. 2017)."""

    def __call__(self, x: Array) -> Array:
        return jnp.exp(x)

    def relative(self, x: Array, rest: Array) -> Array:
        return jnp.exp(x - jnp.max(rest, axis=-1, keepdims=True))


def dense_energy(patterns: Array, s: Array, f: Separation) -> Array:
    """-Σ_μ F(ξ^μ · s).   patterns (p, n), s (..., n) -> (...)"""
    return -jnp.sum(f(s @ patterns.T), axis=-1)


def dense_field(f: Separation, xi: Array, rest: Array) -> Array:
    """Σ_μ F(ξ_i + rest) - F(-ξ_i + rest), up to a positive factor: its sign is what unit i becomes.

    xi      ξ_i^μ                       (..., p)
    rest    Σ_{j≠i} ξ_j^μ s_j           (..., p)
    ->      (...)
    """
    return jnp.sum(f.relative(rest + xi, rest) - f.relative(rest - xi, rest), axis=-1)


def dense_update(patterns: Array, s: Array, f: Separation) -> Array:
    """All units at once, n² p operations a state.   patterns (p, n), s (..., n) -> (..., n)"""
    overlap = s @ patterns.T

    def unit(xi: Array, si: Array) -> Array:
        own = xi.reshape((1,) * (s.ndim - 1) + xi.shape)
        return _sign(dense_field(f, own, overlap - own * si[..., None]), si)

    units = jax.lax.map(lambda of: unit(*of), (patterns.T, jnp.moveaxis(s, -1, 0)))
    return jnp.moveaxis(units, 0, -1)


def dense_sweep(patterns: Array, s: Array, order: Array, f: Separation) -> Array:
    """Units one by one; each takes the value of lower energy, whatever F.   s (..., n), order (n) -> (..., n)"""

    patterns = jnp.asarray(patterns)

    def one(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        s, overlap = carry
        xi = patterns[:, i].reshape((1,) * (s.ndim - 1) + (-1,))
        rest = overlap - xi * s[..., i][..., None]
        si = _sign(dense_field(f, xi, rest), s[..., i])
        return (s.at[..., i].set(si), rest + xi * si[..., None]), None

    return jax.lax.scan(one, (jnp.asarray(s), s @ patterns.T), order)[0][0]


# Modern


def modern_energy(patterns: Array, state: Array, beta: float) -> Array:
    """-β⁻¹ log Σ_μ exp(β x_μ·ξ) + ½ |ξ|² + β⁻¹ log N + ½ max |x_μ|², at least 0 (Ramsauer et al. 2021, eq. 2).

    patterns (n, d), state (..., d) -> (...)
    """
    largest = jnp.max(jnp.sum(jnp.square(patterns), axis=-1))
    free = jax.nn.logsumexp(beta * (state @ patterns.T), axis=-1) - math.log(patterns.shape[0])
    return -free / beta + (jnp.sum(jnp.square(state), axis=-1) + largest) / 2


def modern_update(patterns: Array, state: Array, beta: float) -> Array:
    """softmax(β ξ Xᵀ) X (Ramsauer et al. 2021, eq. 3). The energy never rises; β → ∞: the nearest, β → 0: the mean.

    patterns (n, d), state (..., d) -> (..., d)
    """
    return jax.nn.softmax(beta * (state @ patterns.T), axis=-1) @ patterns


def retrieve(patterns: Array, state: Array, beta: float, steps: int = 1) -> Array:
    """`steps` updates.   patterns (n, d), state (..., d) -> (..., d)"""
    return jax.lax.fori_loop(0, steps, lambda _, s: modern_update(patterns, s, beta), state)


def separation(patterns: Array) -> Array:
    """Δ_i = x_i·x_i - max_{j≠i} x_i·x_j: how far a pattern stands from all others.   (n, d) -> (n)"""
    dots = patterns @ patterns.T
    own = jnp.eye(patterns.shape[0], dtype=bool)
    return jnp.diagonal(dots) - jnp.max(jnp.where(own, -jnp.inf, dots), axis=-1)


def error_bound(patterns: Array, beta: float) -> Array:
    """|update(x_i) - x_i| is at most 2 (n - 1) exp(-β Δ_i) max |x|: each other pattern gets at most exp(-β Δ_i).

    (n, d) -> (n).   Ramsauer et al. 2021, theorem 4, from the pattern itself
    """
    largest = jnp.max(jnp.linalg.norm(patterns, axis=-1))
    return 2 * (patterns.shape[0] - 1) * largest * jnp.exp(-beta * separation(patterns))


class Hopfield(Module):
    """A modern Hopfield network as a layer: states look up stored patterns (Ramsauer et al. 2021).

    ξ = r W_Q, X = y W_K;   steps - 1 times ξ ← softmax(β ξ Xᵀ) X;   z = softmax(β ξ Xᵀ) y W_V W_O

    r        states                      (b, t, d)
    y        stored patterns             (b, s, d)
    seen     which are there, None: all  (b, t, s) bool, at least one each
    beta     None: 1/√k, and with steps = 1 this is attention exactly, on the same weights as `Attention`
    steps    updates of the state; the last one reads the values
    heads, k as in `Attention`
    """

    width: int
    heads: int | None = None
    head: int | None = None
    beta: float | None = None
    steps: int = 1

    paper = "Ramsauer et al. 2021"

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(self.steps > 0, "steps", "at least 1")
        self.check(self.beta is None or self.beta > 0, "beta", "a positive number, or None for 1/√k")

    @property
    def h(self) -> int:
        return divisor(self.width // 2, max(2, self.width // 64)) if self.heads is None else self.heads

    @property
    def k(self) -> int:
        return self.width // self.h if self.head is None else self.head

    def params(self):
        maps = {n: into_heads(self.width, self.h, self.k) for n in ("query", "key", "value")}
        return {**maps, "out": from_heads(self.h, self.k, self.width)}

    def apply(self, params: Params, r: Array, y: Array, seen: Array | None = None) -> Array:
        """(b, t, d)"""
        if r.ndim != 3 or y.ndim != 3 or r.shape[::2] != y.shape[::2] or r.shape[2] != self.width:
            raise ShapeError(f"Hopfield: r {r.shape}, y {y.shape}, expected (b, t, {self.width}), (b, s, {self.width})")
        beta = self.k**-0.5 if self.beta is None else self.beta
        state, keys, values = dense(r, params["query"]), dense(y, params["key"]), dense(y, params["value"])

        def look(state: Array, at: Array) -> Array:
            fit = beta * jnp.einsum("bthk,bshk->bhts", wide(state), wide(keys))
            fit = fit if seen is None else jnp.where(seen[:, None], fit, -jnp.inf)
            return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(fit, axis=-1), wide(at)).astype(r.dtype)

        for _ in range(self.steps - 1):
            state = look(state, keys)
        return merge(look(state, values), params["out"])
