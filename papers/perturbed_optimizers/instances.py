"""The small problems on which the theory is measured: argmax of 5 scores, ranks of 5 scores, paths on a 5 x 5 grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from papers.perturbed_optimizers.perturbed import Solver
from shared.solvers.shortest_path import best_path
from shared.solvers.simple import argmax, ranking

__all__ = ["GRID", "REFERENCE", "Instance", "instances", "largest_z", "monotone_path", "repeated", "seeded"]

#: Scores of the argmax experiments at one place, those of the published example.
REFERENCE = torch.tensor([-0.6, 1.9, -0.2, 1.1, -1.0], dtype=torch.float64)
GRID = (5, 5)
#: Added to all costs: noise of a twentieth of it never makes a cost negative, and no detour is worth two more cells.
FLOOR = 10.0


@dataclass(frozen=True)
class Instance:
    """A linear maximiser with scores.

    Attributes:
        name: the arm of its numbers.
        theta: scores, (n) or (H, W).
        origin: scores at which nothing is preferred; `theta - origin` is what the instance is about.
        solver: the maximiser.
        epsilon: a temperature at which solutions are mixed, in the unit of the scores.
    """

    name: str
    theta: Tensor
    origin: Tensor
    solver: Solver
    epsilon: float


def monotone_path(theta: Tensor) -> Tensor:
    """The best path (..., H, W) of scores near `-FLOOR`: 4 neighbours, so that all paths worth taking are as long."""
    return best_path(theta, diagonal=False)


def seeded(seed: int, stream: int) -> torch.Generator:
    """A generator for each repeat and each experiment."""
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


def instances(generator: torch.Generator) -> list[Instance]:
    """The three problems with random scores, in float64."""

    def normals() -> Tensor:
        return 0.5 * torch.randn(5, generator=generator, dtype=torch.float64)

    floor = torch.full(GRID, -FLOOR, dtype=torch.float64)
    costs = torch.rand(GRID, generator=generator, dtype=torch.float64)
    return [
        Instance("argmax", normals(), torch.zeros(5, dtype=torch.float64), argmax, 0.5),
        Instance("ranking", normals(), torch.zeros(5, dtype=torch.float64), ranking, 0.5),
        Instance("path", floor - costs, floor, monotone_path, 0.5),
    ]


def repeated(theta: Tensor, repeats: int) -> Tensor:
    """One instance as a batch of independent repeats (R, *instance): the layer then gives R estimates at once."""
    return theta.expand(repeats, *theta.shape)


def largest_z(estimates: Tensor, expected: Tensor, expected_error: Tensor | float = 0.0) -> float:
    """The largest distance in standard errors between the mean of estimates (R, ...) and what is expected (...).

    Args:
        estimates: independent, of equal law.
        expected: exact, or itself an estimate.
        expected_error: its standard error then, (...).
    """
    error = (estimates.var(0) / len(estimates) + torch.as_tensor(expected_error).square()).sqrt()
    # What never varies, such as the first cell of a path, must be met up to rounding.
    return ((estimates.mean(0) - expected).abs() / error.clamp(min=1e-9)).max().item()
