"""Attention with two numbers more per head: multiples of the identity beside its two products of matrices."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Zeros
from jaxlm.layers.rope import Rope
from jaxlm.mixers.attention import Attention
from jaxlm.mixers.base import leaf
from jaxlm.module import Spec
from jaxlm.ops.attention import attention
from jaxlm.ops.cache import cache_size, positions
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide


class IdentityAttention(Attention):
    """Attention with W_Q W_K^T + √k a I and W_V W_O + b I in place of these products; each head has its a and b.

    y_t = Σ_h Σ_s A^h_ts (x_s W_V^h W_O^h + b_h x_s)       A^h_t = softmax_s(q_t · k_s / √k + a_h x_t · x_s)
    From a = b = 0 it is Attention. What is equal is found, what is found is copied, whatever the symbol
    (Boix-Adsera et al. 2024, section 5).

    x, y         (b, t, d)
    state        k, v (b, slots, h, k + d): the token itself beside its key and value;  length (b)
    keys         learns a, one number a head; False: there is none
    values       learns b
    Other fields as Attention's; every head has keys of its own, and no sets.
    """

    keys: bool = True
    values: bool = True

    paper = "Boix-Adsera et al. 2024"

    def __post_init__(self):
        super().__post_init__()
        self.check(self.g == self.h, "kv_heads", "None: each head has its own")
        self.check(self.sets is None, "sets", "None")

    def params(self):
        scalar = Spec((self.h,), ("heads",), Zeros, keep=True)
        return super().params() | {n: scalar for n, used in (("a", self.keys), ("b", self.values)) if used}

    def state(self, batch: int, room: int = 0):
        slots = cache_size(room, self.window)
        kept = leaf(batch, (slots, self.h, self.k + self.width), (None, "kv_heads", None), self.cache_dtype)
        return {"k": kept, "v": kept, "length": leaf(batch, (), (), "int32")}

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        self.accepts(x, starts)
        x, state, spoiled = isolate(starts, x, state)
        q, k, v = self.project(params, x)
        if isinstance(self.position, Rope):
            place = positions(starts, None if state is None else state["length"], x.shape[1])
            q, k = self.position.turn(q, place), self.position.turn(k, place)
        own = jnp.broadcast_to(x[:, :, None], (*x.shape[:2], self.h, self.width))
        a, b = (params[n] if n in params else jnp.zeros(self.h, jnp.float32) for n in "ab")
        q = jnp.concatenate([wide(q) * self.k**-0.5, wide(own) * a[None, None, :, None]], axis=-1).astype(x.dtype)
        k, v = jnp.concatenate([k, own], axis=-1), jnp.concatenate([v, own], axis=-1)
        y, after = attention(q, k, v, state, starts, self.window, x.shape[1], bias=self.bias_of())
        if state is None and x.dtype != jnp.float64:
            after = jax.tree.map(lambda a: a.astype(self.cache_dtype) if a.dtype == x.dtype else a, after)
        copied = jnp.einsum("bthd,h->btd", y[..., self.k :], b.astype(y.dtype))
        return spoil(spoiled, self.give(params, y[..., : self.k]) + copied), spoil(spoiled[:, -1], after)
