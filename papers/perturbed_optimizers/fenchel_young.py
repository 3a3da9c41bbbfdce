"""The Fenchel-Young loss of a perturbed maximiser (Berthet et al., 2020, section 3.2).

L_eps(theta; y) = F_eps(theta) + eps Omega(y) - <theta, y>, where eps Omega is the convex conjugate of F_eps: convex in
theta, never negative, zero only where y*_eps(theta) = y, with the gradient y*_eps(theta) - y, so that nothing has to be
differentiated but the scores. The term eps Omega(y) does not depend on theta and is left out.
"""

from torch import Tensor

from papers.perturbed_optimizers.perturbed import Perturbation, Solver, perturbed_maximum


def fenchel_young_loss(
    theta: Tensor, target: Tensor, solver: Solver, p: Perturbation, noise: Tensor | None = None
) -> Tensor:
    """The Monte-Carlo estimate of F_eps(theta) - <theta, y>, shape (B,), in the unit of the scores.

    Value and gradient are of the same samples: the gradient in theta is exactly that of the value (equation 6 of the
    paper, with mean_m y_m, or mean_m w_m * y_m under multiplicative noise, in the place of y*_eps). It is unbiased for
    every M, one included. Without eps Omega(y) the value may be negative.

    Args:
        theta: scores (B, *instance).
        target: observed solutions y, same shape; a point of the hull, such as a mean of solutions, will do.
        solver: the maximiser; costs are negative scores, so a minimiser of costs is wrapped as `best_path` is.
        p: the perturbation; `control` has no influence on the first derivative.
        noise: (M, B, *instance) from `draw_noise`; drawn here by default.

    Raises:
        ValueError: shapes that do not fit.
    """
    if target.shape != theta.shape:
        raise ValueError(f"targets {tuple(target.shape)} do not go with scores {tuple(theta.shape)}")
    return perturbed_maximum(theta, solver, p, noise, minus=target.detach())
