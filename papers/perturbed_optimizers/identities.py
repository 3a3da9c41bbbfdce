"""What holds exactly for perturbed maximisers, measured: gradients, convexity, bounds, limits, Fenchel-Young losses.

Each function measures one identity (Berthet et al., 2020, propositions of sections 2 and 4) and gives a number.
"""

import itertools

import torch
from torch import Tensor

from papers.perturbed_optimizers.closed_forms import (
    ranking_fenchel_young,
    ranking_maximiser,
    ranking_maximum,
    ranking_omega,
    simplex_fenchel_young,
    simplex_maximiser,
)
from papers.perturbed_optimizers.estimation import fit_newton
from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.instances import REFERENCE, Instance, largest_z, repeated
from papers.perturbed_optimizers.perturbed import Perturbation, draw_noise, perturbed_maximiser, perturbed_maximum
from shared.solvers.simple import ranking

__all__ = [
    "convexity_violations",
    "cross_entropy_error",
    "fenchel_young_at_target",
    "fenchel_young_gradient_error",
    "fenchel_young_minimum",
    "gradient_z",
    "large_epsilon_distance",
    "ranknet_error",
    "sandwich",
    "small_epsilon_distance",
    "unit_jacobian_z",
]


def gradient_z(instance: Instance, samples: int, generator: torch.Generator) -> float:
    """Finite differences of `F_eps` against the mean solution, the largest distance in standard errors.

    The two ends of a difference have common noise; the mean solution has noise of its own.
    """
    repeats, h = 50, 0.02 * instance.epsilon
    p = Perturbation(instance.epsilon, samples // repeats)
    theta = repeated(instance.theta, repeats)
    noise = draw_noise(theta, p, generator)
    slopes = []
    for basis in torch.eye(instance.theta.numel(), dtype=theta.dtype):
        step = h * basis.view_as(instance.theta)
        ends = [perturbed_maximum(theta + sign * step, instance.solver, p, noise) for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / (2 * h))
    solutions = perturbed_maximiser(theta, instance.solver, p, draw_noise(theta, p, generator)).flatten(1)
    return largest_z(torch.stack(slopes, 1), solutions.mean(0), solutions.std(0) / repeats**0.5)


def convexity_violations(instance: Instance, segments: int, generator: torch.Generator) -> int:
    """Random segments on which a common-noise estimate of `F_eps` lies above its chord."""
    p = Perturbation(instance.epsilon, 10)
    noise = draw_noise(repeated(instance.theta, 1), p, generator)
    shape = (segments, *instance.theta.shape)
    # Scores below the origin, as costs have to be positive.
    ends = [instance.origin - 2 * torch.rand(shape, generator=generator, dtype=noise.dtype) for _ in range(2)]
    t = torch.rand(segments, generator=generator, dtype=noise.dtype)
    weight = t.view(-1, *[1] * instance.theta.ndim)

    def maximum(theta: Tensor) -> Tensor:
        return perturbed_maximum(theta, instance.solver, p, noise.expand(-1, *shape))

    chord = t * maximum(ends[0]) + (1 - t) * maximum(ends[1])
    return int((maximum(weight * ends[0] + (1 - weight) * ends[1]) > chord + 1e-9).sum())


def sandwich(instance: Instance, samples: int, generator: torch.Generator) -> tuple[float, float]:
    """`F_eps - F` and `F + eps F_1(0) - F_eps` with common, centred noise: neither may be negative."""
    p = Perturbation(instance.epsilon, samples, antithetic=True)
    theta, origin = repeated(instance.theta, 1), repeated(instance.origin, 1)
    noise = draw_noise(theta, p, generator)
    plain, at_origin = ((x * instance.solver(x)).sum() for x in (theta, origin))
    smooth, smooth_origin = (perturbed_maximum(x, instance.solver, p, noise) for x in (theta, origin))
    return (smooth - plain).item(), (plain + smooth_origin - at_origin - smooth).item()


def small_epsilon_distance(instance: Instance, generator: torch.Generator) -> float:
    """The largest distance between the perturbed and the plain solution at `eps = 1e-6`, in any coordinate."""
    p = Perturbation(1e-6, 100)
    theta = repeated(instance.theta, 1)
    mean = perturbed_maximiser(theta, instance.solver, p, draw_noise(theta, p, generator))
    return (mean - instance.solver(theta)).abs().max().item()


def large_epsilon_distance(instance: Instance, epsilon: float = 1e4) -> float:
    """The largest distance of the exact perturbed solution from the polytope's centre, for argmax and ranking."""
    n = len(instance.theta)
    if instance.name == "argmax":
        return (simplex_maximiser(instance.theta, epsilon) - 1 / n).abs().max().item()
    return (ranking_maximiser(instance.theta, epsilon, "gaussian") - (n + 1) / 2).abs().max().item()


def cross_entropy_error(generator: torch.Generator) -> float:
    """Fenchel-Young loss of the simplex with Gumbel noise against `eps` times torch's cross-entropy, float64."""
    theta = 3 * torch.randn(1000, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (1000,), generator=generator)
    expected = 0.5 * torch.nn.functional.cross_entropy(theta / 0.5, labels, reduction="none")
    loss = simplex_fenchel_young(theta, torch.nn.functional.one_hot(labels, 10).to(theta.dtype), 0.5)
    return (loss - expected).abs().max().item()


def ranknet_error(generator: torch.Generator) -> float:
    """`F_eps + eps Omega - <theta, y>` of ranks with Gumbel noise against RankNet, pair by pair, float64."""
    theta = 3 * torch.randn(1000, 6, generator=generator, dtype=torch.float64)
    ranks = ranking(torch.randn(1000, 6, generator=generator, dtype=torch.float64))
    loss = ranking_maximum(theta, 0.5, "gumbel") + ranking_omega(ranks, 0.5, "gumbel") - (theta * ranks).sum(-1)
    expected = torch.zeros_like(loss)
    for i, j in itertools.permutations(range(6), 2):
        pair = 0.5 * torch.logaddexp(torch.zeros_like(loss), (theta[:, j] - theta[:, i]) / 0.5)
        expected += torch.where(ranks[:, i] > ranks[:, j], pair, 0.0)
    return (loss - expected).abs().max().item()


def fenchel_young_minimum(generator: torch.Generator) -> dict[str, float]:
    """The smallest of 10,000 exact losses at random scores and targets (at vertices too, for ranks)."""
    theta, other = (3 * torch.randn(10_000, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = ranking_maximiser(other, 0.5, "gaussian")
    # The conjugate is attained where the maximiser is the target.
    inside = _ranking_maximum(theta) - _ranking_maximum(other) - ((theta - other) * y).sum(-1)
    vertices = ranking_fenchel_young(theta, ranking(other), 0.5, "gaussian")
    return {
        "simplex": simplex_fenchel_young(theta, simplex_maximiser(other, 0.5), 0.5).min().item(),
        "ranking": torch.cat([inside, vertices]).min().item(),
    }


def fenchel_young_at_target(generator: torch.Generator) -> dict[str, float]:
    """The largest exact loss (in modulus) at scores found by Newton's method to have given perturbed solutions."""
    hidden = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    y = simplex_maximiser(hidden, 0.5)
    found = fit_newton(y, lambda t: simplex_maximiser(t, 0.5))
    simplex = simplex_fenchel_young(found, y, 0.5)
    y = ranking_maximiser(hidden, 0.5, "gaussian")
    found = fit_newton(y, lambda t: ranking_maximiser(t, 0.5, "gaussian"))
    ranks = _ranking_maximum(found) - _ranking_maximum(hidden) - ((found - hidden) * y).sum(-1)
    return {"simplex": simplex.abs().max().item(), "ranking": ranks.abs().max().item()}


def _ranking_maximum(theta: Tensor) -> Tensor:
    return ranking_maximum(theta, 0.5, "gaussian")


def fenchel_young_gradient_error(instance: Instance, generator: torch.Generator) -> float:
    """Finite differences of the Monte-Carlo loss value against its back-propagated gradient, with common noise."""
    p, h = Perturbation(instance.epsilon, 200), 1e-7
    theta = repeated(instance.theta, 1).clone().requires_grad_()
    noise = draw_noise(theta.detach(), p, generator)
    target = instance.solver(theta.detach().flip(-1))

    def loss(at: Tensor) -> Tensor:
        return fenchel_young_loss(at, target, instance.solver, p, noise).sum()

    (gradient,) = torch.autograd.grad(loss(theta), theta)
    steps = h * torch.eye(instance.theta.numel(), dtype=theta.dtype).view(-1, *theta.shape)
    slopes = [(loss(theta.detach() + step) - loss(theta.detach() - step)) / (2 * h) for step in steps]
    return (torch.stack(slopes) - gradient.flatten()).abs().max().item()


def unit_jacobian_z(epsilon: float, samples: int, generator: torch.Generator) -> float:
    """The layer's Jacobian of the identity map, which is the unit matrix for every `eps`, in standard errors."""
    p, repeats = Perturbation(epsilon, 10), samples // 10
    theta = repeated(REFERENCE, repeats).clone().requires_grad_()
    mean = perturbed_maximiser(theta, torch.clone, p, draw_noise(theta.detach(), p, generator))
    rows = [torch.autograd.grad(mean[:, i].sum(), theta, retain_graph=True)[0] for i in range(len(REFERENCE))]
    return largest_z(torch.stack(rows, 1), torch.eye(len(REFERENCE), dtype=theta.dtype))
