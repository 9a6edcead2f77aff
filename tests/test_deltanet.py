"""DeltaNet against its recurrence in numpy: recall, replacement, reflection, the short convolution and the shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, conv4, packed, rms, sigmoid, silu, unit, weights

from jaxlm.mixers.deltanet import DeltaNet
from jaxlm.module import ConfigError, count, decay_mask

MIXER = DeltaNet(16)


class Row:
    """S += β k' (v - k S), o = q S / √k; q, k, v through conv4 and SiLU, q and k of length 1."""

    top, gated = 1.0, False

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        self.state = {
            "S": np.zeros((h, k, k)),
            "conv": {n: np.zeros((3, h, k)) for n in ("query", "key", "value")},
        }

    def token(self, x):
        p, past, now = self.p, {}, {}
        for n in ("query", "key", "value"):
            now[n], past[n] = conv4(p["conv"][n], self.state["conv"][n], np.einsum("d,dhk->hk", x, p[n]))
        q, k, v = unit(now["query"]), unit(now["key"]), now["value"]
        beta = self.top * sigmoid(x @ p["beta"])
        S = self.state["S"]
        error = v - np.einsum("hk,hkv->hv", k, S)
        S = S + beta[:, None, None] * k[:, :, None] * error[:, None, :]
        self.state = {"S": S, "conv": past}
        y = rms(np.einsum("hk,hkv->hv", q, S) / np.sqrt(q.shape[-1]), p["norm"])
        if self.gated:
            y = y * silu(np.einsum("d,dhk->hk", x, p["gate"]))
        return np.einsum("hv,hvd->d", y, p["out"])


class Reflecting(Row):
    top, gated = 2.0, True


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_equals_the_recurrence_with_negative_eigenvalues_and_a_gate():
    agree(DeltaNet(16, heads=2, beta_max=2.0, gate=True), Reflecting)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def crafted(beta_max=1.0, value=True):
    """One head of 8: x = [one of 4 keys, a value of 4]; the convolution passes the token; beta at its maximum."""
    mixer = DeltaNet(8, heads=1, beta_max=beta_max)
    keys, values = jnp.eye(8).at[4:].set(0), jnp.eye(8).at[:4].set(0)
    last = jnp.zeros((4, 1, 8)).at[3].set(1)
    params = weights(mixer) | {
        "query": keys[:, None],
        "key": keys[:, None],
        "value": (values if value else 0 * values)[:, None],
        "conv": {n: last for n in ("query", "key", "value")},
        "beta": jnp.full((8, 1), 0.0).at[:4].set(20.0),
    }
    return mixer, params


def pairs(keys, seed=0):
    """x (1, t, 8) of one-hot keys (length 10) and random values, and what SiLU leaves of the values."""
    values = jax.random.normal(jax.random.key(seed), (len(keys), 4))
    x = jnp.concatenate([10 * jax.nn.one_hot(jnp.array(keys), 4), values], axis=-1)[None]
    return x, jnp.concatenate([jnp.zeros((len(keys), 4)), jax.nn.silu(values)], axis=-1)


def test_recalls_what_was_written_and_replaces_what_is_rewritten():
    mixer, params = crafted()
    x, held = pairs([0, 1, 2, 3, 3, 3])
    close(apply(mixer, params, x)[1]["S"][0, 0, :4], held[jnp.array([0, 1, 2, 5])])
    x, held = pairs([0, 1, 2, 1, 3, 1])
    close(apply(mixer, params, x)[1]["S"][0, 0, :4], held[jnp.array([0, 5, 2, 4])])  # a sum would hold 1 + 3 + 5


def test_at_beta_two_a_step_without_value_is_a_reflection():
    mixer, params = crafted(2.0, value=False)
    x, _ = pairs([2, 2])
    still = x.at[:, 1].set(0)  # a token without key changes nothing
    state = mixer.start(params, 1) | {"S": jax.random.normal(jax.random.key(4), (1, 1, 8, 8))}
    once, twice = (apply(mixer, params, x, state)[1]["S"] for x in (still, x))
    flipped = state["S"].at[0, 0, 2].multiply(-1)
    close((once, jnp.linalg.norm(once)), (flipped, jnp.linalg.norm(state["S"])))
    close(twice, state["S"])


def test_convolution_reads_three_tokens_back_and_no_further():
    params = weights(MIXER)
    x, _ = packed(MIXER)
    state = apply(MIXER, params, x)[1]
    for n in ("query", "key", "value"):  # the raw inputs, before the activation
        close(state["conv"][n], jnp.einsum("btd,dhk->bthk", x[:, -3:], params[n]))
    spec = MIXER.params()["conv"]["query"]
    drawn = np.concatenate([np.ravel(spec.init(jax.random.key(i), spec)) for i in range(64)])
    assert np.abs(drawn).max() <= 0.5 and abs(drawn.std() - 0.5 / np.sqrt(3)) < 0.01


def test_shapes_and_names():
    d = 1024
    published = DeltaNet(d)
    assert published.h == 4 and published.params()["key"].shape == (d, 4, 256)
    assert count(published) == 4 * d * d + 3 * 4 * d + 4 * d + d
    assert count(DeltaNet(d, gate=True)) == count(published) + d * d
    assert published.state(1)["S"].size == d * d // 4
    mask = decay_mask(published)
    assert mask["key"] and mask["beta"] and not mask["norm"] and not mask["conv"]["key"]
    for bad, word in [({"heads": 3}, "heads = 3"), ({"beta_max": 2.5}, "beta_max = 2.5")]:
        with pytest.raises(ConfigError, match=word):
            DeltaNet(16, **bad)
