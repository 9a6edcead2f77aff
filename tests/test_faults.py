"""Faults in a small measure: nothing that was committed is lost, and the end is that of the quiet run, bit for bit.

`python tests/faults.py` does all of them, twenty kills among them, and prints the recovery table.
"""

import json
import random

import pytest
from fault_lab import ROOT, Lab, Row, damage, shown
from faults import kills, restores, stops
from tiny import experiment

from jaxlm.errors import ConfigError
from jaxlm.train.checkpoint import SaveError
from jaxlm.train.loop import Run
from jaxlm.train.report import JsonLines, TensorBoard, read_metrics
from jaxlm.train.rundir import RunDirectory, newest_run


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One quiet run for all; the seed of the random points is among what a failing test printed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return Lab(tmp_path_factory.mktemp("faults"), 40, seed)


def good(rows: list[Row]) -> bool:
    assert rows and all(r.recovered == r.times and r.same for r in rows), rows
    return True


def test_kills_lose_nothing(lab):
    assert good(kills(lab, 3))


def test_signals_save_first(lab):
    rows = stops(lab, ("compile", "update", "last evaluation"))
    assert good(rows) and all(r.lost == 0 and r.seconds is not None for r in rows)


@pytest.mark.parametrize("how", ["truncated", "one bit flipped"])
def test_a_damaged_file_of_a_checkpoint_costs_no_more_than_that_checkpoint(how, lab, tmp_path):
    lab.quiet()
    rows = damage(lab.folder / "quiet", tmp_path / "copy", lab.rng.randrange(2**32), (how,))
    assert good(rows) and rows[0].lost > 0, "some file must matter"


def test_a_checkpoint_is_read_on_other_meshes_and_gone_on_with(lab):
    assert good(restores(lab))


def test_runs_are_counted(tmp_path):
    """The newest one is the one that began last, whatever the files' times and the other runs' files say."""
    config, exp = tmp_path / "tiny.py", experiment()
    config.write_text("")
    for name in ("b", "c", "a"):
        RunDirectory(tmp_path / name).create(config, {}, exp)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert newest_run(tmp_path, config).path.name == "a"
    assert [RunDirectory(tmp_path / name).about["number"] for name in "bca"] == [1, 2, 3]
    with pytest.raises(ConfigError, match="found none"):
        newest_run(tmp_path, tmp_path / "other.py")


def test_tensorboard_shows_each_update_once_in_order(tmp_path, monkeypatch):
    """Two sessions, the second taking back two updates, with an earlier time of the day."""
    for time, steps in ((2e9, range(1, 6)), (1e9, range(4, 9))):
        monkeypatch.setattr("time.time", lambda time=time: time)
        board = TensorBoard(tmp_path)
        board({"kind": "begin", "step": steps[0] - 1})
        for step in steps:
            board({"kind": "update", "step": step, "loss": 1.0})
    assert shown(tmp_path) == list(range(1, 9))


def test_an_evaluation_that_is_made_again_is_logged_once(tmp_path):
    log, path = JsonLines(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    first, second = ({"kind": "evaluation", "step": step, "bits_per_byte": 2.5, "whole": False} for step in (5, 10))
    for event in (first, second):
        log(event)
    log({"kind": "begin", "step": 10})
    log(second)
    assert read_metrics(path) == [first, second]


def test_a_log_that_cannot_be_written_says_where_to_go_on(tmp_path):
    def full(event):
        if event["kind"] == "update" and event["step"] == 6:
            raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match=r"cannot write the log: No space left on device; the last good one is step 4"):
        Run(experiment(mixer="MinGRU"), tmp_path, [full])()


def test_the_committed_table_is_whole():
    """Every fault is in it, twenty kills, and nothing that was not recovered from."""
    table = json.loads((ROOT / "examples" / "results" / "faults.json").read_text())["rows"]
    rows = [Row(*(row[field] for field in Row._fields)) for row in table]
    assert all(r.recovered == r.times and r.same for r in rows)
    assert sum(r.times for r in rows if r.fault == "SIGKILL") == 20
    faults = {"SIGTERM", "SIGINT", "a process dies", "a file truncated", "a file one bit flipped", "disk full"}
    assert faults | {"clock goes back", "a bad batch", "another mesh"} <= {r.fault for r in rows}
