"""Bad batches: skipped inside jit, counted, written down; too many end the run. Auxiliary losses; what is not split."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import experiment
from tolerance import close

from jaxlm import taps
from jaxlm.blocks import Block, Stack
from jaxlm.cli import guarded
from jaxlm.errors import ConfigError
from jaxlm.layers.moe import MoE
from jaxlm.mixers import make
from jaxlm.models import LM
from jaxlm.sharding import mesh as make_mesh
from jaxlm.sharding import replicated
from jaxlm.train.checkpoint import Checkpoints, flat
from jaxlm.train.guard import WINDOW, Guard, judged, own_rows
from jaxlm.train.loop import Diverged, Run, placed
from jaxlm.train.report import JsonLines
from jaxlm.train.step import first_state, summed_loss, train_step

ROOT = Path(__file__).parents[1]


def tiny(**knobs):
    return experiment(**{"text": (str(ROOT / "LICENSE"),), "mixer": "MinGRU", **knobs})


def bits(tree):
    return {name: np.asarray(x).tobytes() for name, x in flat(tree).items()}


@pytest.fixture(scope="module")
def steps():
    """(experiment, function that begins it, update, batch of a step), as the loop has them, by layout."""
    made = {}
    for layout, accumulate in (("rows", 1), ("lanes", 2)):
        exp = tiny(layout=layout, accumulate=accumulate)
        mesh, rows = make_mesh(exp.mesh), exp.data.training(exp.seed)
        batch = partial(lambda exp, mesh, rows, step: placed(exp, mesh, rows, step, exp.batch), exp, mesh, rows)
        made[layout] = exp, first_state(exp, mesh)[0], train_step(exp, mesh), batch
    return made


def poisoned(batch):
    """One weight of the loss is NaN."""
    return {**batch, "weights": batch["weights"].at[1, 3].set(jnp.nan)}


def test_a_clean_run_is_that_of_an_unguarded_step(steps):
    """Bit for bit, after four updates: the step is written here a second time, without a guard."""
    exp, begin, update, batch = steps["rows"]
    state = begin()
    loss = summed_loss(exp.model, exp.dtype, lambda x, axes: x, carries=False)

    def plain(step, params, optimizer, batch):
        key = jax.random.fold_in(jax.random.key(exp.seed), step)
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, None, key)
        grads = jax.tree.map(lambda g: g * (1 / jnp.maximum(sums.weight, 1)), grads)
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = exp.optimizer.update(grads, optimizer, params)
            return optax.apply_updates(params, updates), optimizer

    plain, params, optimizer = jax.jit(plain), state.params, state.optimizer
    params, optimizer = jax.tree.map(jnp.copy, (params, optimizer))  # the guarded step takes its own
    for step in range(4):
        params, optimizer = plain(jnp.int32(step), params, optimizer, batch(step))
        state, metrics = update(state, batch(step))
    assert bits((params, optimizer)) == bits((state.params, state.optimizer))
    assert int(state.step) == 4 and int(metrics["row"]) == int(state.guard.skipped) == 0


@pytest.mark.parametrize("layout", ["rows", "lanes"])
def test_a_poisoned_batch_changes_nothing_but_counts(layout, steps):
    """Weights, moments and the carried memory stay bit for bit; the step goes on; the next batch trains again."""
    _, begin, update, batch = steps[layout]
    state, _ = update(begin(), batch(0))
    before, held = bits((state.params, state.optimizer, state.memory)), float(state.guard.norm)
    for step in (1, 2):
        state, metrics = update(state, poisoned(batch(step)))
        assert np.isnan(metrics["loss"]) and int(metrics["row"]) == step
        assert bits((state.params, state.optimizer, state.memory)) == before
    assert (int(state.step), int(state.guard.skipped), float(state.guard.norm)) == (3, 2, held)
    state, metrics = update(state, batch(3))
    after = bits((state.params, state.optimizer, state.memory))
    assert all(after[name] != before[name] for name in before)
    assert np.isfinite(metrics["loss"]) and (int(state.guard.row), int(state.guard.skipped)) == (0, 2)


def test_spikes_are_told_by_running_means():
    """A second time in plain Python, over a level that jumps for good; a guard that is off never skips."""
    rng = np.random.default_rng(0)
    norms = np.concatenate([rng.uniform(0.5, 1.5, 60), [100.0], rng.uniform(0.5, 1.5, 5), np.full(80, 9.0)])
    judge = jax.jit(judged, static_argnums=4)
    for spike in (4.0, 0.0):
        guard = Guard(jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0))
        mean, made, skipped = 0.0, 0, []
        for step, norm in enumerate(norms):
            good, guard = judge(guard, jnp.int32(step), jnp.float32(2.0), jnp.float32(norm), spike)
            bound = spike * mean if spike and made >= WINDOW else np.inf
            assert bool(good) == (norm <= bound), step
            mean += (min(norm, bound) - mean) / min(made + 1, WINDOW)
            made += bool(good)
            skipped += [] if good else [step]
            assert float(guard.norm) == pytest.approx(mean, rel=1e-5) and int(guard.skipped) == len(skipped)
        assert skipped[:1] == ([60] if spike else []), "the single spike, and not what came before"
        assert bool(good), "what stays high is taken in"
        assert (len(skipped) > 2) == bool(spike)
    good, _ = judge(guard, jnp.int32(200), jnp.float32(80.0), jnp.float32(9.0), 4.0)
    assert not good, "a loss can be a spike too"


class Poison:
    """Training data whose batches at some steps are bad."""

    def __init__(self, data, steps):
        self.data, self.steps, self.stream, self.length = data, steps, data.stream, data.length

    def batch(self, step, size, part=slice(None)):
        batch = self.data.batch(step, size, part)
        if step in self.steps:
            batch["weights"] = np.where(batch["weights"] > 0, np.float32(np.nan), batch["weights"])
        return batch


def test_a_run_skips_tells_and_goes_on_then_stops_after_too_many(tmp_path, monkeypatch):
    """Batches 3 and 6, 7 are bad, with a line every fourth update only; later four in a row end it."""
    exp = dataclasses.replace(tiny(save_every=2), log_every=4, patience=3)
    events = []
    run = Run(exp, tmp_path, [events.append, JsonLines(tmp_path / "metrics.jsonl")])
    monkeypatch.setattr(run, "training", Poison(run.training, {2, 5, 6, 8, 9, 10, 11}))
    with pytest.raises(Diverged, match=r"3 updates in a row were skipped; .* at step 11: expected finite numbers"):
        run()
    told = [(e["step"], e["row"]) for e in events if e["kind"] == "skipped"]
    assert told == [(3, 1), (6, 1), (7, 2), (9, 1), (10, 2), (11, 3)]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in written if e["kind"] == "update"] == [1, 4, 8]
    assert all(e["loss"] is None for e in written if e["kind"] == "skipped")
    with np.load(tmp_path / "skipped" / "step-000007.npz", allow_pickle=False) as file:
        wanted = run.training.batch(6, exp.batch)
        assert all(np.array_equal(file[name], wanted[name], equal_nan=name == "weights") for name in wanted)
        assert list(file["rows"]) == list(range(exp.batch)) and np.isnan(file["loss"]) and np.isnan(file["norm"])
    saved = [e["step"] for e in events if e["kind"] == "save"]
    assert saved == [2, 4, 8, 11], "no checkpoint of a state that is not new, but the last one"
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    _, target = first_state(exp, run.mesh)
    last, before = (checkpoints.read(step, target) for step in checkpoints.steps()[:2])
    checkpoints.close()
    assert (int(last.step), int(last.guard.skipped), int(last.guard.row)) == (11, 6, 3)
    assert bits((last.params, last.optimizer)) == bits((before.params, before.optimizer))


def test_the_rows_of_a_process_are_put_together_from_its_devices():
    """Rows over one mesh axis, time over another, each piece on two devices."""
    x = np.arange(8 * 6).reshape(8, 6)
    where = NamedSharding(make_mesh("data=2,tensor=2,context=2"), PartitionSpec("data", "context"))
    rows, values = own_rows(jax.device_put(jnp.asarray(x), where))
    assert list(rows) == list(range(8)) and np.array_equal(values, x)


@pytest.mark.parametrize(
    ("field", "value"), [("spike", 0.5), ("spike", math.inf), ("patience", 0), ("spike", math.nan)]
)
def test_numbers_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=rf"Experiment\.{field} = "):
        dataclasses.replace(tiny(), **{field: value})


AUX = (("aux.balance", 0.5), ("aux.z", 0.01))


def mixture(**changes):
    """A small LM with two layers of experts, plain SGD: an update is the gradient."""
    mlp = MoE(16, experts=4, active=1, hidden=16, capacity=4.0)
    model = LM(256, 16, Stack(Block(make("MinGRU", 16), mlp), depth=2))
    exp = tiny(optimizer="sgd", lr=0.3, mesh=changes.pop("mesh", ""))
    return dataclasses.replace(exp, model=model, **{"aux": AUX, **changes})


def unlevel(state):
    """Routers that prefer some experts."""
    params = state.params
    mlp = params["body"]["block0"]["mlp"]
    mlp = {**mlp, "router": 40 * mlp["router"]}
    block = {**params["body"]["block0"], "mlp": mlp}
    return state._replace(params={**params, "body": {**params["body"], "block0": block}})


def test_auxiliary_losses_train_alike_in_parts_on_a_mesh_and_level_the_load():
    """Equal rows in both parts, of which the second counts half: then the parts' own balance is that of the whole."""
    seen = []
    for changes in ({"accumulate": 2, "mesh": "data=2,expert=4"}, {}):
        exp = mixture(**changes)
        mesh, rows = make_mesh(exp.mesh), exp.data.training(exp.seed)
        state, update = unlevel(first_state(exp, mesh)[0]()), train_step(exp, mesh)
        batch = placed(exp, mesh, rows, 0, exp.batch)
        half = jax.tree.map(lambda x: jnp.concatenate([x[:4], x[:4]]), batch)
        half["weights"] = half["weights"].at[4:, ::2].set(0)
        batch = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), half, batch)
        state, metrics = update(state, batch)
        seen.append(jax.device_get((state.params, {name: metrics[name] for name in ("loss", *dict(AUX))})))
        last = (state, update, batch)
    close(seen[0], seen[1])
    state, update, batch = last
    for _ in range(30):
        state, metrics = update(state, batch)
    first, balance = float(seen[0][1]["aux.balance"]), float(metrics["aux.balance"])
    assert first > 1.2 and balance < 1 + 0.3 * (first - 1)


def test_what_is_minimised_in_a_formula():
    """Nats + share x (weight x mean over the layers), each layer's from its own capture."""
    exp = mixture()
    mesh = make_mesh("")
    state = unlevel(first_state(exp, mesh)[0]())
    batch = placed(exp, mesh, exp.data.training(0), 0, exp.batch)
    loss = summed_loss(exp.model, exp.dtype, lambda x, axes: x, False, AUX)
    value, sums = jax.jit(loss)(state.params, batch, None, None, 3.0)
    hidden = jax.jit(taps.capture(exp.model.hidden, list(dict(AUX))))
    _, layers = hidden(state.params, batch["tokens"], None, batch["starts"])
    means = {name: np.mean(np.asarray(sites[0])) for name, sites in layers.items()}
    assert layers["aux.z"][0].shape == (2,) and means["aux.balance"] > 1.2
    close({name: sums.aux[name] for name in means}, means)
    close(value, sums.nats + 3.0 * sum(weight * means[name] for name, weight in AUX))


def test_unknown_auxiliary_losses_are_refused_before_anything_runs():
    with pytest.raises(
        ConfigError, match=r"Experiment\.aux = 'aux\.level': unknown; expected one of aux\.balance, aux\.z"
    ):
        train_step(mixture(aux=(("aux.level", 1.0),)), make_mesh(""))
    with pytest.raises(ConfigError, match="expected none: this model has no auxiliary loss"):
        train_step(dataclasses.replace(tiny(), aux=AUX), make_mesh(""))
    for aux in ((("resid", 1.0),), (("aux.z", -1.0),), (("aux.z", 1.0), ("aux.z", 2.0))):
        with pytest.raises(ConfigError, match=r"Experiment\.aux = "):
            mixture(aux=aux)


def test_what_no_axis_splits_is_told_before_the_first_step(tmp_path, capfd, monkeypatch):
    """Weights and moments, of a run and of a plan; nothing on one device."""

    def stop(run):
        raise ConfigError("the first step")

    monkeypatch.setattr(Run, "__call__", stop)
    monkeypatch.setattr("jaxlm.cli.train.replicated", partial(replicated, limit=2**14))
    args = ["train", str(ROOT / "tests/tiny.py"), "--text", str(ROOT / "LICENSE"), "--run-dir"]
    for mesh, whole in (("data=8", 3), ("data=2,fsdp=4", 0), ("", 0)):
        assert guarded([*args, str(tmp_path / mesh), "--mesh", mesh], debug=False) == 2
        told = capfd.readouterr().err.split("error: the first step")[0]
        assert told.count("whole on every device: ") == whole
        assert not whole or all(f"{path}, 0 MiB" in told for path in ("params/embed", "mu/embed", "nu/embed"))


WIDE = """
from dataclasses import replace
from jaxlm.models import LM
from jaxlm.train import Experiment
from tiny import experiment as small

def experiment(steps: int = 1, seed: int = 0, lr: float = 1e-2, batch: int = 8, mesh: str = "") -> Experiment:
    exp = small(steps=steps, seed=seed, lr=lr, batch=batch, mesh=mesh, text=({text!r},), mixer="MinGRU")
    return replace(exp, model=LM(2**20, 16, exp.model.body))
"""


def test_a_plan_tells_what_no_axis_splits(tmp_path, capfd):
    """An embedding of 64 MiB and its moments, on devices that need not be there."""
    config = tmp_path / "wide.py"
    config.write_text(WIDE.format(text=str(ROOT / "LICENSE")))
    for mesh, whole in (("data=4", 3), ("data=2,tensor=2", 0)):
        assert guarded(["plan", str(config), "--mesh", mesh, "--chip", "v5p"], debug=False) == 0
        assert capfd.readouterr().out.count("embed, 64 MiB") == whole
