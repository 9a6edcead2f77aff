"""What the laws are said about, its random inputs, and the one compiled program that nearly all of them use."""

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.mixers.base import Mixer, batch_axes
from jaxlm.module import init, map_specs

BATCH = 4
PREFIX = 7  # tokens before the start state
# Odd, one more than chunks of 16 and 32, together (69) beyond one of 64; two are equal: each length is a program more.
LENGTHS = (3, 33, 33)
WHOLE = sum(LENGTHS)
ROOM = PREFIX + WHOLE + LENGTHS[0]


@dataclasses.dataclass(frozen=True)
class Subject:
    """Anything that runs along time: a mixer or model on vectors (vocab 0), or a model on tokens below `vocab`."""

    model: Any
    vocab: int = 0

    def drawn(self, draw: np.random.Generator, t: int, batch: int = BATCH) -> np.ndarray:
        """Random x: (b, t, d) floats or (b, t) tokens."""
        if self.vocab:
            return draw.integers(0, self.vocab, (batch, t), dtype=np.int32)
        return draw.standard_normal((batch, t, self.model.reads), dtype=np.float32)

    def inputs(self, t: int, batch: int = BATCH) -> jax.ShapeDtypeStruct:
        """Shape of x."""
        kind = ((batch, t), jnp.int32) if self.vocab else ((batch, t, self.model.reads), jnp.float32)
        return jax.ShapeDtypeStruct(*kind)

    def step(self, params, x, state):
        """One token, x (b, 1, ...): the model's `step` where it is a mixer."""
        if not isinstance(self.model, Mixer):
            return self.model.apply(params, x, state)
        y, state = self.model.step(params, x[:, 0], state)
        return y[:, None], state

    def state_axes(self):
        """Where the batch axis of each leaf of the state is."""
        return batch_axes(self.model.state(BATCH, ROOM))


@dataclasses.dataclass(frozen=True)
class Case:
    """One random example. given: params, x, state; back: cotangents of y and of the last state; starts (b, t)."""

    given: dict
    starts: jax.Array
    back: dict


def is_float(a) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def floating(tree):
    """The leaves that have gradients; None in place of the others."""
    return jax.tree.map(lambda a: a if is_float(a) else None, tree)


def merge(floats, tree):
    """The inverse of `floating`: `tree` with its floating leaves replaced."""
    return jax.tree.map(lambda f, a: a if f is None else f, floats, tree, is_leaf=lambda a: a is None)


def noise_like(tree, draw: np.random.Generator):
    return jax.tree.map(lambda a: draw.standard_normal(a.shape).astype(a.dtype), tree)


# The suite compiles much and computes little: XLA's older CPU code generator takes a third of the time to compile.
QUICK = {"xla_cpu_use_fusion_emitters": False}


@lru_cache(maxsize=1)
def quick() -> dict:
    """QUICK where this XLA still knows the option."""
    try:
        jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=QUICK)
    except jax.errors.JaxRuntimeError:
        return {}
    return QUICK


def compiled(f, *args):
    """f, compiled for arguments of these shapes, quickly."""
    return jax.jit(f).lower(*args).compile(compiler_options=quick())


def run(subject: Subject, given: dict, starts, back: dict, step: bool = False):
    """({y, state}, gradients of <back, {y, state}> by params, x and start state), compiled once per length; in numpy.

    What the laws cut, join and add is in numpy: else each shape of each operation is a program more.
    """
    return jax.device_get(program()(subject, step, given, starts, back))


def run_placed(subject: Subject, given: dict, starts, back: dict, constrain):
    """`run` on arrays that lie on a mesh; a model that takes `constrain` is given it."""
    f = partial(_run, subject, False, **({"constrain": constrain} if subject.vocab else {}))
    return jax.jit(f, compiler_options=quick())(given, starts, back)


@lru_cache(maxsize=1)
def program():
    return jax.jit(_run, static_argnums=(0, 1), compiler_options=quick())


def _run(subject: Subject, step: bool, given: dict, starts, back: dict, **more):
    def forward(floats):
        g = merge(floats, given)
        if step:
            y, state = subject.step(g["params"], g["x"], g["state"])
        else:
            y, state = subject.model.apply(g["params"], g["x"], g["state"], starts, **more)
        out = {"y": y, "state": state}
        return floating(out), out

    _, pull, out = jax.vjp(forward, floating(given), has_aux=True)
    return out, pull(back)[0]


def fresh(subject: Subject, params, back, room: int = ROOM):
    """(the start state, the gradient of <back, start> by params): a start may be learned."""
    return jax.device_get(_fresh(subject, params, back, room=room))


@partial(jax.jit, static_argnums=0, static_argnames="room")
def _fresh(subject: Subject, params, back, room: int):
    def start(params):
        state = subject.model.start(params, BATCH, room)
        return floating(state), state

    _, pull, state = jax.vjp(start, params, has_aux=True)
    return state, pull(back)[0]


@partial(jax.jit, static_argnums=0)
def after(subject: Subject, params, x, starts):
    """The state after x from a fresh start."""
    return subject.model.apply(params, x, subject.model.start(params, x.shape[0], ROOM), starts)[1]


@lru_cache(maxsize=8)
def case(subject: Subject, seed: int = 0, batch: int = BATCH) -> Case:
    """Weights near their initial values (so that no bias is zero), and a start state after a random packed prefix."""
    draw = np.random.default_rng(seed)
    params = jax.device_get(init(subject.model, jax.random.key(seed)))
    params = jax.tree.map(lambda p, e: p + np.asarray(0.1, p.dtype) * e, params, noise_like(params, draw))
    starts, prefix = draw.random((batch, WHOLE)) < 0.05, draw.random((batch, PREFIX)) < 0.2
    starts[: batch // 2] = prefix[0] = False
    state = jax.device_get(after(subject, params, subject.drawn(draw, PREFIX, batch), prefix))
    given = {"params": params, "x": subject.drawn(draw, WHOLE, batch), "state": state}
    return Case(given, starts, noise_like(outputs(subject, WHOLE, batch), draw))


@lru_cache(maxsize=64)
def outputs(subject: Subject, t: int, batch: int = BATCH):
    """Shapes of the floating leaves of {y, state}."""

    def forward(key, x):
        params = init(subject.model, key)
        y, state = subject.model.apply(params, x, subject.model.start(params, batch, ROOM))
        return floating({"y": y, "state": state})

    return jax.eval_shape(forward, jax.random.key(0), subject.inputs(t, batch))


def nothing(subject: Subject, t: int, batch: int = BATCH):
    """Zero cotangents."""
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), outputs(subject, t, batch))


def add(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def join(*pieces):
    """Along time."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *pieces)


def by_row(f, tree, axes):
    """f(leaf, index before the batch axis) on each leaf; the batch axis is at `axes`, a tree or one number for all."""
    places = spelt(tree, axes)
    return jax.tree.map(lambda a, n: a if a is None else f(a, (slice(None),) * n), tree, places, is_leaf=is_none)


def is_none(a) -> bool:
    return a is None


def spelt(tree, axes):
    """`axes`, one for each leaf."""
    return jax.tree.map(lambda _: axes, tree, is_leaf=is_none) if isinstance(axes, int) else axes


def rows(tree, axes, i: slice):
    """Some rows of a tree."""
    return by_row(lambda a, before: a[(*before, i)], tree, axes)


def part(c: Case, axes, at: slice) -> Case:
    """Some rows of an example."""
    state, back = rows(c.given["state"], axes, at), rows(c.back["state"], axes, at)
    given = {**c.given, "x": c.given["x"][at], "state": state}
    return Case(given, c.starts[at], {"y": c.back["y"][at], "state": back})


def beside(trees, axes):
    """The inverse of `rows`: trees of some rows each, put together."""
    first, *rest = trees
    return jax.tree.map(
        lambda a, n, *more: a if a is None else np.concatenate((a, *more), axis=n), first, spelt(first, axes), *rest,
        is_leaf=is_none,
    )  # fmt: skip


def fill_row(tree, axes, row: int, value: float):
    """`value` in one row of every floating leaf."""

    def fill(a, before):
        a = np.array(a)
        if is_float(a):
            a[(*before, row)] = value
        return a

    return by_row(fill, tree, axes)


def put_row(tree, source, axes, i: int):
    """`tree` with row i of `source`."""

    def put(a, b, n):
        if a is None:
            return a
        a = np.array(a)
        a[(slice(None),) * n + (i,)] = np.asarray(b)[(slice(None),) * n + (i,)]
        return a

    return jax.tree.map(put, tree, source, spelt(tree, axes), is_leaf=is_none)


def start_at(starts, *places):
    """`starts` with those places marked: index tuples."""
    starts = np.array(starts)
    for place in places:
        starts[place] = True
    return starts


def shapes(tree_of_specs):
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), tree_of_specs)


def shortened(c: Case, t: int) -> Case:
    """The first t tokens of an example, a document's start in the middle of row 1."""
    starts = start_at(c.starts[:, :t], (1, t // 2))
    return Case({**c.given, "x": c.given["x"][:, :t]}, starts, {**c.back, "y": c.back["y"][:, :t]})
