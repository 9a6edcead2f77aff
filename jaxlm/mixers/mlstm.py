"""mLSTM, the matrix memory of xLSTM: exponential gates, kept in range by a running maximum in the state."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import Normal, Ones, Uniform, Zeros
from jaxlm.layers.heads import divisor, head_gain
from jaxlm.layers.norm import layer_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.conv import conv
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.ops.peak import peak
from jaxlm.typing import Array, Params, State, wide

HIGHEST = 80.0  # e^-m is cut at e^80: beyond, float32 has only inf, and a reading over either is 0


@dataclasses.dataclass(frozen=True)
class Ramp:
    """low to high in even steps, over the last axis."""

    low: float
    high: float

    def __call__(self, key: Array, spec: Spec) -> Array:
        return jnp.broadcast_to(jnp.linspace(self.low, self.high, spec.shape[-1], dtype=spec.dtype), spec.shape)


@dataclasses.dataclass(frozen=True)
class Closing:
    """N(0, (2 / (depth √width))^2): what a stack adds up keeps its size (Wang & Komatsuzaki 2021)."""

    width: int
    depth: int = 1

    def at(self, layer: Array, depth: int) -> "Closing":
        return Closing(self.width, depth)

    def __call__(self, key: Array, spec: Spec) -> Array:
        return Normal(2 / (self.depth * math.sqrt(self.width)))(key, spec)


class MLSTM(Mixer):
    """The mLSTM layer of xLSTM (Beck et al. 2024, 2405.04517, eqs. 15-27 and its block).

    u = x W_up       c = SiLU(conv4(u) + b)       q, k of c and v of u by blocks of 4 channels
    log i = [q, k, v] W_i + b_i       log f = log σ([q, k, v] W_f + b_f)       m_t = max(log f + m_{t-1}, log i)
    i' = e^(log i - m_t)       f' = e^(log f + m_{t-1} - m_t)
    C_t = f' C_{t-1} + i' k_t' v_t / √k       n_t = f' n_{t-1} + i' k_t / √k
    h_t = q_t C_t / (max(|q_t·n_t|, e^-m_t) + ε)
    y_t = W_down ((LayerNorm_head(h_t) + s ⊙ c_t) ⊙ SiLU(x_t W_z))

    x, y     (b, t, d)
    state    S (b, h, k, v), the paper's C;  n (b, h, k);  m (b, h);  conv (b, 3, expand d), its last inputs
    heads    None: 4, or the largest divisor of the width below
    expand   width of u in widths d; k = v = expand d / h
    block    channels that a query, key or value is mixed of
    eps      ε
    """

    width: int
    heads: int | None = None
    expand: int = 2
    block: int = 4
    eps: float = 1e-6

    paper = "Beck et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.expand > 0, "expand", "a positive number")
        self.check(self.h > 0 and self.inner % self.h == 0, "heads", f"a divisor of {self.inner}, the inner width")
        fits = self.block > 0 and self.inner % self.block == 0
        self.check(fits, "block", f"a divisor of {self.inner}, the inner width")

    @property
    def inner(self) -> int:
        """Width of the heads together."""
        return self.expand * self.width

    @property
    def h(self) -> int:
        return divisor(self.width, 4) if self.heads is None else self.heads

    def params(self):
        d, n, h = self.width, self.inner, self.h
        small, tap = Normal(math.sqrt(2 / (5 * d))), Uniform(-0.5, 0.5)
        up = Spec((d, n), ("embed", "state"), small, ins=("embed",))
        blocks = Spec((n // self.block, self.block, self.block), ("heads", "head", None), small, ins=("head",))
        return {
            "up": up,
            "gate": up,
            "conv": Spec((4, n), (None, "state"), tap),
            "conv_bias": Spec((n,), ("state",), tap),
            "query": blocks,
            "key": blocks,
            "value": blocks,
            "gates": Spec((3 * n, 2, h), ("state", None, "heads"), Zeros, ins=("state",)),
            "input_bias": Spec((h,), ("heads",), Normal(0.1), keep=True),
            "forget_bias": Spec((h,), ("heads",), Ramp(3.0, 6.0), keep=True),
            "norm": head_gain(h, n // h),
            "skip": Spec((n,), ("state",), Ones, keep=True),
            "down": Spec((n, d), ("state", "embed"), Closing(d), ins=("state",)),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.inner // self.h
        return {
            "S": leaf(batch, (h, k, k), ("heads", "head", None)),
            "n": leaf(batch, (h, k), ("heads", "head")),
            "m": leaf(batch, (h,), ("heads",)),
            "conv": leaf(batch, (3, self.inner), (None, "state")),
        }

    def gates(self, params: Params, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        """log i and log f, at least float32.   q, k, v (b, t, n) -> two of (b, t, h)"""
        pre = dense(wide(jnp.concatenate([q, k, v], axis=-1)), params["gates"])
        bias = [params[n].astype(pre.dtype)[None, None] for n in ("input_bias", "forget_bias")]
        return pre[:, :, 0] + bias[0], jax.nn.log_sigmoid(pre[:, :, 1] + bias[1])

    def remember(
        self, params: Params, q: Array, k: Array, v: Array, state: State = None, starts: Array | None = None
    ) -> tuple[Array, State]:
        """h_t and the memory {S, n, m} after it.   q, k, v (b, t, n) -> (b, t, h, v) at least float32"""
        log_i, log_f = self.gates(params, q, k, v)
        q, k, v = (wide(a).reshape(*a.shape[:2], self.h, -1) for a in (q, k, v))
        m, earlier = peak(log_f, log_i, None if state is None else state["m"], starts)
        k = k * (k.shape[-1] ** -0.5 * jnp.exp(log_i - m))[..., None]
        # n is one more column of S: the memory of a value that is always 1.
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        before = None if state is None else jnp.concatenate([state["S"], state["n"][..., None]], axis=-1)
        o, after = decay(q, k, v, log_f + earlier - m, before, starts)
        floor = jnp.exp(jnp.minimum(-m, HIGHEST))
        y = o[..., :-1] / (jnp.maximum(jnp.abs(o[..., -1]), floor) + self.eps)[..., None]
        last = {"S": after[..., :-1], "n": after[..., -1], "m": m[:, -1]}
        return y, last if state is None else {n: a.astype(state[n].dtype) for n, a in last.items()}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        u = dense(x, params["up"])
        past = jnp.zeros((x.shape[0], 3, self.inner), wide(x).dtype) if state is None else state["conv"]
        c, past = conv(u, params["conv"], past, starts, params["conv_bias"])
        c = jax.nn.silu(c)
        q, k, v = (self.mix(params[n], a) for n, a in (("query", c), ("key", c), ("value", u)))
        h, after = self.remember(params, q, k, v, state, starts)
        h = layer_norm(h, params["norm"]).astype(x.dtype)
        y = h.reshape(c.shape) + params["skip"].astype(x.dtype)[None, None] * c
        y = dense(y * jax.nn.silu(dense(x, params["gate"])), params["down"])
        return spoil(spoiled, y), spoil(spoiled[:, -1], after | {"conv": past})

    def mix(self, w: Array, x: Array) -> Array:
        """Each block of channels through its own map.   x (b, t, n) -> (b, t, n)"""
        blocks = x.reshape(*x.shape[:2], -1, self.block)
        return jnp.einsum("btnk,nkv->btnv", blocks, w.astype(x.dtype)).reshape(x.shape)
