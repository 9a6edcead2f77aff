"""Linear attention: softmax's kernel replaced by a product of positive features, so that the past fits a matrix."""

import jax.numpy as jnp

from jaxlm.layers.activation import elu_plus_one
from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class LinearAttention(Mixer):
    """Linear attention with its normaliser (Katharopoulos et al. 2020, eq. 18-20).

    S_t = S_{t-1} + φ(k_t)' v_t       z_t = z_{t-1} + φ(k_t)       o_t = φ(q_t) S_t / (φ(q_t)·z_t + ε)       φ = elu + 1

    x, y     (b, t, d)
    state    S (b, h, k, v), z (b, h, k)
    heads    None: the largest divisor of the width up to max(2, width / 64)
    eps      ε
    """

    width: int
    heads: int | None = None
    eps: float = 1e-6

    paper = "Katharopoulos et al. 2020"
    forms = ("chunkwise",)

    def __post_init__(self):
        self.check(self.width % self.h == 0, "heads", f"a divisor of the width {self.width}")

    @property
    def h(self) -> int:
        return divisor(self.width, max(2, self.width // 64)) if self.heads is None else self.heads

    def params(self):
        d, h, k = self.width, self.h, self.width // self.h
        return {n: into_heads(d, h, k) for n in ("query", "key", "value")} | {"out": from_heads(h, k, d)}

    def state(self, batch: int, room: int = 0):
        h, k = self.h, self.width // self.h
        return {
            "S": leaf(batch, (h, k, k), ("heads", "head", None)),
            "z": leaf(batch, (h, k), ("heads", "head")),
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        q, k = (elu_plus_one(wide(dense(x, params[n]))) for n in ("query", "key"))
        v = wide(dense(x, params["value"]))
        # z is one more column of S: the memory of a value that is always 1.
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        before = None if state is None else jnp.concatenate([state["S"], state["z"][..., None]], axis=-1)
        o, after = decay(q, k, v, None, before, starts)
        o = o[..., :-1] / (o[..., -1:] + self.eps)
        after = after if before is None else after.astype(before.dtype)
        y = merge(o.astype(x.dtype), params["out"])
        return spoil(spoiled, y), spoil(spoiled[:, -1], {"S": after[..., :-1], "z": after[..., -1]})
