"""Calibration against hand-made numbers, laws, scikit-learn, torchmetrics and scipy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from papers.jem.calibration import (
    accuracy,
    bootstrap_ece_interval,
    brier_score,
    confidence_and_correctness,
    expected_calibration_error,
    fit_temperature,
    nll_nats,
    reliability,
    smoothed_cross_entropy,
)


def predictions(n: int, classes: int = 10, sharpness: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: perfectly calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("bins", [10, 20])
def test_ece_by_hand(bins: int) -> None:
    """2/5 |1 - .95| + 2/5 |.5 - .85| + 1/5 |0 - .65|."""
    confidence = torch.tensor([0.95, 0.95, 0.85, 0.85, 0.65])
    correct = torch.tensor([True, True, True, False, False])
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(0.29, abs=1e-6)


def test_one_bin_compares_the_means() -> None:
    confidence, correct = confidence_and_correctness(*predictions(500, sharpness=0.5))
    expected = abs(float(correct.double().mean() - confidence.mean()))
    assert expected_calibration_error(confidence, correct, 1) == pytest.approx(expected)


def test_full_confidence_costs_the_error_rate() -> None:
    correct = torch.arange(10) < 7
    assert expected_calibration_error(torch.ones(10), correct, 20) == pytest.approx(0.3)


def test_bins_are_closed_on_the_right_and_empty_ones_are_skipped() -> None:
    bars = reliability(torch.tensor([0.0, 0.25, 0.26, 1.0]), torch.tensor([True, False, True, True]), 4)
    assert bars.count.tolist() == [2, 1, 0, 1]
    assert bars.accuracy[[0, 1, 3]].tolist() == [0.5, 1.0, 1.0]
    assert bars.accuracy[2].isnan()
    assert bars.error() == pytest.approx(0.5 * 0.375 + 0.25 * 0.74, abs=1e-6)


def test_perfect_calibration_has_an_error_that_vanishes_with_the_images() -> None:
    errors = []
    for n in (400, 40_000):
        confidence, correct = confidence_and_correctness(*predictions(n))
        errors.append(expected_calibration_error(confidence, correct, 20))
    assert errors[0] < 2 * math.sqrt(20 / 400 / 4)
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("bins", [7, 15, 20])
def test_ece_and_curve_against_torchmetrics_and_scikit_learn(bins: int) -> None:
    logits, labels = predictions(2000)
    logits = 1.7 * logits
    confidence, correct = confidence_and_correctness(logits, labels)
    ours = expected_calibration_error(confidence, correct, bins)
    theirs = multiclass_calibration_error(logits.softmax(1), labels, num_classes=10, n_bins=bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert ours > 0.03
    bars = reliability(confidence, correct, bins)
    seen = bars.count > 0
    share, mean = calibration_curve(correct.numpy(), confidence.numpy(), n_bins=bins)
    np.testing.assert_allclose(bars.accuracy[seen].numpy(), share)
    np.testing.assert_allclose(bars.confidence[seen].numpy(), mean)


def test_scores_against_scikit_learn() -> None:
    logits, labels = predictions(500)
    p = logits.softmax(1).numpy()
    assert nll_nats(logits, labels) == pytest.approx(log_loss(labels.numpy(), p))
    assert brier_score(logits, labels) == pytest.approx(
        brier_score_loss(labels.numpy(), p, labels=np.arange(10), scale_by_half=False)
    )
    assert accuracy(logits, labels) == pytest.approx(accuracy_score(labels.numpy(), p.argmax(1)))


def test_scores_of_a_uniform_guess() -> None:
    logits, labels = torch.zeros(8, 10), torch.arange(8)
    assert nll_nats(logits, labels) == pytest.approx(math.log(10))
    assert brier_score(logits, labels) == pytest.approx(0.9)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    """c(x) added to all classes: log p(x) moves by c, p(y | x) and all that is measured here do not."""
    logits, labels = predictions(300)
    moved = logits + 50 * torch.randn(300, 1, dtype=torch.float64)
    assert nll_nats(moved, labels) == pytest.approx(nll_nats(logits, labels))
    assert brier_score(moved, labels) == pytest.approx(brier_score(logits, labels))
    assert fit_temperature(moved, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


# --- the interval ---


def overconfident(n: int, factor: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels = predictions(n, seed=seed)
    return confidence_and_correctness(factor * logits, labels)


@pytest.mark.parametrize("factor", [1.2, 1.8])
def test_the_bootstrap_interval_covers_the_error_of_the_population(factor: float) -> None:
    """Nominally 57 of 60 samples; at 1.2 the percentiles of the resamples, biased twice, cover it in about 13."""
    truth = expected_calibration_error(*overconfident(200_000, factor, 999), 20)
    inside = 0
    for seed in range(60):
        low, high = bootstrap_ece_interval(*overconfident(500, factor, seed), 20, resamples=200, seed=seed)
        inside += low <= truth <= high
    assert inside >= 45


def test_the_interval_of_one_bin_is_that_of_a_mean() -> None:
    """With one bin the error is the size of a mean of differences: the interval is that of the central limit."""
    confidence, correct = overconfident(2000, 3.0, 0)
    low, high = bootstrap_ece_interval(confidence, correct, 1, resamples=2000)
    gap = (confidence - correct.double()).double()
    half = 1.96 * float(gap.std()) / math.sqrt(2000)
    assert low == pytest.approx(float(gap.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(gap.mean()) + half, abs=0.1 * half)


def test_the_interval_depends_on_the_seed_only_and_never_starts_below_zero() -> None:
    confidence, correct = overconfident(200, 1.0, 3)
    first = bootstrap_ece_interval(confidence, correct, 20, resamples=120, seed=1)
    assert bootstrap_ece_interval(confidence, correct, 20, resamples=120, seed=1) == first
    assert bootstrap_ece_interval(confidence, correct, 20, resamples=120, seed=2) != first
    assert 0 <= first.low <= first.high


# --- temperature and smoothing ---


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_temperature_scaling_recovers_a_known_temperature(temperature: float) -> None:
    logits, labels = predictions(50_000)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_is_the_minimum_that_scipy_finds() -> None:
    logits, labels = predictions(300, sharpness=4.0, seed=5)
    found = fit_temperature(3 * logits, labels)
    best = minimize_scalar(
        lambda log_t: nll_nats(3 * logits / math.exp(log_t), labels), bounds=(-3, 3), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(math.exp(best.x), rel=1e-5)
    slope = torch.autograd.functional.jacobian(
        lambda t: F.cross_entropy(3 * logits / t, labels), torch.tensor(found, dtype=torch.float64)
    )
    assert abs(float(slope)) < 1e-10


def test_the_temperature_mends_the_calibration_and_keeps_the_classes() -> None:
    logits, labels = predictions(5000, seed=1)
    sharp = 4 * logits
    scaled = sharp / fit_temperature(sharp, labels)
    before = expected_calibration_error(*confidence_and_correctness(sharp, labels), 20)
    after = expected_calibration_error(*confidence_and_correctness(scaled, labels), 20)
    assert after < 0.2 * before
    assert accuracy(scaled, labels) == accuracy(sharp, labels)


def test_a_temperature_without_a_minimum_ends_at_a_bound() -> None:
    labels = torch.arange(10)
    right = 5 * F.one_hot(labels).double()
    assert fit_temperature(right, labels) == pytest.approx(1e-3)
    assert fit_temperature(-right, labels) == pytest.approx(1e3)


def test_smoothed_labels_by_hand() -> None:
    logits, labels = predictions(50)
    target = torch.full((50, 10), 0.1 / 10, dtype=torch.float64)
    target[torch.arange(50), labels] += 0.9
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(smoothed_cross_entropy(logits, labels, 0.1)) == pytest.approx(float(expected), rel=1e-5)
    assert float(smoothed_cross_entropy(logits, labels, 0.0)) == pytest.approx(nll_nats(logits, labels), rel=1e-5)


def test_the_smoothed_loss_has_its_minimum_at_the_smoothed_label() -> None:
    """For s = 0.2 and four classes at p = (0.85, 0.05, 0.05, 0.05), where the loss is the entropy of the target."""
    p = torch.tensor([[0.85, 0.05, 0.05, 0.05]])
    logits = p.log().requires_grad_()
    loss = smoothed_cross_entropy(logits, torch.tensor([0]), 0.2)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.abs().max() < 1e-6
    assert loss.item() == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)


def test_wrong_input_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"logits \(3, 2\) and labels \(2,\)"):
        nll_nats(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 bins"):
        expected_calibration_error(torch.ones(3), torch.ones(3), 0)
    with pytest.raises(ValueError, match="0 confidences"):
        expected_calibration_error(torch.ones(0), torch.ones(0), 10)
    with pytest.raises(ValueError, match="level"):
        bootstrap_ece_interval(torch.ones(3), torch.ones(3), 10, level=95)
    with pytest.raises(ValueError, match="smoothing"):
        smoothed_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), 1.0)
