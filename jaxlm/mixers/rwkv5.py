"""RWKV-5's time mix: a matrix memory whose every key channel forgets at a rate of its own that data does not move."""

import jax
import jax.numpy as jnp

from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.layers.rwkv import Profile, group_gains, group_norm, lerp, shares
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.bonus import bonus_decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.shift import shift
from jaxlm.typing import Array, Params, State, wide

MIXES = {"receptance": 0.5, "key": 1.0, "value": 1.0, "gate": 0.5}  # their initial powers
BEND = (0.7, 1.3, 1.0)  # how the initial decays rise with the channel, and with depth


class RWKV5(Mixer):
    """RWKV-5.2 "Eagle", time mix (Peng et al. 2024, 2404.05892, eq. 3 to 10).

    u_c = x_t + (x_{t-1} - x_t) ⊙ μ_c for each c of r, k, v, g       r, k, v, g = u_r W_r, u_k W_k, u_v W_v, u_g W_g
    o_t = r_t (S_{t-1} + Diag(u) k_t' v_t)       S_t = Diag(exp(-exp(w))) S_{t-1} + k_t' v_t
    y_t = W_O (GroupNorm_head(o_t) ⊙ SiLU(g))

    x, y      (b, t, d)
    state     S (b, h, k, v), k = v = d / h; past: the last input (b, d)
    heads     None: heads of 64, two at least, or the largest divisor of the width below
    eps       of the norm over heads; None: 1e-5 times a head's width
    """

    width: int
    heads: int | None = None
    eps: float | None = None

    paper = "Peng et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(self.eps is None or self.eps > 0, "eps", "a positive number, or None")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        curve = lambda init: Spec((h, k), ("heads", "head"), init, keep=True)  # noqa: E731
        return {n: into_heads(d, h, k) for n in MIXES} | {
            "mix": shares(d, MIXES),
            "decay": curve(Profile(-6.0, rise=5.0, bend=BEND)),
            "bonus": curve(Profile(0.5, linear=-1.0)),
            "norm": group_gains(h, k),
            "out": from_heads(h, k, d),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {"S": leaf(batch, (h, k, k), ("heads", "head", None)), "past": leaf(batch, (self.width,), ("embed",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, past = (None, None) if state is None else (state["S"], state["past"])
        before, past = shift(x, past, starts)
        r, k, v, gate = (dense(lerp(x, before, params["mix"][n]), params[n]) for n in MIXES)
        g = jnp.broadcast_to(-jnp.exp(wide(params["decay"]))[None, None], k.shape)
        o, after = bonus_decay(r, k, wide(v), params["bonus"], g, S, starts)
        eps = 1e-5 * k.shape[-1] if self.eps is None else self.eps
        y = group_norm(params["norm"], o, eps).astype(x.dtype) * jax.nn.silu(gate)
        state = {"S": after if S is None else after.astype(S.dtype), "past": past}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
