"""The memory models that `memax` 0.1.1 and jaxlm both have, in pairs of one width and one size of state.

Where the equations agree, our mixer takes memax's weights. Elsewhere, `same` is memax's own layer with our op in the
place of its scan: it shows that the memory is the same, and that only what stands around it differs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
from memax.equinox.semigroups.attn import Attention as TheirAttention  # pyright: ignore[reportMissingImports]
from memax.equinox.semigroups.delta import DeltaNet as TheirDeltaNet  # pyright: ignore[reportMissingImports]
from memax.equinox.semigroups.deltap import DeltaProduct as TheirProduct  # pyright: ignore[reportMissingImports]
from memax.equinox.semigroups.fart import FART  # pyright: ignore[reportMissingImports]
from memax.equinox.semigroups.gdn import GDN  # pyright: ignore[reportMissingImports]
from memax.equinox.semigroups.lru import LRU as TheirLRU  # pyright: ignore[reportMissingImports]
from memax.equinox.semigroups.s6 import S6  # pyright: ignore[reportMissingImports]
from memax.equinox.set_actions.gru import GRU as TheirGRU  # pyright: ignore[reportMissingImports]
from memax.equinox.set_actions.lstm import LSTM as TheirLSTM  # pyright: ignore[reportMissingImports]

from jaxlm.mixers import GRU, LRU, LSTM, Attention, DeltaNet, DeltaProduct, GatedDeltaNet, LinearAttention, Mamba, Mixer
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.decay import decay
from jaxlm.ops.recurrence import recurrence
from jaxlm.typing import Array, Params, State


class Pair(NamedTuple):
    """One memory on both sides.

    layer       memax's
    mixer       jaxlm's
    params      memax's weights as ours, where the equations agree
    same        x (b, t, d) -> y; memax's equations with our op, where they do not
    difference  in what they do not agree
    """

    layer: Any
    mixer: Mixer
    params: Params | None = None
    same: Callable[[Array], Array] | None = None
    difference: str = ""


def theirs(layer: Any) -> tuple[Params, Callable[[Params, Array], Array]]:
    """(weights, apply) of a memax layer over rows.   x (b, t, d) -> y (b, t, d)"""
    params, rest = eqx.partition(layer, eqx.is_inexact_array)

    def apply(params: Params, x: Array) -> Array:
        whole = eqx.combine(params, rest)
        return jax.vmap(lambda x: whole(whole.initialize_carry(), (x, jnp.zeros(len(x), jnp.bool_)))[1])(x)

    return params, apply


def pairs(d: int, window: int) -> dict[str, Pair]:
    """Every memory that both have, by our name."""
    key = jax.random.key(0)
    lstm, gru, lru, s6 = TheirLSTM(d, key), TheirGRU(d, key), TheirLRU(d, d, key), S6(d, d, key)
    fart, attention = FART(d, d, key), TheirAttention(d, window, None, key)
    # The delta rule is S (1 - β k k') + β v k', with the transition on the side of the keys.
    other_side = "theirs is (1 - β k k') S + β v k', which corrects along values; ours has convolutions and norms"
    gated = GatedDeltaNet(d, heads=1, head=d, expand=1, beta_max=2.0)
    ours = Attention(d, heads=1, window=window, position=None, bias=True)
    return {
        "LSTM": Pair(lstm, LSTM(d), None, lambda x: lstm_same(lstm, x), "theirs gives o c, ours o tanh(c)"),
        "GRU": Pair(gru, GRU(d), gru_weights(gru)),
        "LRU": Pair(lru, LRU(d), lru_weights(lru)),
        "Mamba": Pair(
            s6, Mamba(d, slots=1, expand=1), None, lambda x: s6_same(s6, x),
            "theirs holds the input exactly between steps; ours has a convolution, a gate and a map out",
        ),
        "LinearAttention": Pair(
            fart, LinearAttention(d, heads=1), None, lambda x: fart_same(fart, x),
            "theirs normalises by the last key alone and adds its input",
        ),
        "DeltaNet": Pair(TheirDeltaNet(d, d, key), DeltaNet(d, heads=1, beta_max=2.0), difference=other_side),
        "GatedDeltaNet": Pair(GDN(d, d, key), gated, difference=other_side),
        "DeltaProduct": Pair(
            TheirProduct(d, d, 2, key), DeltaProduct(d, heads=1), difference="theirs is a product entry by entry"
        ),
        "Attention": Pair(attention, ours, attention_weights(attention)),
    }  # fmt: skip


def lin(layer: Any, x: Array) -> Array:
    """A Linear of theirs over rows."""
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias[None, None]


def maps(input: list[Any], hidden: list[Any]) -> dict[str, Array]:
    """Linears of theirs as the gates of a cell of ours."""
    stacked = lambda layers: jnp.stack([u.weight.T for u in layers], axis=1)  # noqa: E731
    return {"input": stacked(input), "hidden": stacked(hidden), "bias": jnp.stack([w.bias for w in input])}


def gru_weights(layer: Any) -> Params:
    a = layer.algebra.algebra
    return maps([a.W_r, a.W_z, a.W_h], [a.U_r, a.U_z, a.U_h])


def lru_weights(a: Any) -> Params:
    B, C = jnp.stack([a.B_re.T, a.B_im.T], axis=1), jnp.stack([a.C_re.T, a.C_im.T])
    return {"nu": a.nu_log, "theta": a.theta_log, "B": B, "C": C, "D": a.D}


def attention_weights(a: Any) -> Params:
    d = len(a.Q.weight)
    none, one = jnp.zeros((1, d)), jnp.eye(d)
    of = {name: layer.weight.T[:, None] for name, layer in (("query", a.Q), ("key", a.K), ("value", a.V))}
    biases = {"query_bias": none, "key_bias": none, "value_bias": a.V.bias[None], "out_bias": none[0]}
    return of | biases | {"out": one[None]}


def lstm_same(layer: Any, x: Array) -> Array:
    a = layer.algebra.algebra
    gates = Affine(**maps([a.W_i, a.W_f, a.W_c, a.W_o], [a.U_i, a.U_f, a.U_c, a.U_o]))

    def step(s: State, mix: Mix) -> tuple[Array, State]:
        i, f, z, o = mix("gates", s["h"])
        c = jax.nn.sigmoid(f) * s["c"] + jax.nn.sigmoid(i) * jnp.tanh(z)
        return jax.nn.sigmoid(o) * c, {"h": jax.nn.sigmoid(o) * c, "c": c}

    none = jnp.zeros((x.shape[0], x.shape[2]))
    return cell(step, {"gates": gates}, x, {"h": none, "c": none})[0]


def s6_same(layer: Any, x: Array) -> Array:
    rate = -jnp.exp(layer.A_log)[None, None]
    a = jnp.exp(jax.nn.softplus(lin(layer.dt.layers[0], x)) * rate)
    return lin(layer.C, x) * recurrence(a, (a - 1) / rate * lin(layer.B, x) * x, None)[0]


def fart_same(layer: Any, x: Array) -> Array:
    q, k = (1 + jax.nn.elu(lin(m, x)) for m in (layer.Q, layer.K))
    o = decay(q[:, :, None], k[:, :, None], lin(layer.V, x)[:, :, None], None, None, None)[0][:, :, 0]
    return lin(layer.output, o / (1e-6 + jnp.sum(q * k, axis=-1, keepdims=True))) + x
