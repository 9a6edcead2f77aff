"""Coupled oscillatory RNN: a network of driven, damped, nonlinearly coupled oscillators."""

import math

import jax.numpy as jnp

from jaxlm.initializers import Uniform
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State


class CoRNN(Mixer):
    """Coupled oscillatory RNN (Rusch & Mishra 2021, eqs. 1-3): y'' = tanh(W y + 𝒲 y' + V u + b) - γ y - ε y'.

    z_n = z_{n-1} + Δt (tanh(W y_{n-1} + 𝒲 z_{n-1} + V u_n + b) - γ y_{n-1} - ε z)
    y_n = y_{n-1} + Δt z_n                              y reads the NEW z
    The damping -ε z takes z_{n-1} (explicit, as the authors' code does) or z_n (implicit).

    input    u        (b, t, i)      i = inputs, by default the width
    output   y        (b, t, d)
    state    y, z     (b, d)         places and velocities
    dt, gamma, epsilon   Δt, γ, ε > 0, not trained, and such that oscillators that nothing drives come to rest:
                         Δt² γ + 2 Δt ε < 4 explicit, Δt² γ - 2 Δt ε < 4 implicit. Defaults: the authors', sMNIST
    Implicit and Δt γ < 2 ε: γ|y_n|² + |z_n|² grows by at most d Δt / (2 ε - Δt γ) a step, for any input.
    All weights start at U(-1/sqrt k, 1/sqrt k), k = i + 2 d.
    """

    width: int
    inputs: int | None = None
    dt: float = 0.042
    gamma: float = 2.7
    epsilon: float = 4.7
    implicit: bool = False

    paper = "Rusch & Mishra 2021"

    def __post_init__(self):
        self.check(self.gamma > 0, "gamma", "a positive stiffness")
        self.check(self.epsilon > 0, "epsilon", "a positive damping")
        damping = 2 * self.dt * self.epsilon * (-1 if self.implicit else 1)
        stable = self.dt**2 * self.gamma + damping < 4
        self.check(
            self.dt > 0 and stable, "dt", "a positive time step, short enough that free oscillators come to rest"
        )

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    def params(self):
        m, bound = self.width, 1 / math.sqrt(self.reads + 2 * self.width)
        init = Uniform(-bound, bound)
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        hidden = Spec((m, m), ("head", "state"), init, ins=("head",))
        return {
            "input": Spec((self.reads, m), ("embed", "state"), init, ins=("embed",)),
            "place": hidden,
            "velocity": hidden,
            "bias": Spec((m,), ("state",), init, keep=True),
        }

    def state(self, batch: int, room: int = 0):
        one = leaf(batch, (self.width,), ("state",))
        return {"y": one, "z": one}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        hidden = jnp.concatenate([params["place"], params["velocity"]])
        maps = {"force": Affine(params["input"][:, None], params["bias"][None], hidden[:, None])}
        ys, state = cell(self.advance, maps, x, state, starts, fresh)
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)

    def advance(self, s: State, mix: Mix) -> tuple[Array, State]:
        """One step."""
        y, z = s["y"], s["z"]
        (force,) = mix("force", jnp.concatenate([y, z], axis=1))
        z_pushed = z + self.dt * (jnp.tanh(force) - self.gamma * y)
        z = z_pushed / (1 + self.dt * self.epsilon) if self.implicit else z_pushed - self.dt * self.epsilon * z
        y = y + self.dt * z
        return y, {"y": y, "z": z}
