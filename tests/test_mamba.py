"""Mamba against its equations in numpy, and its limits: a convolution, a kept state, a sign (Gu & Dao 2023)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import agrees, apply, example, half, wide_numpy
from tolerance import close
from twin import silu, softplus

from jaxlm.mixers.mamba import Mamba
from jaxlm.module import ConfigError, abstract, count, decay_mask, init


def cell(p, x, s, negative=False):
    """One token; the convolution reads its last inputs and this one, newest last."""
    u, z = np.einsum("d,dgm->gm", x, p["input"])
    recent = np.concatenate([s["conv"], u[None]])
    u = silu((p["conv"] * recent).sum(0) + p["conv_bias"])
    r, n = len(p["dt"]), p["A_log"].shape[1]
    low, b, c = np.split(u @ p["select"], [r, r + n])
    dt = softplus(low @ p["dt"] + p["dt_bias"])[:, None]
    a = np.exp(-dt * np.exp(p["A_log"]))
    h = (2 * a - 1 if negative else a) * s["h"] + dt * u[:, None] * b
    return ((h @ c + p["skip"] * u) * silu(z)) @ p["out"], {"h": h, "conv": recent[1:]}


@pytest.mark.parametrize(
    "mixer",
    [Mamba(6), Mamba(6, slots=3, expand=1, window=2, rank=2, negative=True)],
    ids=["width alone", "all fields"],
)
def test_is_the_papers_block(mixer):
    agrees(mixer, partial(cell, negative=mixer.negative))


def test_bfloat16_stays_near():
    half(Mamba(16), cell)


def test_fixed_selection_is_a_convolution():
    """Δ, B and C read channel 0 alone, which is a constant: y_t = sum_s C exp(s Δ A) Δ B u_{t-s} + D u_t."""
    mixer, t = Mamba(4, slots=3), 15
    params, x, _, _ = example(mixer, t=t)
    params["conv"][:, 0], params["conv_bias"][0], params["select"][1:] = 0, 2, 0
    params["input"][:, 1, :], params["dt"][:] = params["input"][:, 0], 0
    p = wide_numpy(params)
    inside = wide_numpy(x) @ p["input"][:, 0]
    seen = np.pad(inside, [(0, 0), (3, 0), (0, 0)])
    u = silu(sum(p["conv"][i] * seen[:, i : i + t] for i in range(4)) + p["conv_bias"])
    _, b, c = np.split(silu(2.0) * p["select"][0], [1, 4])
    dt = softplus(p["dt_bias"])
    a = np.exp(-dt[:, None] * np.exp(p["A_log"]))
    kernel = np.einsum("smn,n,m->sm", a[None] ** np.arange(t)[:, None, None], b * c, dt)
    y = p["skip"] * u + sum(np.pad(kernel[s] * u, [(0, 0), (s, 0), (0, 0)])[:, :t] for s in range(t))
    close(apply(mixer, params, x)[0], np.float32((y * silu(inside)) @ p["out"]))


@pytest.mark.parametrize("negative", [False, True])
def test_a_step_of_zero_keeps_the_state(negative):
    mixer = Mamba(4, negative=negative)
    params, x, state, _ = example(mixer)
    params["dt_bias"][:] = -1e4
    np.testing.assert_array_equal(apply(mixer, params, x, state)[1]["h"], state["h"])


@pytest.mark.parametrize(("negative", "sign"), [(False, 0), (True, -1)])
def test_a_long_step_forgets_or_changes_the_sign(negative, sign):
    """Nothing is written (B = 0): seven tokens give (-1)^7 h, or nothing at all."""
    mixer = Mamba(4, negative=negative)
    params, x, state, _ = example(mixer)
    params["dt_bias"][:], params["select"][:, 1:17] = 1e4, 0
    close(apply(mixer, params, x, state)[1]["h"], sign * state["h"])


def test_the_gradient_never_holds_a_state_per_token():
    t, mixer = 1024, Mamba(128, slots=128, expand=1)
    loss = jax.jit(jax.grad(lambda p, x: jnp.sum(mixer.apply(p, x)[0] ** 2)))
    stats = loss.lower(abstract(mixer), jax.ShapeDtypeStruct((1, t, 128), jnp.float32)).compile().memory_analysis()
    assert stats is not None and stats.temp_size_in_bytes < t * 128 * 128 * 4 / 2


def test_starts_as_published():
    mixer = Mamba(64)
    params = wide_numpy(jax.jit(lambda: init(mixer, jax.random.key(0)))())
    close(params["A_log"], np.broadcast_to(np.log(np.arange(1, 17)), (128, 16)))
    step = softplus(params["dt_bias"])
    assert 1e-3 - 1e-6 <= step.min() < 1.5e-3 and 0.07 < step.max() <= 0.1 + 1e-6
    assert (params["skip"] == 1).all() and 0.45 < np.abs(params["dt"]).max() <= 0.5
    assert np.abs(params["conv"]).max() <= 0.5


def test_counts_and_names():
    d, m, n, r = 768, 1536, 16, 48  # the smallest published model
    mixer = Mamba(d)
    assert count(mixer) == 2 * d * m + 5 * m + m * (r + 2 * n) + r * m + m + m * n + m + m * d
    assert mixer.state(1)["h"].size == 2 * d * n and mixer.state(1)["conv"].shape == (1, 3, m)
    mask = decay_mask(mixer)
    assert mask["select"] and mask["dt"] and not any(mask[name] for name in ("A_log", "skip", "dt_bias", "conv"))


@pytest.mark.parametrize("field", ["slots", "expand", "window", "rank"])
def test_bad_fields_are_named(field):
    with pytest.raises(ConfigError, match=rf"Mamba\.{field} = 0"):
        Mamba(16, **{field: 0})  # pyright: ignore[reportArgumentType]
