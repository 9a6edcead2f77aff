"""HGRN2 against its recurrence in numpy, its gates at the edges, its lower bounds, and HGRN's scan as a limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, sigmoid, silu, softplus, weights

from jaxlm.mixers.hgrn2 import HGRN2, bounded_forget, floors
from jaxlm.module import ConfigError, count, decay_mask, init

MIXER = HGRN2(16)


class Row:
    """S = Diag(f) S + (1 - f)' i with f = γ + (1 - γ) σ(x W_f), o = SiLU(x W_q) S / √k, y = W_O norm(o)."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {"S": np.zeros((h, k, k))}

    def token(self, x):
        p = self.p
        q, z, i = (np.einsum("d,dhk->hk", x, p[n]) for n in ("query", "forget", "value"))
        low = p.get("floor", np.zeros_like(z))
        f = low + (1 - low) * sigmoid(z)
        S = self.state["S"] = f[:, :, None] * self.state["S"] + (1 - f)[:, :, None] * i[:, None, :]
        o = np.einsum("hk,hkv->hv", silu(q), S) / np.sqrt(q.shape[-1])
        return np.einsum("hv,hvd->d", rms(o.reshape(-1), p["norm"]).reshape(o.shape), p["out"])


def with_floor(params):
    """The third of three layers: a floor between 0 and 1, different in every channel."""
    bounds = jax.random.normal(jax.random.key(9), (3, *params["bound"].shape))
    return {**params, "floor": floors(bounds)[2]}


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_above_a_floor():
    agree(MIXER, Row, with_floor(weights(MIXER)))


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_floors_are_zero_first_and_rise_below_one():
    bounds = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2, 3)), jnp.float32)
    weigh = jnp.asarray(np.random.default_rng(2).normal(size=bounds.shape), jnp.float32)
    low, pull = jax.vjp(jax.jit(floors), bounds)
    shares = np.exp(float64(bounds)) / np.exp(float64(bounds)).sum(0)
    close(low, np.cumsum(shares, axis=0) - shares[0])
    assert (low[0] == 0).all() and (np.diff(low, axis=0) > 0).all() and (low < 1).all()
    close(floors(jnp.zeros((4, 1))), jnp.array([[0.0], [0.25], [0.5], [0.75]]))
    assert (np.abs(pull(weigh)[0]) > 0).all()  # the first layer's logits too: they share the softmax


def test_tie_gives_every_layer_its_floor_and_the_first_is_a_lone_mixer():
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), weights(MIXER, 0), weights(MIXER, 5))
    tied = MIXER.tie(stacked)
    assert set(tied) == {*stacked, "floor"} and tied["floor"].shape == (2, 2, 8)
    x, starts = packed(MIXER)
    first = jax.tree.map(lambda a: a[0], tied)
    alone = {n: v for n, v in first.items() if n != "floor"}

    def loss(params):
        return jnp.sum(MIXER.apply(params, x, None, starts)[0] ** 2)

    got = jax.jit(jax.value_and_grad(loss))(first)
    want = jax.jit(jax.value_and_grad(loss))(alone)
    assert np.isfinite(got[1].pop("floor")).all()
    close(got, want)


@pytest.mark.parametrize("low", [0.0, 1e-30, 1e-3, 0.5, 0.999])
def test_gates_at_the_edges(low):
    z = np.array([-300.0, -70.0, -20.0, -1.0, 0.0, 0.4, 1.0, 9.0, 20.0, 70.0])
    floor, x = jnp.full((1, 1), low), jnp.asarray(z, jnp.float32)[:, None, None]
    low = float(floor[0, 0])
    (g, k), pull = jax.vjp(lambda x: bounded_forget(x, floor), x)
    slope = pull((jnp.ones_like(g), jnp.zeros_like(k)))[0]
    leaves, f = (1 - low) * sigmoid(-z), low + (1 - low) * sigmoid(z)
    with np.errstate(divide="ignore"):  # the sheet's form, and near 1, where that rounds, the plain one
        want = np.where(leaves < 0.1, np.log1p(-leaves), np.logaddexp(np.log(low), np.log1p(-low) - softplus(-z)))
    slopes = sigmoid(-z) if low == 0 else leaves * sigmoid(z) / f
    for i in range(len(z)):  # each place by itself: a gate of 1 - 1e-30 must be as right as one of 1/2
        close([a[i, 0, 0] for a in (g, k, slope)], [want[i], leaves[i], slopes[i]])
    far = bounded_forget(jnp.full((1, 1, 1), 300.0), floor)
    assert far[0] == 0 and far[1] == 0


def test_one_channel_a_head_is_the_scan_of_hgrn():
    mixer = HGRN2(8, heads=8)
    params, (x, _) = with_floor(weights(mixer)), packed(mixer)
    p, xs = float64(params), float64(x)
    q, z, i = (xs @ p[n][:, :, 0] for n in ("query", "forget", "value"))
    f = p["floor"][:, 0] + (1 - p["floor"][:, 0]) * sigmoid(z)
    h, ys = np.zeros((x.shape[0], 8)), []
    for t in range(x.shape[1]):
        h = f[:, t] * h + (1 - f[:, t]) * i[:, t]
        ys.append(rms(silu(q[:, t]) * h, p["norm"]) @ p["out"][:, 0])
    y, state = apply(mixer, params, x)
    close((y, state["S"][..., 0, 0]), (np.stack(ys, axis=1), h))


def test_shapes_and_names():
    d = 2048
    published = HGRN2(d)
    assert published.h == 16 and published.params()["query"].shape == (d, 16, 128)
    assert published.state(1)["S"].size == 128 * d
    assert count(published) == 4 * d * d + 2 * d
    assert MIXER.params()["bound"].keep and not decay_mask(MIXER)["bound"]
    assert (init(MIXER, jax.random.key(0))["bound"] == 0).all()
    with pytest.raises(ConfigError, match="heads = 5"):
        HGRN2(16, heads=5)
