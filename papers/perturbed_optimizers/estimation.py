"""Estimators of derivatives from samples (Berthet et al., 2020, section 3.1), and of scores from observed solutions.

The derivatives of `F_eps` follow from integration by parts against the density `exp(-nu)` of the noise, so that only
values or solutions are needed, never a derivative of the solver. All sample terms are returned, one for each noise:
their mean is the estimate, their spread its standard error.

The scores behind solutions `Y_1, ..., Y_n` minimise the mean Fenchel-Young loss (section 4.2): they match the mean,
`y_eps(theta) = mean_i Y_i`. Many data sets are fitted at once. Scores of simplex, permutahedron and the like are known
up to a constant only; they are centred.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.perturbed import Noise, Perturbation, Solver, draw_noise, score

__all__ = [
    "asymptotic_covariance",
    "centred",
    "fit_newton",
    "fit_stochastic",
    "gradient_from_values",
    "jacobian_from_solutions",
    "jacobian_from_values",
    "potential_curvature",
]


def gradient_from_values(theta: Tensor, solver: Solver, p: Perturbation, z: Tensor) -> Tensor:
    """Sample terms (M, d) of the gradient of `F_eps` from its values alone: `F(theta + eps z) grad nu(z) / eps`.

    `F(theta)` is subtracted from the values if `p.control` is "solution": the mean stays, as `E grad nu(Z) = 0`.

    Args:
        theta: scores (d,) of one instance.
        solver: the maximiser, of scores (N, d).
        p: the perturbation; additive. `samples` is not read.
        z: noise (M, d).
    """
    values, _ = _values(theta, solver, p, z)
    return values.unsqueeze(1) * score(z, p.noise) / p.epsilon


def jacobian_from_solutions(theta: Tensor, solver: Solver, p: Perturbation, z: Tensor) -> Tensor:
    """Sample terms (M, d, d) of the Jacobian of `y_eps`: `y(theta + eps z) grad nu(z)^T / eps`.

    `y(theta)` is subtracted from the solutions if `p.control` is "solution". Arguments as in `gradient_from_values`.
    """
    _, solutions = _values(theta, solver, p, z)
    return torch.einsum("mi,mj->mij", solutions, score(z, p.noise) / p.epsilon)


def jacobian_from_values(theta: Tensor, solver: Solver, p: Perturbation, z: Tensor) -> Tensor:
    """Sample terms (M, d, d) of the same Jacobian from values: `F (grad nu grad nu^T - Hess nu)(z) / eps^2`.

    `F(theta)` is subtracted from the values if `p.control` is "solution". Arguments as in `gradient_from_values`.
    """
    values, _ = _values(theta, solver, p, z)
    slope = score(z, p.noise)
    kernel = torch.einsum("mi,mj->mij", slope, slope) - potential_curvature(z, p.noise).diag_embed()
    return values[:, None, None] * kernel / p.epsilon**2


def potential_curvature(z: Tensor, noise: Noise) -> Tensor:
    """The diagonal of the Hessian of nu, in the shape of `z`: 1, or `exp(-z)` for Gumbel noise."""
    return torch.ones_like(z) if noise == "gaussian" else (-z).exp()


def _values(theta: Tensor, solver: Solver, p: Perturbation, z: Tensor) -> tuple[Tensor, Tensor]:
    """`F(theta + eps z)` (M,) and its solutions (M, d), both less those of `theta` if `p.control` is "solution".

    Raises:
        ValueError: a perturbation that these estimators are not of, or noise that does not fit the scores.
    """
    if p.multiplicative or p.control == "leave_one_out":
        raise ValueError("sample terms are of additive noise, with the control none or solution")
    if theta.ndim != 1 or z.shape != (len(z), len(theta)):
        raise ValueError(f"expected scores (d,) and noise (M, d), got {tuple(theta.shape)} and {tuple(z.shape)}")
    perturbed = theta + p.epsilon * z
    solutions = solver(perturbed)
    values = (perturbed * solutions).sum(1)
    if p.control == "solution":
        plain = solver(theta.unsqueeze(0))
        values, solutions = values - (plain[0] * theta).sum(), solutions - plain
    return values, solutions


def centred(theta: Tensor) -> Tensor:
    """Scores (..., d) less their mean: one representative of those with the same solutions."""
    return theta - theta.mean(-1, keepdim=True)


def fit_newton(
    means: Tensor, maximiser: Callable[[Tensor], Tensor], steps: int = 50, tolerance: float = 1e-10
) -> Tensor:
    """The scores (R, d), centred, whose perturbed maximisers are `means`: Newton's method on the exact loss.

    Minimises `F_eps(theta) - <theta, mean>` with pseudo-inverse Hessians. It starts at equal scores, where the loss is
    most curved, so that steps fall short rather than overshoot, and needs no line search. It ends once no gradient is
    above `tolerance`.

    Args:
        means: mean solutions (R, d) of R data sets, in the relative interior of the hull.
        maximiser: the gradient of `F_eps` in closed form, (R, d) -> (R, d), differentiable.
        steps: at most.

    Raises:
        ValueError: not done after `steps`, as with a mean on the boundary, for which there are no finite scores.
    """
    derivative = torch.func.vmap(torch.func.jacrev(maximiser))
    theta = torch.zeros_like(means)
    for _ in range(steps):
        gradient = maximiser(theta) - means
        if gradient.abs().max() <= tolerance:
            return centred(theta)
        inverse = torch.linalg.pinv(derivative(theta), hermitian=True)
        theta = theta - (inverse @ gradient.unsqueeze(-1)).squeeze(-1)
    raise ValueError(f"no scores found in {steps} steps of Newton's method: is a mean on the boundary of the hull?")


def fit_stochastic(
    solutions: Tensor,
    solver: Solver,
    p: Perturbation,
    steps: int,
    batch: int,
    learning_rate: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores (R, d), centred, fitted by the doubly stochastic scheme (section 3.3): samples of data and of noise.

    Adam on the Monte-Carlo Fenchel-Young loss. The learning rate falls to zero along a cosine. The result is the mean
    over the last half of the steps, which takes out most of what is left of the noise.

    Args:
        solutions: R data sets of n observed solutions, (R, n, d).
        solver: the maximiser of scores (N, d).
        p: the perturbation that is fitted; M = `samples`, drawn afresh in every step.
        steps: of Adam.
        batch: observations a step, drawn from each data set with replacement.
        learning_rate: Adam's, at the start, in the unit of the scores.
        generator: of all random numbers.
    """
    sets, n, d = solutions.shape
    theta = torch.zeros(sets, d, dtype=solutions.dtype, device=solutions.device, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    late, first = torch.zeros_like(theta, requires_grad=False), steps // 2
    rows = torch.arange(sets, device=solutions.device).unsqueeze(1)
    for step in range(steps):
        chosen = torch.randint(n, (sets, batch), generator=generator, device=solutions.device)
        target = solutions[rows, chosen].mean(1)
        optimiser.zero_grad()
        noise = draw_noise(theta.detach(), p, generator)
        fenchel_young_loss(theta, target, solver, p, noise).sum().backward()
        optimiser.step()
        schedule.step()
        if step >= first:
            late += theta.detach() / (steps - first)
    return centred(late)


def asymptotic_covariance(hessian: Tensor, covariance: Tensor) -> Tensor:
    """The limit `H^+ Sigma H^+` (..., d, d) of n times the covariance of the fitted scores (section 4.2).

    Args:
        hessian: `H` (..., d, d), the Jacobian of the perturbed maximiser at the true scores.
        covariance: `Sigma` (..., d, d) of one observed solution.
    """
    inverse = torch.linalg.pinv(hessian, hermitian=True)
    limit: Tensor = inverse @ covariance @ inverse
    return limit
