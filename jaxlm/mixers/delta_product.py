"""DeltaProduct: several corrections of the memory for every token, so that a token may turn it and not only reflect."""

import jax
import jax.numpy as jnp

from jaxlm.layers.heads import decays, divisor, forget, from_heads, head_gain, into_heads, short_heads, taps_of
from jaxlm.layers.norm import l2_norm, rms_norm
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.ops.delta import delta
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class DeltaProduct(Mixer):
    """A product of `steps` Householder transitions for every token (Siems et al. 2025, 2502.10297, section 3).

    q = SiLU(conv4(x W_q)), and for j = 1..n: k_j, v_j = SiLU(conv4(x W_j)),  β_j = β_max σ(x W_βj); q, k_j of length 1
    S_{t,0} = S_{t-1,n}, with `decay` times α_t, log α_t = -exp(A) softplus(x_t W_α + b)
    S_{t,j} = S_{t,j-1} + β_{t,j} k_{t,j}' (v_{t,j} - k_{t,j} S_{t,j-1})       o_t = q_t S_{t,n} / √k
    y_t = W_O RMSNorm_head(o_t), with `gate` times SiLU(x_t W_g) before W_O

    x, y       (b, t, d)
    state      S (b, h, k, v), k = v = d / h; the last 3 inputs of each convolution (b, 3, h, k or n k)
    heads      None: 4, or the largest divisor of the width below
    steps      n; with one it is DeltaNet
    beta_max   2 makes each transition anything between the identity and a reflection
    decay      Gated DeltaProduct: a token first lets the memory fade, once for all its steps
    """

    width: int
    heads: int | None = None
    steps: int = 2
    beta_max: float = 2.0
    gate: bool = False
    decay: bool = False

    paper = "Siems et al. 2025"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.h > 0 and self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")
        self.check(self.steps > 0, "steps", "a positive number of corrections a token")
        self.check(0 < self.beta_max <= 2, "beta_max", "a rate in (0, 2]; beyond 2 the memory grows without bound")

    @property
    def h(self) -> int:
        return divisor(self.width, 4) if self.heads is None else self.heads

    def sizes(self) -> dict[str, int]:
        """Width of a head of queries, and of the keys and values of all steps."""
        k = self.width // self.h
        return {"query": k, "key": self.steps * k, "value": self.steps * k}

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        p = {n: into_heads(d, h, size) for n, size in self.sizes().items()}
        p |= {"conv": {n: taps_of(h, size) for n, size in self.sizes().items()}}
        p |= {"beta": into_heads(d, h, self.steps), "norm": head_gain(h, k), "out": from_heads(h, k, d)}
        p |= {"gate": into_heads(d, h, k)} if self.gate else {}
        return p | decays(d, h) if self.decay else p

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {
            "S": leaf(batch, (h, k, k), ("heads", "head", None)),
            "conv": {n: leaf(batch, (3, h, size), (None, "heads", "head")) for n, size in self.sizes().items()},
        }

    def spread(self, x: Array) -> Array:
        """Steps become time.   (b, t, h, n k) -> (b, t n, h, k)"""
        b, t, h, _ = x.shape
        return x.reshape(b, t, h, self.steps, -1).swapaxes(2, 3).reshape(b, t * self.steps, h, -1)

    def once(self, x: Array) -> Array:
        """What only the first step of a token has; zeros at the others.   (b, t, ...) -> (b, t n, ...)"""
        x = jnp.pad(x[:, :, None], [(0, 0), (0, 0), (0, self.steps - 1)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, past = (None, None) if state is None else (state["S"], state["conv"])
        now, past = short_heads(params, x, past, starts)
        beta = self.beta_max * jax.nn.sigmoid(dense(wide(x), params["beta"]))
        k, v, rate = (self.spread(a) for a in (wide(now["key"]), now["value"], beta))
        q, n = l2_norm(wide(now["query"])), self.steps
        # Only the last step of a token is read, and only its first one can decay or begin a document.
        last = jnp.pad((q * q.shape[-1] ** -0.5)[:, :, None], [(0, 0), (0, 0), (n - 1, 0), (0, 0), (0, 0)])
        g = self.once(forget(params, x)) if self.decay else None
        first = None if starts is None else self.once(starts)
        o, after = delta(last.reshape(k.shape), l2_norm(k), v, rate[..., 0], g, S, first)
        y = rms_norm(o[:, n - 1 :: n], params["norm"])
        if self.gate:
            y = y * jax.nn.silu(dense(x, params["gate"]))
        state = {"S": after if S is None else after.astype(S.dtype), "conv": past}
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], state)
