"""Intervals against scipy's own, and what has to hold for any numbers."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from shared import statistics

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


@given(NUMBERS)
def test_mean_and_spread_are_numpys(values: list[float]) -> None:
    assert statistics.mean(values) == pytest.approx(np.mean(values), rel=1e-12, abs=1e-9)
    assert statistics.standard_deviation(values) == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-9)


@given(NUMBERS.filter(lambda values: np.std(values) > 1e-3), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys(values: list[float], level: float) -> None:
    expected = scipy.stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert statistics.student_interval(values, level) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(NUMBERS, st.data())
def test_paired_interval_is_scipys(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(st.floats(-1e6, 1e6), min_size=len(first), max_size=len(first)))
    if np.std(np.subtract(first, second)) < 1e-3:
        return
    ends = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    a, b = ({f"seed{i}": value for i, value in enumerate(values)} for values in (first, second))
    assert statistics.paired_interval(a, b) == pytest.approx((ends.low, ends.high), rel=1e-6, abs=1e-6)


def test_known_quantiles() -> None:
    """The factors that a table of Student's distribution prints."""
    assert statistics.t_quantile(0.975, 2) == pytest.approx(4.3027, abs=1e-4)
    assert statistics.t_quantile(0.975, 4) == pytest.approx(2.7764, abs=1e-4)


@given(st.floats(-1e6, 1e6), st.integers(2, 9))
def test_equal_values_give_the_point(value: float, n: int) -> None:
    assert statistics.student_interval([value] * n) == (value, value)


@given(NUMBERS, st.floats(-1e3, 1e3))
def test_interval_moves_with_the_values(values: list[float], shift: float) -> None:
    low, high = statistics.student_interval(values)
    moved = statistics.student_interval([value + shift for value in values])
    assert moved == pytest.approx((low + shift, high + shift), rel=1e-6, abs=1e-4)


def test_pairs_are_made_of_common_keys() -> None:
    first = {"seed0": 3.0, "seed2": 5.0, "seed1": 4.0}
    second = {"seed1": 1.0, "seed0": 1.0, "seed9": 7.0}
    assert statistics.paired_differences(first, second) == {"seed0": 2.0, "seed1": 3.0}


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean([]),
        lambda: statistics.standard_deviation([1.0]),
        lambda: statistics.student_interval([1.0]),
        lambda: statistics.paired_interval({"seed0": 1.0}, {"seed1": 1.0}),
        lambda: statistics.t_quantile(1.0, 3),
        lambda: statistics.t_quantile(0.9, 0),
    ],
)
def test_too_few_numbers_are_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
