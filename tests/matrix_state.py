"""What the tests of the matrix-state ops share: random inputs, compiled programs, the formula in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("none", "scalar", "vector")
B, T, H, K, V = 2, 69, 2, 8, 6  # one length for most tests, so that a program compiles once


def inputs(kind, t=T, rate=False, seed=0, dtype=np.float32, b=B, h=H, k=K, v=V):
    """Random q, k (unit norm), v, state, gates of the kind, and beta in (0, 2) if `rate`."""
    r = np.random.default_rng(seed)
    d = {name: r.normal(size=(b, t, h, n)) for name, n in (("q", k), ("k", k), ("v", v))}
    d["k"] /= np.linalg.norm(d["k"], axis=-1, keepdims=True)
    d["state"] = r.normal(size=(b, h, k, v))
    gates = {"none": None, "scalar": (b, t, h), "vector": (b, t, h, k)}[kind]
    if gates:
        d["g"] = -np.exp(r.normal(size=gates) - 1.5)
    if rate:
        d["beta"] = 2 / (1 + np.exp(-r.normal(size=(b, t, h))))
    return {name: x.astype(dtype) for name, x in d.items()}


def random_starts(t=T, b=B, share=0.06, seed=1):
    """(b, t) bool; the first row has a start at its head, the second has a start right after another."""
    starts = np.random.default_rng(seed).random((b, t)) < share
    starts[0, 0] = True
    starts[-1, t // 2 : t // 2 + 2] = True
    return starts


@functools.cache
def program(op, **fixed):
    """Compiled: outputs, final state, and the gradients for every floating input of a random linear loss."""

    def run(d, starts):
        def loss(d):
            y, state = op(**d, starts=starts, **fixed)
            key = jax.random.key(0)
            probe = lambda x: jnp.sum(x * jax.random.normal(key, x.shape, x.dtype))  # noqa: E731
            return probe(y) + probe(state), {"y": y, "state": state}

        grads, out = jax.grad(loss, has_aux=True)(d)
        return {"out": out, "grads": grads}

    return jax.jit(run)


def formula(q, k, v, state, g=None, beta=None, starts=None):
    """The papers' recurrences in plain numpy loops, float64."""
    b, t, h, _ = q.shape
    y, last = np.zeros(v.shape), np.zeros(state.shape)
    for row in range(b):
        for head in range(h):
            s = state[row, head].astype(np.float64)
            for i in range(t):
                if starts is not None and starts[row, i]:
                    s = np.zeros_like(s)
                if g is not None:
                    s = np.diag(np.exp(g[row, i, head].astype(np.float64) * np.ones(len(s)))) @ s
                key, value = k[row, i, head].astype(np.float64), v[row, i, head].astype(np.float64)
                if beta is None:
                    s = s + np.outer(key, value)
                else:
                    s = s + beta[row, i, head] * np.outer(key, value - key @ s)
                y[row, i, head] = q[row, i, head].astype(np.float64) @ s
            last[row, head] = s
    return {"y": y, "state": last}


def temporary_mebibytes(op, kind, rate):
    """Temporary memory of the gradient for every input at T = 1024, one head of 64 by 64."""
    d = inputs(kind, t=1024, rate=rate, b=1, h=1, k=64, v=64)
    r = np.random.default_rng(5)
    wy, ws = (r.normal(size=d[name].shape).astype(np.float32) for name in ("v", "state"))

    def loss(d):
        y, state = op(**d)
        return jnp.sum(y * wy) + jnp.sum(state * ws)

    return jax.jit(jax.grad(loss)).lower(d).compile().memory_analysis().temp_size_in_bytes / 2**20


def check_spoiled(op, kind, rate):
    """A nan token, and a nan state, stay inside their documents: outputs, final state and gradients."""
    d = inputs(kind, rate=rate)
    starts = np.zeros((B, T), bool)
    starts[0, [20, 45]] = True
    starts[1, 5] = True
    clean = jax.tree.map(np.asarray, program(op)(d, starts))
    for name in ("v", "k", "q", "g", "beta"):
        if name not in d:
            continue
        bad = {**d, name: d[name].copy()}
        bad[name][0, 30, 1] = np.nan  # a document in the middle of row 0
        bad[name][1, 60, 0] = np.inf  # the last document of row 1
        got = jax.tree.map(np.asarray, program(op)(bad, starts))
        spoiled = np.zeros((B, T), bool)
        spoiled[0, 30:45] = spoiled[1, 60:] = True
        assert np.isnan(got["out"]["y"][spoiled]).all()
        yield got["out"]["y"][~spoiled], clean["out"]["y"][~spoiled]
        assert np.isnan(got["out"]["state"][1]).all()
        yield got["out"]["state"][0], clean["out"]["state"][0]
        untouched = np.zeros((B, T), bool)
        untouched[0, :20] = untouched[0, 45:] = untouched[1, :5] = True
        for leaf, grad in got["grads"].items():
            assert np.isfinite(grad).all(), leaf
            if leaf != "state":
                yield grad[untouched], clean["grads"][leaf][untouched]
    bad = {**d, "state": d["state"].copy()}
    bad["state"][1, 0, 0, 0] = np.nan
    got = jax.tree.map(np.asarray, program(op)(bad, starts))
    assert np.isnan(got["out"]["y"][1, :5]).all()
    yield got["out"]["y"][1, 5:], clean["out"]["y"][1, 5:]
    yield got["out"]["state"], clean["out"]["state"]
    assert all(np.isfinite(x).all() for x in got["grads"].values())
