"""The command line as a user meets it: good runs, and one line for every kind of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.cli import guarded
from jaxlm.files import load
from jaxlm.train.rundir import RunDirectory

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.py")
TEXT = str(ROOT / "LICENSE")
QUICK = ["--text", TEXT, "--steps", "6", "--save-every", "2"]
SECRET = "hf_the_token_of_the_environment"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run."""
    where = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        assert guarded(["train", TINY, *QUICK, "--run-dir", str(where)], debug=False) == 0
    return where


def fails(capfd, args, code=2):
    """The single line that a wrong command prints."""
    capfd.readouterr()
    assert guarded([str(a) for a in args], debug=False) == code
    out, err = capfd.readouterr()
    lines = (out + err).strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def test_a_run_leaves_what_it_promises(trained):
    names = {p.name for p in trained.iterdir()}
    assert {"config.py", "run.json", "metrics.jsonl", "tensorboard", "loss.png", "checkpoints"} <= names
    assert {"model.json", "params.safetensors", "result.json", "sample.txt"} <= names
    result = json.loads((trained / "result.json").read_text())
    assert 0 < result["bits_per_byte"]["this run"] < 9 and result["steps"] == 6
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((trained / "tensorboard").iterdir())
    model, params = load(trained)
    assert model.width == 16 and params["embed"].shape == (256, 16)


def test_a_token_of_the_environment_stays_there(trained):
    files = [p for p in trained.rglob("*") if p.is_file()]
    assert len(files) > 10 and not any(SECRET.encode() in p.read_bytes() for p in files)


def test_eval_gives_the_runs_own_number_and_reads_files(trained, capfd):
    want = json.loads((trained / "result.json").read_text())["bits_per_byte"]["this run"]
    capfd.readouterr()
    assert guarded(["eval", str(trained)], debug=False) == 0
    got = float(re.match(r"([\d.]+) bits per byte", capfd.readouterr().out)[1])
    assert got == pytest.approx(want, abs=1e-4)
    assert guarded(["eval", str(trained), "--data", TEXT, "--rows", "3"], debug=False) == 0
    assert f"3 rows of {TEXT}, after step 6" in capfd.readouterr().out


def test_sample_goes_on_from_the_prompt_and_repeats_itself(trained, capfd):
    texts = []
    for _ in range(2):
        capfd.readouterr()
        assert guarded(["sample", str(trained), "--prompt", "The ", "--tokens", "12"], debug=False) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("The ")


def test_mixers_lists_the_registry(capfd):
    from jaxlm.mixers import MIXERS

    assert guarded(["mixers", "--width", "32", "--room", "64"], debug=False) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in MIXERS)


def test_help_teaches(capfd):
    assert guarded(["--help"], debug=False) == 0
    out = capfd.readouterr().out
    assert "quickstart" in out and all(c in out for c in ("train", "sample", "eval", "mixers", "--resume"))
    with pytest.raises(SystemExit) as stop:
        guarded(["train", TINY, "--help"], debug=False)
    assert stop.value.code == 0
    out = capfd.readouterr().out
    assert all(flag in out for flag in ("--steps", "--lr", "--run-dir", "--resume", "--mesh"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], "command = 'trian': unknown; expected one of train, sample, eval"),
        (["train", "nosuch"], "config = 'nosuch': unknown; expected a path, or one of .*quickstart"),
        (["train", "no/such.py"], "config = 'no/such.py': no such file"),
        (["train", TINY, "--mixer", "Nope"], "mixer = 'Nope': unknown; expected one of .*LEM"),
        (["train", TINY, "--text", "/no/such/text"], "/no/such/text"),
        (["train", TINY, "--text", "EMPTY"], "EMPTY|empty"),
        (["train", TINY, "--text", "SHORT"], "length|tokens|at least"),
        (["train", TINY, "--text", TEXT, "--mesh", "date=4"], "mesh = 'date=4'|date"),
        (["train", TINY, "--text", TEXT, "--mesh", "data=64"], "64"),
        (["train", TINY, "--text", TEXT, "--mesh", "data=8", "--batch", "12"], "batch.*12"),
        (["train", TINY, "--text", TEXT, "--steps", "0"], "steps = 0: expected at least 1"),
        (["train", TINY, "--text", TEXT, "--run-dir", "/proc/no/run"], "/proc/no/run.*cannot be written"),
        (["train", TINY, "--text", TEXT, "--run-dir", "nowhere", "--resume"], "nowhere.*expected a run"),
        (["sample", "nowhere"], "nowhere.*expected a run directory"),
        (["eval", "nowhere"], "nowhere.*expected a run directory"),
        (["sample", "RUN", "--temperature", "-1"], "temperature = -1"),
        (["eval", "RUN", "--data", "/no/such/file"], "/no/such/file"),
        (["eval", "RUN", "--rows", "-5"], "rows = -5: expected 0 or more"),
    ],
)
def test_bad_input_is_one_line(args, expected, trained, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").touch()
    Path("SHORT").write_text("ab")
    line = fails(capfd, [str(trained) if a == "RUN" else a for a in args])
    assert re.search(expected, line), line
    assert {p.name for p in tmp_path.iterdir()} <= {"EMPTY", "SHORT"}, "a refused run leaves nothing behind"


@pytest.mark.parametrize("args", [["--steps", "many"], ["--no-such-knob", "1"]])
def test_wrong_knobs_get_tyros_box(args, capfd):
    with pytest.raises(SystemExit) as stop:
        guarded(["train", TINY, *args], debug=False)
    assert stop.value.code == 2
    assert args[0] in capfd.readouterr().err


def test_configs_that_cannot_be_used(tmp_path, capfd):
    for text, expected in [
        ("x = 1", "expected a function experiment"),
        ("def experiment(steps: int = 1): ...", "lacks seed, lr, batch, mesh"),
        ("def experiment(steps, seed=0, lr=1.0, batch=1, mesh=''): ...", "a type and a default for steps"),
    ]:
        path = tmp_path / "config.py"
        path.write_text(text)
        assert expected in fails(capfd, ["train", path])


def test_a_run_directory_of_another_model(trained, capfd):
    line = fails(capfd, ["train", TINY, *QUICK, "--run-dir", trained, "--width", "32"])
    assert "another model" in line and "width" in line
    line = fails(capfd, ["train", "quickstart", "--run-dir", trained])
    assert "holds a run of" in line and "tiny.py" in line


def test_changed_arguments_stay_with_the_run(trained, tmp_path, capfd):
    where = tmp_path / "run"
    shutil.copytree(trained, where)
    assert guarded(["train", "--run-dir", str(where), "--steps", "8"], debug=False) == 0
    assert "changed in this run: steps 6 -> 8" in capfd.readouterr().err
    assert guarded(["train", "--run-dir", str(where)], debug=False) == 0
    result = json.loads((where / "result.json").read_text())
    assert result["steps"] == 8 and result["arguments"]["steps"] == 8


def test_two_processes_do_not_train_in_one_directory(trained, capfd):
    with RunDirectory(trained).alone():
        assert "no other process" in fails(capfd, ["train", "--run-dir", trained])


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("all of it")
    assert "expected a new or empty directory" in fails(capfd, ["train", TINY, *QUICK, "--run-dir", tmp_path])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unreadable_tokenizer_is_one_line(tmp_path):
    from jaxlm.data import DataError, HuggingFace

    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json") as e:
        HuggingFace(str(tmp_path / "tokenizer.json")).vocab  # noqa: B018
    assert "\n" not in str(e.value)


def test_debug_shows_where(capfd):
    assert guarded(["train", "nosuch"], debug=True) == 2
    assert "Traceback" in capfd.readouterr().err


# ---- in a process of its own; kills, signals and the rest of what can befall a run: tests/test_faults.py


def start(args, before=()):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    command = [*before, sys.executable, "-m", "jaxlm", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env)


def test_a_disk_that_takes_no_more_is_one_line(tmp_path):
    """Files may not grow beyond 20 kB: no checkpoint fits."""
    limited = ["bash", "-c", 'ulimit -f 20 && exec "$0" "$@"']
    process = start(["train", TINY, *QUICK, "--run-dir", tmp_path / "run"], limited)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err and re.search(
        r"cannot write .*checkpoint.*: File too large; none was complete", err.splitlines()[-1]
    ), err
