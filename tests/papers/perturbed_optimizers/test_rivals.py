"""The rivals: the two-solve gradient against its definition, the bias of one batch, RankNet against Fenchel-Young."""

import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from papers.perturbed_optimizers.closed_forms import ranking_fenchel_young
from papers.perturbed_optimizers.perturbed import Perturbation, draw_noise
from papers.perturbed_optimizers.rivals import (
    black_box,
    ranknet,
    squared_error,
    squared_loss,
    squared_loss_two_batches,
)
from shared.solvers.simple import argmax, ranking


def slope(loss: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), theta)[0]


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_black_box_is_the_difference_of_two_solutions(strength):
    theta, v = scores(20, 6), torch.randn(20, 6, dtype=torch.float64)
    y = black_box(theta, ranking, strength)
    assert torch.equal(y, ranking(theta.detach()))
    expected = (ranking(theta.detach()) - ranking(theta.detach() - strength * v)) / strength
    torch.testing.assert_close(slope(y * v, theta), expected)


def test_black_box_is_the_slope_of_the_interpolated_loss():
    """For a linear loss <v, y> the interpolation is (F(theta) - F(theta - lambda v)) / lambda: its exact derivative."""
    theta, v, strength = scores(8, 5), torch.randn(8, 5, dtype=torch.float64), 2.0
    found = slope(black_box(theta, argmax, strength) * v, theta)
    interpolated = (theta.max(1).values - (theta - strength * v).max(1).values) / strength
    torch.testing.assert_close(found, slope(interpolated, theta))


def test_the_second_solution_is_better_for_the_linearised_loss():
    """It maximises <theta - lambda v, y>, so that <v, y - y'> >= 0; and descent lowers the score of y against y'."""
    theta, v = scores(50, 6), torch.randn(50, 6, dtype=torch.float64)
    gradient = slope(black_box(theta, ranking, 3.0) * v, theta)
    present, better = ranking(theta.detach()), ranking(theta.detach() - 3.0 * v)
    assert ((v * (present - better)).sum(1) >= -1e-12).all()
    assert ((gradient * (present - better)).sum(1) >= 0).all()
    assert (gradient != 0).any()


def test_the_strength_may_differ_from_instance_to_instance():
    theta, v = scores(3, 5), torch.randn(3, 5, dtype=torch.float64)
    strengths = torch.tensor([[0.3], [1.0], [9.0]], dtype=torch.float64)
    together = slope(black_box(theta, ranking, strengths) * v, theta)
    for i, strength in enumerate((0.3, 1.0, 9.0)):
        torch.testing.assert_close(together[i], slope(black_box(theta, ranking, strength) * v, theta)[i])


def test_costs_are_clamped_by_their_solver():
    """With a minimiser of positive costs, no negative cost may reach it in either pass."""
    seen = []

    def cheapest(minus_costs: Tensor) -> Tensor:
        costs = (-minus_costs).clamp_min(0)
        seen.append(costs.min().item())
        return argmax(-costs)

    costs = torch.rand(10, 4, dtype=torch.float64).requires_grad_()
    slope(squared_error(black_box(-costs, cheapest, 20.0), torch.eye(4, dtype=torch.float64)[:1]), costs)
    assert len(seen) == 2
    assert min(seen) >= 0


def test_two_batches_are_unbiased_and_one_batch_is_not():
    """Softmax case, M = 2: the mean of many gradients against the closed form, and the bias of the other."""
    draws, p = 200_000, Perturbation(samples=2, noise="gumbel")
    theta = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    exact_value = (leaf.softmax(0) - target).square().sum()
    exact = torch.autograd.grad(exact_value, leaf)[0]
    many = theta.expand(draws, 3).clone().requires_grad_()

    def distance(loss: Tensor) -> tuple[float, float]:
        gradients = slope(loss, many)
        error = gradients.std(0) / math.sqrt(draws)
        value = (loss.mean() - exact_value) / (loss.std() / math.sqrt(draws))
        return ((gradients.mean(0) - exact) / error).abs().max().item(), abs(value.item())

    wanted = target.expand(draws, 3)
    gradient, value = distance(squared_loss_two_batches(many, wanted, argmax, p))
    assert gradient < 4
    assert value < 4
    gradient, value = distance(squared_loss(many, wanted, argmax, p))
    assert gradient > 10
    # Its value is too large by the variance of the mean, (1 - |p|^2) / M.
    assert value > 10


def test_the_squared_losses_use_the_noise_they_are_given():
    theta, p = scores(4, 5), Perturbation(samples=3)
    target, z = ranking(torch.randn(4, 5, dtype=torch.float64)), draw_noise(theta.detach(), p)
    mean = ranking((theta.detach() + z).flatten(0, 1)).view(3, 4, 5).mean(0)
    torch.testing.assert_close(squared_loss(theta, target, ranking, p, z), (mean - target).square().sum(1))
    # The same noise twice is the one-batch form.
    torch.testing.assert_close(
        squared_loss_two_batches(theta, target, ranking, p, (z, z)), squared_loss(theta, target, ranking, p, z)
    )


def test_ranknet_is_the_fenchel_young_loss_with_gumbel_noise():
    theta, target = scores(30, 7), ranking(torch.randn(30, 7, dtype=torch.float64))
    exact = ranking_fenchel_young(theta, target, 1.0, "gumbel")
    torch.testing.assert_close(ranknet(theta, target), exact)
    torch.testing.assert_close(slope(ranknet(theta, target), theta), slope(exact, theta))


def test_ranknet_is_logistic_regression_on_pairs():
    theta, target = scores(1, 5).detach(), torch.tensor([[3.0, 1.0, 1.0, 2.0, 5.0]])
    pairs = [(i, j) for i in range(5) for j in range(i) if target[0, i] != target[0, j]]
    won = [bool(target[0, i] > target[0, j]) for i, j in pairs]
    chance = [torch.sigmoid(theta[0, i] - theta[0, j]).item() for i, j in pairs]
    assert ranknet(theta, target).item() == pytest.approx(log_loss(won, chance, normalize=False))
    assert len(pairs) == 9
