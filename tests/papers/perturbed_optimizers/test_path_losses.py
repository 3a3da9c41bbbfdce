"""Losses on costs of cells: solver calls, gradients and limits that tell one loss from another."""

import pytest
import torch

from papers.perturbed_optimizers.path_losses import PathSolver, Target, hamming, path_cross_entropy, path_loss
from papers.perturbed_optimizers.perturbed import Perturbation
from shared.solvers.shortest_path import shortest_path
from tests.papers.perturbed_optimizers import tiny

NAMES = ("fenchel_young", "black_box", "squared", "squared_two_batches", "direct", "cost_regression")


def target(count: int = 4) -> Target:
    maps = tiny.maps()
    return Target(maps.paths[:count], maps.costs[:count])


def gradient(name: str, costs: torch.Tensor, p: Perturbation, strength: float = 5.0) -> tuple[torch.Tensor, int]:
    solver = PathSolver()
    leaf = costs.clone().requires_grad_()
    path_loss(name, solver, p, strength)(leaf, target(len(costs))).backward()
    assert leaf.grad is not None
    return leaf.grad, solver.solved


@pytest.mark.parametrize(
    ("name", "calls"),
    list(zip(NAMES, (12, 8, 12, 24, 0, 0), strict=True)),
)
def test_solver_calls(name: str, calls: int) -> None:
    """Per step of B maps: M B, 2 B, M B, 2 M B, none and none."""
    assert gradient(name, torch.rand(4, 12, 12) + 0.5, Perturbation(0.1, 3))[1] == calls


@pytest.mark.parametrize("name", ["fenchel_young", "black_box", "squared_two_batches"])
def test_true_costs_are_a_fixed_point(name: str) -> None:
    """Where costs give the observed paths, and noise or interpolation does not change them, there is no gradient."""
    maps = tiny.maps()
    costs = maps.costs[:4] - 0.05 * maps.paths[:4]  # ties of the true costs broken for the observed path
    assert torch.equal(shortest_path(costs).path, maps.paths[:4])
    assert gradient(name, costs, Perturbation(1e-5, 3), strength=1e-4)[0].abs().max() == 0


def test_fenchel_young_raises_costs_off_the_path_and_lowers_them_on_it() -> None:
    """At a wrong prediction: a descent step makes the observed path cheaper than the predicted one was."""
    costs = torch.ones(4, 12, 12)
    change = gradient("fenchel_young", costs, Perturbation(0.01, 3))[0] * 4
    paths = target().paths
    assert (change[paths == 1] >= 0).all()  # descent subtracts: observed cells become cheaper
    assert (change[paths == 0] <= 0).all()
    assert change.abs().max() <= 1
    assert change.abs().sum() > 0


def test_black_box_moves_by_the_interpolated_solution() -> None:
    """Equation of the rival: -(y(w) - y(w + lambda g)) / lambda with g the gradient of the Hamming loss."""
    costs = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)) + 0.5
    upstream = (1 - 2 * target().paths) / 4
    predicted = shortest_path(costs).path
    moved = shortest_path((costs + 8.0 * upstream).clamp(min=1e-3)).path
    found = gradient("black_box", costs, Perturbation(), strength=8.0)[0]
    assert not torch.equal(predicted, moved)
    torch.testing.assert_close(found, -(predicted - moved) / 8.0)
    assert set((found * 8.0).unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_hamming_counts_differing_cells() -> None:
    paths = target().paths
    other = paths.roll(1, 0)
    assert torch.equal(hamming(paths, other), (paths != other).flatten(1).sum(1).float())
    assert torch.equal(hamming(paths, paths), torch.zeros(4))


def test_path_cross_entropy_is_binary_cross_entropy() -> None:
    costs, paths = torch.rand(4, 12, 12) + 0.1, target().paths
    expected = torch.nn.functional.binary_cross_entropy(torch.exp(-costs), paths, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(path_cross_entropy(costs, paths), expected)


def test_cost_regression_is_the_mean_square() -> None:
    costs = torch.rand(4, 12, 12)
    leaf = costs.clone().requires_grad_()
    value = path_loss("cost_regression", PathSolver(), Perturbation(), 1.0)(leaf, target())
    torch.testing.assert_close(value, torch.nn.functional.mse_loss(costs, target().costs))


def test_negative_costs_are_clamped_for_the_solver() -> None:
    solver = PathSolver()
    assert torch.equal(solver(torch.ones(2, 3, 3)), shortest_path(torch.full((2, 3, 3), 1e-3)).path)
    assert solver.solved == 2
