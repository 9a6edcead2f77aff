"""Gated linear attention: a matrix memory whose every key channel forgets at a rate of its own, token by token."""

import jax

from jaxlm.initializers import FanIn, Zeros
from jaxlm.layers.heads import divisor, from_heads, head_gain, into_heads
from jaxlm.layers.norm import rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class GLA(Mixer):
    """Gated Linear Attention (Yang et al. 2024, 2312.06635, section 4).

    S_t = Diag(α_t) S_{t-1} + k_t' v_t       o_t = q_t S_t / √k       α_t = σ(x_t W_1 W_2 + b)^(1/τ)
    y_t = W_O (RMSNorm_head(o_t) ⊙ SiLU(x_t W_r))

    x, y     (b, t, d)
    state    S (b, h, k, v); keys share half the width, values all of it
    heads    None: 4, or the largest divisor of half the width below
    rank     of the gate's map
    tau      τ: the larger, the longer the memory at the start of training
    """

    width: int
    heads: int | None = None
    rank: int = 16
    tau: float = 16.0

    paper = "Yang et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.width % 2 == 0, "width", "an even width, for keys of half of it")
        self.check(self.width // 2 % self.h == 0, "heads", f"a divisor of half the width, {self.width // 2}")
        self.check(self.tau > 0, "tau", "a positive number")

    @property
    def h(self) -> int:
        return divisor(self.width // 2, 4) if self.heads is None else self.heads

    def params(self):
        d, h = self.width, self.h
        k, v = d // 2 // h, d // h
        return {
            "query": into_heads(d, h, k),
            "key": into_heads(d, h, k),
            "value": into_heads(d, h, v),
            "forget_in": Spec((d, self.rank), ("embed", None), FanIn(), ins=("embed",)),
            "forget_out": Spec((self.rank, h, k), ("state", "heads", "head"), FanIn(), ins=("state",)),
            "forget_bias": Spec((h, k), ("heads", "head"), Zeros, keep=True),
            "gate": into_heads(d, h, v),
            "norm": head_gain(h, v),
            "out": from_heads(h, v, d),
        }

    def state(self, batch: int, room: int = 0):
        d, h = self.width, self.h
        return {"S": leaf(batch, (h, d // 2 // h, d // h), ("heads", "head", None))}

    def forget(self, params: Params, x: Array) -> Array:
        """log α, at least float32.   x (b, t, d) -> (b, t, h, k)"""
        z = dense(dense(wide(x), params["forget_in"]), params["forget_out"], params["forget_bias"])
        return jax.nn.log_sigmoid(z) / self.tau

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        q, k, v = (dense(x, params[n]) for n in ("query", "key", "value"))
        before = None if state is None else state["S"]
        o, after = decay(q * q.shape[-1] ** -0.5, k, v, self.forget(params, x), before, starts)
        y = rms_norm(o, params["norm"]) * jax.nn.silu(dense(x, params["gate"]))
        state = {"S": after if before is None else after.astype(before.dtype)}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
