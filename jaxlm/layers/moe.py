"""A mixture of experts: many MLPs, of which each token takes a few."""

import math

import jax
import jax.numpy as jnp

from jaxlm.initializers import FanIn, Normal
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.layers.mlp import hidden_width
from jaxlm.module import Module, Spec
from jaxlm.taps import name
from jaxlm.typing import Array, Params, wide


class MoE(Module):
    """Top-k routed gated MLPs (Shazeer et al. 2017; Lepikhin et al. 2021; Fedus et al. 2022; Zoph et al. 2022).

    p = softmax(x W_r)      T = the k largest of p      g = p_T / Σ p_T
    y = Σ_{e in T} g_e (act(x W_gate^e) * x W_up^e) W_down^e

    x, y        (b, t, d)
    experts     E
    active      k, of each token
    hidden      f of each expert; None: 8/3 of the width
    capacity    None: every token reaches its experts, and the laws of mixers hold. c: in a row of t tokens an expert
                takes its first c t k / E; later ones pass it by, which no later token can change. Static shapes, split
                over `expert` without a gather: the form for many devices
    aux.balance named activation (): E Σ_e (share of the choices that fall on e) (mean p_e), 1 where all are equal
    aux.z       named activation (): mean of (log Σ exp x W_r)^2, which keeps the router's logits small
    """

    width: int
    experts: int
    active: int = 2
    hidden: int | None = None
    activation: str = "silu"
    capacity: float | None = None

    def __post_init__(self):
        self.check(self.experts > 0, "experts", "at least one")
        self.check(0 < self.active <= self.experts, "active", f"1 to {self.experts}, the experts")
        self.check(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")
        self.check(self.capacity is None or self.capacity > 0, "capacity", "a positive factor, or None")

    def params(self):
        d, f, e = self.width, hidden_width(self.width, self.hidden), self.experts
        into = Spec((e, d, f), ("expert", "embed", "mlp"), FanIn(), ins=("embed",))
        down = Spec((e, f, d), ("expert", "mlp", "embed"), FanIn(), ins=("mlp",))
        router = Spec((d, e), ("embed", None), Normal(0.02), ins=("embed",), keep=True)
        return {"router": router, "gate": into, "up": into, "down": down}

    def route(self, params: Params, x: Array) -> tuple[Array, Array]:
        """Shares and numbers of the chosen experts.   x (b, t, d) -> g (b, t, k) wide, T (b, t, k) int"""
        logits = wide(x) @ wide(params["router"])
        p = jax.nn.softmax(logits)
        best, chosen = jax.lax.top_k(p, self.active)
        falls = jnp.mean(jax.nn.one_hot(chosen, self.experts, dtype=p.dtype), axis=(0, 1, 2))
        name(self.experts * jnp.sum(falls * jnp.mean(p, axis=(0, 1))), "aux.balance")
        name(jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2), "aux.z")
        return best / jnp.sum(best, axis=-1, keepdims=True), chosen

    def apply(self, params: Params, x: Array) -> Array:
        shares, chosen = self.route(params, x)
        low = {n: params[n].astype(x.dtype) for n in ("gate", "up", "down")}
        form = self.sorted if self.capacity is None else self.capped
        return form(low, x, shares.astype(x.dtype), chosen)

    def sorted(self, params: Params, x: Array, shares: Array, chosen: Array) -> Array:
        """Every token in full: tokens in the order of their experts, one product a run of equal ones."""
        b, t, d = x.shape
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=self.experts).astype(jnp.int32)
        rows = jnp.take(x.reshape(b * t, d), order // self.active, axis=0)
        act = ACTIVATIONS[self.activation]
        h = act(jax.lax.ragged_dot(rows, params["gate"], sizes)) * jax.lax.ragged_dot(rows, params["up"], sizes)
        y = jax.lax.ragged_dot(h, params["down"], sizes)
        y = jnp.zeros_like(y).at[order].set(y, unique_indices=True).reshape(b, t, self.active, d)
        return jnp.sum(y * shares[..., None], axis=2)

    def capped(self, params: Params, x: Array, shares: Array, chosen: Array) -> Array:
        """Each expert has so many places a row, taken in the order of the tokens."""
        b, t, _ = x.shape
        assert self.capacity is not None
        places = min(t, math.ceil(self.capacity * t * self.active / self.experts))
        picks = jax.nn.one_hot(chosen.reshape(b, t * self.active), self.experts, dtype=jnp.int32)
        before = (jnp.cumsum(picks, axis=1) - picks).reshape(b, t, self.active, self.experts)
        # A place beyond the last is no place: one_hot gives zeros there.
        seats = jax.nn.one_hot(before, places, dtype=x.dtype) * picks.reshape(before.shape)[..., None].astype(x.dtype)
        sent = jnp.sum(seats, axis=2)  # (b, t, e, places)
        back = jnp.einsum("btkep,btk->btep", seats, shares)
        inputs = jnp.einsum("btep,btd->ebpd", sent, x)
        act = ACTIVATIONS[self.activation]
        h = act(jnp.einsum("ebpd,edf->ebpf", inputs, params["gate"])) * jnp.einsum(
            "ebpd,edf->ebpf", inputs, params["up"]
        )
        return jnp.einsum("btep,ebpf,efd->btd", back, h, params["down"])
