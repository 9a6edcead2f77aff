"""RegularLRNN: a linear recurrence in blocks, whose transition every token writes whole, so that it may permute."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Normal, Zeros
from jaxlm.layers.heads import divisor
from jaxlm.layers.mlp import MLP
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.typing import Array, Params, State, wide

TINY = 1e-12  # below this sum of powers a transition is not scaled up to norm 1: tokens of zeros have none


class RegularLRNN(Mixer):
    """Block-diagonal input-dependent linear recurrence (Fan, Chi & Rudnicky 2024, 2309.07412, section 4).

    Z_t = MLP_A(x_t), of every block n a matrix; Z <- Z - mean of each column
    A_t = Z_t / max_j |Z_t,:j|_p over the columns j of the block       h_t = A_t h_{t-1} + MLP_v(x_t)       y_t = h_t
    MLP_A: d -> d m -> d m, MLP_v: d -> d -> d, with ReLU between; h_0 is learned, N(0, 1) at first

    x, y     (b, t, d)
    state    h (b, n, m), n = d / m blocks
    block    m; None: 8, or the largest divisor of the width below
    p        of the norm of the columns, at most 1: with p = 1 no product of transitions can grow; the released 1.2 lets
             one grow, by m^(1 - 1/p) a token at most, and also turn what it keeps without shrinking it
    """

    width: int
    block: int | None = None
    p: float = 1.2

    paper = "Fan et al. 2024"

    def __post_init__(self):
        fits = self.m > 1 and self.width % self.m == 0
        self.check(fits, "block", f"a divisor of the width {self.width}, at least 2: columns of one number would be 0")
        self.check(self.p >= 1, "p", "a norm, at least 1")

    @property
    def m(self) -> int:
        return divisor(self.width, 8) if self.block is None else self.block

    @property
    def writer(self) -> MLP:
        return MLP(self.width, self.width, "relu")

    def params(self):
        d, m, f = self.width, self.m, self.width * self.m
        turn = {
            "up": Spec((d, f), ("embed", "mlp"), FanIn(), ins=("embed",)),
            "up_bias": Spec((f,), ("mlp",), Zeros),
            "down": Spec((f, d // m, m, m), ("mlp", "heads", None, None), FanIn(), ins=("mlp",)),
            "down_bias": Spec((d // m, m, m), ("heads", None, None), Zeros),
        }
        start = Spec((d // m, m), ("heads", "head"), Normal(1.0), keep=True)
        return {"turn": turn, "write": self.writer.params(), "start": start}

    def state(self, batch: int, room: int = 0):
        return {"h": leaf(batch, (self.width // self.m, self.m), ("heads", "head"))}

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        first = params["start"]
        return {"h": jnp.broadcast_to(first[None], (batch, *first.shape))}

    def transitions(self, params: Params, x: Array) -> Array:
        """A, at least float32.   x (b, t, d) -> (b, t, n, m, m)"""
        p = params["turn"]
        z = dense(jax.nn.relu(dense(wide(x), p["up"], p["up_bias"])), p["down"], p["down_bias"])
        z = z - jnp.mean(z, axis=-2, keepdims=True)
        largest = jnp.max(jnp.sum(jnp.abs(z) ** self.p, axis=-2), axis=-1)
        return z / jnp.maximum(largest, TINY)[..., None, None] ** (1 / self.p)

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        A = self.transitions(params, x)
        u = self.writer.apply(params["write"], wide(x)).reshape(A.shape[:-1])

        def step(x: tuple[Array, Array], s: State) -> tuple[Array, State]:
            A, u = x
            h = jnp.einsum("bnij,bnj->bni", A, s["h"].astype(A.dtype)) + u
            return h, {"h": h.astype(s["h"].dtype)}

        h, state = scan(step, (A, u), state, starts, fresh)
        return spoil(spoiled, h.reshape(x.shape).astype(x.dtype)), spoil(spoiled[:, -1], state)
