"""sLSTM, the scalar memory of xLSTM: exponential gates over a normalised cell, and heads that mix among themselves."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.initializers import Normal, Uniform, Zeros
from jaxlm.layers.heads import divisor, head_gain
from jaxlm.layers.norm import layer_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.conv import conv
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State


@dataclasses.dataclass(frozen=True)
class ForgetBias:
    """Biases of the gates (h, 4, k): 0, and of f from 5 down to -7 over a head, 5 - 12 (j / (k-1))^(0.3 + 1.3 share).

    share   how far up the stack: 0 in the first layer, 1 in the last
    """

    share: Any = 0.0

    def at(self, layer: Array, depth: int) -> "ForgetBias":
        return ForgetBias(layer / max(1, depth - 1))

    def __call__(self, key: Array, spec: Spec) -> Array:
        place = jnp.linspace(0, 1, spec.shape[2], dtype=spec.dtype)
        bias = 5 - 12 * place ** jnp.asarray(0.3 + 1.3 * self.share, spec.dtype)
        gate = jnp.arange(4)[None, :, None] == 1
        return jnp.broadcast_to(jnp.where(gate, bias[None, None], 0), spec.shape)


class SLSTM(Mixer):
    """The sLSTM layer of xLSTM (Beck et al. 2024, 2405.04517, eqs. 8-18 and its block).

    u = SiLU(conv4(x) + b)
    i~, f~ = W u_t + R h_{t-1} + b       z~, o~ = W x_t + R h_{t-1} + b        W, R a block a head, each gate its own
    m_t = max(log σ(f~) + m_{t-1}, i~)                                         i~ at the first token
    i' = e^(i~ - m_t)       f' = e^(log σ(f~) + m_{t-1} - m_t)
    c_t = f' c_{t-1} + i' tanh(z~)       n_t = f' n_{t-1} + i'
    h_t = σ(o~) c_t / n_t
    y_t = LayerNorm_head(h_t)

    x, y     (b, t, d)
    state    h, c, n, m (b, h, k);  conv (b, 3, d), its last inputs
    heads    None: 4, or the largest divisor of the width below;  k = d / h
    The gate axis (4) of all weights is ordered i, f, z, o. R starts at 0. The paper's block is
    Block(SLSTM(d), GatedMLP(d, ...)).
    """

    width: int
    heads: int | None = None

    paper = "Beck et al. 2024"

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of {self.width}, the width")

    @property
    def h(self) -> int:
        return divisor(self.width, 4) if self.heads is None else self.heads

    @property
    def k(self) -> int:
        return self.width // self.h

    def params(self):
        d, h, k, tap = self.width, self.h, self.k, Uniform(-0.5, 0.5)
        axes = ("heads", "head", None, None)
        return {
            "conv": Spec((4, d), (None, "state"), tap),
            "conv_bias": Spec((d,), ("state",), tap),
            "input": Spec((h, k, 4, k), axes, Normal(math.sqrt(2 / (5 * d))), ins=("head",)),
            "hidden": Spec((h, k, 4, k), axes, Zeros, ins=("head",)),
            "bias": Spec((h, 4, k), ("heads", None, "head"), ForgetBias(), keep=True),
            "norm": head_gain(h, k),
        }

    def state(self, batch: int, room: int = 0):
        one = leaf(batch, (self.h, self.k), ("heads", "head"))
        return {"h": one, "c": one, "n": one, "m": one, "conv": leaf(batch, (3, self.width), (None, "state"))}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        u, past = conv(x, params["conv"], state["conv"], starts, params["conv_bias"])
        u, own = (a.reshape(*x.shape[:2], self.h, self.k) for a in (jax.nn.silu(u), x))

        def head(w: Affine, x: Array, state: State, fresh: State) -> tuple[Array, State]:
            return cell(advance, {"all": w}, x, state, starts, fresh)

        weights = Affine(both(params["input"]), params["bias"], params["hidden"])
        now, first = (None if s is None else {n: a for n, a in s.items() if n != "conv"} for s in (state, fresh))
        given = jnp.concatenate([u, own], axis=-1)
        hs, last = jax.vmap(head, in_axes=(0, 2, 1, 1), out_axes=(2, 1))(weights, given, now, first)
        y = layer_norm(hs, params["norm"]).astype(x.dtype).reshape(x.shape)
        return spoil(spoiled, y), spoil(spoiled[:, -1], last | {"conv": past})


def both(w: Array) -> Array:
    """One map of [u, x] from the maps of i and f, which read u, and of z and o, which read x.   (h, k, 4, k)"""
    of_u = jnp.arange(4)[None, None, :, None] < 2
    return jnp.concatenate([jnp.where(of_u, w, 0), jnp.where(of_u, 0, w)], axis=1)


def advance(s: State, mix: Mix) -> tuple[Array, State]:
    """One step of one head."""
    i, f, z, o = mix("all", s["h"])
    # n is 0 before the first token and at least 1 after it. There nothing can be kept, so m is i~ alone.
    kept = jnp.where(s["n"] == 0, i, jax.nn.log_sigmoid(f) + s["m"])
    m = jnp.maximum(kept, i)
    keep, write = jnp.exp(kept - m), jnp.exp(i - m)
    c = keep * s["c"] + write * jnp.tanh(z)
    n = keep * s["n"] + write
    h = jax.nn.sigmoid(o) * c / n
    return h, {"h": h, "c": c, "n": n, "m": m}
