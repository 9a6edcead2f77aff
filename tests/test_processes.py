"""Several processes of simulated devices train what one does: the same losses, rows, files and checkpoints."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from fault_child import by_flags, free_port, meet_and_leave
from fault_lab import Lab, Row
from tolerance import close

from jaxlm.cli import guarded
from jaxlm.cli.cluster import found
from jaxlm.errors import ConfigError
from jaxlm.files import load
from jaxlm.sharding import mesh
from jaxlm.train.checkpoint import Checkpoints, flat
from jaxlm.train.processes import Watch, once, shared, together, told, whole
from jaxlm.train.report import read_metrics
from jaxlm.train.rundir import RunDirectory
from jaxlm.train.step import first_state

ROOT = Path(__file__).parents[1]
WORKER = str(ROOT / "tests" / "process_worker.py")
STEPS, STOP = 10, 5
TRAIN = ["train", str(ROOT / "tests" / "tiny.py"), "--text", str(ROOT / "LICENSE"), "--steps", str(STEPS)]
TRAIN += ["--mixer", "MinGRU", "--mesh", "data=4,fsdp=2"]  # of 8 devices, whoever has them


def told_by_flags(n: int) -> list[tuple[list[str], dict[str, str]]]:
    """(flags, environment) of each process."""
    return [(flags, {}) for flags in by_flags(n)]


def by_slurm(n: int) -> list[tuple[list[str], dict[str, str]]]:
    """The same, as `srun` leaves them to find each other. JAX makes the port of the job's number."""
    low = 2**16 - 2**12
    job = {"SLURM_JOB_ID": str(free_port(low, 2**16 - 1) - low), "SLURM_STEP_NODELIST": "127.0.0.1"}
    job |= {"SLURM_NTASKS": str(n), "SLURM_STEP_NUM_TASKS": str(n)}
    return [([], {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(n)]


def launch(where: Path, members: list, own=lambda i: [], code: int = 0) -> tuple[list[dict], list[str]]:
    """Run all processes of a run in WHERE/run to their end; (the rows that each read, what each said)."""
    where.mkdir(exist_ok=True)
    running = []
    for i, (flags, env) in enumerate(members):
        devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // len(members)), "PYTHONUNBUFFERED": "1"}
        mine = [sys.executable, WORKER, str(where / f"{i}.json"), *own(i), "--"]
        running.append(
            subprocess.Popen(
                [*mine, *TRAIN, "--run-dir", str(where / "run"), *flags],
                env={**os.environ, **devices, **env},
                stdout=subprocess.DEVNULL,
                stderr=(where / f"{i}.err").open("w"),
            )
        )
    try:
        codes = [p.wait(timeout=900) for p in running]
    finally:
        for p in running:
            p.kill()
    said = [(where / f"{i}.err").read_text() for i in range(len(members))]
    assert codes == [code] * len(members), "\n----\n".join(text[-3000:] for text in said)
    return [json.loads((where / f"{i}.json").read_text()) for i in range(len(members))], said


def losses(run: Path) -> list[float]:
    events = [e for e in read_metrics(run / "metrics.jsonl") if e["kind"] == "update"]
    assert [e["step"] for e in events] == list(range(1, STEPS + 1)), "each step is logged once"
    return [e["loss"] for e in events]


def values(run: Path) -> dict[str, np.ndarray]:
    """All that the newest checkpoint holds, read by this process alone on its 8 devices."""
    exp = RunDirectory(run).experiment()
    checkpoints = Checkpoints(run / "checkpoints")
    step, state, damaged = checkpoints.restore(first_state(exp, mesh(exp.mesh))[1], pytest.fail)
    checkpoints.close()
    assert step == STEPS and not damaged
    return {name: np.asarray(x) for name, x in flat(jax.device_get(state)).items()}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    where = tmp_path_factory.mktemp("one") / "run"
    assert guarded([*TRAIN, "--run-dir", str(where)], debug=False) == 0
    return where


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(run, rows, words) of two processes of 4 devices, who are told where they are; they also read damaged copies."""
    where = tmp_path_factory.mktemp("two")
    return where / "run", *launch(where, told_by_flags(2), lambda i: ["--damage", str(where / "damage.json")])


@pytest.fixture(scope="module")
def four(two, tmp_path_factory):
    """The same of four processes of 2 devices, who find each other; they also read the checkpoint of the two."""
    where = tmp_path_factory.mktemp("four")
    read = ["--restore", str(two[0]), str(where / "values.npz")]
    return where / "run", *launch(where, by_slurm(4), lambda i: read)


@pytest.fixture(params=["two", "four"])
def many(request):
    return request.getfixturevalue(request.param)


def test_the_losses_are_those_of_one_process(one, many):
    close({"losses": np.array(losses(many[0]))}, {"losses": np.array(losses(one))}, "float32")
    held_out = [json.loads((run / "result.json").read_text())["bits_per_byte"]["this run"] for run in (many[0], one)]
    assert held_out[0] == pytest.approx(held_out[1], rel=5e-5)


def test_each_process_makes_the_rows_of_its_own_devices(many):
    """Rows go over fsdp, then data: device (d, f) of data=4,fsdp=2 has row 4 f + d of eight."""
    _, reports, _ = many
    n = len(reports)
    for i, report in enumerate(reports):
        own = sorted(4 * f + d for d in range(4 * i // n, 4 * (i + 1) // n) for f in range(2))
        assert {int(step) for step in report["training"]} == set(range(STEPS))
        assert all(sorted(rows) == own for text in report.values() for rows in text.values()), i


def test_only_the_first_process_writes_and_speaks(many):
    run, _, said = many
    names = {p.name for p in run.iterdir()}
    assert {"config.py", "run.json", "loss.png", "result.json", "model.json", "sample.txt"} <= names
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert f"step 1/{STEPS}" in said[0] and not any(f"/{STEPS}" in text for text in said[1:])
    model, params = load(run)
    assert model.width == 16 and params["embed"].shape == (256, 16)


def test_a_checkpoint_of_two_processes_is_read_by_one_and_by_four(two, four):
    """Every process wrote its part; weights, moments and step come back bit for bit, and are the exported weights."""
    run = two[0]
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= {p.name for p in (run / "checkpoints/10/values").iterdir()}
    by_one = values(run)
    with np.load(four[0].parent / "values.npz") as by_four:
        assert set(by_four.files) == set(by_one)
        assert all(by_one[name].tobytes() == by_four[name].tobytes() for name in by_one)
    exported = flat({"params": load(run)[1]})
    assert all(by_one[name].tobytes() == np.asarray(x).tobytes() for name, x in exported.items())


def test_two_processes_pass_over_a_damaged_checkpoint_together(two):
    """Whichever file of it is hurt, both read the one before, and say so: both steps and values are right."""
    rows = [Row(*row) for row in json.loads((two[0].parent / "damage.json").read_text())]
    assert rows and all(r.recovered == r.times > 10 and r.same and r.lost == 2 for r in rows), rows


@pytest.mark.parametrize(("who", "why"), [(1, "is gone"), (0, "failed: out of luck")])
def test_all_know_at_once_when_one_is_gone(who, why, tmp_path):
    """Killed, or ended by an error of its own: the others end within seconds, with one line that says which and why."""
    lab, began = Lab(tmp_path, 1, 0, processes=3), time.monotonic()
    ended = lab.go("run", work=partial(meet_and_leave, who=who, killed=why == "is gone"))
    assert time.monotonic() - began < 90, "the runtime alone takes 100 seconds"
    assert [e.code for e in ended] == [-signal.SIGKILL if i == who and why == "is gone" else 1 for i in range(3)]
    for i, e in enumerate(ended):
        lines = [line for line in e.said.splitlines() if line and not line.startswith("[Gloo]")]
        told = [f"error: process {who} of this run {why}; the same command goes on from the last checkpoint"]
        assert lines == (told if i != who else [] if why == "is gone" else lines) and len(lines) < 2, lines


def test_a_signal_to_one_process_stops_all_and_nothing_is_lost(two, tmp_path):
    """SIGTERM to the second process: both save one step and end; the run then goes on to the quiet weights."""
    where = tmp_path / "stopped"
    _, said = launch(where, told_by_flags(2), lambda i: ["--stop-at", str(STOP)] if i else [], code=143)
    steps = {re.search(r"stopped by SIGTERM after step (\d+), which is saved", text)[1] for text in said}
    assert len(steps) == 1 and STOP < int(min(steps)) <= STOP + 2
    assert (where / "run/checkpoints" / min(steps)).is_dir()
    reports, said = launch(where, told_by_flags(2))
    assert f"going on after step {min(steps)}" in said[0]
    assert min(int(step) for step in reports[1]["training"]) == int(min(steps))
    got, want = values(where / "run"), values(two[0])
    assert {n: x.tobytes() for n, x in got.items()} == {n: x.tobytes() for n, x in want.items()}
    assert losses(where / "run") == losses(two[0])


def test_a_process_alone_starts_nothing():
    assert found(["--lr", "1"], {}) is None
    assert found(["--coordinator=host:1", "--processes=1", "--process=0"], {}) is None
    assert found([], {"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}) is None
    assert found([], {"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert found([], {"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert not jax.distributed.is_initialized()
    tree = {"a": np.ones(3)}
    assert told("x") == ["x"] and shared("x") == "x" and together(lambda: 3) == 3 and whole(tree)["a"].sum() == 3
    done, caught = [], []
    once(lambda: done.append(1))
    watch = Watch(caught)
    before = watch()
    caught.append(15)
    assert done == [1] and (before, watch(), watch.now()) == (0, 15, 15)


def test_many_processes_are_found():
    how = found(["x", "--coordinator", "[::1]:99", "--process=2", "--processes", "3"], {})
    assert how is not None
    assert (how["coordinator_address"], how["num_processes"], how["process_id"]) == ("[::1]:99", 3, 2)
    assert found([], {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4"}) == {}
    assert found([], {"OMPI_COMM_WORLD_SIZE": "2"}) == {}
    assert found([], {"TPU_WORKER_HOSTNAMES": "a,b"}) == {}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--coordinator h:1", "expected --processes and --process too"),
        ("--processes 2 --process 0", "--processes 2 --process 0: expected --coordinator too"),
        ("--coordinator h --processes 2 --process 0", "--coordinator = 'h': expected HOST:PORT"),
        ("--coordinator h:99999 --processes 2 --process 0", "expected HOST:PORT"),
        ("--coordinator h:1 --processes 0 --process 0", "--processes = '0': expected a number from 1"),
        ("--coordinator h:1 --processes 2 --process 2", "--process = '2': expected 0 to 1"),
        ("--coordinator h:1 --processes 2 --process -1", "--process = '-1': expected 0 to 1"),
        ("--coordinator h:1 --processes 2 --process", "--process = '': expected 0 to 1"),
    ],
)
def test_partial_and_impossible_flags_are_one_line(flags, expected):
    with pytest.raises(ConfigError) as e:
        found(flags.split(), {})
    assert expected in str(e.value) and "\n" not in str(e.value)
