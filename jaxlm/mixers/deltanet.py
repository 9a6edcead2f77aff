"""DeltaNet: a matrix memory that corrects what a key holds instead of adding to it."""

import jax

from jaxlm.layers.heads import divisor, from_heads, head_gain, into_heads, per_head, short_heads, taps_of
from jaxlm.layers.norm import l2_norm, rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.ops.delta import delta
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class DeltaNet(Mixer):
    """Delta rule, normalised keys, short convolutions (Schlag et al. 2021, eq. 24; Yang et al. 2024, 2406.06484).

    q, k, v = SiLU(conv4(x W)), q and k of length 1 in each head       β_t = β_max σ(x_t W_β)
    S_t = S_{t-1} + β_t k_t' (v_t - k_t S_{t-1})       o_t = q_t S_t / √k
    y_t = W_O RMSNorm_head(o_t), with `gate` times SiLU(x_t W_g) before W_O

    x, y       (b, t, d)
    state      S (b, h, k, v), k = v = d / h; the last 3 inputs of each convolution (b, 3, h, k)
    heads      None: 4, or the largest divisor of the width below
    beta_max   2 allows transitions of eigenvalue -1 (Grazzi et al. 2024)
    """

    width: int
    heads: int | None = None
    beta_max: float = 1.0
    gate: bool = False

    paper = "Yang et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(0 < self.beta_max <= 2, "beta_max", "a rate in (0, 2]; beyond 2 the memory grows without bound")

    @property
    def h(self) -> int:
        return divisor(self.width, 4) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        p = {n: into_heads(d, h, k) for n in ("query", "key", "value")}
        p |= {"conv": {n: taps_of(h, k) for n in ("query", "key", "value")}}
        p |= {"beta": per_head(d, h), "norm": head_gain(h, k), "out": from_heads(h, k, d)}
        return p | {"gate": into_heads(d, h, k)} if self.gate else p

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        past = leaf(batch, (3, h, k), (None, "heads", "head"))
        return {
            "S": leaf(batch, (h, k, k), ("heads", "head", None)),
            "conv": {n: past for n in ("query", "key", "value")},
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, past = (None, None) if state is None else (state["S"], state["conv"])
        now, past = short_heads(params, x, past, starts)
        q, k = l2_norm(wide(now["query"])), l2_norm(wide(now["key"]))  # wide: beta |k|^2 beyond 2 would grow
        beta = self.beta_max * jax.nn.sigmoid(dense(wide(x), params["beta"]))
        o, after = delta(q * q.shape[-1] ** -0.5, k, now["value"], beta, None, S, starts)
        y = rms_norm(o, params["norm"])
        if self.gate:
            y = y * jax.nn.silu(dense(x, params["gate"]))
        state = {"S": after if S is None else after.astype(S.dtype), "conv": past}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
