"""RWKV's channel mix: an MLP of squared ReLU that reads the token before besides."""

import jax

from jaxlm.initializers import FanIn, Zeros
from jaxlm.layers.activation import relu_squared
from jaxlm.layers.rwkv import lerp, shares
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.shift import shift
from jaxlm.taps import name
from jaxlm.typing import Array, Params, State


class ChannelMix(Mixer):
    """y_t = max(u_k W_k, 0)² W_v, with `receptance` times σ(u_r W_r); u_c = x_t + (x_{t-1} - x_t) ⊙ μ_c.

    x, y        (b, t, d)
    state       past: the last input (b, d)
    hidden      None: 4 times the width
    receptance  True in RWKV-4 to 6 (Peng et al. 2023, 2305.13048, eq. 18; 2024, 2404.05892), False in RWKV-7
    """

    width: int
    hidden: int | None = None
    receptance: bool = False

    paper = "Peng et al. 2025"
    forms = ("tokenwise",)

    @property
    def f(self) -> int:
        return 4 * self.width if self.hidden is None else self.hidden

    def params(self):
        d, f = self.width, self.f
        mixes = shares(d, {"key": 1.0, "receptance": 1.0}) if self.receptance else shares(d, {"key": 1.0}, steep=4.0)
        p = {
            "mix": mixes,
            "key": Spec((d, f), ("embed", "mlp"), FanIn(), ins=("embed",)),
            "value": Spec((f, d), ("mlp", "embed"), Zeros, ins=("mlp",)),
        }
        if self.receptance:
            p["receptance"] = Spec((d, d), ("embed", "state"), Zeros, ins=("embed",))
        return p

    def state(self, batch: int, room: int = 0):
        return {"past": leaf(batch, (self.width,), ("embed",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        before, past = shift(x, None if state is None else state["past"], starts)
        u = {n: lerp(x, before, mu) for n, mu in params["mix"].items()}
        y = dense(name(relu_squared(dense(u["key"], params["key"])), "mlp.hidden"), params["value"])
        if self.receptance:
            y = y * jax.nn.sigmoid(dense(u["receptance"], params["receptance"]))
        return spoil(spoiled, y), spoil(spoiled[:, -1], {"past": past})
