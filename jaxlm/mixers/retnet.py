"""RetNet: linear attention that fades at a fixed rate a head, with queries and keys that turn with their place."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.layers.norm import rms_norm
from jaxlm.layers.rope import Rope
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.ops.cache import positions
from jaxlm.ops.decay import decay
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class RetNet(Mixer):
    """Multi-scale retention (Sun et al. 2023, 2307.08621, eqs. 6-8).

    q, k = R(t) x_t W       S_t = γ_h S_{t-1} + k_t' v_t       o_t = q_t S_t / √k
    y_t = W_O (RMSNorm_head(o_t) ⊙ SiLU(x_t W_G))              R(t) rotates pairs by their place; the norm has no gain

    x, y     (b, t, d)
    state    S (b, h, k, v), v = expand * k; length (b), tokens of the document so far
    heads    None: keys of 256, but two heads at least
    expand   v / k
    rope     R; Rope(fraction=0) turns nothing
    fade     1 - γ of the first head and of the last, the others evenly between them in the logarithm
             None: 1 - γ_h = 2^(-5-h), h = 0, 1, ...; (1/32, 1/512) in the paper's large models
    The paper's divisions of the scores by their row sums cancel under the norm.
    """

    width: int
    heads: int | None = None
    expand: int = 2
    rope: Rope = Rope()
    fade: tuple[float, float] | None = None

    paper = "Sun et al. 2023"
    forms = ("chunkwise",)

    def __post_init__(self):
        fits = self.h > 0 and self.width % self.h == 0 and self.rope.turning(self.width // self.h) % 2 == 0
        self.check(fits, "heads", f"a divisor of the width {self.width} that lets keys turn in pairs")
        self.check(self.expand > 0, "expand", "a positive number")
        fine = self.fade is None or (len(self.fade) == 2 and all(0 < f < 1 for f in self.fade))
        self.check(fine, "fade", "two shares in (0, 1), or None")

    @property
    def h(self) -> int:
        return divisor(self.width // 2, max(2, self.width // 256)) if self.heads is None else self.heads

    def rates(self) -> np.ndarray:
        """log γ_h.   (h) float64"""
        first, last = (2.0**-5, 2.0 ** (-4 - self.h)) if self.fade is None else self.fade
        return np.log1p(-np.geomspace(first, last, self.h))

    def params(self):
        d, h = self.width, self.h
        k, v = d // h, self.expand * d // h
        return {
            "query": into_heads(d, h, k),
            "key": into_heads(d, h, k),
            "value": into_heads(d, h, v),
            "gate": into_heads(d, h, v),
            "out": from_heads(h, v, d),
        }

    def state(self, batch: int, room: int = 0):
        k = self.width // self.h
        return {
            "S": leaf(batch, (self.h, k, self.expand * k), ("heads", "head", None)),
            "length": leaf(batch, (), (), "int32"),
        }

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        S, length = (None, None) if state is None else (state["S"], state["length"])
        place = positions(starts, length, x.shape[1])
        q, k = (self.rope.turn(dense(x, params[n]), place) for n in ("query", "key"))
        g = jnp.broadcast_to(jnp.asarray(self.rates(), wide(x).dtype)[None, None], q.shape[:3])
        o, after = decay(q * q.shape[-1] ** -0.5, k, dense(x, params["value"]), g, S, starts)
        y = rms_norm(o) * jax.nn.silu(dense(x, params["gate"]))
        after = {
            "S": after if S is None else after.astype(S.dtype),
            "length": jnp.broadcast_to(place[:, -1] + 1, x.shape[:1]),
        }
        return spoil(spoiled, merge(y, params["out"])), spoil(spoiled[:, -1], after)
