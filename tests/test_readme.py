"""Everything in the README runs, and its table and numbers are those of the library and of committed results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.cli import COMMANDS
from jaxlm.mixers import MIXERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_python_runs():
    """All blocks, in order, in one namespace, as a reader would type them."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 3
    scope: dict = {}
    for i, block in enumerate(blocks):
        exec(compile(block, f"README.md block {i}", "exec"), scope)
    whole, first, then = scope["logits"], scope["first"], scope["then"]
    assert first.shape[1] + then.shape[1] == whole.shape[1]


def test_the_commands_that_it_names_exist():
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
    used = set(re.findall(r"jaxlm (\w+)", shell))
    assert used and used <= set(COMMANDS)
    for path in re.findall(r"`((?:jaxlm|tests|configs|examples|tpu)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path


def test_the_table_holds_every_mixer():
    section = README.split("## Mixers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.M)
    assert {name: paper for name, paper in rows} == {name: cls.paper for name, cls in MIXERS.items()}


def test_it_is_short():
    assert len(README.splitlines()) < 200


def test_the_tables_of_results_are_as_the_results():
    run = subprocess.run([sys.executable, ROOT / "examples" / "report.py", "--check"])
    assert run.returncode == 0, "run python examples/report.py"


@pytest.mark.parametrize("name", ["quickstart", "claims", "suite"])
def test_numbers_come_from_committed_results(name):
    """Every measured number in the README is found in the JSON that a command wrote."""
    result = json.loads((ROOT / "examples" / "results" / f"{name}.json").read_text())
    section = README.split("## Measured")[1].split("\n## ")[0]
    shown = re.findall(rf"<!-- {name}:([^>]+?) -->\s*(\d[\d,]*(?:\.\d+)?)", section)
    assert shown
    for key, text in shown:
        value = result
        for part in key.split("/"):
            value = value[part]
        digits = len(text.split(".")[1]) if "." in text else 0
        assert float(text.replace(",", "")) == pytest.approx(round(float(value), digits)), key
