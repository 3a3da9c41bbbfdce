"""The learning rate: warm-up and decay."""

import pytest

from papers.jem.schedule import stepped_rate


def test_warm_up():
    rates = [stepped_rate(step, 2e-4, 1000) for step in (0, 500, 1000, 5000)]
    assert rates == pytest.approx([0, 1e-4, 2e-4, 2e-4])
    assert stepped_rate(0, 2e-4, 0) == 2e-4


def test_decay_at_the_listed_steps():
    rates = [stepped_rate(step, 1.0, 10, (100, 200)) for step in (99, 100, 199, 200)]
    assert rates == pytest.approx([1, 0.3, 0.3, 0.09])
