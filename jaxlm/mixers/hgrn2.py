"""HGRN2: a gated matrix memory whose key is what the forget gate leaves, with a floor that rises with depth."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Ones, Zeros
from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.layers.norm import rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


def floors(bounds: Array) -> Array:
    """Lower bounds of the forget gates, γ^l = Σ_{1..l} softmax over layers: 0 in the first layer, rising, below 1.

    bounds   logits          (l, ...)
    ->       γ               (l, ...)
    """
    shares = jax.nn.softmax(wide(bounds), axis=0)
    return jnp.concatenate([jnp.zeros_like(shares[:1]), jnp.cumsum(shares[1:], axis=0)])


def bounded_forget(z: Array, floor: Array | None = None) -> tuple[Array, Array]:
    """log f and 1 - f of the forget gate f = γ + (1 - γ) σ(z), each right to the last digits wherever f is.

    z        wide            (..., h, k)
    floor    γ in [0, 1)     (h, k); None: 0
    ->       log f <= 0 and 1 - f, as z
    """
    if floor is None:
        return jax.nn.log_sigmoid(z), jax.nn.sigmoid(-z)
    low = floor.astype(z.dtype).reshape((1,) * (z.ndim - floor.ndim) + floor.shape)
    leaves = (1 - low) * jax.nn.sigmoid(-z)
    near, free = leaves < 0.5, jnp.broadcast_to(low == 0, z.shape)
    # Near 1 the logarithm reads 1 - f; below, a sum of two positive numbers; without a floor that sum may underflow.
    # The branch that is not taken gets a harmless input: its gradient would be inf * 0 otherwise.
    small = jnp.log1p(-jnp.where(near, leaves, jnp.zeros_like(leaves)))
    large = jnp.log(jnp.where(near | free, jnp.ones_like(z), low + (1 - low) * jax.nn.sigmoid(z)))
    return jnp.where(free, jax.nn.log_sigmoid(z), small + large), leaves


class HGRN2(Mixer):
    """Hierarchically gated linear RNN with state expansion (Qin et al. 2024, 2404.07904, section 3).

    f_t = γ + (1 - γ) σ(x_t W_f)       S_t = Diag(f_t) S_{t-1} + (1 - f_t)' (x_t W_i)       o_t = SiLU(x_t W_q) S_t / √k
    y_t = W_O RMSNorm(o_t), the norm over all heads together

    x, y     (b, t, d)
    state    S (b, h, k, v), k = v = d / h
    heads    None: the largest divisor of the width up to max(2, width / 128)
    γ comes from all layers of a stack (`tie`: the leaf `floor`): 0 in the first layer, rising with depth. By itself a
    mixer is a first layer, and its weight `bound` is not read.
    """

    width: int
    heads: int | None = None

    paper = "Qin et al. 2024"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 128)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        return {
            "query": into_heads(d, h, k),
            "forget": into_heads(d, h, k),
            "value": into_heads(d, h, k),
            "bound": Spec((h, k), ("heads", "head"), Zeros, keep=True),
            "norm": Spec((d,), ("embed",), Ones, keep=True),
            "out": from_heads(h, k, d),
        }

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {"S": leaf(batch, (h, k, k), ("heads", "head", None))}

    def tie(self, params: Params) -> Params:
        return {**params, "floor": floors(params["bound"])}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        q, z, v = (dense(x, params[n]) for n in ("query", "forget", "value"))
        g, k = bounded_forget(wide(z), params.get("floor"))
        before = None if state is None else state["S"]
        o, after = decay(jax.nn.silu(q) * q.shape[-1] ** -0.5, k, v, g, before, starts)
        y = rms_norm(o.reshape(x.shape), params["norm"]).reshape(o.shape)
        state = {"S": after if before is None else after.astype(before.dtype)}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
