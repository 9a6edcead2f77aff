"""Kimi Delta Attention: the delta rule with a memory that every key channel forgets at a rate of its own."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import LogOfUniform, StepBias
from jaxlm.layers.heads import divisor, from_heads, head_gain, into_heads, per_head, short_heads, taps_of
from jaxlm.layers.low_rank import low_rank, through
from jaxlm.layers.norm import l2_norm, rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.delta import delta
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class KDA(Mixer):
    """Kimi Delta Attention (Kimi Team 2025, 2510.26692, section 3).

    q, k, v = SiLU(conv4(x W)), q and k of length 1 in each head       β_t = β_max σ(x_t W_β)
    log α_t = -exp(A) softplus(x_t W_1 W_2 + b), one A a head, one α a channel of the keys
    S_t = (I - β_t k_t' k_t) Diag(α_t) S_{t-1} + β_t k_t' v_t       o_t = q_t S_t / √k
    y_t = W_O (RMSNorm_head(o_t) ⊙ σ(x_t W_3 W_4 + c))

    x, y       (b, t, d)
    state      S (b, h, k, v), k = v = d / h; the last 3 inputs of each convolution (b, 3, h, k)
    heads      None: heads of 128, two at least, or the largest divisor of the width below
    rank       of the maps of the decay and of the output gate; None: a head's width
    beta_max   2 allows transitions of negative eigenvalue (Grazzi et al. 2024)
    """

    width: int
    heads: int | None = None
    rank: int | None = None
    beta_max: float = 1.0

    paper = "Kimi Team 2025"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(self.rank is None or self.rank > 0, "rank", "a positive number, or None")
        self.check(0 < self.beta_max <= 2, "beta_max", "a rate in (0, 2]; beyond 2 the memory grows without bound")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 128)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        rank = k if self.rank is None else self.rank
        return {n: into_heads(d, h, k) for n in ("query", "key", "value")} | {
            "conv": {n: taps_of(h, k) for n in ("query", "key", "value")},
            "beta": per_head(d, h),
            "alpha": low_rank(d, rank, h, k, StepBias()),
            "A_log": Spec((h,), ("heads",), LogOfUniform(1.0, 16.0), keep=True),
            "gate": low_rank(d, rank, h, k),
            "norm": head_gain(h, k),
            "out": from_heads(h, k, d),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        past = leaf(batch, (3, h, k), (None, "heads", "head"))
        return {
            "S": leaf(batch, (h, k, k), ("heads", "head", None)),
            "conv": {n: past for n in ("query", "key", "value")},
        }

    def forget(self, params: Params, x: Array) -> Array:
        """log α, at least float32.   x (b, t, d) -> (b, t, h, k)"""
        step = jax.nn.softplus(through(params["alpha"], wide(x)))
        return -jnp.exp(params["A_log"].astype(step.dtype))[None, None, :, None] * step

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, past = (None, None) if state is None else (state["S"], state["conv"])
        now, past = short_heads(params, x, past, starts)
        q, k = l2_norm(wide(now["query"])), l2_norm(wide(now["key"]))  # wide: beta |k|^2 beyond 2 would grow
        beta = self.beta_max * jax.nn.sigmoid(dense(wide(x), params["beta"]))
        o, after = delta(q * q.shape[-1] ** -0.5, k, now["value"], beta, self.forget(params, x), S, starts)
        y = rms_norm(o, params["norm"]) * jax.nn.sigmoid(through(params["gate"], x))
        state = {"S": after if S is None else after.astype(S.dtype), "conv": past}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
