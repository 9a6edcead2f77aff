"""Liquid time-constant network: neurons whose synapses set how fast and whereto each potential moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.initializers import Ones, Uniform, Zeros
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.typing import Array, Params, State, Tree, wide

Wiring = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class SoftplusUniform:
    """Values whose softplus is U(low, high), low > 0."""

    low: float
    high: float

    def __call__(self, key: Array, spec: Spec) -> Array:
        return jnp.log(jnp.expm1(Uniform(self.low, self.high)(key, spec)))


@dataclasses.dataclass(frozen=True)
class Polarity:
    """The entries of a wiring; without one, 1 or -1 by chance."""

    wiring: Wiring | None = None

    def __call__(self, key: Array, spec: Spec) -> Array:
        if self.wiring is not None:
            return jnp.asarray(self.wiring, spec.dtype)
        return jax.random.rademacher(key, spec.shape, jnp.dtype(spec.dtype))


class LTC(Mixer):
    """Liquid time-constant network with biophysical synapses (Hasani et al. 2021, 2006.04439, algorithm 1).

    C_i v_i' = g_i (E_i - v_i) + sum_j w_ij σ(γ_ij (v_j - μ_ij)) (E_ij - v_i) + the same sum over the inputs
             = C_i (A_i v_i + b_i)                                                    A < 0 and b: see `rates`
    v <- (v + Δ b) / (1 - Δ A)                          the fused solver, `unfolds` times a token; Δ = dt / unfolds

    input    u        (b, t, i)      i = inputs, by default the width; a gain and a bias a channel
    output   y        (b, t, d)      the potentials, with a gain and a bias a neuron
    state    v        (b, d)
    dt       what passes from token to token, in the unit of C / g
    wiring   (d, d), from j to i: 1 excites, -1 inhibits (the first E_ij), 0: no synapse. None: all, signs by chance
    sensory  (i, d), the same of the inputs
    w, g and C are the softplus of what is stored, so that any optimizer keeps them positive. With them 1 - Δ A >= 1,
    and a step is a convex combination: v stays between the least and the greatest of all E and its start.
    """

    width: int
    inputs: int | None = None
    unfolds: int = 6
    dt: float = 1.0
    wiring: Wiring | None = None
    sensory: Wiring | None = None

    paper = "Hasani et al. 2021"

    def __post_init__(self):
        self.check(self.unfolds > 0, "unfolds", "a positive number")
        self.check(self.dt > 0, "dt", "a positive time")
        for field, rows in (("wiring", self.width), ("sensory", self.reads)):
            table = getattr(self, field)
            fits = table is None or (len(table) == rows and all(len(row) == self.width for row in table))
            signs = table is None or all(sign in (-1, 0, 1) for row in table for sign in row)
            self.check(fits and signs, field, f"None, or {rows} rows of {self.width} numbers -1, 0 or 1")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    def params(self):
        d, i = self.width, self.reads

        def synapses(rows: int, wiring: Wiring | None) -> dict[str, Spec]:
            # Rows are not `embed`: the loop sums over them, and what it contracts must not be split.
            spec = Spec((rows, d), ("head", "state"), SoftplusUniform(0.001, 1.0))
            inits = {"slope": Uniform(3.0, 8.0), "middle": Uniform(0.3, 0.8), "reversal": Polarity(wiring)}
            return {"weight": spec} | {n: dataclasses.replace(spec, init=init) for n, init in inits.items()}

        def each(size: int, axis: str, **inits) -> dict[str, Spec]:
            return {n: Spec((size,), (axis,), init, keep=True) for n, init in inits.items()}

        return {
            "input": each(i, "head", gain=Ones, bias=Zeros),
            "sensory": synapses(i, self.sensory),
            "recurrent": synapses(d, self.wiring),
            "leak": each(d, "state", weight=SoftplusUniform(0.001, 1.0), reversal=Uniform(-0.2, 0.2)),
            "capacity": Spec((d,), ("state",), SoftplusUniform(0.4, 0.6), keep=True),
            "output": each(d, "state", gain=Ones, bias=Zeros),
        }

    def state(self, batch: int, room: int = 0):
        return {"v": leaf(batch, (self.width,), ("state",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        ready = self.ready(params)
        delta = self.dt / self.unfolds

        def token(u: Array, s: State) -> tuple[Array, State]:
            # What is checkpointed holds b d^2 numbers: kept over time they would be most of the memory.
            outside = jax.checkpoint(self.outside)(ready, u)

            def unfold(v: Array, _: None) -> tuple[Array, None]:
                a, b = self.inside(ready, outside, v)
                return (v + delta * b) / (1 - delta * a), None

            v = jax.lax.scan(jax.checkpoint(unfold, prevent_cse=False), s["v"], None, length=self.unfolds)[0]
            return v, {"v": v}

        v, state = scan(token, wide(x), state, starts, fresh)
        y = v * ready["output"]["gain"][None, None] + ready["output"]["bias"][None, None]
        return spoil(spoiled, y.astype(x.dtype)), spoil(spoiled[:, -1], state)

    def rates(self, params: Params, u: Array, v: Array) -> tuple[Array, Array]:
        """A and b of v' = A v + b, at an input and a potential.   u (b, i), v (b, d) -> A, b (b, d), A < 0"""
        ready = self.ready(params)
        return self.inside(ready, self.outside(ready, u), v)

    def ready(self, params: Params) -> Tree:
        """The weights as the solver reads them: wide, positive where they must be, the missing synapses 0."""
        p = jax.tree.map(wide, params)

        def synapses(p: Params, wiring: Wiring | None) -> Params:
            weight = jax.nn.softplus(p["weight"])
            return {**p, "weight": weight if wiring is None else jnp.where(np.asarray(wiring) != 0, weight, 0)}

        return {
            **p,
            "sensory": synapses(p["sensory"], self.sensory),
            "recurrent": synapses(p["recurrent"], self.wiring),
            "leak": {**p["leak"], "weight": jax.nn.softplus(p["leak"]["weight"])},
            "capacity": jax.nn.softplus(p["capacity"]),
        }

    def outside(self, ready: Tree, u: Array) -> tuple[Array, Array]:
        """What the leak and the inputs do, whatever v is: how much they conduct, and that times where they pull to."""
        conducts, pulls = currents(ready["sensory"], u * ready["input"]["gain"][None] + ready["input"]["bias"][None])
        leak = ready["leak"]
        return conducts + leak["weight"][None], pulls + (leak["weight"] * leak["reversal"])[None]

    def inside(self, ready: Tree, outside: tuple[Array, Array], v: Array) -> tuple[Array, Array]:
        """A and b, with what the neurons do to each other."""
        conducts, pulls = currents(ready["recurrent"], v)
        capacity = ready["capacity"][None]
        return -(outside[0] + conducts) / capacity, (outside[1] + pulls) / capacity


def currents(synapses: Params, v: Array) -> tuple[Array, Array]:
    """Sums over the synapses of each neuron: of w σ(γ (v - μ)), and of that times E.   v (b, j) -> two of (b, d)"""
    p = synapses
    opened = p["weight"][None] * jax.nn.sigmoid(p["slope"][None] * (v[:, :, None] - p["middle"][None]))
    return opened.sum(1), (opened * p["reversal"][None]).sum(1)
