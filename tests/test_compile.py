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
json.dump({"config": sys.argv[1], "topology": sys.argv[3], "outcome": "compiled"}, open(file, "w"))
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


def test_the_page_has_the_table_of_the_committed_answers():
    assert compile_table.PAGE.read_text() == compile_table.page(), "stale: python tpu/compile_table.py --page"
    asked = [f"{compile_table.COMMAND} {args}" for args in compile_table.ROWS]
    assert asked == [row["command"] for row in compile_table.read()]
