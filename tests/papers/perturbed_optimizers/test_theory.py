"""The theory stage: what it measures holds, what it would measure of broken code does not, and what it writes."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from papers.perturbed_optimizers import convergence, identities, perturbed, theory
from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.instances import Instance, instances, largest_z, repeated, seeded
from papers.perturbed_optimizers.perturbed import Perturbation, draw_noise, perturbed_maximiser
from shared.errors import UserError
from shared.files import read_json
from shared.results import read_rows
from shared.solvers.simple import argmax

NAMES = ("argmax", "ranking", "path")
every_instance = pytest.mark.parametrize("name", NAMES)


def instance(name: str, seed: int = 0) -> Instance:
    return instances(seeded(seed, 1))[NAMES.index(name)]


@every_instance
def test_gradient_of_the_maximum(name: str) -> None:
    samples = 5_000 if name == "path" else 100_000
    assert identities.gradient_z(instance(name), samples, seeded(0, 2)) < 4


def test_gradient_z_sees_a_wrong_maximiser(monkeypatch: pytest.MonkeyPatch) -> None:
    def colder(theta: Tensor, solver: perturbed.Solver, p: Perturbation, noise: Tensor) -> Tensor:
        return perturbed_maximiser(theta, solver, Perturbation(p.epsilon / 2, p.samples), noise)

    monkeypatch.setattr(identities, "perturbed_maximiser", colder)
    assert identities.gradient_z(instance("argmax"), 100_000, seeded(0, 2)) > 10


@every_instance
def test_convexity_along_random_segments(name: str) -> None:
    assert identities.convexity_violations(instance(name), 300, seeded(0, 3)) == 0


def test_convexity_violations_sees_a_concave_function(monkeypatch: pytest.MonkeyPatch) -> None:
    convex = identities.perturbed_maximum
    monkeypatch.setattr(identities, "perturbed_maximum", lambda *args: -convex(*args))
    assert identities.convexity_violations(instance("argmax"), 300, seeded(0, 3)) > 200


@every_instance
def test_bounds_and_limits(name: str) -> None:
    problem = instance(name)
    assert min(identities.sandwich(problem, 500, seeded(0, 4))) >= 0
    assert identities.small_epsilon_distance(problem, seeded(0, 5)) == 0
    if name != "path":
        assert identities.large_epsilon_distance(problem) < 1e-3


def test_fenchel_young_identities() -> None:
    generator = seeded(0, 6)
    assert identities.cross_entropy_error(generator) < 1e-12
    assert identities.ranknet_error(generator) < 1e-11
    assert min(identities.fenchel_young_minimum(generator).values()) > 0
    assert max(identities.fenchel_young_at_target(generator).values()) < 1e-12


@every_instance
def test_gradient_of_the_monte_carlo_loss(name: str) -> None:
    assert identities.fenchel_young_gradient_error(instance(name), seeded(0, 7)) < 1e-6


@every_instance
def test_one_sample_gradients_are_unbiased(name: str) -> None:
    """The mean of many M = 1 gradients of the loss against one of many samples."""
    problem, generator = instance(name), seeded(0, 8)
    count = 2_000 if name == "path" else 50_000
    theta = repeated(problem.theta, count).clone().requires_grad_()
    target, p = problem.solver(theta.detach().flip(-1)), Perturbation(problem.epsilon, 1)
    noise = draw_noise(theta.detach(), p, generator)
    (ones,) = torch.autograd.grad(fenchel_young_loss(theta, target, problem.solver, p, noise).sum(), theta)
    many = Perturbation(problem.epsilon, count)
    one = problem.theta.unsqueeze(0).requires_grad_()
    noise = draw_noise(one.detach(), many, generator)
    (mean,) = torch.autograd.grad(fenchel_young_loss(one, target[:1], problem.solver, many, noise).sum(), one)
    spread = ones.std(0) / count**0.5
    assert largest_z(ones, mean[0], spread) < 4.5


@every_instance
def test_at_low_temperature_the_loss_is_the_perceptrons(name: str) -> None:
    problem = instance(name)
    theta = repeated(problem.theta, 1).clone().requires_grad_()
    target = problem.solver(theta.detach().flip(-1))
    loss = fenchel_young_loss(theta, target, problem.solver, Perturbation(1e-6, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), theta)
    torch.testing.assert_close(gradient, problem.solver(theta.detach()) - target, rtol=0, atol=1e-15)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_the_identity_map_has_the_unit_jacobian(epsilon: float) -> None:
    assert identities.unit_jacobian_z(epsilon, 50_000, seeded(0, 9)) < 4.5


def test_unit_jacobian_sees_a_missing_division(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbed, "score", lambda z, noise: 2 * z)
    assert identities.unit_jacobian_z(1.0, 50_000, seeded(0, 9)) > 10


@pytest.mark.parametrize("name", ["gumbel_simplex", "gaussian_pair", "simplex", "ranking"])
def test_errors_fall_with_the_root_of_the_samples(name: str) -> None:
    sizes = [10, 100, 1000, 10_000]
    found, z = convergence.errors(name, sizes, seeded(0, 10))
    assert convergence.slope(sizes, found) == pytest.approx(-0.5, abs=0.1)
    assert z < 4.5


def test_slope_of_a_power_law() -> None:
    assert convergence.slope([1, 10, 100], [3.0, 0.3, 0.03]) == pytest.approx(-1)


def test_softmax_and_log_sum_exp() -> None:
    assert max(convergence.gumbel_z(50_000, seeded(0, 11))) < 4.5


def test_controls_lower_the_spread() -> None:
    near = Instance("argmax", theory.NEAR, torch.zeros(5).double(), argmax, 0.5)
    spread = {arm: convergence.vjp_std(near, 0.1, arm, 2000, seeded(0, 12)) for arm in convergence.CONTROLS}
    assert max(spread["solution"], spread["leave_one_out"], spread["antithetic"]) < 0.9 * spread["plain"]


def test_squared_loss_is_biased_with_one_sample_and_not_with_two() -> None:
    biases = {samples: convergence.squared_loss_bias(samples, 100_000, seeded(0, 13)) for samples in (1, 10)}
    for found in biases.values():
        assert found["two_sample"][1] < 4.5
    assert biases[1]["one_sample"][1] > 20
    assert biases[1]["one_sample"][0] == pytest.approx(10 * biases[10]["one_sample"][0], rel=0.5)


def test_largest_z_counts_standard_errors() -> None:
    estimates = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    assert largest_z(estimates, torch.tensor([5.0, 5.0])) == pytest.approx(3)
    assert largest_z(estimates, torch.tensor([2.0, 5.1])) > 1e6


def test_the_stage_writes_its_numbers_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory, "runs", lambda name, preset: tmp_path / name / preset)
    monkeypatch.setattr(theory, "SEEDS", range(1))
    monkeypatch.setattr(sys, "argv", ["theory", "--preset", "smoke"])
    theory.main()
    folder = tmp_path / "perturbed_optimizers" / "smoke"
    metrics = read_json(folder / "theory" / "metrics.json")
    assert metrics["edge_weight"]["before"]["seed0"] < 0.3 < 0.9 < metrics["edge_weight"]["after"]["seed0"]
    assert metrics["hard_gradient_norm"]["path"]["seed0"] == 0 < metrics["perturbed_gradient_norm"]["path"]["seed0"]
    assert metrics["estimation_covariance_ratio"]["gumbel"]["seed0"] == pytest.approx(1, abs=0.4)
    assert metrics["estimation_error"]["doubly_stochastic"]["seed0"] < 0.3
    segment = read_rows(folder / "theory" / "segment.csv")
    assert {row["epsilon"] for row in segment} == {0, 0.1, 0.3, 1}
    assert all(sum(row[f"y{i}"] for i in range(3)) == pytest.approx(1, abs=1e-5) for row in segment)
    bias = read_rows(folder / "theory" / "bias_vs_epsilon.csv")
    assert all(bias[0][name] < 0.2 < bias[-1][name] for name in NAMES)
    for curve in ("error_vs_samples", "variance", "edge_weight"):
        assert read_rows(folder / "theory" / f"{curve}.csv")
    assert (folder / "provenance" / "theory.json").exists()


def test_a_preset_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["theory", "--preset", "huge"])
    with pytest.raises(UserError, match="huge"):
        theory.main()
