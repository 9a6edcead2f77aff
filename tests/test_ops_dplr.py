"""Diagonal plus rank one: the chunkwise form against its naive twin and the recurrence; the delta rule as its limit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_state import B, T, inputs, program, random_starts, temporary_mebibytes
from tolerance import close

from jaxlm.errors import ShapeError
from jaxlm.ops.delta import delta
from jaxlm.ops.dplr import dplr, dplr_naive


def sided(kind="vector", t=T, seed=7, **more) -> dict[str, Any]:
    """As `inputs`, with a of length 1 and b = -a ⊙ a share in (0, 1): RWKV-7's form."""
    d = inputs(kind, t=t, **more)
    r = np.random.default_rng(seed)
    a = r.normal(size=d["k"].shape)
    a /= np.linalg.norm(a, axis=-1, keepdims=True)
    b = -a / (1 + np.exp(-r.normal(size=a.shape)))
    return d | {"a": a.astype(d["k"].dtype), "b": b.astype(d["k"].dtype)}


@pytest.mark.parametrize("kind", ["vector", "none"])
def test_chunked_is_naive(kind):
    d, starts = sided(kind), random_starts()
    close(program(dplr)(d, starts), program(dplr_naive)(d, starts))


def test_formula_float64(x64):
    d, starts = sided(t=37, dtype=np.float64), random_starts(37)
    y, last = np.zeros(d["v"].shape), d["state"].copy()
    for row, t, h in np.ndindex(*d["k"].shape[:3]):
        q, a, b, k, v = (d[n][row, t, h] for n in "qabkv")
        S = np.zeros_like(last[row, h]) if starts[row, t] else last[row, h]
        last[row, h] = (np.diag(np.exp(d["g"][row, t, h])) + np.outer(b, a)) @ S + np.outer(k, v)
        y[row, t, h] = q @ last[row, h]
    close(jax.jit(dplr)(**d, starts=starts), (y, last), jnp.float64)


def test_limit_is_the_delta_rule():
    d, starts = inputs("none", rate=True), random_starts()
    rate = d["beta"][..., None]
    same = {n: d[n] for n in ("q", "k", "state")} | {"a": -d["k"], "b": rate * d["k"], "v": rate * d["v"]}
    close(jax.jit(dplr)(**same, starts=starts), jax.jit(delta)(**d, starts=starts))


def test_decays_inside_the_delta_rule():
    """A gate before the delta, as KDA has it, is a side that reads through the gate: a = -k ⊙ e^g."""
    d, starts = inputs("vector", rate=True), random_starts()
    rate = d["beta"][..., None]
    same = {n: d[n] for n in ("q", "k", "g", "state")}
    same |= {"a": -d["k"] * np.exp(d["g"]), "b": rate * d["k"], "v": rate * d["v"]}
    close(jax.jit(dplr)(**same, starts=starts), jax.jit(delta)(**d, starts=starts))


def test_twice_a_unit_key_reflects():
    d = sided("none", t=2)
    d["a"][:] = d["a"][:, :1]
    d["b"], d["v"] = -2 * d["a"], 0 * d["v"]
    close(jax.jit(dplr)(**d)[1], d["state"])


def test_bad_token_stays_in_its_document():
    d, starts = sided(), np.zeros((B, T), bool)
    starts[0, [20, 45]] = starts[1, 5] = True
    clean = jax.tree.map(np.asarray, program(dplr)(d, starts))
    spoiled, untouched = np.zeros((B, T), bool), np.zeros((B, T), bool)
    spoiled[0, 30:45] = spoiled[1, 60:] = True
    untouched[0, :20] = untouched[0, 45:] = untouched[1, :5] = True
    for name in ("a", "b", "v", "g"):
        bad = {**d, name: d[name].copy()}
        bad[name][0, 30, 1], bad[name][1, 60, 0] = np.nan, np.inf
        got = jax.tree.map(np.asarray, program(dplr)(bad, starts))
        assert np.isnan(got["out"]["y"][spoiled]).all() and np.isnan(got["out"]["state"][1]).all()
        close(
            (got["out"]["y"][~spoiled], got["out"]["state"][0]), (clean["out"]["y"][~spoiled], clean["out"]["state"][0])
        )
        for leaf, grad in got["grads"].items():
            assert np.isfinite(grad).all(), leaf
            if leaf != "state":
                close(grad[untouched], clean["grads"][leaf][untouched])


def test_gradient_memory():
    sides = lambda q, **d: dplr(q, -d["k"], 0.5 * d["k"], **d)  # noqa: E731
    assert temporary_mebibytes(sides, "vector", rate=False) <= 4


@pytest.mark.parametrize("name", ["a", "b"])
def test_wrong_shapes(name):
    d = sided(t=5)
    d[name] = d[name][..., 1:]
    with pytest.raises(ShapeError, match=rf"^{name}: shape"):
        dplr(**d)
