"""The learning rate over the steps."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.training.schedules import cosine_with_warmup


def test_values() -> None:
    rates = [cosine_with_warmup(k, 110, 1.0, 0.2, 10) for k in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5)
    assert rates[9] == rates[10] == 1
    assert rates[60] == pytest.approx(0.6)
    assert rates[110] == pytest.approx(0.2)


def test_without_warmup() -> None:
    assert cosine_with_warmup(0, 100, 0.01, 0.0, 0) == 0.01
    assert cosine_with_warmup(0, 1, 0.01, 0.0, 1) == 0.01


@given(st.integers(1, 200), st.integers(0, 250), st.floats(1e-4, 1), st.floats(0, 1))
def test_rises_then_falls_between_its_bounds(steps: int, warmup: int, peak: float, share: float) -> None:
    final = peak * share
    rates = [cosine_with_warmup(k, steps, peak, final, warmup) for k in range(steps)]
    slack = 1e-9 * peak
    assert all(0 < rate <= peak + slack for rate in rates)
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert all(a <= b + slack for a, b in itertools.pairwise(rising))
    assert all(a >= b - slack and b >= final - slack for a, b in itertools.pairwise(falling))
