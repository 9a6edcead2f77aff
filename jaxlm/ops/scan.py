"""Sequential scan over time with a small backward: one kept state per segment, the rest computed again."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.typing import Array, Tree

Step = Callable[[Tree, Tree], tuple[Tree, Tree]]


def scan(
    step: Step, xs: Tree, state: Tree, starts: Array | None = None, fresh: Tree = None, every: int = 32
) -> tuple[Tree, Tree]:
    """Run `step(x, state) -> (y, state)` over time; the backward keeps one state per `every` steps.

    step    pure; may close over weights    x (b, ...), state (b, ...) -> y (b, ...), state (b, ...)
    xs      tree of                         (b, t, ...)
    state   tree of                         (b, ...)
    starts  first tokens of documents       (b, t) bool; None: none
    fresh   state of a new document         as state, default zeros; axes of 1 broadcast
    every   steps of a segment              >= 1
    ->      ys tree of (b, t, ...);  the last state, as state

    At a start the state is replaced by `fresh` (a select, so nothing of the last document passes) before the step.
    The gradient runs the steps of a segment a second time (Chen et al. 2016, section 4.1).
    """
    t = _check(xs, state, starts, fresh, every)
    reset = _resetting(step, state, fresh)
    if t == 1:
        xs, starts = jax.tree.map(lambda x: x[:, 0], (xs, starts))
        state, ys = reset(state, (xs, starts))
        return jax.tree.map(lambda y: y[:, None], ys), state

    def segment(state, xs):
        return jax.lax.scan(reset, state, xs)

    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (xs, starts))
    segments = t // every if t > every else 0
    cut = segments * every
    pieces = []
    if segments:
        head = jax.tree.map(lambda x: x[:cut].reshape(segments, every, *x.shape[1:]), xs)
        # Inside a scan the recomputation cannot be merged with the forward, so no barrier is needed there.
        state, ys = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), state, head)
        pieces.append(jax.tree.map(lambda y: y.reshape(cut, *y.shape[2:]), ys))
    if cut < t or t == 0:
        state, ys = jax.checkpoint(segment)(state, jax.tree.map(lambda x: x[cut:], xs))
        pieces.append(ys)
    ys = pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *pieces)
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1), ys), state


def scan_naive(
    step: Step, xs: Tree, state: Tree, starts: Array | None = None, fresh: Tree = None, every: int = 32
) -> tuple[Tree, Tree]:
    """The twin of `scan`: a Python loop that keeps everything; same arguments, t >= 1."""
    t = _check(xs, state, starts, fresh, every)
    reset = _resetting(step, state, fresh)
    ys = []
    for i in range(t):
        state, y = reset(state, jax.tree.map(lambda x, i=i: x[:, i], (xs, starts)))
        ys.append(y)
    return jax.tree.map(lambda *y: jnp.stack(y, axis=1), *ys), state


def _resetting(step: Step, state: Tree, fresh: Tree) -> Callable:
    """`lax.scan`'s order of arguments and results, with the reset before the step."""
    if fresh is None:
        fresh = jax.tree.map(jnp.zeros_like, state)

    def run(state, x_and_start):
        x, start = x_and_start
        if start is not None:
            state = jax.tree.map(lambda f, s: jnp.where(start.reshape(-1, *(1,) * (s.ndim - 1)), f, s), fresh, state)
        y, state = step(x, state)
        return state, y

    return run


def _check(xs: Tree, state: Tree, starts: Array | None, fresh: Tree, every: int) -> int:
    """The number of steps, after a look at everything that has a shape."""
    leaves = jax.tree.leaves(xs)
    if not leaves or leaves[0].ndim < 2:
        raise ShapeError(f"xs: got {jax.tree.map(jnp.shape, xs)}, expected at least one array (b, t, ...)")
    b, t = leaves[0].shape[:2]
    if any(x.shape[:2] != (b, t) for x in leaves):
        raise ShapeError(f"xs: got {jax.tree.map(jnp.shape, xs)}, expected every leaf (b, t, ...) = ({b}, {t}, ...)")
    if any(s.shape[:1] != (b,) for s in jax.tree.leaves(state)):
        raise ShapeError(f"state: got {jax.tree.map(jnp.shape, state)}, expected every leaf (b, ...) = ({b}, ...)")
    if starts is not None and starts.shape != (b, t):
        raise ShapeError(f"starts: got {starts.shape}, expected (b, t) = ({b}, {t})")
    if fresh is not None and jax.tree.structure(fresh) != jax.tree.structure(state):
        raise ShapeError(f"fresh: got {jax.tree.structure(fresh)}, expected the state's {jax.tree.structure(state)}")
    if every < 1:
        raise ShapeError(f"every: got {every}, expected at least 1")
    return t
