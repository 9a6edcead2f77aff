"""cosFormer: linear attention that weighs scores by the cosine of the distance, which splits into two products."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Zeros
from jaxlm.layers.heads import divisor, from_heads, head_gain, into_heads
from jaxlm.layers.norm import rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.mixers.tnl import Rates
from jaxlm.module import Spec
from jaxlm.ops.cache import positions
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class CosFormer(Mixer):
    """Linear attention with cosine re-weighting (Qin et al. 2022, 2202.08791, eqs. 9-12).

    s_ij = ReLU(q_i)·ReLU(k_j) cos(π (i - j) / 2M)       o_i = Σ_j s_ij v_j / max(Σ_j s_ij, ε)       y_i = W_O o_i + b_O
    cos(a - b) = cos a cos b + sin a sin b: φ(x_i) = [ReLU(x_i) cos(π i / 2M), ReLU(x_i) sin(π i / 2M)] are the features

    x, y     (b, t, d)
    state    S (b, h, 2k, v), z (b, h, 2k), the normaliser; length (b), tokens of the document so far
    heads    None: the largest divisor of the width up to max(2, width / 64)
    horizon  M: tokens further apart than that weigh less than nothing, so it must cover the longest document
    eps      ε
    second   cosFormer2, as far as it is public (2406.16690: no decay): the angle of channel j is i θ_j with learned θ,
             10000^(-2j/d) at first, and RMSNorm_head stands for the division; no horizon, no ε, no z in the state
    """

    width: int
    heads: int | None = None
    horizon: int = 8192
    eps: float = 1e-6
    second: bool = False

    paper = "Qin et al. 2022"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(self.horizon > 0, "horizon", "a positive number of tokens")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        p = {n: into_heads(d, h, k) for n in ("query", "key", "value")} | {"out": from_heads(h, k, d)}
        p |= {f"{n}_bias": Spec((h, k), ("heads", "head"), Zeros) for n in ("query", "key", "value")}
        p |= {"out_bias": Spec((d,), ("embed",), Zeros)}
        angles = {"theta": Spec((h, k), ("heads", "head"), Rates(d), keep=True), "norm": head_gain(h, k)}
        return p | angles if self.second else p

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        s = {"S": leaf(batch, (h, 2 * k, k), ("heads", "head", None)), "length": leaf(batch, (), (), "int32")}
        return s if self.second else s | {"z": leaf(batch, (h, 2 * k), ("heads", "head"))}

    def features(self, params: Params, x: Array, place: Array) -> Array:
        """φ.   x (b, t, h, k) wide, place (b or 1, t) -> (b, t, h, 2k)"""
        angle = place.astype(x.dtype)[:, :, None, None]
        angle = angle * (params["theta"].astype(x.dtype)[None, None] if self.second else jnp.pi / (2 * self.horizon))
        x = jax.nn.relu(x)
        return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], axis=-1)

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        place = positions(starts, None if state is None else state["length"], x.shape[1])
        q, k, v = (wide(dense(x, params[n], params[f"{n}_bias"])) for n in ("query", "key", "value"))
        q, k = (self.features(params, a, place) for a in (q, k))
        o, after = self.remember(params, q, k, v, state, starts)
        y = merge(o.astype(x.dtype), params["out"]) + params["out_bias"].astype(x.dtype)[None, None]
        after = after if state is None else {n: a.astype(state[n].dtype) for n, a in after.items()}
        after["length"] = jnp.broadcast_to(place[:, -1] + 1, x.shape[:1])
        return spoil(spoiled, y), spoil(spoiled[:, -1], after)

    def remember(
        self, params: Params, q: Array, k: Array, v: Array, state: State, starts: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """o (b, t, h, v), and the memories after the last token."""
        if self.second:
            o, S = decay(q, k, v, None, None if state is None else state["S"], starts)
            return rms_norm(o, params["norm"]), {"S": S}
        # z is one more column of S: the memory of a value that is always 1.
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        S = None if state is None else jnp.concatenate([state["S"], state["z"][..., None]], axis=-1)
        o, S = decay(q, k, v, None, S, starts)
        return o[..., :-1] / jnp.maximum(o[..., -1:], self.eps), {"S": S[..., :-1], "z": S[..., -1]}
