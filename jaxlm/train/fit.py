"""Train many small models at once: one vmapped program for all seeds and settings of an experiment."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.errors import ConfigError
from jaxlm.train import progress
from jaxlm.typing import Array, Params, Tree


class Fit(NamedTuple):
    """params, every leaf with a leading axis r; watched, leaves (chunks, r, ...)."""

    params: Params
    watched: Tree


def fit(
    keys: Array,
    init: Callable[..., Params],
    loss: Callable[..., Array],
    tx: optax.GradientTransformation,
    *,
    steps: int,
    every: int,
    watch: Callable[..., Tree] | None = None,
    tell: Callable[..., None] | None = None,
    keep: Path | None = None,
    each: Tree = None,
    at_once: int | None = None,
) -> Fit:
    """Train one model per key, all in one program, and watch them on the way.

    keys    (r,)                                  one per model
    init    (key) -> params
    loss    (params, key, step) -> ()             draws its own batch from the key
    watch   (params, key) -> tree                 after every chunk of `every` steps; the mean loss is always in it
    each    leaves (r, ...)                       what differs between the models, the last argument of all three
    tell    (fraction, **numbers)                 after every chunk: means over r of the scalars watched
    at_once how many train side by side, the others after them in the same program; None: all
    keep    file that progress is kept in: a run that was stopped goes on from its last chunk, bit for bit
    """
    if steps < 1 or every < 1 or steps % every:
        raise ConfigError(f"every = {every}: expected a divisor of the {steps} steps")
    extra = () if each is None else (each,)

    def begin(key: Array, *each: Tree) -> tuple[Params, Tree]:
        params = init(key, *each)
        return params, tx.init(params)

    def step(carry: Tree, at: tuple[Array, Array], *each: Tree) -> tuple[Tree, Array]:
        params, moments = carry
        key, n = at
        value, grads = jax.value_and_grad(loss)(params, key, n, *each)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = tx.update(grads, moments, params)
            return (optax.apply_updates(params, updates), moments), value

    def chunk(carry: Tree, key: Array, first: Array, *each: Tree) -> tuple[Tree, Tree]:
        numbers = first + jnp.arange(every, dtype=jnp.int32)
        at = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers), numbers
        carry, losses = jax.lax.scan(lambda c, x: step(c, x, *each), carry, at)
        seen = {} if watch is None else watch(carry[0], jax.random.fold_in(key, first + steps), *each)
        return carry, {"loss": jnp.mean(losses), **seen}

    axes = (0,) * len(extra)
    start = jax.jit(partial(jax.lax.map, lambda a: begin(*a)))  # vmapped, it takes twice as long to compile

    def everyone(carry: Tree, keys: Array, first: Array, *each: Tree) -> tuple[Tree, Tree]:
        if at_once is None:
            return jax.vmap(chunk, (0, 0, None, *axes))(carry, keys, first, *each)
        return jax.lax.map(lambda a: chunk(a[0], a[1], first, *a[2:]), (carry, keys, *each), batch_size=at_once)

    go = jax.jit(everyone, donate_argnums=0)
    own = jax.vmap(lambda k: jax.random.split(k))(keys)
    carry, seen = start((own[:, 0], *extra)), []
    if keep is not None and keep.exists():
        carry, found, _ = progress.resume(keep, carry, [steps, every])
        seen = [{k: v[n] for k, v in found.items()} for n in range(len(found["loss"]))]
    for n in range(len(seen), steps // every):
        carry, now = go(carry, own[:, 1], jnp.int32(n * every), *extra)
        seen.append(jax.device_get(now))
        if keep is not None:
            progress.keep(keep, carry, [steps, every], _stack(seen))
        if tell is not None:
            tell((n + 1) * every / steps, **{k: float(np.mean(v)) for k, v in seen[-1].items() if np.ndim(v) == 1})
    return Fit(carry[0], _stack(seen))


def _stack(seen: list[Tree]) -> Tree:
    """What was seen chunk by chunk, leaves (chunks, r, ...)."""
    return jax.tree.map(lambda *x: np.stack(x), *seen)
