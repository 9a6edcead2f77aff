"""Structurally Constrained Recurrent Network: slow units beside a simple recurrent network."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.initializers import Constant, Normal
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.recurrence import recurrence
from jaxlm.typing import Array, Params, State, wide


class SCRN(Mixer):
    """Structurally Constrained Recurrent Network (Mikolov et al. 2014, 1412.7753, section 3.3).

    s_n = (1 - α) B u_n + α s_{n-1}
    h_n = σ(P s_n + A u_n + R h_{n-1})
    y_n = [h_n, s_n]                            what the paper's readout U h_n + V s_n reads

    input    u        (b, t, i)      i = inputs, by default the width
    output   y        (b, t, d)
    state    h        (b, d - n)     n = slow, by default a quarter of the width
             s        (b, n)
    alpha    α in [0, 1], not trained
    delayed  True, the form of the authors' code: h_n reads s_{n-1}, and both states start at 0.1
    There are no biases. Weights start at N(0, 0.05^2).
    """

    width: int
    inputs: int | None = None
    slow: int | None = None
    alpha: float = 0.95
    delayed: bool = False

    paper = "Mikolov et al. 2014"

    def __post_init__(self):
        self.check(0 < self.units < self.width, "slow", f"a number of units from 1 to {self.width - 1}")
        self.check(0 <= self.alpha <= 1, "alpha", "a share in [0, 1]")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    @property
    def units(self) -> int:
        """How many are slow."""
        return max(1, self.width // 4) if self.slow is None else self.slow

    @property
    def first(self) -> float:
        """What all units are before the first token."""
        return 0.1 if self.delayed else 0.0

    def params(self):
        d, n, m, init = self.reads, self.units, self.width - self.units, Normal(0.05)
        # Rows of what the loop contracts are not `embed`: split as the batch is, they would be gathered at every step,
        # and XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        return {
            "slow": Spec((d, n), ("embed", "state"), init, ins=("embed",)),
            "input": Spec((d, m), ("embed", "state"), init, ins=("embed",)),
            "context": Spec((n, m), ("head", "state"), init, ins=("head",)),
            "hidden": Spec((m, m), ("head", "state"), init, ins=("head",)),
        }

    def state(self, batch: int, room: int = 0):
        sizes = {"h": self.width - self.units, "s": self.units}
        return {
            k: dataclasses.replace(leaf(batch, (n,), ("state",)), init=Constant(self.first)) for k, n in sizes.items()
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        s, last = self.average(wide(dense(x, params["slow"])), state["s"], starts)
        seen = self.before(s, state["s"], starts) if self.delayed else s
        given = jnp.concatenate([params["input"], params["context"]])[:, None]
        none = jnp.zeros((1, given.shape[2]), wide(x).dtype)
        h, fast = cell(
            advance,
            {"all": Affine(given, none, params["hidden"][:, None])},
            jnp.concatenate([x, seen.astype(x.dtype)], axis=-1),
            {"h": state["h"]},
            starts,
            None if fresh is None else {"h": fresh["h"]},
        )
        y = jnp.concatenate([h.astype(x.dtype), s.astype(x.dtype)], axis=-1)
        return spoil(spoiled, y), spoil(spoiled[:, -1], fast | {"s": last})

    def average(self, drive: Array, state: Array, starts: Array | None) -> tuple[Array, Array]:
        """s for every token, and the last.   drive B u (b, t, n), state (b, n)"""
        drive = (1 - self.alpha) * drive
        if starts is not None:  # where the recurrence takes s_{n-1} for 0
            drive = jnp.where(starts[..., None], drive + self.alpha * self.first, drive)
        return recurrence(jnp.full_like(drive, self.alpha), drive, state, starts)

    def before(self, s: Array, state: Array, starts: Array | None) -> Array:
        """s_{n-1} for every s_n.   (b, t, n)"""
        past = jnp.concatenate([state.astype(s.dtype)[:, None], s[:, :-1]], axis=1)
        return past if starts is None else jnp.where(starts[..., None], jnp.asarray(self.first, s.dtype), past)


def advance(s: State, mix: Mix) -> tuple[Array, State]:
    """One step of the fast units."""
    (a,) = mix("all", s["h"])
    h = jax.nn.sigmoid(a)
    return h, {"h": h}
