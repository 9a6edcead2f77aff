"""DeltaProduct against its product of transitions in numpy; one step is DeltaNet, two reflections are a rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, conv4, packed, rms, sigmoid, silu, softplus, unit, weights

from jaxlm.mixers.delta_product import DeltaProduct
from jaxlm.mixers.deltanet import DeltaNet
from jaxlm.mixers.gated_deltanet import GatedDeltaNet
from jaxlm.module import ConfigError, count

MIXER = DeltaProduct(16, heads=2)


class Row:
    """S = Π_j (I - β_j k_j' k_j) α S + Σ_j (the later transitions) β_j k_j' v_j, built as matrices."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        nk = self.p["key"].shape[2]
        self.state = {
            "S": np.zeros((h, k, k)),
            "conv": {"query": np.zeros((3, h, k)), "key": np.zeros((3, h, nk)), "value": np.zeros((3, h, nk))},
        }

    def token(self, x):
        p, past, now = self.p, {}, {}
        for n in ("query", "key", "value"):
            now[n], past[n] = conv4(p["conv"][n], self.state["conv"][n], np.einsum("d,dhk->hk", x, p[n]))
        h, k = now["query"].shape
        keys, values = unit(now["key"].reshape(h, -1, k)), now["value"].reshape(h, -1, k)
        beta = 2 * sigmoid(np.einsum("d,dhn->hn", x, p["beta"]))
        S, o, alpha = np.zeros((h, k, k)), np.zeros((h, k)), np.ones(h)
        if "alpha" in p:
            alpha = np.exp(-np.exp(p["A_log"]) * softplus(x @ p["alpha"] + p["dt_bias"]))
        for i in range(h):
            A, B = alpha[i] * np.eye(k), np.zeros((k, k))
            for j in range(keys.shape[1]):
                turn = np.eye(k) - beta[i, j] * np.outer(keys[i, j], keys[i, j])
                A, B = turn @ A, turn @ B + beta[i, j] * np.outer(keys[i, j], values[i, j])
            S[i] = A @ self.state["S"][i] + B
            o[i] = unit(now["query"][i]) @ S[i] / np.sqrt(k)
        self.state = {"S": S, "conv": past}
        y = rms(o, p["norm"])
        return np.einsum("hv,hvd->d", y * silu(np.einsum("d,dhk->hk", x, p["gate"])) if "gate" in p else y, p["out"])


@pytest.mark.parametrize("mixer", [MIXER, DeltaProduct(16, heads=1, steps=3, gate=True, decay=True)], ids=str)
def test_equals_the_recurrence(mixer):
    params = weights(mixer)
    agree(mixer, Row, params | {"A_log": params["A_log"] - 4} if mixer.decay else params)  # slow enough to be seen


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


@pytest.mark.parametrize("decay", [False, True])
def test_one_step_is_deltanet_gated_or_not(decay):
    mixer = DeltaProduct(16, steps=1, gate=True, decay=decay)
    plain = DeltaNet(16, beta_max=2.0, gate=True)
    if decay:
        plain = GatedDeltaNet(16, heads=4, head=4, expand=1, beta_max=2.0)
    params = weights(plain)
    x, starts = packed(mixer)
    once = params | {"beta": params["beta"][..., None]}
    close(apply(mixer, once, x, None, starts), apply(plain, params, x, None, starts))


def test_two_reflections_turn_the_memory():
    """Keys e_0 and (cos θ, sin θ) at rate 2 without values: a rotation by 2 θ of that plane; six of 60° are nothing.

    No single step of the delta rule turns: its transition has a real eigenvalue for every eigenvector.
    """
    mixer = DeltaProduct(4, heads=1)
    theta = np.pi / 6
    keys = np.zeros((4, 8), np.float32)  # the convolution's SiLU leaves positive keys as they are but for their length
    keys[0, 0], keys[0, 4], keys[0, 5] = 1000, 1000 * np.cos(theta), 1000 * np.sin(theta)
    first = jnp.zeros((4, 1, 8)).at[3].set(1)
    params = weights(mixer) | {"key": jnp.asarray(keys)[:, None], "value": jnp.zeros((4, 1, 8))}
    params |= {"beta": jnp.zeros((4, 1, 2)).at[0].set(100), "conv": {**params["conv"], "key": first}}
    x = jnp.zeros((1, 6, 4)).at[..., 0].set(1)
    state = mixer.start(params, 1) | {"S": jax.random.normal(jax.random.key(0), (1, 1, 4, 4))}
    once, (_, after) = apply(mixer, params, x[:, :1], state)[1]["S"], apply(mixer, params, x, state)
    c, s = np.cos(2 * theta), np.sin(2 * theta)
    turn = np.eye(4, dtype=np.float32)
    turn[:2, :2] = [[c, -s], [s, c]]
    close(once[0, 0], jnp.asarray(turn) @ state["S"][0, 0])
    close(after["S"], state["S"])


def test_shapes_and_names():
    d = 1024
    one, three = DeltaProduct(d, steps=1), DeltaProduct(d, steps=3)
    assert count(one) == count(DeltaNet(d)) and count(three) == count(one) + 2 * (2 * d * d + 8 * d + 4 * d)
    assert three.state(1)["S"] == one.state(1)["S"]
    for bad, word in [({"heads": 3}, "heads = 3"), ({"steps": 0}, "steps = 0"), ({"beta_max": 2.5}, "beta_max = 2.5")]:
        with pytest.raises(ConfigError, match=word):
            DeltaProduct(16, **bad)
