"""What the perturbed maximiser is compared with: black-box differentiation, squared losses and RankNet.

Scores are (B, *instance) and solvers maximise <theta, y>, as in `perturbed.py`. All losses are one number an instance.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from papers.perturbed_optimizers.perturbed import Perturbation, Solver, draw_noise, perturbed_maximiser


def black_box(theta: Tensor, solver: Solver, strength: Tensor | float) -> Tensor:
    """The solution y*(theta) with the gradient of a linear interpolation (Vlastelica et al., 2020, algorithm 1).

    With the incoming gradient v, the backward pass solves a second time, for scores that make v cheaper, and returns
    (y*(theta) - y*(theta - lambda v)) / lambda. It is the gradient of a piecewise linear continuous function, no mean
    under noise. Where costs have to stay positive, the solver clamps them: `theta - lambda v` goes to it as it is.

    Args:
        theta: scores (B, *instance).
        solver: the maximiser; called once forward and once backward.
        strength: lambda > 0, in units of scores per unit of the incoming gradient; a tensor is broadcast to `theta`.
    """
    solution: Tensor = _BlackBox.apply(theta, solver, strength)  # type: ignore[no-untyped-call]
    return solution


class _BlackBox(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, solver: Solver, strength: Tensor | float) -> Tensor:
        solution = solver(theta)
        ctx.save_for_backward(theta, solution)
        ctx.solver, ctx.strength = solver, strength
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        theta, solution = ctx.saved_tensors
        moved = ctx.solver(theta - ctx.strength * upstream)
        return (solution - moved) / ctx.strength, None, None


def squared_error(theta: Tensor, target: Tensor) -> Tensor:
    """||theta - y||^2 (B,): with scores in the place of the solution, least squares on the targets themselves."""
    return (theta - target).square().flatten(1).sum(1)


def squared_loss(theta: Tensor, target: Tensor, solver: Solver, p: Perturbation, noise: Tensor | None = None) -> Tensor:
    """||y_bar - y||^2 (B,) with y_bar the mean solution of one batch of noise, through `perturbed_maximiser`.

    Its gradient uses the same noise in y_bar and in the Jacobian, so that for a finite M it is biased for that of
    ||y*_eps(theta) - y||^2, by a term of the order 1/M.
    """
    return squared_error(perturbed_maximiser(theta, solver, p, noise), target)


def squared_loss_two_batches(
    theta: Tensor, target: Tensor, solver: Solver, p: Perturbation, noise: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """<y_bar - y, y_bar' - y> (B,) with two independent batches of M samples: value and gradient are unbiased.

    Both factors have the mean y*_eps(theta) - y and they are independent, hence the mean of the product is
    ||y*_eps(theta) - y||^2, and likewise for the gradient by the product rule. The value may be negative.
    """
    first, second = noise if noise is not None else (draw_noise(theta, p), draw_noise(theta, p))
    residual = perturbed_maximiser(theta, solver, p, first) - target
    other = perturbed_maximiser(theta, solver, p, second) - target
    return (residual * other).flatten(1).sum(1)


def ranknet(theta: Tensor, target: Tensor) -> Tensor:
    """The pairwise logistic loss sum_{y_i > y_j} log(1 + exp(theta_j - theta_i)), (B,) (Burges et al., 2005).

    Pairs of equal targets are left out.

    Args:
        theta: scores (B, n).
        target: ranks or grades (B, n), larger is better.
    """
    i, j = torch.triu_indices(theta.shape[-1], theta.shape[-1], 1, device=theta.device)
    order = (target[:, i] - target[:, j]).sign()
    return (softplus(-order * (theta[:, i] - theta[:, j])) * order.abs()).sum(1)
