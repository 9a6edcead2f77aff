"""RWKV-7's time mix: a delta rule whose decay, rate of removal and key of removal are each a vector of its own."""

import math

import jax
import jax.numpy as jnp

from jaxlm.errors import ConfigError
from jaxlm.initializers import Zeros
from jaxlm.layers.heads import divisor
from jaxlm.layers.low_rank import low_rank, through
from jaxlm.layers.norm import l2_norm
from jaxlm.layers.rwkv import Orthogonal, Profile, constant, group_gains, group_norm, lerp, shares
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.dplr import dplr
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.shift import shift
from jaxlm.typing import Array, Params, State, wide

MIXES = {"receptance": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}  # their initial powers


class RWKV7(Mixer):
    """RWKV-7 "Goose", time mix (Peng et al. 2025, 2503.14456, section 4; appendix for the initial values).

    u_c = x_t + (x_{t-1} - x_t) ⊙ μ_c for each c of r, w, k, v, a, g        r, k, v = u_r W_r, u_k W_k, u_v W_v
    log w = -e^{-1/2} σ(tanh(u_w W_1) W_2 + w_0)       a = σ(u_a A_1 A_2 + a_0)       g = σ(u_g G_1) G_2
    κ = k ⊙ k_k of length 1 in each head       k <- k ⊙ (1 + (a - 1) ⊙ k_a)
    S_t = Diag(w) S_{t-1} - (κ ⊙ a)' κ S_{t-1} + k' v       o_t = r S_t
    y_t = W_O ((GroupNorm_head(o_t) + (Σ r ⊙ k ⊙ r_k) v) ⊙ g)

    x, y      (b, t, d)
    state     S (b, h, k, v), k = v = d / h; past: the last input (b, d)
    heads     None: heads of 64, two at least, or the largest divisor of the width below
    ranks     of the maps of w, a, v and g; None: as published for the width
    shares    a layer after the first: v <- v + (v of the first layer - v) ⊙ σ(u_v V_1 V_2 + v_0). Those values pass
              beside the stream: use `mix` (`models.rwkv.RWKV7Body` does)
    """

    width: int
    heads: int | None = None
    ranks: tuple[int, int, int, int] | None = None
    shares: bool = False

    paper = "Peng et al. 2025"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        ok = self.ranks is None or (len(self.ranks) == 4 and min(self.ranks) > 0)
        self.check(ok, "ranks", "four positive numbers (of w, a, v and g), or None")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    @property
    def through(self) -> tuple[int, int, int, int]:
        """The four ranks."""
        root, thirty_two = math.sqrt(self.width), lambda n: max(32, 32 * round(n / 32))
        sizes = (1.8 * root, 1.8 * root, 1.3 * root, 0.6 * self.width**0.8)
        w, a, v, g = map(thirty_two, sizes)
        return (w, a, v, g) if self.ranks is None else self.ranks

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        w, a, v, g = self.through
        small = {"into": Zeros, "out": Orthogonal(0.1)}
        square = lambda gain: Spec((d, h, k), ("embed", "heads", "head"), Orthogonal(gain), ins=("embed",))  # noqa: E731
        p = {"receptance": square(1.0), "key": square(0.1), "value": square(1.0)}
        p |= {
            "mix": shares(d, MIXES),
            "decay": low_rank(d, w, h, k, Profile(-5.5, zigzag=2.5, rise=6.0), **small),
            "rate": low_rank(d, a, h, k, Profile(-0.19, linear=0.4, zigzag=0.3), **small),
            "gate": low_rank(d, g, h, k, None, **small),
            "removal": Spec((h, k), ("heads", "head"), Profile(0.71, linear=-0.1), keep=True),  # k_k
            "replacement": constant(h, k, 1.02),  # k_a
            "bonus": constant(h, k, -0.04),  # r_k
            "norm": group_gains(h, k),
            "out": Spec((h, k, d), ("heads", "head", "embed"), Zeros, ins=("heads", "head")),
        }
        return p | {"share": low_rank(d, v, h, k, Profile(0.73, linear=-0.4), **small)} if self.shares else p

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {"S": leaf(batch, (h, k, k), ("heads", "head", None)), "past": leaf(batch, (self.width,), ("embed",))}

    def forget(self, params: Params, u: Array) -> Array:
        """log w in (-e^{-1/2}, 0), at least float32.   u (b, t, d) -> (b, t, h, k)"""
        return -math.exp(-0.5) * jax.nn.sigmoid(through(params["decay"], wide(u), jnp.tanh))

    def mix(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, first: Array | None = None
    ) -> tuple[Array, State, Array]:
        """As `apply`, and the values of this layer, which the layers after the first one are given as `first`.

        first   (b, t, h, v) where `shares`, else None
        ->      y (b, t, d), state, values (b, t, h, v)
        """
        self.accepts(x, starts)
        if (first is not None) != self.shares:
            given = "None" if first is None else f"shape {first.shape}"
            raise ConfigError(f"RWKV7.mix: first is {given}: expected the first layer's values where shares is True")
        x, state, spoiled = isolate(starts, x, state)
        S, past = (None, None) if state is None else (state["S"], state["past"])
        before, past = shift(x, past, starts)
        u = {n: lerp(x, before, mu) for n, mu in params["mix"].items()}
        r, k, v = (dense(u[n], params[n]) for n in ("receptance", "key", "value"))
        if first is not None:
            v = v + (first.astype(v.dtype) - v) * jax.nn.sigmoid(through(params["share"], u["value"]))
        of = lambda n: wide(params[n])[None, None]  # noqa: E731
        a = jax.nn.sigmoid(through(params["rate"], wide(u["rate"])))
        removed, k = l2_norm(wide(k) * of("removal")), wide(k) * (1 + (a - 1) * of("replacement"))
        o, after = dplr(r, -removed, removed * a, k, wide(v), self.forget(params, u["decay"]), S, starts)
        bonus = jnp.sum(wide(r) * k * of("bonus"), axis=-1, keepdims=True) * wide(v)
        y = group_norm(params["norm"], o, 1e-5 * k.shape[-1]) + bonus
        y = y.astype(x.dtype) * through(params["gate"], u["gate"], jax.nn.sigmoid)
        state = {"S": after if S is None else after.astype(S.dtype), "past": past}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state), v

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        return self.mix(params, x, state, starts)[:2]
