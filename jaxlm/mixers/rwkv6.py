"""RWKV-6's time mix: a matrix memory whose decay, and whose mixing with the token before, depend on the data."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Uniform
from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.layers.low_rank import low_rank, through
from jaxlm.layers.rwkv import Profile, group_gains, group_norm, lerp, shares
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.bonus import bonus_decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.shift import shift
from jaxlm.typing import Array, Params, State, wide

MIXES = ("decay", "key", "value", "receptance", "gate")
BEND = (0.7, 1.3, 1.0)  # how the initial decays rise with the channel, and with depth
LARGEST = 8.0  # of w in the log decay -exp(w): e^{-2981} is 0 in float64 already, and exp(w) stays finite


class RWKV6(Mixer):
    """RWKV-6 "Finch", time mix (Peng et al. 2024, 2404.05892, eq. 11 to 19).

    z = x_t + (x_{t-1} - x_t) ⊙ μ_x       m_c = μ_c + (tanh(z A) B)_c       u_c = x_t + (x_{t-1} - x_t) ⊙ m_c
    r, k, v, g = u_r W_r, u_k W_k, u_v W_v, u_g W_g       log α = -exp(w),  w = tanh(u_w W_1) W_2 + w_0
    o_t = r_t (S_{t-1} + Diag(u) k_t' v_t)       S_t = Diag(α_t) S_{t-1} + k_t' v_t
    y_t = W_O (GroupNorm_head(o_t) ⊙ SiLU(g))

    x, y      (b, t, d)
    state     S (b, h, k, v), k = v = d / h; past: the last input (b, d)
    heads     None: heads of 64, two at least, or the largest divisor of the width below
    rank      of the five mixes
    decay     rank of the decay's map
    """

    width: int
    heads: int | None = None
    rank: int = 32
    decay: int = 64

    paper = "Peng et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(self.rank > 0, "rank", "a positive number")
        self.check(self.decay > 0, "decay", "a positive rank")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    def params(self):
        d, h, k, n = self.width, self.h, self.width // self.h, len(MIXES)
        small = Uniform(-1e-4, 1e-4)
        p = {name: into_heads(d, h, k) for name in ("receptance", "key", "value", "gate")}
        return p | {
            "mix": shares(d, {"input": 1.0, "decay": 1.0, "key": 1.0, "value": 1.0, "receptance": 0.5, "gate": 0.5}),
            "mix_in": Spec((d, n, self.rank), ("embed", None, None), small, ins=("embed",)),
            "mix_out": Spec((n, self.rank, d), (None, "state", "embed"), small, ins=("state",)),
            "decay": low_rank(d, self.decay, h, k, Profile(-6.0, rise=5.0, bend=BEND), into=small, out=small),
            "bonus": Spec((h, k), ("heads", "head"), Profile(0.5, linear=-1.0), keep=True),
            "norm": group_gains(h, k),
            "out": from_heads(h, k, d),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {"S": leaf(batch, (h, k, k), ("heads", "head", None)), "past": leaf(batch, (self.width,), ("embed",))}

    def mixed(self, params: Params, x: Array, before: Array) -> dict[str, Array]:
        """The five mixes of a token with the one before.   x, before (b, t, d) -> {name: (b, t, d)}"""
        more = jnp.tanh(dense(lerp(x, before, params["mix"]["input"]), params["mix_in"]))
        more = wide(jnp.einsum("btnr,nrd->nbtd", more, params["mix_out"].astype(x.dtype)))
        now, past = wide(x), wide(before)
        share = lambda i, n: params["mix"][n].astype(now.dtype)[None, None] + more[i]  # noqa: E731
        return {n: (now + (past - now) * share(i, n)).astype(x.dtype) for i, n in enumerate(MIXES)}

    def forget(self, params: Params, u: Array) -> Array:
        """log α < 0, at least float32.   u (b, t, d) -> (b, t, h, k)"""
        return -jnp.exp(jnp.minimum(through(params["decay"], wide(u), jnp.tanh), LARGEST))

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, past = (None, None) if state is None else (state["S"], state["past"])
        before, past = shift(x, past, starts)
        u = self.mixed(params, x, before)
        r, k, v, gate = (dense(u[n], params[n]) for n in ("receptance", "key", "value", "gate"))
        o, after = bonus_decay(r, k, wide(v), params["bonus"], self.forget(params, u["decay"]), S, starts)
        y = group_norm(params["norm"], o, 1e-5 * k.shape[-1]).astype(x.dtype) * jax.nn.silu(gate)
        state = {"S": after if S is None else after.astype(S.dtype), "past": past}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
