"""Delta rule: the WY form against its naive twin and the papers' recurrence; the inverse; extremes; memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_state import KINDS, B, T, check_spoiled, formula, inputs, program, random_starts, temporary_mebibytes
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.ops.delta import delta, delta_naive, unit_inverse


def both(d, starts, **fixed):
    return program(delta, **fixed)(d, starts), program(delta_naive)(d, starts)


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_is_naive(kind):
    close(*both(inputs(kind, rate=True), random_starts()))


@pytest.mark.parametrize(("kind", "t", "chunk"), [("vector", 1, 32), ("vector", 37, 32)])
def test_lengths_and_chunks(kind, t, chunk):
    close(*both(inputs(kind, t=t, rate=True), None, chunk=chunk))


@pytest.mark.parametrize("kind", KINDS)
def test_formula_float64(kind, x64):
    d, starts = inputs(kind, t=37, rate=True, dtype=np.float64), random_starts(37)
    y, state = jax.jit(delta)(**d, starts=starts)
    assert y.dtype == state.dtype == jnp.float64
    close({"y": y, "state": state}, formula(**d, starts=starts), dtype=jnp.float64)


@pytest.mark.parametrize("kind", ["scalar", "vector"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_hard_gates(kind, share):
    """Gates near -30 among gates near 0: sums reach the thousands, while neighbours still need all their digits."""
    d = inputs(kind, rate=True)
    r = np.random.default_rng(3)
    hard = r.random(d["g"].shape) < share
    d["g"] = np.where(hard, -30 - r.random(d["g"].shape), -0.01 * r.random(d["g"].shape)).astype(np.float32)
    starts = random_starts()
    got, want = both(d, starts)
    close(got, want)
    close(got["out"], jax.tree.map(np.float32, formula(**d, starts=starts)))


@pytest.mark.parametrize("kind", ["none", "scalar"])
def test_repeated_keys(kind):
    """One key all along, rates close to 2: every write reflects, powers of L would reach 1e20."""
    d = inputs(kind, rate=True)
    d["k"][:] = d["k"][:, :1]
    d["beta"][:] = 1.999
    got, want = both(d, random_starts())
    close(got, want)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(got))


def test_large_keys():
    d = inputs("scalar", rate=True)
    d["k"] *= 30
    d["beta"] /= 900
    close(*both(d, random_starts()))


def test_gate_of_zero_is_no_gate():
    d = inputs("none", rate=True)
    gated = {**d, "g": np.zeros(d["beta"].shape, np.float32)}
    got, want = program(delta)(gated, random_starts()), program(delta)(d, random_starts())
    del got["grads"]["g"]
    close(got, want)


def test_equal_channels_are_a_scalar_gate():
    d = inputs("scalar", rate=True)
    wide = {**d, "g": np.repeat(d["g"][..., None], d["k"].shape[-1], axis=-1)}
    got, want = program(delta)(wide, random_starts()), program(delta)(d, random_starts())
    got["grads"]["g"] = got["grads"]["g"].sum(-1)
    close(got, want)


def test_rate_of_zero_only_decays():
    d = inputs("scalar", rate=True)
    d["beta"][:] = 0
    out = program(delta)(d, np.zeros((B, T), bool))["out"]
    left = np.exp(np.cumsum(d["g"].astype(np.float64), axis=1))
    want = left[..., None] * np.einsum("bthk,bhkv->bthv", d["q"], d["state"])
    close(
        (out["y"], out["state"]),
        (want.astype(np.float32), (left[:, -1, :, None, None] * d["state"]).astype(np.float32)),
    )


def test_orthonormal_keys_recall_exactly():
    """Rate 1: after writing, each key reads back its value; writing a key again replaces what it held."""
    d = inputs("none", t=16, rate=True)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0].astype(np.float32)
    d["k"][:] = np.concatenate([turn, turn])[None, :, None]
    d["beta"][:] = 1
    y, state = jax.jit(delta)(**{**d, "q": d["k"]})
    close(y, d["v"])
    close(jnp.einsum("thk,bhkv->bthv", d["k"][0, 8:], state), d["v"][:, 8:])


def test_reflection_keeps_the_norm():
    """Rate 2, unit key, value 0: a reflection; twice is the identity."""
    d = inputs("none", t=2, rate=True)
    d["k"][:] = d["k"][:, :1]
    d["beta"][:], d["v"][:] = 2, 0
    close(jax.jit(delta)(**d)[1], d["state"])
    once = jax.jit(delta)(**{name: x if name == "state" else x[:, :1] for name, x in d.items()})[1]
    close(jnp.sum(once**2, axis=(2, 3)), np.sum(d["state"] ** 2, axis=(2, 3)))


@pytest.mark.parametrize("kind", ["vector", "none"])
def test_bad_token_stays_in_its_document(kind):
    for got, want in check_spoiled(delta, kind, rate=True):
        close(got, want)


def test_cut_anywhere():
    d, starts = inputs("scalar", rate=True), random_starts()
    run = jax.jit(delta)
    whole = run(**d, starts=starts)
    state, ys = d.pop("state"), []
    for part in (slice(0, 23), slice(23, 46), slice(46, 69)):
        y, state = run(**{name: x[:, part] for name, x in d.items()}, state=state, starts=starts[:, part])
        ys.append(y)
    close((jnp.concatenate(ys, axis=1), state), whole)


def _solve(lower):
    eye = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
    return jax.scipy.linalg.solve_triangular(jnp.tril(lower, -1) + eye, eye, lower=True, unit_diagonal=True)


@pytest.mark.parametrize("c", [1, 32])
def test_inverse_is_the_triangular_solve(c):
    """Values, reverse mode and forward mode; what is on or above the diagonal is not read."""
    r = np.random.default_rng(4)
    lower, dl, dm = (r.normal(size=(2, c, c)).astype(np.float32) for _ in range(3))
    lower = lower * np.float32(0.3)

    @jax.jit
    def all_ways(lower, dl, dm):
        out = []
        for f in (unit_inverse, _solve):
            value, tangent = jax.jvp(f, (lower,), (dl,))
            out.append((value, tangent, jax.vjp(f, lower)[1](dm)[0]))
        return out

    got, want = all_ways(lower, dl, dm)
    close(got, want)
    m = np.asarray(got[0], np.float64)
    close(got[2], np.tril(-m.swapaxes(1, 2) @ dm @ m.swapaxes(1, 2), -1).astype(np.float32))
    assert np.array_equal(np.triu(got[2]), np.zeros_like(got[2]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_memory(kind):
    assert temporary_mebibytes(delta, kind, rate=True) <= 4


@pytest.mark.parametrize(
    ("name", "shape"),
    [("beta", (2, 5)), ("k", (2, 5, 2, 7)), ("g", (2, 5, 2, 6)), ("state", (2, 2, 8)), ("starts", (5, 2))],
)
def test_wrong_shapes(name, shape):
    d = inputs("scalar", t=5, rate=True) | {"starts": np.zeros((2, 5), bool)}
    d[name] = np.zeros(shape, d[name].dtype)
    with pytest.raises(ShapeError, match=rf"^{name}: shape"):
        delta(**d)


def test_wrong_chunk():
    with pytest.raises(ConfigError, match="chunk: 0, expected a power of two"):
        delta(**inputs("none", t=5, rate=True), chunk=0)
