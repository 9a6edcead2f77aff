"""Many small models trained in one program: as if each were alone, and a stopped run goes on bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerance import close

from jaxlm.errors import ConfigError
from jaxlm.train.fit import fit

KEYS = jax.random.split(jax.random.key(3), 4)
TARGETS = jnp.arange(4.0)
TX = optax.adam(0.1)


def init(key, target):
    return {"w": jax.random.normal(key, (3,)) + target[None]}


def loss(params, key, step, target):
    return jnp.sum((params["w"] - target[None] - 0.1 * jax.random.normal(key, (3,))) ** 2)


def watch(params, key, target):
    return {"w": params["w"], "gap": jnp.max(jnp.abs(params["w"] - target[None]))}


def run(keys=KEYS, each=TARGETS, **how):
    return fit(keys, init, loss, TX, steps=60, every=20, watch=watch, each=each, **how)


def test_models_learn_and_are_watched():
    out = run()
    assert out.params["w"].shape == (4, 3) and out.watched["w"].shape == (3, 4, 3)
    assert out.watched["loss"].shape == out.watched["gap"].shape == (3, 4)
    assert np.all(out.watched["loss"][-1] < out.watched["loss"][0])
    close(out.params["w"], out.watched["w"][-1])
    assert np.all(np.abs(out.params["w"] - TARGETS[:, None]) < 0.5)


def test_a_model_among_others_is_as_alone():
    close(run().params["w"][2:3], run(KEYS[2:3], TARGETS[2:3]).params["w"])


def test_models_in_turn_are_as_side_by_side():
    turns, all_at_once = run(at_once=2), run()
    close(turns.params["w"], all_at_once.params["w"])
    close(turns.watched["gap"], all_at_once.watched["gap"])


def test_by_hand():
    key, target = KEYS[1], TARGETS[1]
    begin, draws = jax.random.split(key)
    params = init(begin, target)
    moments = TX.init(params)
    for n in range(60):
        grads = jax.grad(loss)(params, jax.random.fold_in(draws, n), n, target)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = TX.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
    close(run().params["w"][1], params["w"])


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    class Stop(Exception):
        pass

    def stop(fraction, **numbers):
        assert set(numbers) == {"loss", "gap"}
        if fraction > 0.5:
            raise Stop

    file = tmp_path / "kept" / "run.npz"
    with pytest.raises(Stop):
        run(keep=file, tell=stop)
    told = []
    again = run(keep=file, tell=lambda f, **_: told.append(f))
    assert told == [1.0]
    for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="every = 7: expected a divisor of the 60 steps"):
        fit(KEYS, init, loss, TX, steps=60, every=7, each=TARGETS)
    run(keep=tmp_path / "a.npz")
    with pytest.raises(ConfigError, match=r"a\.npz: expected the progress of this run"):
        run(KEYS[:2], TARGETS[:2], keep=tmp_path / "a.npz")
