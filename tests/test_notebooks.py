"""Notebooks are as their scripts say, and run from top to bottom."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import smokes

from jaxlm import papers

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import notebooks  # noqa: E402

SCRIPTS = notebooks.scripts()
IDS = [str(s.relative_to(EXAMPLES)) for s in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
class TestNotebook:
    def test_it_is_as_its_script(self, script):
        file = script.with_suffix(".ipynb")
        assert file.exists() and file.read_text() == notebooks.notebook(script), "run python examples/notebooks.py"
        cells = json.loads(file.read_text())["cells"]
        assert cells[0]["cell_type"] == "markdown" and any("%pip install" in "".join(c["source"]) for c in cells)

    def test_it_runs(self, script, monkeypatch):
        text = script.read_text()
        assert text.count("\nSMOKE = False") == 1, "one cell says SMOKE = False"
        monkeypatch.setattr(plt, "show", lambda: None)
        for module in map(papers.result, papers.names("theory") if script.parent.name == "theory" else ()):
            monkeypatch.setattr(module, "run", smokes.once(module))
        code = compile(text.replace("\nSMOKE = False", "\nSMOKE = True"), str(script), "exec")
        try:
            exec(code, {"__name__": "__main__"})
            assert plt.get_fignums(), "a notebook shows a figure"
        finally:
            plt.close("all")


def test_cells_of_a_script():
    text = "# %% [markdown]\n# # Title\n#\n# more\n\n# %%\n# %pip install -q jaxlm\nimport jax\n"
    first, second = notebooks.cells(text)
    assert "".join(first["source"]) == "# Title\n\nmore"
    assert "".join(second["source"]) == "%pip install -q jaxlm\nimport jax"
