"""A place in a text from which generation can go on, and what can be done with its rows: choose, fork, measure.

The batch axis of every leaf is found by name, so all of this holds for any mixer, a Stack included.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.mixers.base import batch_axes
from jaxlm.models.lm import LM
from jaxlm.module import is_spec
from jaxlm.typing import Array, State, Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Session:
    """A place in a text from which generation can go on: a pytree, so a copy is the value itself.

    state    the model's, after all tokens so far
    logits   of the next token                           (b, n)
    drawn    tokens generated so far                     (b,) int32
    used     tokens of room used, padding included       (b,) int32
    done     a stop token was generated                  (b,) bool
    seen     tokens read or generated, where a repetition penalty needs them    (b, n) bool or None
    """

    state: State
    logits: Array
    drawn: Array
    used: Array
    done: Array
    seen: Array | None = None


def left_pad(sequences: Sequence[Any], pad: int = 0) -> tuple[Array, Array]:
    """Ragged prompts as one array: padding on the left, a start at each prompt's first token.

    sequences   b sequences of int, none empty
    ->          tokens (b, t) int32, starts (b, t) bool;  t = the longest
    """
    lines = [np.asarray(s) for s in sequences]
    if not lines:
        raise ConfigError("sequences = []: expected at least one prompt")
    for i, line in enumerate(lines):
        if line.ndim != 1 or not line.size or line.dtype.kind not in "iu":
            raise ConfigError(f"sequences[{i}] = {sequences[i]!r}: expected a sequence of at least one whole number")
    t = max(map(len, lines))
    tokens, starts = np.full((len(lines), t), pad, np.int32), np.zeros((len(lines), t), bool)
    for row, first, line in zip(tokens, starts, lines, strict=True):
        row[t - len(line) :] = line
        first[t - len(line)] = True
    return jnp.asarray(tokens), jnp.asarray(starts)


def row_keys(key: Array | None, batch: int) -> Array:
    """One key per row: those given, (b,), or row r's index folded into the one given."""
    if key is None:
        raise ConfigError("key = None: expected a PRNG key, as only temperature 0 draws nothing")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    keys: Any = key if typed else jax.random.wrap_key_data(key)
    if keys.shape not in ((), (batch,)):
        raise ShapeError(f"key has shape {keys.shape}, expected one key or ({batch},), one per row")
    return keys if keys.shape else jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(batch))


def fork(model: LM, state: Session | State, times: int) -> Any:
    """Each row `times` times, copies side by side: row r becomes rows r * times and following.

    Given one key, `generate` takes them different ways.
    """
    if not isinstance(times, int) or times < 1:
        raise ConfigError(f"times = {times!r}: expected a whole number, 1 or more")
    return jax.tree.map(lambda x, axis: jnp.repeat(x, times, axis=axis), state, axes_of(model, state))


def rows(model: LM, state: Session | State, index: Any) -> Any:
    """The chosen rows of a Session or a state.   index: ints (n,), any order, repeats allowed"""
    axes = axes_of(model, state)
    batch = batch_of(state, axes)
    index = np.asarray(index)
    if index.ndim != 1 or index.dtype.kind not in "iu" or not ((index >= -batch) & (index < batch)).all():
        raise ConfigError(f"index = {index.tolist()}: expected a list of row numbers below {batch}")
    index = jnp.asarray(index % batch)
    return jax.tree.map(lambda x, axis: jnp.take(x, index, axis=axis), state, axes)


def room(model: LM, state: State) -> int | None:
    """How many tokens a state was made for, read from its shapes; None = any number."""
    axes = axes_of(model, state)
    batch = batch_of(state, axes)
    shapes = [tuple(x.shape) for x in jax.tree.leaves(state)]

    def compare(tokens: int) -> tuple[bool, bool]:
        """(state is as large as one with this room, state is exactly one with this room)."""
        wanted = [s.shape for s in jax.tree.leaves(model.state(batch, tokens), is_leaf=is_spec)]
        pairs = list(zip(shapes, wanted, strict=True))
        fits = all(len(a) == len(b) and all(i >= j for i, j in zip(a, b, strict=True)) for a, b in pairs)
        return fits, shapes == wanted

    low, high = 0, 1 + max((size for x in jax.tree.leaves(state) for size in x.shape), default=0)
    if compare(1 << 40)[1]:
        return None
    while high - low > 1:  # shapes never shrink with room
        middle = (low + high) // 2
        low, high = (middle, high) if compare(middle)[0] else (low, middle)
    if not compare(low)[1]:
        raise ShapeError(f"state has shapes {shapes}, expected those of model.state({batch}, room) for some room")
    return low


def axes_of(model: LM, state: Session | State) -> Tree:
    """The batch axis of every leaf of a Session or a state."""
    raw = state.state if isinstance(state, Session) else state
    axes = batch_axes(model.state(1))
    if jax.tree.structure(axes) != jax.tree.structure(raw):
        raise ShapeError(f"state has the tree {jax.tree.structure(raw)}, expected {jax.tree.structure(axes)}")
    if not isinstance(state, Session):
        return axes
    return Session(axes, 0, 0, 0, 0, None if state.seen is None else 0)  # type: ignore[arg-type]


def batch_of(state: Session | State, axes: Tree) -> int:
    sizes = {x.shape[axis] for x, axis in zip(jax.tree.leaves(state), jax.tree.leaves(axes), strict=True)}
    if len(sizes) > 1:
        raise ShapeError(f"state has {sorted(sizes)} rows in different leaves, expected one number of rows")
    return sizes.pop() if sizes else 1


def where_rows(mask: Array, yes: Array, no: Array, axis: int) -> Array:
    """`yes` in the rows where mask (b,) holds."""
    shape = [1] * yes.ndim
    shape[axis] = -1
    return jnp.where(mask.reshape(shape), yes, no)


def mark(seen: Array | None, tokens: Array, starts: Array | None, vocab: int) -> Array:
    """The seen tokens (b, n) after further ones (b, t); a start forgets those before it."""
    b, t = tokens.shape
    old = jnp.zeros((b, vocab), bool) if seen is None else seen
    counted = jnp.ones((b, t), bool)
    if starts is not None:
        last = jnp.max(jnp.where(starts, jnp.arange(t)[None], -1), axis=1, keepdims=True)
        counted, old = jnp.arange(t)[None] >= last, old & (last < 0)
    return old.at[jnp.arange(b)[:, None], tokens].max(counted)
