"""Every result runs at the smoke budget, draws its figure from its JSON, and stands in the index."""

import dataclasses
import importlib
import json
import types
from pathlib import Path

import jax
import pytest
import smokes

from jaxlm import papers
from jaxlm.cli import guarded
from jaxlm.data import DataFolder
from jaxlm.papers import Claim, Lab, index, record

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", papers.names())
class TestResult:
    def test_smoke(self, name, data_folder, tmp_path, monkeypatch):
        module = papers.result(name)
        monkeypatch.setattr(module, "run", smokes.once(module))
        assert {"smoke", "cpu", "gpu"} == set(module.BUDGETS)
        told = []
        lab = Lab(jax.random.key(1), data_folder, lambda fraction, **_: told.append(fraction), tmp_path)
        with jax.numpy_dtype_promotion("standard"):  # as a user runs it
            found = record.reproduce(module, "smoke", lab)
        assert found["claims"] and all(c["passed"] is None for c in found["claims"])
        assert told == sorted(told) and all(0 <= f <= 1 for f in told)
        file = record.write(found, module, tmp_path, name)
        assert record.read(file)["claims"] == found["claims"]
        assert file.with_suffix(".png").stat().st_size > 5000  # drawn from what the file says

    def test_missing_data_is_one_line(self, name, tmp_path):
        module = papers.result(name)
        if module.NEEDS:
            with pytest.raises(papers.ConfigError, match=module.NEEDS[0]):
                record.reproduce(module, "smoke", Lab(data=DataFolder(tmp_path)))
            with pytest.raises(papers.ConfigError, match="--data DIR or JAXLM_DATA"):
                record.reproduce(module, "smoke", Lab())

    def test_it_stands_in_the_index(self, name):
        module = papers.result(name)
        rows = {row.number for row in index.ROWS if name in row.results}
        assert rows == set(module.ROWS), "jaxlm/papers/index.py"


@pytest.mark.parametrize("row", index.ROWS, ids=lambda row: str(row.number))
def test_rows_live_where_they_say(row):
    for place in row.lives:
        try:
            importlib.import_module(place)
        except ModuleNotFoundError:
            module, _, name = place.rpartition(".")
            assert hasattr(importlib.import_module(module), name), place
    assert set(row.results) <= set(papers.names())


def test_committed_results_passed():
    """What was committed was judged, and what failed says so in its record."""
    for file in sorted((ROOT / "examples" / "results").glob("*.json")):
        if file.stem in papers.names():
            found = record.read(file)
            assert found["budget"] != "smoke" and found["commit"] and found["seconds"] > 0
            judged = [Claim(**{k: c[k] for k in ("name", "ours")}, **_band(c)) for c in found["claims"]]
            assert [c["passed"] for c in found["claims"]] == [c.passed if c.judged else None for c in judged]


def _band(claim):
    return {k: claim[k] for k in ("low", "high") if claim[k] is not None}


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXLM_DATA", raising=False)
    with jax.numpy_dtype_promotion("standard"):
        assert guarded(["reproduce", "memory-scaling", "--budget", "smoke", "--out", "here"], debug=True) == 0
    out = capsys.readouterr().out
    assert "claim" in out and "paper" in out and "band" in out
    assert json.loads(Path("here/memory-scaling.json").read_text())["budget"] == "smoke"
    assert guarded(["reproduce", "nothing"], debug=False) == 2
    assert "name = 'nothing': unknown" in capsys.readouterr().err
    assert guarded(["reproduce", "babi"], debug=False) == 2
    assert "expected a directory that holds babi" in capsys.readouterr().err
    assert guarded(["reproduce", "--list"], debug=True) == 0
    assert "memory-scaling" in capsys.readouterr().out
    assert guarded(["papers"], debug=True) == 0
    assert "Long Expressive Memory" in capsys.readouterr().out


def test_a_result_that_went_on_says_so(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        n: int = 1

    def run(s, lab):
        lab.folder.mkdir(exist_ok=True)
        return papers.Result((Claim("n", s.n, low=1),))

    module = types.SimpleNamespace(TITLE="", ROWS=(), NEEDS=(), BUDGETS={"cpu": Settings()}, run=run)
    lab = Lab(folder=tmp_path / "kept")
    first, again = (record.reproduce(module, "cpu", lab) for _ in range(2))
    assert first["notes"] == [] and again["notes"] == [record.WENT_ON]
    assert record.digest([0, {"rate": 0.1}]) != record.digest([0, {"rate": 0.2}]) != record.digest([1, {"rate": 0.2}])


def test_settings_are_flat_and_typed():
    for name in papers.names():
        module = papers.result(name)
        for field in dataclasses.fields(module.Settings):
            value = getattr(module.BUDGETS["cpu"], field.name)
            assert isinstance(value, int | float | str | bool | tuple | None), (name, field.name)
