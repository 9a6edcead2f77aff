"""What keeps a bad batch from spoiling a run: its update is skipped inside jit, counted, and its batch written down."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.train.processes import alone
from jaxlm.typing import Array, Tree

WINDOW = 32  # updates that the running means go over; before so many were made, nothing is a spike


class Guard(NamedTuple):
    """What a run knows of its updates so far; scalars.

    skipped     updates that were skipped
    row         of them, those in a row up to now
    loss, norm  running means: nats a token, norm of the gradient
    """

    skipped: Any
    row: Any
    loss: Any
    norm: Any


def first_guard() -> Guard:
    """Before the first update."""
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return Guard(none, none, zero, zero)


def judged(guard: Guard, step: Array, loss: Array, norm: Array, spike: float) -> tuple[Array, Guard]:
    """(whether the update is made, what is known after it): not if loss or norm is not finite, or is a spike.

    step    () int      updates before this one, made or skipped
    spike               times its running mean from which on a loss or a norm is a spike; 0: none is

    Means take in a spike as if it were at the bound, so that they follow what stays high: the rule of AdaGC (Wang et
    al. 2025), which scales each tensor's gradient down to such a bound; here, as in OLMo-core, no update is made.
    """
    made = step - guard.skipped
    seen = jnp.stack([loss, norm]).astype(jnp.float32)
    means = jnp.stack([guard.loss, guard.norm])
    bounds = jnp.where(made >= WINDOW, spike * means, jnp.inf) if spike else jnp.full_like(means, jnp.inf)
    finite = jnp.all(jnp.isfinite(seen))
    good = finite & jnp.all(seen <= bounds)
    share = 1 / jnp.minimum(made + 1, WINDOW).astype(jnp.float32)
    means = jnp.where(finite, means + share * (jnp.minimum(seen, bounds) - means), means)
    bad = 1 - good.astype(jnp.int32)
    return good, Guard(guard.skipped + bad, (guard.row + 1) * bad, means[0], means[1])


def chosen(good: Array, new: Tree, old: Tree) -> Tree:
    """The new values after a good update, the old ones after another: bit for bit.

    Like any operation it may change how XLA fuses those before it: the last bit of an optimised program can round
    otherwise than without it (seen on CPUs with Muon, not with AdamW).
    """
    return jax.tree.map(partial(jax.lax.select, good), new, old)


class Skips:
    """Sees every update, the one before while the devices compute the next; writes down the batches of skipped ones.

    folder    gets step-000123.npz: the batch by name, its loss and norm, and the numbers of its rows
    spike     as in `judged`
    patience  updates skipped in a row that are too many
    row       those in a row before the first update that is seen
    emit      told of each, kind 'skipped'
    """

    def __init__(self, folder: Path, spike: float, patience: int, row: int, emit: Callable[..., None]):
        self.folder, self.spike, self.patience, self.row, self.emit = folder, spike, patience, row, emit
        self.held: tuple[int, dict[str, Array], dict[str, Array]] | None = None
        self.reason = ""

    @property
    def over(self) -> bool:
        """Are those in a row too many? Known as soon as it is so: the last one is waited for."""
        return bool(self.reason) and self.row >= self.patience

    def __call__(self, step: int, batch: dict[str, Array], metrics: dict[str, Array]) -> None:
        """An update has begun."""
        self.settle()
        self.held = step, batch, metrics
        if self.row + 1 >= self.patience:
            self.settle()

    def settle(self) -> None:
        """Wait for the update that has begun, if any."""
        if self.held is None:
            return
        (step, batch, metrics), self.held = self.held, None
        self.row, self.reason = int(metrics["row"]), ""
        if self.row:
            self.tell(step, batch, float(metrics["loss"]), float(metrics["norm"]))

    def tell(self, step: int, batch: dict[str, Array], loss: float, norm: float) -> None:
        finite = math.isfinite(loss) and math.isfinite(norm)
        expected = f"at most {self.spike:g} times their running means" if finite else "finite numbers"
        self.reason = f"loss = {loss:.4g}, gradient norm = {norm:.4g} at step {step}: expected {expected}"
        file = self.folder / f"step-{step:06d}{'' if alone() else f'.process-{jax.process_index()}'}.npz"
        try:
            write(file, batch, loss, norm)
        except OSError as e:  # it costs the run nothing else
            self.emit("note", text=f"{file}: the batch of a skipped update cannot be written: {e.strerror or e}")
        self.emit("skipped", step=step, loss=loss, norm=norm, row=self.row, reason=self.reason, file=str(file))


def write(file: Path, batch: dict[str, Array], loss: float, norm: float) -> None:
    """Write the rows of a batch that this process holds, at once; tokens that only others hold are 0."""
    held: dict[str, Any] = {name: own_rows(x) for name, x in batch.items()}
    rows = next(iter(held.values()))[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    with new.open("wb") as f:
        np.savez(f, rows=rows, loss=loss, norm=norm, **{name: values for name, (_, values) in held.items()})
    new.replace(file)


def own_rows(x: Array) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the rows that devices of this process hold, those rows)   x (b, t) -> (r,), (r, t)"""
    whole, own = np.zeros(x.shape, x.dtype), np.zeros(x.shape[0], bool)
    for shard in x.addressable_shards:
        whole[shard.index] = shard.data
        own[shard.index[0]] = True
    return np.flatnonzero(own), whole[own]
