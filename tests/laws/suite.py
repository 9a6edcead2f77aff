"""The laws as tests. A test module writes `@subjects(...) class TestX(Laws)`; hypothesis chooses orders and seeds."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from laws import numerics, placing, running
from laws.subject import LENGTHS, WHOLE, Subject

few = hypothesis.settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=4,
    suppress_health_check=[hypothesis.HealthCheck.differing_executors, hypothesis.HealthCheck.too_slow],
)
orders = st.permutations(LENGTHS).map(tuple)
seeds = st.integers(0, 2)


def subjects(named: dict[str, Subject]):
    """Parametrize by name; conftest.py lets everything about one subject run in one worker."""
    return pytest.mark.parametrize("subject", [pytest.param(s, id=name) for name, s in named.items()])


class Laws:
    """The seven laws of one subject."""

    @few
    @hypothesis.given(order=orders, seed=seeds)
    def test_cut(self, subject: Subject, order, seed):
        running.cut(subject, order, seed)

    def test_cut_at_every_token(self, subject: Subject):
        running.decode(subject)

    @few
    @hypothesis.given(order=orders, seed=seeds)
    def test_packing(self, subject: Subject, order, seed):
        running.packing(subject, order, seed)

    @few
    @hypothesis.given(order=orders, token=st.integers(-1, WHOLE - 1), value=st.sampled_from([np.nan, np.inf]))
    @hypothesis.example(order=LENGTHS, token=-1, value=np.nan)
    @hypothesis.example(order=LENGTHS, token=WHOLE - 1, value=np.nan)
    def test_packing_isolates(self, subject: Subject, order, token, value):
        if subject.vocab:
            pytest.skip("tokens are integers: none can be NaN")
        running.poison(subject, order, token=token, value=value)

    def test_no_starts(self, subject: Subject):
        running.starts_absent(subject)

    def test_rows(self, subject: Subject):
        running.rows_apart(subject)

    def test_placing(self, subject: Subject):
        placing.placed(subject)

    def test_placing_is_strict(self, subject: Subject):
        placing.refuses(subject)

    def test_types(self, subject: Subject):
        placing.types(subject)

    def test_equal_models_trace_once(self, subject: Subject):
        placing.traces_once(subject)

    def test_every_weight_learns(self, subject: Subject):
        placing.every_weight_learns(subject)

    def test_numbers(self, subject: Subject):
        numerics.differences(subject)

    def test_low_precision(self, subject: Subject):
        numerics.low_precision(subject)

    def test_stays_finite(self, subject: Subject):
        numerics.stays_finite(subject)

    def test_cost(self, subject: Subject):
        numerics.cost(subject)
