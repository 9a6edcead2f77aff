"""Compiling for pods that are not there: with libtpu a small step, without it the table's own ways."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = ROOT / "tpu" / "compile_check.py"
spec = importlib.util.spec_from_file_location("compile_table", ROOT / "tpu" / "compile_table.py")
assert spec is not None and spec.loader is not None
compile_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compile_table)

HAS = importlib.util.find_spec("libtpu") is not None
with_libtpu = pytest.mark.skipif(not HAS, reason="libtpu, the compiler for TPUs, is not installed: pip install libtpu")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    quiet = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    call = [sys.executable, str(CHECK), str(ROOT / "tests" / "tiny.py"), *args]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False, env=quiet)


@with_libtpu
def test_a_small_step_compiled_for_a_pod(tmp_path):
    file = tmp_path / "row.json"
    done = run("--topology", "v5e-16", "--mesh", "data=2,fsdp=-1", "--batch", "16", "--json", str(file))
    assert done.returncode == 0, done.stderr
    row = json.loads(file.read_text())
    assert (row["outcome"], row["fits"], row["chips"], row["mesh"]) == ("compiled", True, 16, "data=2,fsdp=8")
    assert row["held"] == sum(row["bytes"].values()) > 0 and row["moved"] and row["flops"] > 0
    assert row["step_seconds"] == max(row["seconds"].values())
    gathered, planned = (side["moved"]["all-gather"] for side in (row, row["plan"]))
    assert 0.85 <= gathered / planned <= 1.15
    assert "fits" in done.stdout and "v5e-16" in compile_table.cells(row)


@with_libtpu
@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("--topology", "v5e-17"), 2, "topology = 'v5e-17': unknown"),
        (("--topology", "v5e-16", "--mesh", "fsdp=3"), 2, "takes 3 chips, expected the 16 of v5e-16"),
        (("--topology", "v5e-16", "--mesh", "fsdp=-1"), 2, "expected a multiple of 16"),
        (("--topology", "v5e-4", "--mesh", "data=4", "--batch", str(2**26)), 1, "does not fit: wants "),
    ],
)
def test_what_cannot_be_is_one_line(args, status, words):
    done = run(*args)
    assert done.returncode == status and words in done.stderr.splitlines()[-1], done.stderr


STAND_IN = """
import json, sys, time
file = sys.argv[sys.argv.index("--json") + 1]
if sys.argv[1] == "slow":
    time.sleep(60)
if sys.argv[1] == "wrong":
    sys.exit("error: a wrong flag")
outcome = "not compiled" if sys.argv[1] == "broken" else "compiled"
json.dump({"config": sys.argv[1], "topology": sys.argv[3], "outcome": outcome}, open(file, "w"))
sys.exit("error: the compiler broke" if sys.argv[1] == "broken" else 0)
"""


def test_a_row_of_the_table(tmp_path):
    program = tmp_path / "check.py"
    program.write_text(STAND_IN)
    row = compile_table.compiled("quick --topology v5e-16", 30, program=program)
    assert row["outcome"] == "compiled" and row["command"] == "python tpu/compile_check.py quick --topology v5e-16"
    row = compile_table.compiled("slow --topology v5e-16", 0.5, program=program)
    assert (row["outcome"], row["said"][:24]) == ("did not end", "did not compile in 0.5 s")
    assert "did not compile in 0.5 s" in compile_table.cells(row)
    with pytest.raises(SystemExit, match="a wrong flag"):
        compile_table.compiled("wrong --topology v5e-16", 30, program=program)
    with pytest.raises(SystemExit, match="the compiler broke"):  # with the plan's part in the file
        compile_table.compiled("broken --topology v5e-16", 30, program=program)


def test_the_page_has_the_table_of_the_committed_answers():
    assert compile_table.PAGE.read_text() == compile_table.page(), "stale: python tpu/compile_table.py --page"
    asked = [f"{compile_table.COMMAND} {args}" for args in compile_table.ROWS]
    assert asked == [row["command"] for row in compile_table.read()]


def test_a_plan_anew_keeps_what_was_compiled(tmp_path, monkeypatch):
    def planned(args: str, memory: float) -> dict:
        seconds = {"products": 1.0, "memory": memory, "network": 9.0}
        plan = {"held": 2**30, "fits": True, "moved": {}, "seconds": seconds, "step_seconds": 9.0, "utilisation": 1 / 9}
        own = {"command": f"{compile_table.COMMAND} {args}", "config": args, "topology": "v5e-16", "mesh": "data=16"}
        own |= {"rows": 8, "accumulate": 1, "length": 64, "turns": int(memory), "plan": plan}
        return own | {"outcome": "not compiled", "versions": {"jax": f"{memory}"}, "date": f"day {memory}"}

    monkeypatch.setattr(compile_table, "FILE", tmp_path / "compile.json")
    monkeypatch.setattr(compile_table, "ROWS", ("done", "slow", "waits", "new"))
    monkeypatch.setattr(compile_table, "compiled", lambda args, limit, more: planned(args, 4.0))
    own = {"outcome": "compiled", "held": 2**31, "fits": True, "moved": {"all-gather": 7}}
    own |= {"seconds": {"products": 1.0, "memory": 3.0, "network": 2.0}, "step_seconds": 3.0, "utilisation": 1 / 3}
    own |= {"compile_seconds": {"wall": 5.0, "core": 6.0}}
    late = {"outcome": "did not end", "said": "did not compile in 1 s"}
    before = [planned("done", 3.0) | own, planned("slow", 3.0) | late, planned("waits", 3.0)]
    compile_table.write({row["command"]: row for row in before})
    compile_table.measure([], 60, "--plan-only")
    done, slow, waits, new = compile_table.read()
    assert [row["turns"] for row in (done, slow, waits, new)] == [4] * 4  # all are planned anew
    assert done["plan"] == slow["plan"] == planned("done", 4.0)["plan"]
    assert {k: done[k] for k in ("outcome", "held", "moved", "compile_seconds")} == {
        k: own[k] for k in ("outcome", "held", "moved", "compile_seconds")
    }
    assert done["seconds"] == {"products": 1.0, "memory": 4.0, "network": 2.0}  # the network's are the compiler's
    assert (done["step_seconds"], done["utilisation"], done["date"]) == (4.0, 0.25, "day 3.0")
    assert (slow["outcome"], slow["said"], slow["date"]) == ("did not end", "did not compile in 1 s", "day 3.0")
    assert waits == planned("waits", 4.0) and new == planned("new", 4.0)
