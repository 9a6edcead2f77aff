"""sLSTM against its equations in numpy, with and without the stabiliser; extreme gates, and its first weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import agrees, apply, begin, example, loop, single, wide_numpy
from tolerance import close

from jaxlm.blocks import Stack
from jaxlm.mixers.slstm import SLSTM
from jaxlm.module import ConfigError, count, init

MIXER = SLSTM(6, heads=2)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def gates(p, u, s):
    """i~, f~, z~, o~ (h, k) of one token, and the convolution's memory after it."""
    seen = np.concatenate([s["conv"], u[None]])
    c = p["conv_bias"] + np.sum(p["conv"] * seen, axis=0)
    c, own = ((c * sigmoid(c)).reshape(s["h"].shape), u.reshape(s["h"].shape))
    pre = [
        np.stack([p["input"][h, :, g].T @ a[h] + p["hidden"][h, :, g].T @ s["h"][h] for h in range(len(a))])
        + p["bias"][:, g]
        for g, a in enumerate([c, c, own, own])
    ]
    return *pre, seen[1:]


def norm(p, h):
    h = h - h.mean(-1, keepdims=True)
    return (h / np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + 1e-5) * p["norm"]).reshape(-1)


def cell(p, u, s):
    i, f, z, o, conv = gates(p, u, s)
    log_f = -np.logaddexp(0, -f)
    m = np.where(s["n"] == 0, i, np.maximum(log_f + s["m"], i))
    c = np.exp(log_f + s["m"] - m) * s["c"] + np.exp(i - m) * np.tanh(z)
    n = np.exp(log_f + s["m"] - m) * s["n"] + np.exp(i - m)
    h = sigmoid(o) * c / n
    return norm(p, h), {"h": h, "c": c, "n": n, "m": m, "conv": conv}


def plain(p, u, s):
    """Without the stabiliser: i = e^i~, f = σ(f~)."""
    i, f, z, o, conv = gates(p, u, s)
    c, n = (sigmoid(f) * s[k] + np.exp(i) * new for k, new in (("c", np.tanh(z)), ("n", 1)))
    h = sigmoid(o) * c / n
    return norm(p, h), {"h": h, "c": c, "n": n, "m": 0 * n, "conv": conv}


def loud(params):
    """Gates that differ from token to token, and heads that hear themselves."""
    return params | {"input": 4 * params["input"], "hidden": 5 * params["hidden"]}


def test_is_the_papers_recurrence():
    agrees(MIXER, cell)


def test_the_stabiliser_is_not_seen():
    """The outputs are those of the plain exponentials; c and n are these, divided by e^m."""
    params, x, _, _ = example(MIXER)
    params = loud(params)
    start = begin(MIXER, params, len(x))
    y, last = apply(MIXER, params, x, start)
    scale = np.exp(last["m"])
    got = y, {**last, "c": last["c"] * scale, "n": last["n"] * scale, "m": 0 * scale}
    close(got, single(loop(plain, params, x, start)))


def test_without_recurrence_it_is_a_weighted_mean_of_the_past():
    """R = 0: c_t / n_t is the mean of tanh(z~_s) with weights e^(i~_s) times the forget gates after s."""
    params, x, _, _ = example(MIXER)
    params = loud(params) | {"hidden": np.zeros_like(params["hidden"])}
    start = wide_numpy(begin(MIXER, params, 1))
    y, _ = apply(MIXER, params, x)
    for row in range(len(x)):
        s, tokens = jax.tree.map(lambda a: a[0], start), []
        for u in x[row].astype(np.float64):
            *pre, conv = gates(wide_numpy(params), u, s)
            s = s | {"conv": conv}
            tokens.append(pre)
        i, f, z, o = np.moveaxis(np.array(tokens), 1, 0)  # (t, h, k)
        past = np.cumsum(-np.logaddexp(0, -f), axis=0)
        weights = np.exp(i[None] + past[:, None] - past[None]) * np.tri(len(i))[..., None, None]
        h = sigmoid(o) * np.sum(weights * np.tanh(z), axis=1) / np.sum(weights, axis=1)
        close(y[row], np.array([norm(wide_numpy(params), token) for token in h], np.float32))


@jax.jit
def with_gradient(params, x):
    return jax.value_and_grad(lambda p: jnp.sum(MIXER.apply(p, x)[0] ** 2))(params), MIXER.apply(params, x)


@pytest.mark.parametrize("f", [1e4, -1e4])
@pytest.mark.parametrize("i", [1e4, -1e4])
def test_extreme_gates_are_finite(i, f):
    params, x, _, _ = example(MIXER)
    params["bias"][:, 0], params["bias"][:, 1] = i, f
    out = with_gradient(params, x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))
    if f < 0:  # nothing is kept: h is the present token's
        last = out[1][1]
        *_, z, o, _ = gates(
            wide_numpy(params), np.float64(x[0, -1]), {"conv": x[0, -4:-1], "h": before_last(params, x)}
        )
        close(last["h"][0], np.float32(sigmoid(o) * np.tanh(z)))


def before_last(params, x):
    """h of row 0 one token before the end, in numpy."""
    start = begin(MIXER, params, 1)
    return loop(cell, params, x[:1, :-1], start)[1]["h"][0]


def test_first_weights():
    stacked = init(Stack(SLSTM(64), 3), jax.random.key(0))["block0"]
    assert stacked["bias"].shape == (3, 4, 4, 16) and (stacked["hidden"] == 0).all()
    for layer, bias in enumerate(np.asarray(stacked["bias"])):
        assert (bias[:, [0, 2, 3]] == 0).all()
        want = -(-5 + 12 * (np.arange(16) / 15) ** (0.3 + 1.3 * layer / 2))
        close(bias[:, 1], np.broadcast_to(np.float32(want), (4, 16)))
    assert abs(np.std(stacked["input"]) / np.sqrt(2 / (5 * 64)) - 1) < 0.05
    assert count(SLSTM(64)) == 2 * 4 * 64 * 16 + 4 * 64 + 5 * 64 + 64


def test_bad_heads_are_named():
    with pytest.raises(ConfigError, match=r"SLSTM\.heads = 5"):
        SLSTM(16, heads=5)
