"""Softmax attention: many heads, grouped keys and values, positions as a value, an optional window."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Ones, Zeros
from jaxlm.layers.heads import divisor, from_heads, into_heads
from jaxlm.layers.norm import rms_norm
from jaxlm.layers.position import ALiBi, Sets
from jaxlm.layers.rope import Rope
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.attention import Bias, attention
from jaxlm.ops.cache import cache_size, positions
from jaxlm.ops.dense import dense, merge
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class Attention(Mixer):
    """Causal softmax attention in the shape of Llama (Vaswani et al. 2017, eq. 1; Su et al. 2021; Ainslie et al. 2023).

    q, k, v = x W       y_t = W_O Σ_s softmax_s(R(t) q_t · R(s) k_s / √k) v_s       s <= t, both in one document

    x, y         (b, t, d)
    state        k (b, slots, g, k) rotated, v (b, slots, g, k); slots = room, or window - 1
                 length (b), tokens of the document so far
    heads        h; None: the largest divisor of half the width up to max(2, width / 64)
    kv_heads     g, shared by h / g queries each; None: h (multi-head), 1: multi-query
    head         k, its turning share even under Rope; None: width / h
    window       a token sees itself and the window - 1 before it; None: all of its document
    position     how places inside the document enter: Rope, ALiBi, or None
    sets         parts of the document without an order among them; None: it is one sequence
    qk_norm      RMSNorm of queries and keys in each head before the rotation
    bias         on the four maps
    cache_dtype  of the keys and values in the state
    """

    width: int
    heads: int | None = None
    kv_heads: int | None = None
    head: int | None = None
    window: int | None = None
    position: Rope | ALiBi | None = Rope()
    sets: Sets | None = None
    qk_norm: bool = False
    bias: bool = False
    cache_dtype: str = "float32"

    paper = "Vaswani et al. 2017"
    forms = ("blockwise",)

    def __post_init__(self):
        fits = self.head is not None or self.width % self.h == 0
        self.check(self.h > 0 and fits, "heads", f"a divisor of the width {self.width}, unless `head` is given")
        self.check(self.g > 0 and self.h % self.g == 0, "kv_heads", f"a divisor of the {self.h} heads")
        turning = self.position.turning(self.k) if isinstance(self.position, Rope) else 0
        even = f"an even number of dimensions for Rope to turn (of {self.k} it comes to {turning})"
        self.check(self.k > 0 and turning % 2 == 0, "head", even)
        self.check(self.window is None or self.window > 0, "window", "at least 1, or None")
        self.check(self.window is None or self.sets is None, "window", "None beside sets")

    @property
    def growth(self) -> str:  # type: ignore[override]
        return "quadratic" if self.window is None else "linear"

    @property
    def h(self) -> int:
        return divisor(self.width // 2, max(2, self.width // 64)) if self.heads is None else self.heads

    @property
    def g(self) -> int:
        return self.h if self.kv_heads is None else self.kv_heads

    @property
    def k(self) -> int:
        return self.width // self.h if self.head is None else self.head

    def params(self):
        d, h, g, k = self.width, self.h, self.g, self.k
        p = {
            "query": into_heads(d, h, k),
            "key": into_heads(d, g, k, "kv_heads"),
            "value": into_heads(d, g, k, "kv_heads"),
            "out": from_heads(h, k, d),
        }
        if self.bias:
            p["query_bias"] = Spec((h, k), ("heads", "head"), Zeros)
            p |= {f"{n}_bias": Spec((g, k), ("kv_heads", "head"), Zeros) for n in ("key", "value")}
            p["out_bias"] = Spec((d,), ("embed",), Zeros)
        if self.qk_norm:
            p |= {f"{n}_norm": Spec((k,), ("head",), Ones, keep=True) for n in ("query", "key")}
        return p

    def state(self, batch: int, room: int = 0):
        slots = cache_size(room, self.window)
        kept = leaf(batch, (slots, self.g, self.k), (None, "kv_heads", "head"), self.cache_dtype)
        return {"k": kept, "v": kept, "length": leaf(batch, (), (), "int32")}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        q, k, v = self.project(params, x)
        if isinstance(self.position, Rope):
            number = positions(starts, None if state is None else state["length"], x.shape[1])
            place = number if self.sets is None else self.sets.places(number)
            q, k = self.position.turn(q, place), self.position.turn(k, place)
        q = (wide(q) * self.k**-0.5).astype(x.dtype)
        y, after = attention(q, k, v, state, starts, self.window, x.shape[1], bias=self.bias_of())
        if state is None and x.dtype != jnp.float64:  # float64 stays: its tests would see a float32 cache
            after = jax.tree.map(lambda a: a.astype(self.cache_dtype) if a.dtype == x.dtype else a, after)
        return spoil(spoiled, self.give(params, y)), spoil(spoiled[:, -1], after)

    def project(self, params: Params, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, not turned or scaled.   x (b, t, d) -> (b, t, h, k), (b, t, g, k), (b, t, g, k)"""
        q, k, v = (dense(x, params[n], params.get(f"{n}_bias")) for n in ("query", "key", "value"))
        if self.qk_norm:
            q, k = rms_norm(q, params["query_norm"]), rms_norm(k, params["key_norm"])
        return q, k, v

    def remembered(self, params: Params, x: Array, starts: Array | None, number: Array) -> tuple[Array, Array]:
        """What each token leaves in the state, nan from a non-finite one to its document's end.

        x (b, t, d), starts (b, t), number in the document (b or 1, t) -> keys, turned (b, t, g, k), values (b, t, g, k)
        """
        x, _, spoiled = isolate(starts, x)
        _, k, v = self.project(params, x)
        if isinstance(self.position, Rope):
            k = self.position.turn(k, number if self.sets is None else self.sets.places(number))
        return spoil(spoiled, (k, v))

    def give(self, params: Params, y: Array) -> Array:
        """What the heads found, mapped to the width.   y (b, t, h, k) -> (b, t, d)"""
        y = merge(y, params["out"])
        return y + params["out_bias"].astype(y.dtype)[None, None] if self.bias else y

    def bias_of(self) -> Bias | None:
        """What is added to the scores, by the numbers of queries and keys in their document."""
        sets = self.sets
        if sets is None and not isinstance(self.position, ALiBi):
            return None

        def bias(query: Array, key: Array) -> Array:
            out = jnp.zeros((), jnp.float32)
            if isinstance(self.position, ALiBi):
                places = (query, key) if sets is None else (sets.places(query), sets.places(key))
                out = self.position.bias(self.h, *places)
            return out if sets is None else jnp.where(sets.visible(query, key), out, -jnp.inf)

        return bias
