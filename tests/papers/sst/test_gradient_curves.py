"""Trainings side by side: the exact gradient goes down, rows do not mix, and baselines remember the past only."""

import pytest
import torch

from papers.sst.gradient_curves import (
    EVALUATIONS,
    RATES,
    MovingAverage,
    chosen_curve,
    curves,
    gap_percent,
    training_arms,
)
from papers.sst.gradient_problems import expected_loss, problems
from papers.sst.gradient_study import DECAY

TREES = problems()[2]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_arm_spends_the_same_in_a_step() -> None:
    for name, arm in training_arms().items():
        assert arm is None or arm.evaluations == EVALUATIONS, name


def test_the_exact_gradient_goes_down_in_every_row() -> None:
    found = curves(TREES, None, 2, 20, 5, generator())
    assert found.shape == (len(RATES), 2, 5)
    assert (found[:2, :, 1:] < found[:2, :, :-1]).all()
    torch.testing.assert_close(found[:, 0], found[:, 1])  # nothing is random
    start = expected_loss(TREES, torch.zeros_like(TREES.theta))
    torch.testing.assert_close(found[:, :, 0], start.expand(len(RATES), 2))


@pytest.mark.parametrize("name", list(training_arms()))
def test_every_arm_learns(name: str) -> None:
    found = curves(TREES, training_arms()[name], 8, 40, 40, generator())
    assert found[1:3].mean((0, 1))[1] < found[1:3].mean((0, 1))[0]


def test_gap_goes_from_a_hundred_to_nothing() -> None:
    least = TREES.loss(TREES.vertices).min()
    start = expected_loss(TREES, torch.zeros_like(TREES.theta))
    percent = gap_percent(TREES, torch.stack([start, (start + least) / 2, least]))
    torch.testing.assert_close(percent, torch.tensor([100.0, 50, 0]).double())


def test_the_chosen_rate_is_the_best_of_the_trial() -> None:
    trial = curves(TREES, training_arms()["relaxed_t0.5"], 3, 20, 10, generator(1)).mean((1, 2))
    found, rate = chosen_curve(TREES, "relaxed_t0.5", 3, 20, 10, (generator(1), generator(2)))
    assert rate == RATES[int(trial.argmin())]
    assert found.shape == (3, 3)
    again, _ = chosen_curve(TREES, "relaxed_t0.5", 3, 20, 10, (generator(1), generator(2)))
    torch.testing.assert_close(found, again, rtol=0, atol=0)


def test_the_moving_average_is_that_of_each_training() -> None:
    baseline, first = MovingAverage(), torch.tensor([[1.0, 10], [3, 30]])
    assert (baseline(first) == 0).all()
    torch.testing.assert_close(baseline(2 * first), torch.tensor([[2.0, 20], [2, 20]]))
    torch.testing.assert_close(baseline(first)[0], (DECAY + 2 * (1 - DECAY)) * torch.tensor([2.0, 20]))
