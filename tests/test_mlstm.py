"""mLSTM against its recurrence and its parallel form in numpy, its gates at the extremes, and its first weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close
from twin import agree, agree64, apply, float64, packed, silu, softplus, weights

from jaxlm.blocks import Stack
from jaxlm.errors import ShapeError
from jaxlm.mixers.mlstm import MLSTM
from jaxlm.module import ConfigError, count, decay_mask, init
from jaxlm.ops.peak import peak

MIXER = MLSTM(16, heads=2)


def blocks(w, x):
    """Block-diagonal map.   w (n / 4, 4, 4), x (..., n)"""
    return np.einsum("...nk,nkv->...nv", x.reshape(*x.shape[:-1], *w.shape[:2]), w).reshape(x.shape)


def layer_norm(x, gain):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * gain


class Row:
    """The layer token by token, as in the paper's equations, with m subtracted from both exponents."""

    def __init__(self, p):
        self.p = p
        self.h, self.k = p["norm"].shape
        self.reset()

    def reset(self):
        h, k = self.h, self.k
        self.state = {"S": np.zeros((h, k, k)), "n": np.zeros((h, k)), "m": np.zeros(h), "conv": np.zeros((3, h * k))}

    def token(self, x):
        p, s, u = self.p, self.state, x @ self.p["up"]
        seen = np.concatenate([s["conv"], u[None]])
        c = silu(p["conv_bias"] + np.sum(p["conv"] * seen, axis=0))
        q, k, v = blocks(p["query"], c), blocks(p["key"], c), blocks(p["value"], u)
        pre = np.einsum("d,dgh->gh", np.concatenate([q, k, v]), p["gates"])
        log_i, log_f = pre[0] + p["input_bias"], -softplus(-pre[1] - p["forget_bias"])
        q, k, v = (a.reshape(self.h, self.k) for a in (q, k / np.sqrt(self.k), v))
        m = np.maximum(log_f + s["m"], log_i)
        i, f = np.exp(log_i - m)[:, None], np.exp(log_f + s["m"] - m)[:, None]
        S = f[:, :, None] * s["S"] + i[:, :, None] * k[:, :, None] * v[:, None, :]
        n = f * s["n"] + i * k
        self.state = {"S": S, "n": n, "m": m, "conv": seen[1:]}
        floor = np.maximum(np.abs(np.sum(q * n, axis=-1)), np.exp(-m)) + 1e-6
        h = layer_norm(np.einsum("hk,hkv->hv", q, S) / floor[:, None], p["norm"]).reshape(-1)
        return ((h + p["skip"] * c) * silu(x @ p["gate"])) @ p["down"]


def loud(params):
    """Gates that differ from token to token, with keys large enough for both sides of the floor."""
    return params | {"key": 4 * params["key"], "forget_bias": params["forget_bias"] - 3}


@pytest.mark.parametrize("mixer", [MIXER, MLSTM(12, heads=3, expand=1, block=2)], ids=str)
def test_equals_the_recurrence(mixer):
    agree(mixer, Row, loud(weights(mixer)))


def test_equals_the_recurrence_in_float64(x64):
    agree64(MIXER, Row)


def test_memory_equals_the_parallel_form_from_a_state():
    params, t, rng = loud(weights(MIXER)), 7, np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, t, 32)) for _ in range(3))
    state = {"S": rng.normal(size=(1, 2, 16, 16)), "n": rng.normal(size=(1, 2, 16)), "m": rng.normal(size=(1, 2))}
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (q, k, v, state))
    run = jax.jit(lambda q, k, v, s: (MIXER.remember(params, q, k, v, s), MIXER.gates(params, q, k, v)))
    (got, last), gates = run(*narrow)
    log_i, log_f = (float64(g)[0].T for g in gates)  # (h, t)
    F = np.cumsum(log_f, axis=-1)
    # D~, with the state as one more key in the past: m_0 is the log of its weight.
    gaps = np.where(np.tri(t, dtype=bool), F[:, :, None] - F[:, None] + log_i[:, None], -np.inf)
    first = F + state["m"][0][:, None]
    m = np.maximum(gaps.max(-1), first)
    q, k, v = (a[0].reshape(t, 2, 16) for a in (q, k, v))
    W = np.einsum("thk,shk->hts", q, k) / 4 * np.exp(gaps - m[:, :, None])
    old = np.exp(first - m)
    top = np.einsum("hts,shv->htv", W, v) + old[:, :, None] * np.einsum("thk,hkv->htv", q, state["S"][0])
    low = W.sum(-1) + old * np.einsum("thk,hk->ht", q, state["n"][0])
    want = top / (np.maximum(np.abs(low), np.exp(-m)) + 1e-6)[:, :, None]
    close((got[0], last["m"][0]), (want.swapaxes(0, 1), m[:, -1]))


def with_gates(params, i, f):
    return params | {
        "gates": jnp.zeros_like(params["gates"]),
        "input_bias": jnp.full((2,), i),
        "forget_bias": jnp.full((2,), f),
    }


def test_a_constant_on_all_input_gates_changes_nothing():
    params, (x, starts) = loud(weights(MIXER)), packed(MIXER)
    y, state = apply(MIXER, with_gates(params, 20.0, 1.0), x, None, starts)  # the floor is e^-20, out of sight
    more, later = apply(MIXER, with_gates(params, 25.0, 1.0), x, None, starts)
    close((more, later["S"], later["n"], later["m"] - 5), (y, state["S"], state["n"], state["m"]))


@pytest.mark.parametrize("i", [1e4, -1e4])
@pytest.mark.parametrize("f", [1e4, -1e4])
def test_extreme_gates_are_finite(i, f):
    params, (x, starts) = with_gates(loud(weights(MIXER)), i, f), packed(MIXER)
    y, state, grads = extreme(params, x, starts)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((y, state, grads)))
    reading = remembered(params, x, starts)
    if i < 0:
        assert np.abs(reading).max() < 1e-30  # nothing was written that would show beside the floor
    elif f < 0:  # only the present token is there: its value, with the sign of q·k
        close(jnp.abs(reading), jnp.abs(values(params, x)))


@jax.jit
def extreme(params, x, starts):
    def loss(params):
        y, state = MIXER.apply(params, x, None, starts)
        return jnp.sum(y**2), (y, state)

    grads, (y, state) = jax.grad(loss, has_aux=True)(params)
    return y, state, grads


def values(params, x):
    return MIXER.mix(params["value"], x @ params["up"]).reshape(*x.shape[:2], 2, 16)


@jax.jit
def remembered(params, x, starts):
    q, k = (MIXER.mix(params[n], x @ params["up"]) for n in ("query", "key"))
    return MIXER.remember(params, q, k, values(params, x).reshape(q.shape), None, starts)[0]


def test_tokens_of_extreme_and_opposite_gates_are_finite():
    params, (x, starts) = loud(weights(MIXER)), packed(MIXER)
    out = extreme(params | {"gates": 1e4 * params["gates"]}, x, starts)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))


def test_peak_equals_the_loop():
    rng = np.random.default_rng(3)
    a, u, state = -np.exp(rng.normal(size=(2, 21, 3))), rng.normal(size=(2, 21, 3)), rng.normal(size=(2, 3))
    a[:, 5], u[0, 9] = -1e4, 1e4
    starts = rng.random((2, 21)) < 0.2
    starts[0, 0] = True
    m, ms, befores = state, [], []
    for t in range(21):
        befores.append(np.where(starts[:, t, None], 0, m))
        m = np.maximum(a[:, t] + befores[-1], u[:, t])
        ms.append(m)
    narrow = [jnp.asarray(z, jnp.float32) for z in (a, u, state)]
    got = jax.jit(peak)(*narrow, jnp.asarray(starts))
    for i in range(2):  # row by row: one holds 1e4
        close([z[i] for z in got], [np.stack(ms, 1)[i], np.stack(befores, 1)[i]])
    plain, earlier = jax.jit(peak)(*narrow[:2])
    close((plain[:, 0], earlier[:, 0]), (np.maximum(a[:, 0], u[:, 0]), 0 * state))
    with pytest.raises(ShapeError, match="a, u"):
        peak(narrow[0], narrow[1][:, :3])


def test_first_weights():
    published = MLSTM(1024)
    assert published.h == 4 and published.params()["norm"].shape == (4, 512)
    params, stacked = init(MLSTM(64), jax.random.key(0)), init(Stack(MLSTM(64), 4), jax.random.key(0))["block0"]
    close(params["forget_bias"], np.linspace(3, 6, 4))
    assert (params["gates"] == 0).all() and (params["skip"] == 1).all() and np.abs(params["input_bias"]).max() < 0.5
    for n in ("up", "query"):
        assert abs(float(params[n].std()) / np.sqrt(2 / (5 * 64)) - 1) < 0.1
    assert abs(float(params["down"].std()) / (2 / 8) - 1) < 0.05
    assert abs(float(stacked["down"].std()) / (2 / (4 * 8)) - 1) < 0.05  # 2 / (blocks √d)
    mask = decay_mask(MIXER)
    assert mask["query"] and not mask["forget_bias"] and not mask["norm"] and not mask["skip"]


def test_shapes_and_names():
    d = 1024
    n = 2 * d
    assert count(MLSTM(d)) == 3 * n * d + 5 * n + 3 * 4 * n + 3 * n * 8 + 8 + 2 * n
    state = MLSTM(d).state(1)
    assert sum(state[leaf].size for leaf in ("S", "n", "m")) == 4 * (512**2 + 512 + 1)  # the sheet's H (k² + k + 1)
    for bad, word in [({"heads": 5}, "heads = 5"), ({"block": 5}, "block = 5"), ({"expand": 0}, "expand = 0")]:
        with pytest.raises(ConfigError, match=word):
            MLSTM(16, **bad)
