"""The study of noisy labels: what is drawn, what is measured, and what the leads are made of."""

import json

import pytest
import torch

from papers.perturbed_optimizers import noise_study
from papers.perturbed_optimizers.noise_study import NAMES, SEEDS, SIGMAS, collect, lists, one_level
from papers.perturbed_optimizers.ranking_data import kendall_tau


def test_without_noise_the_labels_are_a_function_of_the_features():
    x, ranks, test, clean = lists(30, 0.0, 0)
    assert x.shape == (10, 9, 30)
    assert ranks.shape == (10, 30)
    assert test.shape == (10, 9, 1000)
    assert clean.shape == (10, 1000)
    # One weight vector ranks them all: least squares on the test ranks nearly finds it.
    design = test.permute(2, 0, 1).reshape(-1, 9)
    w = torch.linalg.lstsq(design, clean.T.reshape(-1, 1) - 5.5).solution[:, 0]
    predicted = torch.einsum("kmn,m->nk", x, w).argsort(-1).argsort(-1) + 1.0
    assert kendall_tau(predicted, ranks.T).mean() > 0.95


def test_noise_changes_the_training_labels_only():
    x, ranks, test, clean = lists(500, 0.0, 1)
    noisy_x, noisy, noisy_test, noisy_clean = lists(500, 1.0, 1)
    assert torch.equal(x, noisy_x)
    assert torch.equal(test, noisy_test)
    assert torch.equal(clean, noisy_clean)
    agreement = [kendall_tau(lists(500, sigma, 1)[1].T, ranks.T).mean().item() for sigma in SIGMAS]
    assert agreement == sorted(agreement, reverse=True)
    assert agreement[0] == 1
    assert kendall_tau(noisy.T, ranks.T).mean() < 0.9


def test_fewer_lists_are_the_first_of_many():
    few, many = lists(30, 0.3, 2), lists(500, 0.3, 2)
    assert torch.equal(few[0], many[0][..., :30])
    assert torch.equal(few[1], many[1][:, :30])


def test_a_level_measures_every_arm_and_seed():
    outcome = one_level(100, (30, 0.0))
    for measure in ("kendall", "perfect", "positions"):
        assert set(outcome[measure]) == set(NAMES)
        assert all(len(values) == SEEDS for values in outcome[measure].values())
    for seed in range(SEEDS):
        assert outcome["kendall"]["fy"][seed] > outcome["kendall"]["least_squares"][seed] > 0.8
        assert outcome["positions"]["fy"][seed] > outcome["perfect"]["fy"][seed]


def test_leads_and_losses():
    level = {name: [0.9 - 0.1 * i] * SEEDS for i, name in enumerate(NAMES)}
    noisy = {name: [0.5] * SEEDS for name in NAMES}
    outcomes = {(30, sigma): {"kendall": noisy if sigma == 3.0 else level} for sigma in SIGMAS}
    metrics = collect(outcomes)
    assert metrics["noise_kendall_n30_sigma0_3"]["fy"]["seed4"] == pytest.approx(0.8)
    assert metrics["noise_lead_low_n30_over_least_squares"]["fy"]["seed0"] == pytest.approx(-0.1)
    assert metrics["noise_lead_low_n30_over_black_box"]["fy"]["seed0"] == pytest.approx(0.3)
    assert metrics["noise_lead_high_n30_over_black_box"]["fy"]["seed0"] == 0
    assert metrics["noise_kendall_lost_n30"]["fy"]["seed0"] == pytest.approx(0.3)


def test_the_stage_writes_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(noise_study, "runs", lambda *_: tmp_path)
    monkeypatch.setattr(noise_study, "parallel", lambda job, keys: [job(key) for key in keys])
    monkeypatch.setattr("sys.argv", ["noise_study", "--preset", "smoke"])
    noise_study.main()
    metrics = json.loads((tmp_path / "noise_study" / "metrics.json").read_text())
    assert set(metrics["noise_perfect_n30_sigma0"]) == set(NAMES)
    assert (tmp_path / "provenance" / "noise_study.json").exists()
