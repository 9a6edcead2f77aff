"""The trainer loses nothing: resuming, parts, meshes, lanes, damaged checkpoints."""

import dataclasses
import gc
import json
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import experiment
from tolerance import close

from jaxlm.errors import ConfigError, ShapeError
from jaxlm.train.checkpoint import Checkpoints, SaveError, fingerprint, flat
from jaxlm.train.loop import Diverged, Run, restore_weights
from jaxlm.train.report import JsonLines, read_metrics
from jaxlm.train.step import first_state, train_step

ROOT = Path(__file__).parents[1]
TEXT = str(ROOT / "LICENSE")


def tiny(**knobs):
    return experiment(**{"text": (TEXT,), **knobs})


def bits(tree):
    return {name: np.asarray(x).tobytes() for name, x in flat(tree).items()}


@pytest.fixture(autouse=True)
def collected():
    """What a test leaves behind is collected before the next one."""
    yield
    gc.collect()


class Cut(Exception):
    """Stands for a kill: raised by a listener in the middle of a run."""


def cut_at(step):
    def listener(event):
        if event["kind"] == "update" and event["step"] == step:
            raise Cut

    return listener


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The uninterrupted run, by layout."""
    runs = {}
    for layout in ("rows", "lanes"):
        where = tmp_path_factory.mktemp(layout)
        events = []
        runs[layout] = (
            Run(tiny(layout=layout), where, [events.append, JsonLines(where / "metrics.jsonl")])(),
            where,
            events,
        )
    return runs


def final(where, exp):
    mesh = Run(exp, where).mesh
    _, target = first_state(exp, mesh)
    checkpoints = Checkpoints(where / "checkpoints")
    step, state, _ = checkpoints.restore(target, lambda text: pytest.fail(text))
    checkpoints.close()
    return step, state


@pytest.mark.parametrize("layout", ["rows", "lanes"])
def test_a_cut_run_goes_on_bit_for_bit(layout, quiet, tmp_path):
    """Weights, optimizer, data order, dropout and carried state end as in the uninterrupted run."""
    _, where, _ = quiet[layout]
    exp = tiny(layout=layout)
    for step in (6, 11):
        with pytest.raises(Cut):
            Run(exp, tmp_path, [JsonLines(tmp_path / "metrics.jsonl"), cut_at(step)])()
    result = Run(exp, tmp_path, [JsonLines(tmp_path / "metrics.jsonl")])()
    assert result.step == exp.steps
    (_, a), (_, b) = final(where, exp), final(tmp_path, exp)
    assert bits(a) == bits(b)
    losses = [
        [(e["step"], e["loss"]) for e in read_metrics(p / "metrics.jsonl") if e["kind"] == "update"]
        for p in (where, tmp_path)
    ]
    assert losses[0] == losses[1], "each step is logged once, with the same loss"


def test_lanes_carry_the_state(quiet):
    exp = tiny(layout="lanes")
    _, state = final(quiet["lanes"][1], exp)
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(state.memory))


def test_loss_falls_and_seeds_differ(quiet):
    events = [e for e in quiet["rows"][2] if e["kind"] == "update"]
    assert events[-1]["loss"] < events[0]["loss"] - 0.5
    assert [e["step"] for e in events] == list(range(1, 13))
    assert events[3]["tokens_per_second"] > 0
    make, _ = first_state(tiny(seed=1), Run(tiny(), quiet["rows"][1]).mesh)
    assert bits(make().params) != bits(first_state(tiny(), Run(tiny(), quiet["rows"][1]).mesh)[0]().params)


def test_a_finished_run_that_is_run_again_keeps_its_weights(quiet, tmp_path):
    shutil.copytree(quiet["rows"][1], tmp_path / "run")
    result = Run(tiny(), tmp_path / "run")()
    assert bits(result.params) == bits(quiet["rows"][0].params)
    assert result.bits_per_byte == quiet["rows"][0].bits_per_byte


def updated(exp, steps=1):
    from jaxlm.sharding import mesh as make_mesh
    from jaxlm.train.loop import placed

    mesh = make_mesh(exp.mesh)
    make, _ = first_state(exp, mesh)
    state, update, rows, losses = make(), train_step(exp, mesh), exp.data.training(exp.seed), []
    for step in range(steps):
        state, metrics = update(state, placed(exp, mesh, rows, step, exp.batch))
        losses.append(metrics["loss"])
    return jax.device_get((state.params, jnp.stack(losses)))


def test_parts_of_a_batch_change_nothing():
    """Accumulated in parts: the same loss and the same update. Plain SGD, so that the update is the gradient."""
    for layout in ("rows", "lanes"):
        whole = updated(tiny(dropout=0.0, optimizer="sgd", layout=layout), 2)
        close(updated(tiny(dropout=0.0, optimizer="sgd", layout=layout, accumulate=4), 2), whole)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_meshes_give_the_single_device_losses_and_gradients(mesh):
    """One SGD step of rate 1 shows the gradient; the second loss shows that it was applied."""
    one = tiny(dropout=0.0, optimizer="sgd", lr=1.0)
    many = tiny(dropout=0.0, optimizer="sgd", lr=1.0, mesh=mesh)
    close(updated(many, 2), updated(one, 2))


def test_weights_and_moments_are_placed():
    from jaxlm.sharding import mesh as make_mesh

    exp = tiny(mesh="fsdp=8")
    make, target = first_state(exp, make_mesh(exp.mesh))
    state = make()
    jax.tree.map(
        lambda x, t: None if x.sharding == t.sharding else pytest.fail(f"{x.sharding} {t.sharding}"), state, target
    )
    moment = optax.tree.get(state.optimizer, "mu")["embed"]
    assert moment.addressable_shards[0].data.shape == (256, 2), "the optimizer's moments are split as their weights"


def test_bfloat16_compute_keeps_float32_weights():
    exp = dataclasses.replace(tiny(dropout=0.0), dtype="bfloat16")
    params, losses = updated(exp, 3)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    close(losses, updated(tiny(dropout=0.0), 3)[1], "bfloat16")


def test_without_a_good_checkpoint_it_says_so(quiet, tmp_path):
    where = tmp_path / "run"
    shutil.copytree(quiet["rows"][1], where)
    for path in (where / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"all of \[12, 8.* are damaged"):
        restore_weights(tiny(), where, lambda text: None)
    with pytest.raises(ConfigError, match="expected a run directory"):
        restore_weights(tiny(), tmp_path / "nowhere", lambda text: None)


def test_one_bit_changes_the_fingerprint():
    rng = random.Random(0)
    tree = {
        "a": jax.random.normal(jax.random.key(0), (7, 9)),
        "b": jnp.arange(10, dtype=jnp.int32),
        "c": jnp.ones((3,), jnp.bfloat16),
        "d": jnp.array([True, False]),
    }
    before = int(fingerprint(tree))
    for _ in range(40):
        name = rng.choice(["a", "b", "c"])
        raw = bytearray(np.asarray(tree[name]).tobytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        other = np.frombuffer(bytes(raw), np.asarray(tree[name]).dtype).reshape(tree[name].shape)
        assert int(fingerprint({**tree, name: jnp.asarray(other)})) != before
    assert int(fingerprint({**tree, "d": jnp.array([False, True])})) != before


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    exp, where = tiny(), tmp_path
    run = Run(exp, where)
    real = run.checkpoints.manager.save

    def full(step, **kwargs):
        if step > 4:
            raise OSError(28, "No space left on device")
        return real(step, **kwargs)

    monkeypatch.setattr(run.checkpoints.manager, "save", full)
    with pytest.raises(SaveError, match=r"step 8.*No space left on device; the last good one is step 4"):
        run()
    assert restore_weights(exp, where, pytest.fail)[0] == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(tmp_path):
    exp = tiny(optimizer="sgd", lr=1e30, save_every=1)
    with pytest.raises(Diverged, match="expected finite numbers"):
        Run(exp, tmp_path)()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in checkpoints.steps():
        weights = checkpoints.manager.restore(step)["values"]
        assert all(np.isfinite(x).all() for name, x in weights.items() if name.startswith("params")), step
    checkpoints.close()


def test_another_optimizer_is_not_damage(quiet, tmp_path):
    """A checkpoint that does not fit is named and left where it is."""
    where = tmp_path / "run"
    shutil.copytree(quiet["rows"][1], where)
    with pytest.raises(ConfigError, match=r"holds optimizer\..*expected the run's own model, optimizer"):
        Run(tiny(optimizer="sgd"), where)()
    assert Checkpoints(where / "checkpoints").steps()[0] == 12 and not (where / "damaged").exists()


def test_fewer_steps_than_were_made_are_refused(quiet, tmp_path):
    shutil.copytree(quiet["rows"][1], tmp_path / "run")
    with pytest.raises(ConfigError, match="steps = 6: the run has made 12"):
        Run(tiny(steps=6), tmp_path / "run")()


def test_a_batch_that_the_mesh_cannot_split_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises((ShapeError, ConfigError), match="batch"):
        Run(tiny(mesh="data=8", batch=12), tmp_path / "run")
    with pytest.raises((ShapeError, ConfigError), match="batch"):
        Run(tiny(mesh="data=8", batch=8, accumulate=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch", -1), ("accumulate", 3), ("dtype", "int8"), ("keep", 0), ("save_every", -1)],
)
def test_numbers_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=f"{field} = "):
        dataclasses.replace(tiny(), **{field: value})


def test_metrics_survive_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in range(1, 6):
        log({"kind": "update", "step": step, "loss": 1.0})
    path.write_text(path.read_text()[:-7])
    log({"kind": "begin", "step": 3})
    assert [e["step"] for e in read_metrics(path)] == [1, 2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())
