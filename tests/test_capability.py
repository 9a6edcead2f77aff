"""The capability card: its names, how it judges, its command."""

import math

import jax
import numpy as np
import pytest

from jaxlm.cli import guarded
from jaxlm.errors import ConfigError
from jaxlm.mixers import MIXERS
from jaxlm.papers import capability
from jaxlm.papers._capability import (
    VARIANTS,
    Settings,
    answers,
    exam,
    lessons,
    mixer_of,
    mixers_of,
    right,
    ruled_out,
    tasks_of,
)
from jaxlm.papers.result import Lab
from jaxlm.tasks import TASKS, FlipFlop, InContextLanguages


def test_every_row_can_be_built_and_every_separation_speaks_of_rows_and_columns():
    known = mixers_of(())
    assert set(known) == {*MIXERS, *VARIANTS} and tasks_of(()) == tuple(TASKS)
    assert all(mixer_of(name, 64).width == 64 for name in known)  # type: ignore[attr-defined]
    for _, task, where, names, _ in capability.SEPARATIONS:
        assert task in TASKS and where in ("near", "far") and set(names) <= set(known)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="mixers = 'Mambo': unknown; expected names of"):
        mixers_of(("LSTM", "Mambo"))
    with pytest.raises(ConfigError, match="task = 'Party': unknown"):
        tasks_of(("Party",))


def test_lessons_are_fresh_and_padded():
    s = Settings(length=6, batch=2, steps=3)
    tokens, targets, scored = lessons(FlipFlop(), jax.random.split(jax.random.key(0), 2), s, 9)
    assert tokens.shape == targets.shape == scored.shape == (2, 3, 2, 9)
    assert len({np.asarray(x).tobytes() for x in tokens.reshape(6, 2, 9)}) == 6
    assert not np.any(scored[..., 6:]) and np.all(np.any(scored[..., :6], axis=-1))


@pytest.mark.parametrize("task", [FlipFlop(), InContextLanguages()], ids=lambda task: type(task).__name__)
def test_any_legal_answer_is_right_and_what_is_not_asked_does_not_count(task):
    tokens, weights, legal = map(np.asarray, exam(task, jax.random.key(1), 5, 8, 11))
    assert tokens.shape == weights.shape == (5, 11) and not weights[:, 8:].any()
    first, last = np.argmax(legal, axis=-1), task.classes - 1 - np.argmax(legal[..., ::-1], axis=-1)
    wrong = np.argmin(legal, axis=-1)
    half = np.where(np.cumsum(weights).reshape(weights.shape) <= weights.sum() // 2, first, wrong)
    guesses = np.stack([first, last, wrong, half, np.where(weights > 0, first, wrong)])
    expected = [1, 1, 0, weights.sum() // 2 / weights.sum(), 1]
    np.testing.assert_allclose(right(weights, legal, guesses), expected, rtol=1e-6)


def test_a_state_that_outgrew_the_numbers_gives_wrong_answers_and_not_a_crash():
    """A regular LRNN with p > 1 may grow with every token: seen at four times the length it was trained at."""
    logits = np.float32([[2, 3, 9], [-3e9, -2e9, 0], [np.nan, 1, 1], [np.inf, 1, 1], [-np.inf, 1, 1]])
    guesses = np.asarray(answers(ruled_out(logits, np.int32(2))))
    assert guesses.tolist() == [1, 1, -1, -1, -1]
    legal = np.ones((1, 5, 2), bool)
    np.testing.assert_allclose(right(np.ones((1, 5)), legal, guesses[None, None]), [2 / 5])


def test_a_finished_row_is_not_made_twice(tmp_path):
    made = []

    def make(lab):
        made.append(lab)
        return {"seconds": np.float32(0.5)}

    found = [capability.once(Lab(folder=tmp_path / "GLA"), make) for _ in range(2)]
    assert found == [{"seconds": 0.5}] * 2 and len(made) == 1


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
