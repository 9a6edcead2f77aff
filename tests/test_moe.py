"""The mixture of experts against a loop over tokens; its two forms, its losses, its places on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import float64

from jaxlm import taps
from jaxlm.cost import flops
from jaxlm.layers.moe import MoE
from jaxlm.module import ConfigError, init
from jaxlm.sharding import init_sharded
from jaxlm.sharding import mesh as make_mesh

B, T, D = 2, 7, 8
MIXTURE = MoE(D, experts=4, active=2, hidden=6)


def given(module: MoE):
    params = init(module, jax.random.key(0))
    params = {**params, "router": 40 * params["router"]}  # choices that differ
    return params, jax.random.normal(jax.random.key(1), (B, T, D))


def loop(module: MoE, params, x, places: int | None = None):
    """Token by token, each through its experts; an expert with `places` of them takes no more of a row."""
    p, x = float64(params), float64(x)
    y = np.zeros_like(x)
    for b in range(len(x)):
        taken = np.zeros(module.experts, int)
        for t, u in enumerate(x[b]):
            logits = u @ p["router"]
            soft = np.exp(logits - logits.max())
            soft /= soft.sum()
            chosen = np.argsort(-soft, kind="stable")[: module.active]
            for e in chosen:
                taken[e] += 1
                if places is None or taken[e] <= places:
                    g = u @ p["gate"][e]
                    h = g / (1 + np.exp(-g)) * (u @ p["up"][e])
                    y[b, t] += soft[e] / soft[chosen].sum() * (h @ p["down"][e])
    return y


@pytest.mark.parametrize(("capacity", "places"), [(None, None), (1.0, 4), (0.5, 2)], ids=str)
def test_equals_the_loop_over_tokens(capacity, places):
    module = MoE(D, experts=4, active=2, hidden=6, capacity=capacity)
    params, x = given(module)
    close(module.apply(params, x), loop(module, params, x, places))


def test_with_places_for_all_both_forms_agree_in_values_and_gradients():
    params, x = given(MIXTURE)

    def loss(module):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(module.apply(p, x))), (0, 1))(params, x)

    jax.tree.map(close, loss(MIXTURE), loss(MoE(D, experts=4, active=2, hidden=6, capacity=2.0)))


@pytest.mark.parametrize("capacity", [None, 0.5], ids=str)
def test_later_tokens_change_nothing_before_them(capacity):
    module = MoE(D, experts=4, active=2, hidden=6, capacity=capacity)
    params, x = given(module)
    if capacity is not None:  # its places are counted from the length
        x, other = x, x.at[:, 4:].set(-x[:, 4:])
    else:
        other = x[:, :4]
    np.testing.assert_array_equal(module.apply(params, x)[:, :4], module.apply(params, other)[:, :4])


def test_one_expert_is_its_mlp_and_all_of_them_a_weighted_sum():
    one = MoE(D, experts=1, active=1, hidden=6)
    params, x = given(one)
    h = jax.nn.silu(x @ params["gate"][0]) * (x @ params["up"][0])
    close(one.apply(params, x), h @ params["down"][0])


def test_losses_are_named():
    params, x = given(MIXTURE)
    _, seen = taps.capture(MIXTURE.apply, ["aux.balance", "aux.z"])(params, x)
    logits = float64(x) @ float64(params["router"])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    share = np.bincount(np.argsort(-p, axis=-1)[..., :2].ravel(), minlength=4) / (B * T * 2)
    close(seen["aux.balance"][0], 4 * (share * p.mean((0, 1))).sum())
    close(seen["aux.z"][0], np.mean(np.log(np.exp(logits).sum(-1)) ** 2))
    level = {**params, "router": jnp.zeros_like(params["router"])}
    _, seen = taps.capture(MIXTURE.apply, ["aux.balance"])(level, x)
    close(seen["aux.balance"][0], 1.0)


@pytest.mark.parametrize("capacity", [None, 1.0], ids=str)
def test_experts_on_their_own_devices_give_the_same(capacity):
    module = MoE(D, experts=4, active=2, hidden=6, capacity=capacity)
    x = jax.random.normal(jax.random.key(1), (4, T, D))
    value = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(module.apply(p, x)))))
    params = init_sharded(module, jax.random.key(0), make_mesh("expert=4,data=2"))
    assert {s.data.shape[0] for s in params["gate"].addressable_shards} == {1}
    jax.tree.map(close, value(params), value(init(module, jax.random.key(0))))


def test_a_token_costs_its_own_experts_only():
    params, x = given(MIXTURE)
    many = MoE(D, experts=32, active=2, hidden=6)
    router = 2 * B * T * D
    grown = flops(many.apply, given(many)[0], x) - flops(MIXTURE.apply, params, x)
    assert grown < 20 * router * (32 - 4) / D  # the router and its softmax, not the experts


def test_wrong_fields_are_refused():
    for fields, word in (({"experts": 0}, "experts"), ({"active": 5}, "active"), ({"capacity": 0.0}, "capacity")):
        with pytest.raises(ConfigError, match=rf"MoE\.{word} = "):
            MoE(**{"width": D, "experts": 4, **fields})
