"""Gated DeltaNet: the delta rule with a memory that can also be emptied, by one decay a head."""

from typing import Any

import jax

from jaxlm.layers.heads import decays, forget, from_heads, head_gain, into_heads, per_head, short_heads, taps_of
from jaxlm.layers.norm import l2_norm, rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.ops.delta import delta
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class GatedDeltaNet(Mixer):
    """Gated delta rule (Yang, Kautz & Hatamizadeh 2025, 2412.06464, section 3).

    q, k, v = SiLU(conv4(x W)), q and k of length 1 in each head       β_t = β_max σ(x_t W_β)
    log α_t = -exp(A) softplus(x_t W_α + b)
    S_t = α_t S_{t-1} + β_t k_t' (v_t - k_t α_t S_{t-1})       o_t = q_t S_t / √k
    y_t = W_O (RMSNorm_head(o_t) ⊙ SiLU(x_t W_g))

    x, y       (b, t, d)
    state      S (b, h, k, v), v = expand * k; the last 3 inputs of each convolution (b, 3, h, k or v)
    heads      None: 3/4 of the width in keys of 256, two heads at least (6 at width 2048)
    head       k; None: 3/4 of the width shared by the heads
    expand     v / k
    beta_max   2 allows transitions of eigenvalue -1 (Grazzi et al. 2024)
    """

    width: int
    heads: int | None = None
    head: int | None = None
    expand: int = 2
    beta_max: float = 1.0

    paper = "Yang et al. 2025"
    forms = ("chunkwise",)

    def __post_init__(self):
        for field in ("heads", "head"):
            self.check(getattr(self, field) is None or getattr(self, field) > 0, field, "a positive number, or None")
        self.check(self.expand > 0, "expand", "a positive number")
        self.check(0 < self.beta_max <= 2, "beta_max", "a rate in (0, 2]; beyond 2 the memory grows without bound")

    @property
    def h(self) -> int:
        return max(2, 3 * self.width // 1024) if self.heads is None else self.heads

    @property
    def k(self) -> int:
        return max(1, 3 * self.width // (4 * self.h)) if self.head is None else self.head

    def sizes(self) -> dict[str, int]:
        """Width of a head of queries, keys and values."""
        return {"query": self.k, "key": self.k, "value": self.expand * self.k}

    def params(self):
        d, h, v = self.width, self.h, self.expand * self.k
        return {n: into_heads(d, h, k) for n, k in self.sizes().items()} | {
            "conv": {n: taps_of(h, k) for n, k in self.sizes().items()},
            "beta": per_head(d, h),
            **decays(d, h),
            "gate": into_heads(d, h, v),
            "norm": head_gain(h, v),
            "out": from_heads(h, v, d),
        }

    def state(self, batch: int, room: int = 0):
        return {
            "S": leaf(batch, (self.h, self.k, self.expand * self.k), ("heads", "head", None)),
            "conv": {n: leaf(batch, (3, self.h, k), (None, "heads", "head")) for n, k in self.sizes().items()},
        }

    def forget(self, params: Params, x: Array) -> Array:
        """log α, at least float32.   x (b, t, d) -> (b, t, h)"""
        return forget(params, x)

    def remember(
        self, params: Params, x: Array, state: State, starts: Array | None, **given: Any
    ) -> tuple[Array, dict[str, Array]]:
        """o (b, t, h, v), and the memory after the last token.   given: q, k, v, beta, g of `delta`"""
        o, S = delta(**given, state=None if state is None else state["S"], starts=starts)
        return o, {"S": S}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        now, past = short_heads(params, x, None if state is None else state["conv"], starts)
        q, k = l2_norm(wide(now["query"])), l2_norm(wide(now["key"]))  # wide: beta |k|^2 beyond 2 would grow
        beta = self.beta_max * jax.nn.sigmoid(dense(wide(x), params["beta"]))
        given = {"q": q * q.shape[-1] ** -0.5, "k": k, "v": now["value"], "beta": beta, "g": self.forget(params, x)}
        o, after = self.remember(params, x, state, starts, **given)
        y = rms_norm(o, params["norm"]) * jax.nn.silu(dense(x, params["gate"]))
        after = after if state is None else {n: a.astype(state[n].dtype) for n, a in after.items()}
        after["conv"] = past
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], after)
