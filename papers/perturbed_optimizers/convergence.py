"""How Monte-Carlo errors fall with samples, and what control variates and fresh noise do for gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from papers.perturbed_optimizers.closed_forms import (
    pair_jacobian,
    ranking_maximiser,
    simplex_jacobian,
    simplex_maximiser,
    simplex_maximum,
)
from papers.perturbed_optimizers.estimation import jacobian_from_solutions
from papers.perturbed_optimizers.instances import REFERENCE, Instance, largest_z, repeated, seeded
from papers.perturbed_optimizers.perturbed import (
    Noise,
    Perturbation,
    draw_noise,
    perturbed_maximiser,
    perturbed_maximum,
)
from shared.solvers.simple import argmax, ranking

__all__ = ["CONTROLS", "errors", "gumbel_z", "slope", "squared_loss_bias", "vjp_std"]

#: What is compared at equal M: nothing, the two control variates, and noise in pairs.
CONTROLS = {
    "plain": Perturbation(samples=10),
    "solution": Perturbation(samples=10, control="solution"),
    "leave_one_out": Perturbation(samples=10, control="leave_one_out"),
    "antithetic": Perturbation(samples=10, antithetic=True),
}
PAIR = torch.tensor([0.0, 0.3], dtype=torch.float64)
EPSILON = 0.5


def _batches(name: str, samples: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Sample terms (samples, ...) and their exact mean, eight times: of Jacobians or of solutions."""
    noise: Noise = "gaussian" if name in ("gaussian_pair", "ranking") else "gumbel"
    theta = PAIR if name == "gaussian_pair" else REFERENCE
    solver = ranking if name == "ranking" else argmax
    p = Perturbation(EPSILON, samples, noise)
    exact = {
        "gumbel_simplex": lambda: simplex_jacobian(theta, EPSILON),
        "gaussian_pair": lambda: pair_jacobian(theta, EPSILON),
        "simplex": lambda: simplex_maximiser(theta, EPSILON),
        "ranking": lambda: ranking_maximiser(theta, EPSILON, "gaussian"),
    }[name]()
    for _ in range(8):
        z = draw_noise(theta, p, generator)
        jacobian = name in ("gumbel_simplex", "gaussian_pair")
        yield (jacobian_from_solutions(theta, solver, p, z) if jacobian else solver(theta + EPSILON * z)), exact


def errors(name: str, sizes: Sequence[int], generator: torch.Generator) -> tuple[list[float], float]:
    """Root-mean-square errors for each number of samples, and the distance in standard errors with the most.

    Each size divides the largest, which is drawn eight times; smaller ones are parts of it.

    Args:
        name: "gumbel_simplex" or "gaussian_pair" for Jacobians, "simplex" or "ranking" for solutions.
    """
    squares: list[list[Tensor]] = [[] for _ in sizes]
    z = 0.0
    for number, (terms, exact) in enumerate(_batches(name, max(sizes), generator)):
        for found, size in zip(squares, sizes):
            means = terms.view(-1, size, *exact.shape).mean(1)
            found.append((means - exact).square().mean())
        if number == 0:
            z = largest_z(terms, exact)
    return [torch.stack(found).mean().sqrt().item() for found in squares], z


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The least-squares slope of log values against log sizes."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(values, dtype=torch.float64).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def gumbel_z(samples: int, generator: torch.Generator) -> tuple[float, float]:
    """Layer and softmax, and perturbed maximum and log-sum-exp: distances in standard errors."""
    p, repeats = Perturbation(EPSILON, samples // 100, "gumbel"), 100
    theta = repeated(REFERENCE, repeats)
    noise = draw_noise(theta, p, generator)
    solution = largest_z(perturbed_maximiser(theta, argmax, p, noise), simplex_maximiser(REFERENCE, EPSILON))
    return solution, largest_z(perturbed_maximum(theta, argmax, p, noise), simplex_maximum(REFERENCE, EPSILON))


def vjp_std(instance: Instance, epsilon: float, arm: str, repeats: int, generator: torch.Generator) -> float:
    """Standard deviation of the layer's gradient with 10 samples, root mean square over coordinates.

    The incoming gradient is fixed, standard Normal.
    """
    p = replace(CONTROLS[arm], epsilon=epsilon)
    theta = repeated(instance.theta, repeats).clone().requires_grad_()
    upstream = torch.randn(instance.theta.shape, generator=seeded(0, 2), dtype=theta.dtype)
    mean = perturbed_maximiser(theta, instance.solver, p, draw_noise(theta.detach(), p, generator))
    (gradient,) = torch.autograd.grad((mean * upstream).sum(), theta)
    return gradient.var(0).mean().sqrt().item()


def squared_loss_bias(samples: int, total: int, generator: torch.Generator) -> dict[str, tuple[float, float]]:
    """Bias of two gradients of `||y_eps(theta) - y||^2`: (norm, distance in standard errors) for each.

    "one_sample" uses the same noise for the residual and the Jacobian; "two_sample" an independent one for each. Argmax
    with Gumbel noise, where the exact gradient is known.

    Args:
        samples: M, of each noise.
        total: noises in all; there are `total / samples` gradients.
    """
    p = Perturbation(EPSILON, samples, "gumbel")
    target = torch.eye(len(REFERENCE), dtype=torch.float64)[3]
    exact = 2 * simplex_jacobian(REFERENCE, EPSILON) @ (simplex_maximiser(REFERENCE, EPSILON) - target)
    theta = repeated(REFERENCE, total // samples).clone().requires_grad_()
    means = [perturbed_maximiser(theta, argmax, p, draw_noise(theta.detach(), p, generator)) for _ in range(2)]
    result = {}
    for name, other in zip(("one_sample", "two_sample"), means):
        (gradient,) = torch.autograd.grad(means[0], theta, 2 * (other.detach() - target), retain_graph=True)
        result[name] = ((gradient.mean(0) - exact).norm().item(), largest_z(gradient, exact))
    return result
