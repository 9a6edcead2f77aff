"""The capability card: its names, how it judges, its command."""

import math

import pytest

from jaxlm.cli import guarded
from jaxlm.errors import ConfigError
from jaxlm.mixers import MIXERS
from jaxlm.papers import capability
from jaxlm.papers._capability import VARIANTS, mixer_of, mixers_of, tasks_of
from jaxlm.tasks import TASKS


def test_every_row_can_be_built_and_every_separation_speaks_of_rows_and_columns():
    known = mixers_of(())
    assert set(known) == {*MIXERS, *VARIANTS} and tasks_of(()) == tuple(TASKS)
    assert all(mixer_of(name, 64).width == 64 for name in known)  # type: ignore[attr-defined]
    for _, task, where, names, _ in capability.SEPARATIONS:
        assert task in TASKS and where in ("near", "far") and set(names) <= set(known)
    assert set(capability.FEW) <= set(known)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="mixers = 'Mambo': unknown; expected names of"):
        mixers_of(("LSTM", "Mambo"))
    with pytest.raises(ConfigError, match="task = 'Party': unknown"):
        tasks_of(("Party",))


def test_a_class_is_judged_by_its_best_mixer():
    """One cell must learn parity; no decay may."""
    card = {name: {"Parity": {"near": 1.0, "far": far}} for name, far in (("LSTM", 0.95), ("LEM", 0.1), ("GLA", 0.7))}
    found = {c.name.split(":")[0]: c for c in capability.known(card)}
    assert set(found) == {"parity, nonlinear cells", "parity, transitions in [0, 1]"}
    assert found["parity, nonlinear cells"].passed and found["parity, nonlinear cells"].ours == 0.95
    assert not found["parity, transitions in [0, 1]"].passed
    assert [(c.name, c.ours, math.isinf(c.low)) for c in capability.best(card)] == [
        ("Parity: the best of the card", 1.0, True)
    ]


def test_the_command_names_what_it_knows(capsys):
    assert guarded(["bench"], debug=True) == 2
    assert guarded(["bench", "speed"], debug=True) == 2
    assert "expected capability" in capsys.readouterr().err
    assert guarded(["bench", "capability", "--mixers", "Mambo", "--budget", "smoke"], debug=False) == 2
