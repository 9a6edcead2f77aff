"""Log-linear Mamba-2 and Gated DeltaNet against their recurrences in numpy, their parents as limits, and their size."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, conv4, packed, rms, sigmoid, silu, softplus, unit, weights

from jaxlm.mixers.gated_deltanet import GatedDeltaNet
from jaxlm.mixers.log_linear import LogLinearGatedDeltaNet, LogLinearMamba2
from jaxlm.mixers.mamba2 import Mamba2
from jaxlm.module import ConfigError, count, decay_mask

MAMBA, DELTA = LogLinearMamba2(16, levels=3), LogLinearGatedDeltaNet(16, levels=6)  # too few for the places, and enough


class Levels:
    """What both twins share: at place t, all levels up to t's trailing zeros become one."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def merged(self):
        """S (l, h, k, v) before this token, and λ's levels."""
        S, t = self.state["S"].copy(), int(self.state["length"])
        if t:
            into = min((t & -t).bit_length(), len(S) - 1)
            S[into] += S[:into].sum(axis=0)
            S[:into] = 0
        return S

    def read(self, x, q, S):
        """Σ_l λ^l q S^l.   q (h, k) -> (h, v)"""
        share = softplus(self.p["level_scale"] * np.einsum("d,dhl->hl", x, self.p["level"]))
        return np.einsum("hl,hk,lhkv->hv", share, q, S)


class MambaRow(Levels):
    """S^l = a S^l, then S^0 += B' (Δ v)."""

    def reset(self):
        self.state = {"S": np.zeros((3, 2, 16, 16)), "conv": np.zeros((3, 64)), "length": np.int32(0)}

    def token(self, x):
        p, u = self.p, x @ self.p["into"]
        z, u, dt = u[:32], u[32:-2], softplus(u[-2:] + p["dt_bias"])
        seen = np.concatenate([self.state["conv"], u[None]])
        u = silu(p["conv_bias"] + np.sum(p["conv"] * seen, axis=0))
        v, B, C = u[:32].reshape(2, 16), u[32:48], u[48:]
        S = np.exp(-np.exp(p["A_log"]) * dt)[None, :, None, None] * self.merged()
        S[0] += B[None, :, None] * (dt[:, None] * v)[:, None]
        self.state = {"S": S, "conv": seen[1:], "length": np.int32(self.state["length"] + 1)}
        o = self.read(x, np.stack([C, C]), S) + p["skip"][:, None] * v
        return rms(o.reshape(-1) * silu(z), p["norm"][0]) @ p["out"]


class DeltaRow(Levels):
    """S^l = α (I - β k' k) S^l, then S^0 += β k' v."""

    def reset(self):
        p = self.p
        self.state = {
            "S": np.zeros((6, *p["query"].shape[1:], p["value"].shape[2])),
            "conv": {n: np.zeros((3, *p[n].shape[1:])) for n in ("query", "key", "value")},
            "length": np.int32(0),
        }

    def token(self, x):
        p, past, now, S = self.p, {}, {}, self.merged()
        for n in ("query", "key", "value"):
            now[n], past[n] = conv4(p["conv"][n], self.state["conv"][n], np.einsum("d,dhk->hk", x, p[n]))
        q, k, v, beta = unit(now["query"]), unit(now["key"]), now["value"], sigmoid(x @ p["beta"])
        alpha = np.exp(-np.exp(p["A_log"]) * softplus(x @ p["alpha"] + p["dt_bias"]))
        for h in range(len(k)):
            turn = alpha[h] * (np.eye(len(k[h])) - beta[h] * np.outer(k[h], k[h]))
            S[:, h] = turn @ S[:, h]
            S[0, h] += beta[h] * np.outer(k[h], v[h])
        self.state = {"S": S, "conv": past, "length": np.int32(self.state["length"] + 1)}
        y = rms(self.read(x, q, S) / np.sqrt(q.shape[-1]), p["norm"])
        return np.einsum("hv,hvd->d", y * silu(np.einsum("d,dhk->hk", x, p["gate"])), p["out"])


def slow(params):
    """Decays that leave something to see."""
    return params | {"A_log": params["A_log"] - 3}


@pytest.mark.parametrize(("mixer", "row"), [(MAMBA, MambaRow), (DELTA, DeltaRow)], ids=["mamba2", "gated_deltanet"])
def test_equals_the_recurrence(mixer, row):
    agree(mixer, row, slow(weights(mixer)))


def test_equals_the_recurrence_in_float64(x64):
    agree64(MAMBA, MambaRow)


@pytest.mark.parametrize(("mixer", "parent"), [(MAMBA, Mamba2(16)), (DELTA, GatedDeltaNet(16))], ids=["mamba2", "gdn"])
def test_levels_of_weight_1_are_the_parent(mixer, parent):
    params, (x, starts) = slow(weights(mixer)), packed(mixer)
    x = x.at[..., 0].set(1.0)
    one = jnp.zeros_like(params["level"]).at[0].set(np.log(np.e - 1))  # its softplus is 1
    params = params | {"level": one, "level_scale": jnp.ones_like(params["level_scale"])}
    y, state = apply(mixer, params, x, None, starts)
    want, last = apply(parent, {n: params[n] for n in parent.params()}, x, None, starts)
    close((y, {"S": jnp.sum(state["S"], axis=1), "conv": state["conv"]}), (want, last))


def test_only_some_levels_are_live_each_document_by_its_own_clock():
    x, starts = packed(DELTA)
    state = apply(DELTA, slow(weights(DELTA)), x, None, starts)[1]
    assert state["length"].tolist() == [7, 4]
    live = np.asarray(jnp.any(state["S"] != 0, axis=(2, 3, 4)))
    assert live.tolist() == [[True, False, True, True, False, False], [True, True, True, False, False, False]]


def test_shapes_and_names():
    for mixer, parent in ((LogLinearMamba2(768), Mamba2(768)), (LogLinearGatedDeltaNet(2048), GatedDeltaNet(2048))):
        assert count(mixer) == count(parent) + (mixer.width + 1) * mixer.h * 15
        assert mixer.state(1)["S"].size == 15 * parent.state(1)["S"].size
        assert decay_mask(mixer)["level"] and not decay_mask(mixer)["level_scale"]
    assert count(mixer) < 1.01 * count(parent)  # the larger one
    for bad, word in [({"levels": 0}, "levels = 0"), ({"levels": 32}, "levels = 32"), ({"heads": 0}, "heads = 0")]:
        with pytest.raises(ConfigError, match=word):
            LogLinearGatedDeltaNet(16, **bad)
