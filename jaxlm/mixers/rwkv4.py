"""RWKV-4's time mix: a weighted mean of values per channel, the weights exponential in keys and fading with time."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.initializers import Constant, FanIn
from jaxlm.layers.rwkv import Profile, lerp, shares
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.scan import scan
from jaxlm.ops.shift import shift
from jaxlm.typing import Array, Params, State, wide

MIXES = {"receptance": 0.5, "key": 1.0, "value": 1.0}  # their initial powers
NOTHING = -1e30  # the log weight of an empty memory: its exponential is 0 beside any token's


class RWKV4(Mixer):
    """RWKV-4 "Dove", time mix (Peng et al. 2023, 2305.13048, eq. 11 to 16; appendix for the stable form).

    u_c = x_t + (x_{t-1} - x_t) ⊙ μ_c for each c of r, k, v       r, k, v = u_r W_r, u_k W_k, u_v W_v
    wkv_t = (Σ_{i<t} e^{-(t-1-i) e^w + k_i} v_i + e^{u + k_t} v_t) / (Σ_{i<t} e^{-(t-1-i) e^w + k_i} + e^{u + k_t})
    y_t = W_O (σ(r_t) ⊙ wkv_t)

    x, y      (b, t, d)
    state     sum and weight, numerator and denominator over e^peak; peak, the largest exponent; past, the last input:
              each (b, d)
    """

    width: int

    paper = "Peng et al. 2023"

    def params(self):
        d = self.width
        curve = lambda init: Spec((d,), ("state",), init, keep=True)  # noqa: E731
        return {n: Spec((d, d), ("embed", "state"), FanIn(), ins=("embed",)) for n in MIXES} | {
            "mix": shares(d, MIXES),
            "decay": curve(Profile(-5.0, rise=8.0, bend=(0.7, 1.3, 1.0))),
            "bonus": curve(Constant(-1.2)),
            "out": Spec((d, d), ("state", "embed"), FanIn(), ins=("state",)),
        }

    def state(self, batch: int, room: int = 0):
        one = leaf(batch, (self.width,), ("state",))
        empty = Spec((batch, self.width), ("batch", "state"), Constant(NOTHING))
        return {"sum": one, "weight": one, "peak": empty, "past": leaf(batch, (self.width,), ("embed",))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        before, past = shift(x, state["past"], starts)
        r, k, v = (dense(lerp(x, before, params["mix"][n]), params[n]) for n in MIXES)
        bonus, fade = (wide(params["bonus"])[None], jnp.exp(wide(params["decay"]))[None])

        def token(kv: tuple[Array, Array], s: State) -> tuple[Array, State]:
            k, v = kv
            seen, total, peak = s["sum"], s["weight"], s["peak"]
            top = jnp.maximum(peak, bonus + k)
            old, new = jnp.exp(peak - top), jnp.exp(bonus + k - top)
            y = (old * seen + new * v) / (old * total + new)
            top = jnp.maximum(peak - fade, k)
            old, new = jnp.exp(peak - fade - top), jnp.exp(k - top)
            return y, {"sum": old * seen + new * v, "weight": old * total + new, "peak": top}

        dtype = np.promote_types(wide(k).dtype, state["sum"].dtype)
        parts = lambda s: {n: s[n].astype(dtype) for n in ("sum", "weight", "peak")}  # noqa: E731
        kv = (k.astype(dtype), v.astype(dtype))
        wkv, after = scan(token, kv, parts(state), starts, None if fresh is None else parts(fresh))
        y = dense(jax.nn.sigmoid(r) * wkv.astype(x.dtype), params["out"])
        return spoil(spoiled, y), spoil(spoiled[:, -1], {**after, "past": past})
