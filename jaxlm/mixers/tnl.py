"""TNL, the mixer of TransNormerLLM: linear attention that fades at a fixed rate, slower in deeper layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.layers.norm import rms_norm
from jaxlm.layers.position import ALiBi
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cache import positions
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


@dataclasses.dataclass(frozen=True)
class Rates:
    """θ_j = 10000^(-2j/width), j counted over all heads."""

    width: int

    def __call__(self, key: Array, spec: Spec) -> Array:
        rates = 10000.0 ** (-2.0 * np.arange(spec.size) / self.width)
        return jnp.asarray(rates.reshape(spec.shape), spec.dtype)


def fading(h: int, layers: int) -> np.ndarray:
    """-log λ of each layer and head: ALiBi's slopes times 1 - l/(L-1) + 1e-5; a lone layer is a first one.   (l, h)"""
    share = 1 - np.arange(layers) / max(layers - 1, 1) + 1e-5
    return share[:, None] * ALiBi().slopes(h)[None]


class TNL(Mixer):
    """Lightning attention (Qin et al. 2023, 2307.14995, section 3; decays and θ as in the authors' release).

    q, k = R(t) SiLU(x_t W)       S_t = λ S_{t-1} + k_t' v_t       o_t = q_t S_t
    y_t = W_O (o_t / rms(o_t) ⊙ x_t W_u)       the norm over all heads together, without a gain
    R(t), linearised relative positions with learned angles θ: 'cosine' [x cos tθ, x sin tθ], 'rotate' pairs by tθ

    x, y     (b, t, d)
    state    S (b, h, k, v), k doubled by 'cosine'; length (b), tokens of the document so far
    heads    None: of 128, but two at least
    lrpe     cosine, rotate or none
    λ comes from all layers of a stack (`tie`: the leaf `slope`); the last one hardly forgets. Only the first has
    places: `tie` sets the θ of the others to 0. By itself a mixer is a first layer.
    """

    width: int
    heads: int | None = None
    lrpe: str = "cosine"

    paper = "Qin et al. 2023"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.lrpe in ("cosine", "rotate", "none"), "lrpe", "cosine, rotate or none")
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        pairs = self.lrpe != "rotate" or self.width // self.h % 2 == 0
        self.check(pairs, "heads", f"a divisor of half the width {self.width}: dimensions turn in pairs")

    @property
    def h(self) -> int:
        return divisor(self.width // 2, max(2, self.width // 128)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        p = {n: into_heads(d, h, k) for n in ("query", "key", "value", "gate")} | {"out": from_heads(h, k, d)}
        if self.lrpe != "none":
            turning = k if self.lrpe == "cosine" else k // 2
            p["theta"] = Spec((h, turning), ("heads", "head"), Rates(d), keep=True)
        return p

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {
            "S": leaf(batch, (h, 2 * k if self.lrpe == "cosine" else k, k), ("heads", "head", None)),
            "length": leaf(batch, (), (), "int32"),
        }

    def tie(self, params: Params) -> Params:
        layers = params["out"].shape[0]
        tied = {**params, "slope": jnp.asarray(fading(self.h, layers), wide(params["out"]).dtype)}
        if self.lrpe != "none":
            first = (jnp.arange(layers) == 0)[:, None, None]
            tied["theta"] = jnp.where(first, params["theta"], jnp.zeros_like(params["theta"]))
        return tied

    def turn(self, params: Params, x: Array, place: Array) -> Array:
        """R(t) x.   x (b, t, h, k), place (b or 1, t) -> (b, t, h, k), or 2k wide under 'cosine'"""
        if self.lrpe == "none":
            return x
        y = wide(x)
        angle = place.astype(y.dtype)[:, :, None, None] * params["theta"].astype(y.dtype)[None, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if self.lrpe == "cosine":
            parts = y * cos, y * sin
        else:
            u, v = jnp.split(y, 2, axis=-1)
            parts = u * cos - v * sin, v * cos + u * sin
        return jnp.concatenate(parts, axis=-1).astype(x.dtype)

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, length = (None, None) if state is None else (state["S"], state["length"])
        place = positions(starts, length, x.shape[1])
        q, k = (self.turn(params, jax.nn.silu(dense(x, params[n])), place) for n in ("query", "key"))
        slope = params["slope"] if "slope" in params else jnp.asarray(fading(self.h, 1)[0], wide(x).dtype)
        g = jnp.broadcast_to(-slope.astype(wide(x).dtype)[None, None], q.shape[:3])
        o, after = decay(q, k, dense(x, params["value"]), g, S, starts)
        y = rms_norm(o.reshape(x.shape)).reshape(o.shape) * dense(x, params["gate"])
        after = {
            "S": after if S is None else after.astype(S.dtype),
            "length": jnp.broadcast_to(place[:, -1] + 1, x.shape[:1]),
        }
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], after)
