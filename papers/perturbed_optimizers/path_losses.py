"""What the networks of the terrain experiment learn from: the paper's loss and its rivals, on costs of cells.

Costs (B, 12, 12) are positive and a path is an indicator of cells (B, 12, 12). A cheapest path maximises <theta, y> at
theta = -costs. Every loss is a mean over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.perturbed import Perturbation
from papers.perturbed_optimizers.rivals import black_box, squared_loss, squared_loss_two_batches
from shared.solvers.shortest_path import best_path

Name = Literal["fenchel_young", "black_box", "squared", "squared_two_batches", "direct", "cost_regression"]

#: The solver is exact for costs >= 0 only; noise and interpolation may ask for less.
SMALLEST_COST = 1e-3


@dataclass
class PathSolver:
    """The maximiser over paths, theta -> y, with costs clamped at `SMALLEST_COST`; counts the grids it has solved."""

    solved: int = 0

    def __call__(self, theta: Tensor) -> Tensor:
        self.solved += len(theta)
        return best_path(theta.clamp(max=-SMALLEST_COST))


@dataclass(frozen=True)
class Target:
    """What is known of a batch: the paths (B, 12, 12), and the true costs, which only `cost_regression` may use."""

    paths: Tensor
    costs: Tensor


def path_loss(name: Name, solver: PathSolver, p: Perturbation, strength: float) -> Callable[[Tensor, Target], Tensor]:
    """The loss of an arm as a function of predicted costs and target.

    Args:
        name: the loss.
        solver: counted.
        p: the perturbation, where the loss has one.
        strength: lambda of black-box differentiation.
    """

    def fenchel_young(costs: Tensor, target: Target) -> Tensor:
        return fenchel_young_loss(-costs, target.paths, solver, p).mean()

    def interpolated(costs: Tensor, target: Target) -> Tensor:
        return hamming(black_box(-costs, solver, strength), target.paths).mean()

    def squared(costs: Tensor, target: Target) -> Tensor:
        return squared_loss(-costs, target.paths, solver, p).mean()

    def squared_two_batches(costs: Tensor, target: Target) -> Tensor:
        return squared_loss_two_batches(-costs, target.paths, solver, p).mean()

    def direct(costs: Tensor, target: Target) -> Tensor:
        return path_cross_entropy(costs, target.paths).mean()

    def cost_regression(costs: Tensor, target: Target) -> Tensor:
        return (costs - target.costs).square().flatten(1).mean(1).mean()

    losses: dict[Name, Callable[[Tensor, Target], Tensor]] = {
        "fenchel_young": fenchel_young,
        "black_box": interpolated,
        "squared": squared,
        "squared_two_batches": squared_two_batches,
        "direct": direct,
        "cost_regression": cost_regression,
    }
    return losses[name]


def hamming(path: Tensor, target: Tensor) -> Tensor:
    """Cells on which two paths differ (B,), as the polynomial that black-box differentiation is usually given."""
    return (path * (1 - target) + (1 - path) * target).flatten(1).sum(1)


def path_cross_entropy(costs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (B,), nats, of cells on the path, each on its own, with probability exp(-cost).

    Costs are so the negative log-probabilities of the cells, and a cheapest path is a most probable one.
    """
    log_off = torch.log(-torch.expm1(-costs))
    return (target * costs - (1 - target) * log_off).flatten(1).sum(1)
