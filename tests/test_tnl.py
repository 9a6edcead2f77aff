"""TNL against its recurrence in numpy, its places, its decays over depth, and its published shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, rms, run, silu, weights

from jaxlm.mixers.tnl import TNL, fading
from jaxlm.module import ConfigError, count, decay_mask, init

MIXER = TNL(16)


class Row:
    """S = λ S + k' v with q, k = SiLU(x W) at their places, o = q S, y = W_O (norm(o) x W_u)."""

    def __init__(self, p):
        self.p = p
        self.reset()

    def reset(self):
        _, h, k = self.p["query"].shape
        wide = 2 * k if "theta" in self.p and self.p["theta"].shape[1] == k else k
        self.state = {"S": np.zeros((h, wide, k)), "length": np.int32(0)}

    def placed(self, x):
        if "theta" not in self.p:
            return x
        angle = self.state["length"] * self.p["theta"]
        if angle.shape == x.shape:
            return np.concatenate([x * np.cos(angle), x * np.sin(angle)], axis=-1)
        u, v = np.split(x, 2, axis=-1)
        z = (u + 1j * v) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=-1)

    def token(self, x):
        p = self.p
        q, k, v, u = (np.einsum("d,dhk->hk", x, p[n]) for n in ("query", "key", "value", "gate"))
        q, k = self.placed(silu(q)), self.placed(silu(k))
        fade = np.exp(-p["slope"]) if "slope" in p else np.exp(-(1 + 1e-5) * 2.0 ** (-4 * np.arange(1, 3)))
        S = fade[:, None, None] * self.state["S"] + k[:, :, None] * v[:, None, :]
        self.state = {"S": S, "length": np.int32(self.state["length"] + 1)}
        o = rms(np.einsum("hk,hkv->hv", q, S).reshape(-1), 1.0).reshape(v.shape)
        return np.einsum("hv,hvd->d", o * u, p["out"])


@pytest.mark.parametrize("lrpe", ["cosine", "rotate", "none"])
def test_equals_the_recurrence(lrpe):
    agree(TNL(16, lrpe=lrpe), Row)


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_a_last_layer_hardly_forgets_and_has_no_places():
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(weights(MIXER, seed) for seed in range(3)))
    tied = MIXER.tie(stacked)
    assert set(tied) == {*stacked, "slope"} and tied["slope"].shape == (3, 2)
    assert (tied["theta"][0] == stacked["theta"][0]).all() and (tied["theta"][1:] == 0).all()
    close(tied["slope"], fading(2, 3))
    x, starts = packed(MIXER)
    last = jax.tree.map(lambda a: a[2], tied)
    close(apply(MIXER, last, x, None, starts), run(Row, float64(last), float64(x), None, np.asarray(starts)))
    plain = apply(TNL(16, lrpe="none"), {n: a for n, a in last.items() if n != "theta"}, x, None, starts)
    close(apply(MIXER, last, x, None, starts)[0], plain[0])  # places that are all 0 are none
    first = jax.tree.map(lambda a: a[0], tied)
    alone = {n: a for n, a in first.items() if n != "slope"}
    close(apply(MIXER, first, x), apply(MIXER, alone, x))


def test_decays_over_depth():
    slopes = fading(8, 24)
    close(slopes[0], (1 + 1e-5) * 2.0 ** -np.arange(1.0, 9.0), jnp.float64)
    assert (np.diff(slopes, axis=0) < 0).all()
    close(slopes[-1], 1e-5 * 2.0 ** -np.arange(1.0, 9.0), jnp.float64)
    assert 1 - np.exp(-slopes[-1]).min() < 1e-5  # the last layer's decay is nearly 1, and not 1
    assert np.exp(-slopes[-1]).max() < 1


def test_scores_depend_on_the_distance_alone():
    params = init(MIXER, jax.random.key(0))
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 2, 8)) for i in (1, 2))

    def score(i, j):
        at = lambda x, n: MIXER.turn(params, x, jnp.full((1, 1), n, jnp.int32))  # noqa: E731
        return jnp.sum(at(q, i) * at(k, j), axis=-1)[0, 0]

    theta = 10000.0 ** (-2 * np.arange(16) / 16).reshape(2, 8)
    close(params["theta"], theta)
    want = np.sum(float64(q)[0, 0] * float64(k)[0, 0] * np.cos(5 * theta), axis=-1)
    close(score(5, 0), want)
    close(score(12, 7), want)


def test_shapes_and_names():
    d = 2048
    published = TNL(d)
    assert published.h == 16 and published.params()["query"].shape == (d, 16, 128)
    assert count(published) == 5 * d * d + d
    assert published.state(1)["S"].size == 2 * 128 * d and TNL(d, lrpe="none").state(1)["S"].size == 128 * d
    assert not decay_mask(published)["theta"] and published.params()["theta"].keep
    for bad, word in [({"heads": 5}, "heads = 5"), ({"lrpe": "xpos"}, "lrpe = 'xpos'")]:
        with pytest.raises(ConfigError, match=word):
            TNL(16, **bad)
    with pytest.raises(ConfigError, match="heads = 16"):
        TNL(16, heads=16, lrpe="rotate")
