"""The Fenchel-Young loss: its value and its gradient are one function's, and it is what theory says in closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.perturbed import Perturbation, draw_noise, perturbed_maximiser
from shared.solvers.shortest_path import best_path
from shared.solvers.simple import argmax, ranking, sign

THETA = torch.tensor([[-0.6, 1.9, -0.2, 1.1, -1.0]], dtype=torch.float64)
GAMMA = 0.5772156649015329


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid_path(theta: Tensor) -> Tensor:
    """Paths on 4 x 4 grids of flat scores, which multiplicative noise keeps negative."""
    return best_path(theta.view(-1, 4, 4)).view(theta.shape)


CASES = [
    (argmax, False, torch.randn(3, 6, dtype=torch.float64, generator=generator(1))),
    (ranking, False, torch.randn(3, 6, dtype=torch.float64, generator=generator(2))),
    (sign, False, torch.randn(3, 6, dtype=torch.float64, generator=generator(3))),
    (grid_path, True, -torch.rand(3, 16, dtype=torch.float64, generator=generator(4)) - 0.2),
]


@pytest.mark.parametrize(("solver", "multiplicative", "theta"), CASES)
@pytest.mark.parametrize("samples", [1, 4])
def test_value_and_gradient_are_consistent(solver, multiplicative: bool, theta: Tensor, samples: int) -> None:
    """Several public implementations return ||y_bar - y||^2 as the value, of which y_bar - y is not the gradient."""
    p = Perturbation(0.3, samples, multiplicative=multiplicative)
    z = draw_noise(theta, p, generator(5))
    target = solver(theta.roll(1, -1))
    leaf = theta.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: fenchel_young_loss(t, target, solver, p, z), leaf)


@pytest.mark.parametrize("samples", [1, 3])
def test_gradient_is_mean_solution_minus_target(samples: int) -> None:
    theta = THETA.clone().requires_grad_()
    p = Perturbation(0.5, samples)
    z = draw_noise(theta, p, generator(6))
    target = argmax(-THETA)
    fenchel_young_loss(theta, target, argmax, p, z).sum().backward()
    assert torch.allclose(theta.grad, perturbed_maximiser(THETA, argmax, p, z) - target, rtol=1e-14)


def test_gumbel_on_the_simplex_is_cross_entropy() -> None:
    """eps CE(theta/eps), since the two eps*gamma cancel; here within 4 standard errors of the Monte-Carlo value."""
    for label, expected in ((1, 0.102147), (3, 0.902147)):
        target = F.one_hot(torch.tensor([label]), 5).double()
        assert (0.5 * F.cross_entropy(THETA / 0.5, torch.tensor([label]))).item() == pytest.approx(expected, abs=1e-6)
        rows = THETA.expand(100_000, -1)
        p = Perturbation(0.5, 1, "gumbel")
        values = fenchel_young_loss(rows, target.expand_as(rows), argmax, p, draw_noise(rows, p, generator(7)))
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - 0.5 * GAMMA - expected) < 4 * error


def test_perceptron_limit() -> None:
    """At a tiny temperature the gradient is y*(theta) - y exactly."""
    theta = torch.randn(50, 6, dtype=torch.float64, generator=generator(8)).requires_grad_()
    target = argmax(torch.randn(50, 6, dtype=torch.float64, generator=generator(9)))
    fenchel_young_loss(theta, target, argmax, Perturbation(1e-6)).sum().backward()
    assert torch.equal(theta.grad, argmax(theta.detach()) - target)


def test_one_sample_is_unbiased() -> None:
    """The mean of many M = 1 gradients and one gradient with many samples agree within 4 standard errors."""
    rows = THETA.expand(100_000, -1).clone().requires_grad_()
    p = Perturbation(0.7)
    target = argmax(-THETA)
    fenchel_young_loss(rows, target.expand_as(rows), argmax, p, draw_noise(rows, p, generator(10))).sum().backward()
    many = Perturbation(0.7, 100_000)
    other = THETA.clone().requires_grad_()
    fenchel_young_loss(other, target, argmax, many, draw_noise(other, many, generator(11))).sum().backward()
    error = rows.grad.std(0) * (2 / 100_000) ** 0.5
    assert ((rows.grad.mean(0) - other.grad[0]).abs() < 4 * error + 1e-12).all()


@pytest.mark.parametrize(("solver", "multiplicative", "theta"), CASES)
def test_convex_along_segments(solver, multiplicative: bool, theta: Tensor) -> None:
    """With common noise the value is a mean of maxima of linear functions: convex for every draw."""
    p = Perturbation(0.3, 5, multiplicative=multiplicative)
    z = draw_noise(theta, p, generator(12))
    other, target = theta.flip(0) * 1.5, solver(theta)
    ends = [fenchel_young_loss(t, target, solver, p, z) for t in (theta, other)]
    for share in (0.1, 0.5, 0.8):
        middle = fenchel_young_loss((1 - share) * theta + share * other, target, solver, p, z)
        assert (middle <= (1 - share) * ends[0] + share * ends[1] + 1e-12).all()


def test_targets_have_no_gradient_and_must_fit() -> None:
    target = argmax(THETA).requires_grad_()
    theta = THETA.clone().requires_grad_()
    fenchel_young_loss(theta, target, argmax, Perturbation()).sum().backward()
    assert target.grad is None
    with pytest.raises(ValueError, match="do not go with"):
        fenchel_young_loss(THETA, target[:, :3], argmax, Perturbation())
