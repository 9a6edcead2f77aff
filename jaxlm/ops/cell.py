"""Nonlinear cells over time: small products in the loop, the gradients of their weights in one product a segment.

Autodiff of a loop adds an outer product to every weight's gradient at every step. Here the forward pass takes a
segment's inputs in one product, and keeps the pre-activations and one state a segment. The tangent of a segment runs
its steps again from the kept pre-activations, which costs no product, and takes what the weights' tangents add to all
of its steps in one product. So its transpose, the backward pass, goes back through the steps, and then makes each
weight's gradient in one product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxlm.errors import ShapeError
from jaxlm.ops.scan import scan_naive
from jaxlm.typing import Array, Tree, wide

Gates = tuple[Array, ...]
Mix = Callable[[str, Array], Gates]
Step = Callable[[Tree, Mix], tuple[Array, Tree]]


class Affine(NamedTuple):
    """The weights of the pre-activations x A + b + v W of g gates that read the same v.

    input    A      (d, g, m)
    bias     b      (g, m)
    hidden   W      (n, g, m)
    A and b may both be None: v W alone.
    """

    input: Array | None
    bias: Array | None
    hidden: Array


Maps = dict[str, Affine]


def cell(
    step: Step,
    maps: Maps,
    x: Array,
    state: Tree,
    starts: Array | None = None,
    fresh: Tree = None,
    every: int = 8,
) -> tuple[Array, Tree]:
    """Run `step(state, mix) -> (y, state)` over time; `mix(name, v)` gives the gates x_n A + b + v W, each (b, m).

    step    pure; closes over no array          each name of maps once a step
    maps    weights by name
    x                                           (b, t, d)
    state   tree of floats                      (b, ...)
    starts  first tokens of documents           (b, t) bool; None: none
    fresh   state of a new document             as state, default zeros; axes of 1 broadcast
    every   steps of a segment, about           >= 1
    ->      ys (b, t, ...), at least float32;  the last state, as state

    Products are taken in x's dtype. Differentiable in both modes, to any order.
    """
    _check(maps, x, state, starts, every)
    fresh = jax.tree.map(jnp.zeros_like, state) if fresh is None else fresh
    xs, starts = jnp.moveaxis(x, 1, 0), None if starts is None else jnp.moveaxis(starts, 1, 0)
    if x.shape[1] == 1:
        state = _reset(None if starts is None else starts[0], fresh, state)
        weights = _columns(maps, x.dtype)
        us = {name: _drives(w, xs[0]) for name, w in weights.items()}
        y, state, _ = _one(step, partial(_sums, weights, us, x.dtype), state)
        return y[:, None], state
    done: Any = _run(step, every, maps, xs, starts, state, fresh)
    return jnp.moveaxis(done[0], 0, 1), done[1]


def cell_naive(
    step: Step, maps: Maps, x: Array, state: Tree, starts: Array | None = None, fresh: Tree = None
) -> tuple[Array, Tree]:
    """The twin of `cell`: a Python loop that autodiff goes through; same arguments, t >= 1."""

    def one(x: Array, state: Tree) -> tuple[Array, Tree]:
        def mix(name: str, v: Array) -> Gates:
            a, b, w = maps[name]
            sums = wide(jnp.einsum("bn,ngm->bgm", v.astype(x.dtype), w.astype(x.dtype)))
            if a is not None and b is not None:
                sums = sums + wide(jnp.einsum("bd,dgm->bgm", x, a.astype(x.dtype))) + wide(b)[None]
            return tuple(sums[:, g] for g in range(sums.shape[1]))

        return step(state, mix)

    return scan_naive(one, x, state, starts, fresh)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(
    step: Step, every: int, maps: Maps, xs: Array, starts: Array | None, state: Tree, fresh: Tree
) -> tuple[Array, Tree]:
    """(ys, last state); everything time-major."""
    return _forward(step, every, maps, xs, starts, state, fresh)[0]


def _forward(step: Step, every: int, maps: Maps, xs: Array, starts: Array | None, state: Tree, fresh: Tree):
    """The result, and what its tangent reads: per piece, pre-activations (s, c, b, m) and states (s, b, ...)."""
    weights = _columns(maps, xs.dtype)

    def one(state: Tree, at: Any) -> tuple[Tree, Any]:
        us, start = at
        y, state, sums = _one(step, partial(_sums, weights, us, xs.dtype), _reset(start, fresh, state))
        return state, (y, sums)

    def segment(first: Tree, piece: Any) -> tuple[Tree, Any]:
        x, start = piece
        us = {name: _drives(w, x) for name, w in weights.items()}
        last, (ys, sums) = jax.lax.scan(one, first, (us, start))
        return last, (ys, (sums, first))

    ys, kept = [], []
    for piece in _pieces((xs, starts), every):
        state, (y, k) = jax.lax.scan(segment, state, piece)
        ys.append(y.reshape(-1, *y.shape[2:]))
        kept.append(k)
    ys = ys[0] if len(ys) == 1 else jnp.concatenate(ys)
    return (ys, state), kept


@_run.defjvp
def _tangent(step: Step, every: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The result and its tangent, which is a loop over segments whose transpose is the backward pass."""
    maps, xs, starts, state, fresh = primals
    dmaps, dxs, _, dstate, dfresh = tangents
    result, kept = _forward(step, every, maps, xs, starts, state, fresh)
    weights, dweights = _columns(maps, xs.dtype), {name: _rows(dmaps[name]) for name in maps}

    def segment(dfirst: Tree, piece: Any) -> tuple[Tree, Array]:
        dx, x, start, (sums, first) = piece

        def again(state: Tree, us: dict[str, Gates], fresh: Tree) -> tuple[Any, dict[str, Array]]:
            def one(state: Tree, at: Any) -> tuple[Tree, Any]:
                u, sums, start = at
                read: dict[str, Array] = {}

                def mix(name: str, v: Array) -> Gates:
                    read[name] = v.astype(xs.dtype)
                    return _known(sums[name], u[name], read[name], weights[name].hidden)

                y, state, _ = _one(step, mix, _reset(start, fresh, state))
                return state, (y, read)

            # Kept are the states alone: activations come cheaper from the sums than from memory.
            last, (ys, read) = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), state, (us, sums, start))
            return (ys, last), read

        us = {name: _drives(w, x) for name, w in weights.items()}  # never computed but for second derivatives
        _, push, read = jax.linearize(again, first, us, fresh, has_aux=True)
        dus = {name: _shifts(dweights[name], weights[name], read[name], x, dx) for name in maps}
        dys, dlast = push(dfirst, dus, dfresh)
        return dlast, dys

    dys = []
    for piece, k in zip(_pieces((dxs, xs, starts), every), kept, strict=True):
        dstate, dy = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), dstate, (*piece, k))
        dys.append(dy.reshape(-1, *dy.shape[2:]))
    return result, (dys[0] if len(dys) == 1 else jnp.concatenate(dys), dstate)


class Columns(NamedTuple):
    """An Affine gate by gate: products with a small d vectorize so, and slices in the loop would be copies.

    input   g of (d, m); none where the Affine has none, as of bias
    bias    g of (1, m), at least float32
    hidden  g of (n, m)
    joint   (n, g m)
    """

    input: Gates
    bias: Gates
    hidden: Gates
    joint: Array


def _columns(maps: Maps, dtype: Any) -> dict[str, Columns]:
    """The weights as the loops read them."""

    def columns(w: Affine) -> Columns:
        h, gates = w.hidden.astype(dtype), range(w.hidden.shape[1])
        hidden, joint = tuple(h[:, g] for g in gates), h.reshape(len(h), -1)
        if w.input is None or w.bias is None:
            return Columns((), (), hidden, joint)
        a, bias = w.input.astype(dtype), tuple(wide(w.bias[g])[None] for g in gates)
        return Columns(tuple(a[:, g] for g in gates), bias, hidden, joint)

    return {name: columns(w) for name, w in maps.items()}


def _product(v: Array, w: Array) -> Array:
    return jax.lax.dot_general(v, w, (((v.ndim - 1,), (0,)), ((), ())))


def _one(step: Step, mix: Mix, state: Tree) -> tuple[Array, Tree, dict[str, Gates]]:
    """One step, and its pre-activations by name."""
    sums: dict[str, Gates] = {}

    def named(name: str, v: Array) -> Gates:
        sums[name] = mix(name, v)
        return sums[name]

    y, state = step(state, named)
    return y, state, sums


def _drives(w: Columns, x: Array) -> Gates:
    """x A + b."""
    if not w.input:
        return tuple(wide(jnp.zeros((*x.shape[:-1], h.shape[1]), x.dtype)) for h in w.hidden)
    return tuple(
        wide(_product(x, a)) + b.reshape((1,) * (x.ndim - 1) + (-1,)) for a, b in zip(w.input, w.bias, strict=True)
    )


def _sums(weights: dict[str, Columns], us: dict[str, Gates], dtype: Any, name: str, v: Array) -> Gates:
    """u + v W, v W by one product."""
    w = weights[name]
    h = wide(_product(v.astype(dtype), w.joint))
    m = w.hidden[0].shape[1]
    return tuple(u + h[:, g * m : (g + 1) * m] for g, u in enumerate(us[name]))


def _rows(w: Affine) -> Gates:
    """[W A b] gate by gate, g of (m, n + d + 1), at least float32: a gradient in this form grows without a copy."""
    more = () if w.input is None or w.bias is None else (w.input, w.bias[None])
    joint = jnp.concatenate([wide(a) for a in (w.hidden, *more)])
    return tuple(joint[:, g].T for g in range(joint.shape[1]))


def _shifts(dweight: Gates, w: Columns, v: Array, x: Array, dx: Array) -> Gates:
    """Tangents of the sums at a known v: [v x 1] d[W A b] + dx A, gate by gate; transposed, one product a segment.

    v (c, b, n); x, dx (c, b, d)
    """
    left = jnp.concatenate([v, x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1) if w.input else v

    def of_maps(dw: Array) -> Array:
        return jax.lax.dot_general(left, dw.astype(x.dtype), (((2,), (1,)), ((), ())), preferred_element_type=dw.dtype)

    shifts = tuple(map(of_maps, dweight))
    return tuple(s + wide(_product(dx, a)) for s, a in zip(shifts, w.input, strict=True)) if w.input else shifts


@jax.custom_jvp
def _known(sums: Gates, u: Gates, v: Array, w: Gates) -> Gates:
    """u + v W, gate by gate, where its value is known: no product is computed, yet every derivative is there."""
    return sums


@partial(_known.defjvp, symbolic_zeros=True)
def _known_jvp(primals: Any, tangents: Any) -> tuple[Gates, Gates]:
    sums, _, v, w = primals
    _, du, dv, dw = tangents

    def tangent(s: Array, du: Any, w: Array, dw: Any) -> Array:
        out = jnp.zeros_like(s) if isinstance(du, SymbolicZero) else du
        for a, b in ((dv, w), (v, dw)):
            if not isinstance(a, SymbolicZero) and not isinstance(b, SymbolicZero):
                out = out + wide(_product(a, b))
        return out

    return sums, tuple(tangent(*gate) for gate in zip(sums, du, w, dw, strict=True))


def _reset(start: Array | None, fresh: Tree, state: Tree) -> Tree:
    """The fresh state where a document starts."""
    if start is None:
        return state
    return jax.tree.map(lambda f, s: jnp.where(start.reshape(-1, *(1,) * (s.ndim - 1)), f, s), fresh, state)


def _pieces(tree: Tree, every: int) -> list[Tree]:
    """Time cut into segments (s, c, ...), of one length near `every` if there is one; else the rest is a piece more."""
    t = jax.tree.leaves(tree)[0].shape[0]
    whole = [n for n in range((every + 1) // 2, 2 * every + 1) if t % n == 0]
    n = t if t <= every else min(whole, key=lambda n: abs(n - every), default=every)
    cut = t // n * n
    ends = [(0, cut, n)] + [(cut, t, t - cut)] * (cut < t)
    return [jax.tree.map(lambda a, i=i, j=j, n=n: a[i:j].reshape(-1, n, *a.shape[1:]), tree) for i, j, n in ends]


def _check(maps: Maps, x: Array, state: Tree, starts: Array | None, every: int) -> None:
    if x.ndim != 3 or x.shape[1] < 1:
        raise ShapeError(f"x: got {x.shape}, expected (b, t, d) with t >= 1")
    for name, (a, b, w) in maps.items():
        given, bias = (None if part is None else part.shape for part in (a, b))
        if w.ndim != 3 or (given, bias) not in ((None, None), ((x.shape[2], *w.shape[1:]), w.shape[1:])):
            got = f"input {given}, bias {bias}, hidden {w.shape}"
            raise ShapeError(f"maps[{name!r}]: got {got}, expected ({x.shape[2]}, g, m), (g, m), (n, g, m)")
    if any(s.shape[:1] != x.shape[:1] for s in jax.tree.leaves(state)):
        raise ShapeError(f"state: got {jax.tree.map(jnp.shape, state)}, expected every leaf ({x.shape[0]}, ...)")
    if starts is not None and starts.shape != x.shape[:2]:
        raise ShapeError(f"starts: got {starts.shape}, expected (b, t) = {x.shape[:2]}")
    if every < 1:
        raise ShapeError(f"every: got {every}, expected at least 1")
