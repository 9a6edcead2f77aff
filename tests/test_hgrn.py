"""HGRN against its recurrences in numpy, its rotation, its lower bounds, and the limits it shares with HGRN2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, sigmoid, silu, weights

from jaxlm.mixers.hgrn import HGRN
from jaxlm.mixers.hgrn2 import HGRN2, floors
from jaxlm.module import count, decay_mask, init

COMPLEX, REAL = HGRN(8), HGRN(8, phase=False)


def layer_norm(x, gain, bias, eps=1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * gain + bias


class Row:
    """h = f e^{iθ} h + (1 - f) c with f = γ + (1 - γ) σ(x W_f); without θ all of it is real."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        self.state = {"h": np.zeros(self.p["input"].shape[1:])}

    def token(self, x):
        p = self.p
        low = p.get("floor", np.zeros(len(x)))
        f = low + (1 - low) * sigmoid(x @ p["forget"])
        c, g = (silu(np.einsum("d,dpn->pn", x, p[n])) for n in ("input", "gate"))
        if "theta" in p:
            before, new = (v[0] + 1j * v[1] for v in (self.state["h"], c))
            h = f * np.exp(1j * p["theta"]) * before + (1 - f) * new
            h = np.stack([h.real, h.imag])
            y = layer_norm(h.reshape(-1), p["norm"]["gain"], p["norm"]["bias"]).reshape(h.shape)
        else:
            h = f * self.state["h"] + (1 - f) * c
            y = rms(h, p["norm"]["gain"])
        self.state = {"h": h}
        return np.einsum("pn,pnd->d", y * g, p["out"])


def with_floor(params):
    """The third of three layers: a floor between 0 and 1, different in every channel."""
    bounds = jax.random.normal(jax.random.key(9), (3, *params["bound"].shape))
    return {**params, "floor": floors(bounds)[2]}


@pytest.mark.parametrize("mixer", [COMPLEX, REAL], ids=["complex", "real"])
def test_equals_the_recurrence_above_a_floor(mixer):
    agree(mixer, Row, with_floor(weights(mixer)))


@pytest.mark.parametrize("mixer", [COMPLEX, REAL], ids=["complex", "real"])
def test_equals_the_recurrence_in_float64(mixer, x64):
    agree64(mixer, Row)


def test_without_rotation_both_parts_are_the_real_recurrence():
    params, (x, starts) = with_floor(weights(COMPLEX)), packed(COMPLEX)
    params["theta"] = jnp.zeros_like(params["theta"])
    got = apply(COMPLEX, params, x, None, starts)[1]["h"]
    for part in (0, 1):
        own = with_floor(weights(REAL)) | {n: params[n] for n in ("forget", "floor")}
        own["input"] = params["input"][:, part : part + 1]
        close(got[:, part], apply(REAL, own, x, None, starts)[1]["h"][:, 0])


def test_a_state_that_is_kept_turns():
    """f = 1: nothing enters, and a state turns by θ a token, its length unchanged."""
    params, (x, _) = weights(COMPLEX), packed(COMPLEX)
    shut = params | {"floor": jnp.ones_like(params["bound"])}
    h = np.random.default_rng(0).normal(size=(2, 2, 8)).astype(np.float32)
    got = float64(apply(COMPLEX, shut, x, {"h": h})[1]["h"])
    turned = (h[:, 0] + 1j * h[:, 1]) * np.exp(1j * x.shape[1] * float64(params["theta"]))
    close(np.float32(got), np.float32(np.stack([turned.real, turned.imag], axis=1)))


def test_hgrn2_with_one_channel_a_head_has_the_same_scan():
    """Inputs so large that SiLU is the identity: then the states of both are the same."""
    two = HGRN2(8, heads=8)
    params, other, (x, starts) = with_floor(weights(REAL)), weights(two), packed(REAL)
    x = x.at[:, :, 0].set(1)
    params["input"] = params["input"].at[0].set(30)
    other |= {"forget": params["forget"][:, :, None], "floor": params["floor"][:, None]}
    other["value"] = params["input"][:, 0, :, None]
    h = apply(REAL, params, x, None, starts)[1]["h"][:, 0]
    close(h, apply(two, other, x, None, starts)[1]["S"][..., 0, 0])


def test_tie_gives_every_layer_its_floor():
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), weights(REAL, 0), weights(REAL, 5))
    tied = REAL.tie(stacked)
    assert set(tied) == {*stacked, "floor"}
    assert (tied["floor"][0] == 0).all() and (tied["floor"][1] > 0).all() and (tied["floor"][1] < 1).all()


def test_starts_as_published():
    params = init(COMPLEX, jax.random.key(0))
    close(params["theta"], np.float32(10000.0 ** (-2 * np.arange(8) / 8)))
    assert (params["bound"] == 0).all()
    d = 64
    assert count(HGRN(d)) == 7 * d * d + 2 * d + 4 * d and count(HGRN(d, phase=False)) == 4 * d * d + 2 * d
    assert HGRN(d).state(3)["h"].shape == (3, 2, d) and HGRN(d, phase=False).state(3)["h"].shape == (3, 1, d)
    mask = decay_mask(COMPLEX)
    assert mask["out"] and not mask["bound"] and not mask["theta"]
