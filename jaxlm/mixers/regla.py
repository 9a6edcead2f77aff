"""ReGLA: gated linear attention with bounded exponential features and a gate that learns even where it is saturated."""

import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import Zeros
from jaxlm.layers.heads import divisor, from_heads, head_gain, into_heads
from jaxlm.layers.norm import layer_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.peak import peak
from jaxlm.typing import Array, Params, State, wide


def refined(z: Array, w: Array) -> Array:
    """log F of the refined gate F = (1 - r) g² + r (1 - (1 - g)²), with g = σ(z), r = σ(w) (Gu et al. 2020, eq. 6).

    Near 1 the logarithm reads 1 - F = (1 - g) ((1 - r) (1 + g) + r (1 - g)), below it F = g (g + 2 r (1 - g)): both are
    of positive numbers alone, so that it is right to the last digits wherever F is.
    """
    g, r = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(w)
    leaves = jax.nn.sigmoid(-w) * (1 + jax.nn.sigmoid(z)) + jax.nn.sigmoid(w) * jax.nn.sigmoid(-z)
    leaves = leaves * jax.nn.sigmoid(-z)
    near = leaves < 0.5
    small = jnp.log1p(-jnp.where(near, leaves, jnp.zeros_like(leaves)))
    return jnp.where(near, small, g + jnp.logaddexp(g, math.log(2) + r + jax.nn.log_sigmoid(-z)))


class ReGLA(Mixer):
    """Refined gated linear attention (Lu et al. 2025, 2502.01578, section 3).

    φ(q_t) = exp(x_t W_q - max_k)       φ(k_t) = exp(x_t W_k - m_t)       m_t = max(m_{t-1}, max_k x_t W_k), m_0 = 0
    g, r = σ(x_t W + b)       F_t = (1 - r) g² + r (1 - (1 - g)²)
    S_t = e^(m_{t-1} - m_t) Diag(F_t) S_{t-1} + φ(k_t)' v_t       o_t = φ(q_t) S_t / (e √(k (e² - 1)))
    y_t = W_O LayerNorm_head(o_t)

    x, y     (b, t, d)
    state    S (b, h, k, v), k = v = d / h;  m (b, h)
    heads    None: the largest divisor of the width up to max(2, width / 64)
    The paper subtracts the largest key of the whole sequence, future included. The running one changes a head's memory
    in size alone, which the norm divides out, and sees no future. The scale of o is that of a sum of k terms e^(x + y).
    """

    width: int
    heads: int | None = None

    paper = "Lu et al. 2025"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        bias = Spec((h, k), ("heads", "head"), Zeros, keep=True)
        return {n: into_heads(d, h, k) for n in ("query", "key", "value", "forget", "refine")} | {
            "forget_bias": bias,
            "refine_bias": bias,
            "norm": head_gain(h, k),
            "norm_bias": bias,
            "out": from_heads(h, k, d),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {"S": leaf(batch, (h, k, k), ("heads", "head", None)), "m": leaf(batch, (h,), ("heads",))}

    def forget(self, params: Params, x: Array) -> Array:
        """log F, at least float32.   x (b, t, d) -> (b, t, h, k)"""
        return refined(*(dense(wide(x), params[n], params[f"{n}_bias"]) for n in ("forget", "refine")))

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        q, k = (wide(dense(x, params[n])) for n in ("query", "key"))
        most = jnp.max(k, axis=-1)
        m, earlier = peak(jnp.zeros_like(most), most, None if state is None else state["m"], starts)
        q = jnp.exp(q - jnp.max(q, axis=-1, keepdims=True)) / (math.e * math.sqrt(k.shape[-1] * math.expm1(2)))
        g = self.forget(params, x) + (earlier - m)[..., None]
        v = wide(dense(x, params["value"]))
        o, after = decay(q, jnp.exp(k - m[..., None]), v, g, None if state is None else state["S"], starts)
        y = layer_norm(o, params["norm"])
        y = (y + params["norm_bias"].astype(y.dtype)[None, None]).astype(x.dtype)
        after = {"S": after, "m": m[:, -1]}
        after = after if state is None else {n: a.astype(state[n].dtype) for n, a in after.items()}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], after)
