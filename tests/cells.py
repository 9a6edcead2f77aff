"""What the tests of single mixers share: a random example, and loops that drive a formula written in plain numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tolerance import close

from jaxlm.module import cast, init


@partial(jax.jit, static_argnums=0)
def apply(mixer, params, x, state=None, starts=None):
    """`mixer.apply`, compiled once per mixer and shapes."""
    return mixer.apply(params, x, state, starts)


def noisy(mixer, seed=0):
    """Initial weights with noise on top, so that no bias is zero and no two gates agree; numpy, free to be changed."""
    draw = np.random.default_rng(seed + 1)
    noise = lambda p: np.asarray(p + 0.1 * draw.standard_normal(p.shape), p.dtype)  # noqa: E731
    return jax.tree.map(noise, jax.device_get(init(mixer, jax.random.key(seed))))


def example(mixer, t=7, batch=3, seed=0):
    """(params, x, a state after a random prefix, starts), all numpy: to slice and change them compiles nothing.

    One row starts at once, one in the middle and at the end, one never.
    """
    params = noisy(mixer, seed)
    prefix, x = np.random.default_rng(seed).normal(size=(2, batch, t, mixer.reads)).astype(np.float32)
    starts = np.zeros((batch, t), bool)
    starts[0, 0] = starts[1, t // 2] = starts[1, t - 1] = True
    return params, x, jax.tree.map(np.array, apply(mixer, params, prefix)[1]), starts


@partial(jax.jit, static_argnums=(0, 2))
def begin(mixer, params, batch):
    """`mixer.start`, compiled once."""
    return mixer.start(params, batch)


def wide_numpy(tree):
    """Floating leaves as numpy float64; others as numpy."""
    arrays = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda a: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a, arrays)


def loop(cell, params, x, state, starts=None, fresh=None):
    """Run `cell(params, u, state) -> (y, state)` over rows and tokens, in float64; `fresh` is the state at a start."""
    params, x, state, fresh = (wide_numpy(a) for a in (params, x, state, fresh))
    rows, ends = [], []
    for b in range(x.shape[0]):
        s = jax.tree.map(lambda a, b=b: a[b], state)
        ys = []
        for n in range(x.shape[1]):
            if starts is not None and starts[b, n]:
                s = jax.tree.map(lambda a, b=b: a[b], fresh)
            y, s = cell(params, x[b, n], s)
            ys.append(y)
        rows.append(np.stack(ys))
        ends.append(s)
    return np.stack(rows), jax.tree.map(lambda *a: np.stack(a), *ends)


def single(tree):
    """Floating leaves back in float32, for the tolerance table."""
    arrays = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda a: a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else a, arrays)


def agrees(mixer, cell, seed=0):
    """`apply` with starts from a random state, `apply` from nothing, `step` token by token: all as the formula says."""
    params, x, state, starts = example(mixer, seed=seed)
    fresh = begin(mixer, params, x.shape[0])
    close(apply(mixer, params, x, state, starts), single(loop(cell, params, x, state, starts, fresh)))
    close(apply(mixer, params, x), single(loop(cell, params, x, fresh)))
    want = single(loop(cell, params, x, state))
    step, ys, s = jax.jit(mixer.step), [], state
    for n in range(x.shape[1]):
        y, s = step(params, x[:, n], s)
        ys.append(y)
    close((np.stack(ys, axis=1), s), want)


def half(mixer, cell):
    """bfloat16 in, bfloat16 out: the state keeps its dtypes, the numbers stay near the formula on the same weights."""
    params, x, state, starts = example(mixer)
    params, x = cast(mixer, params, jnp.bfloat16), x.astype(jnp.bfloat16)
    fresh = begin(mixer, params, x.shape[0])
    y, last = apply(mixer, params, x, state, starts)
    assert y.dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: a.dtype, last) == jax.tree.map(lambda a: a.dtype, state)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float32), params)
    want, end = single(loop(cell, wide, np.asarray(x, np.float32), state, starts, fresh))
    close((np.asarray(y, np.float32), last), (want, end), "bfloat16")
