"""Perturbed maximisers that need no sampling (Berthet et al., 2020, sections 2 and 4).

For a finite set Y and noise Z, `F_eps(theta) = E max_y <theta + eps Z, y>` is the perturbed maximum, its gradient
`y_eps(theta)` the perturbed maximiser, and `eps Omega` its convex conjugate. The Fenchel-Young loss is
`F_eps(theta) + eps Omega(y) - <theta, y>`. Here are the cases in which these are known:

- the simplex with Gumbel noise (softmax), and with Gaussian noise for two scores;
- ascending ranks 1..n with both noises. `F(theta) = sum_i theta_i + sum_(i<j) max(theta_i, theta_j)`, so that
  everything is a sum over pairs, O(n^2). With Gumbel noise the loss is RankNet's with a temperature;
- the cube [-1, 1]^n with both noises, and the logical OR of its signs.

All functions take any leading dimensions and dtype, and are differentiable as often as wanted. `epsilon` is one
positive number. For several, use `F_eps(theta) = eps F_1(theta / eps)` and `y_eps(theta) = y_1(theta / eps)`.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy.special import exp1
from torch import Tensor
from torch.nn.functional import logsigmoid

from papers.perturbed_optimizers.perturbed import Noise

__all__ = [
    "EULER_GAMMA",
    "cube_maximiser",
    "cube_maximum",
    "logical_or",
    "pair_fenchel_young",
    "pair_jacobian",
    "pair_maximiser",
    "pair_maximum",
    "pair_omega",
    "ranking_fenchel_young",
    "ranking_maximiser",
    "ranking_maximum",
    "ranking_omega",
    "simplex_fenchel_young",
    "simplex_jacobian",
    "simplex_maximiser",
    "simplex_maximum",
    "simplex_omega",
]

#: The mean of the standard Gumbel distribution.
EULER_GAMMA = float(np.euler_gamma)


def simplex_maximiser(theta: Tensor, epsilon: float) -> Tensor:
    """Perturbed one-hot argmax of scores (..., n) with Gumbel noise: `softmax(theta / eps)` (..., n) (section 2)."""
    return (theta / epsilon).softmax(-1)


def simplex_jacobian(theta: Tensor, epsilon: float) -> Tensor:
    """Its Jacobian (..., n, n): `(diag(p) - p p^T) / eps` with `p = softmax(theta / eps)`."""
    p = simplex_maximiser(theta, epsilon)
    return (p.diag_embed() - p.unsqueeze(-1) * p.unsqueeze(-2)) / epsilon


def simplex_maximum(theta: Tensor, epsilon: float) -> Tensor:
    """`F_eps` (...) of scores (..., n) with Gumbel noise: `eps logsumexp(theta / eps) + eps gamma`."""
    return epsilon * ((theta / epsilon).logsumexp(-1) + EULER_GAMMA)


def simplex_omega(y: Tensor, epsilon: float) -> Tensor:
    """`eps Omega(y)` (...) of points (..., n) of the simplex, the conjugate of `simplex_maximum`.

    `eps (sum_i y_i log y_i - gamma)`: the negative entropy, shifted since Gumbel noise is not centred.
    """
    return epsilon * (torch.xlogy(y, y).sum(-1) - EULER_GAMMA)


def simplex_fenchel_young(theta: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Fenchel-Young loss (...) of scores and targets in the simplex, both (..., n), with Gumbel noise.

    For a one-hot target it is `eps` times the cross-entropy of `theta / eps`; in general a Kullback-Leibler divergence.
    """
    return simplex_maximum(theta, epsilon) + simplex_omega(y, epsilon) - (theta * y).sum(-1)


def pair_maximiser(theta: Tensor, epsilon: float) -> Tensor:
    """Perturbed argmax (..., 2) of two scores with Gaussian noise: `Phi(+-(theta_0 - theta_1) / (eps sqrt 2))`."""
    a = _gap(theta, epsilon)
    return _normal_cdf(torch.stack((a, -a), -1))


def pair_jacobian(theta: Tensor, epsilon: float) -> Tensor:
    """Its Jacobian (..., 2, 2): `phi(a) / (eps sqrt 2)` on the diagonal, the negative beside it."""
    density = _phi(_gap(theta, epsilon)) / (epsilon * math.sqrt(2.0))
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=theta.dtype, device=theta.device)
    return density[..., None, None] * signs


def pair_maximum(theta: Tensor, epsilon: float) -> Tensor:
    """`F_eps` (...) of two scores (..., 2) with Gaussian noise, the mean of the larger of two Normals.

    `<theta, y_eps> + eps sqrt(2) phi(a)` (Clark, The greatest of a finite set of random variables, 1961).
    """
    a = _gap(theta, epsilon)
    return (theta * pair_maximiser(theta, epsilon)).sum(-1) + epsilon * math.sqrt(2.0) * _phi(a)


def pair_omega(y: Tensor, epsilon: float) -> Tensor:
    """`eps Omega(y)` (...) of points (..., 2) of the simplex with Gaussian noise: `-eps sqrt(2) phi(Phi^-1(y_0))`."""
    return -epsilon * math.sqrt(2.0) * _phi(torch.special.ndtri(y[..., 0]))


def pair_fenchel_young(theta: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Fenchel-Young loss (...) of two scores and targets in the simplex, both (..., 2), with Gaussian noise."""
    return pair_maximum(theta, epsilon) + pair_omega(y, epsilon) - (theta * y).sum(-1)


def ranking_maximiser(theta: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """Perturbed ascending ranks 1..n of scores (..., n): one plus the expected number of scores below, (..., n).

    `y_i = 1 + sum_(j != i) S((theta_i - theta_j) / eps)` with S the distribution function of the difference of two
    noises: logistic for Gumbel, `Phi(x / sqrt 2)` for Gaussian noise.
    """
    scaled = theta / epsilon
    differences = scaled.unsqueeze(-1) - scaled.unsqueeze(-2)
    below = differences.sigmoid() if noise == "gumbel" else _normal_cdf(differences / math.sqrt(2.0))
    # The diagonal adds S(0) = 1/2.
    return below.sum(-1) + 0.5


def ranking_maximum(theta: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """`F_eps` (...) of scores (..., n) for ranks 1..n: with all pairs, the mean of the larger of two noisy scores."""
    n = theta.shape[-1]
    ahead = _pairs(theta / epsilon)
    pairs = (_shortfall(ahead, noise) + ahead / 2).sum(-1)
    return (n + 1) / 2 * theta.sum(-1) + epsilon * (pairs + _noise_mean(noise) * n * (n + 1) / 2)


def ranking_omega(ranks: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """`eps Omega(y)` (...) of rankings (..., n): permutations of 1..n, or averaged ranks where labels are tied.

    Each noisy pair can come arbitrarily near its ideal: far apart for an ordered pair, equal scores for a tied one.
    """
    n = ranks.shape[-1]
    tied = (_pairs(ranks) == 0).to(ranks.dtype).sum(-1)
    return -epsilon * (tied * _tie(noise) + _noise_mean(noise) * n * (n + 1) / 2)


def ranking_fenchel_young(theta: Tensor, ranks: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """Fenchel-Young loss (...) of scores and rankings, both (..., n), shapes broadcast; its infimum is 0.

    `eps sum h((theta_i - theta_j) / eps)` over the pairs with i ranked above j, and `h` the expected shortfall: for
    Gumbel noise `h(x) = log(1 + exp(-x))`, RankNet with temperature eps (Burges et al., 2005). A tied pair (ranks
    averaged, so that they still sum to n (n + 1) / 2) counts half in each direction, less its least value. The gradient
    is `ranking_maximiser(theta) - ranks`. A sum of small terms, it loses nothing to rounding where scores are large.
    """
    loss: Tensor = _RankingLoss.apply(*torch.broadcast_tensors(theta, ranks), epsilon, noise)  # type: ignore[no-untyped-call]
    return loss


def cube_maximiser(theta: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """Perturbed signs (..., n): `2 Phi(theta / eps) - 1` with Gaussian, `1 - 2 exp(-exp(theta / eps))` with Gumbel."""
    a = theta / epsilon
    return torch.erf(a / math.sqrt(2.0)) if noise == "gaussian" else 1 - 2 * (-a.exp()).exp()


def cube_maximum(theta: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """`F_eps` (...) of scores (..., n) on the cube: the mean of `sum_i |theta_i + eps Z_i|`.

    With Gumbel noise an exponential integral, computed by scipy on the CPU.
    """
    a = theta / epsilon
    if noise == "gaussian":
        return epsilon * (a * torch.erf(a / math.sqrt(2.0)) + 2 * _phi(a)).sum(-1)
    integral: Tensor = _IntegralOfExponential.apply(a)  # type: ignore[no-untyped-call]
    return epsilon * (a + EULER_GAMMA + 2 * integral).sum(-1)


def logical_or(theta: Tensor, epsilon: float, noise: Noise) -> Tensor:
    """Mean (...) of the OR of the perturbed signs of scores (..., n): 1 for true, -1 for false.

    `1 - 2 prod_i P(theta_i + eps Z_i < 0)`; with Gumbel noise `1 - 2 exp(-sum_i exp(theta_i / eps))`.
    """
    a = theta / epsilon
    log_all_false = torch.special.log_ndtr(-a).sum(-1) if noise == "gaussian" else -a.exp().sum(-1)
    return 1 - 2 * log_all_false.exp()


def _phi(x: Tensor) -> Tensor:
    """The standard Normal density."""
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    """The standard Normal distribution function."""
    probability: Tensor = torch.special.ndtr(x)
    return probability


def _gap(theta: Tensor, epsilon: float) -> Tensor:
    """`(theta_0 - theta_1) / (eps sqrt 2)` (...), the argument of Phi for two scores (..., 2).

    Raises:
        ValueError: there are not two scores.
    """
    if theta.shape[-1] != 2:
        raise ValueError(f"the closed form is of two scores (..., 2), got {tuple(theta.shape)}")
    return (theta[..., 0] - theta[..., 1]) / (epsilon * math.sqrt(2.0))


def _pairs(scores: Tensor) -> Tensor:
    """`scores_i - scores_j` of the pairs i < j: (..., n) -> (..., n (n - 1) / 2).

    A product with the incidence matrix, exact: several times faster than the full (..., n, n) and its gradient.
    """
    n = scores.shape[-1]
    i, j = torch.triu_indices(n, n, 1, device=scores.device)
    pair = torch.arange(len(i), device=scores.device)
    incidence = scores.new_zeros(n, len(i))
    incidence[i, pair], incidence[j, pair] = 1, -1
    return scores @ incidence


def _shortfall(x: Tensor, noise: Noise) -> Tensor:
    """`h(x) = E max(x + Z - Z', 0) - x`: by how much a pair's maximum exceeds, on average, the score `x` ahead.

    Its derivative is `S(x) - 1`, and `h(x) + h(-x)` is `E |x + Z - Z'|`.
    """
    if noise == "gumbel":
        # Not softplus, which is linear from 20 on: an error of 2e-9.
        return -logsigmoid(x)
    a = x / math.sqrt(2.0)
    return math.sqrt(2.0) * _phi(a) - x * _normal_cdf(-a)


def _tie(noise: Noise) -> float:
    """`h(0)`: what a tied pair costs at best."""
    return math.log(2.0) if noise == "gumbel" else 1 / math.sqrt(math.pi)


def _noise_mean(noise: Noise) -> float:
    """The mean of one coordinate of the noise."""
    return EULER_GAMMA if noise == "gumbel" else 0.0


class _RankingLoss(torch.autograd.Function):
    """The sum over pairs, with the soft ranks as its gradient: half the time of going back through the pairs."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ranks: Tensor, epsilon: float, noise: Noise) -> Tensor:
        ctx.save_for_backward(theta, ranks)
        ctx.epsilon, ctx.noise = epsilon, noise
        ahead, order = _pairs(theta / epsilon), _pairs(ranks).sign()
        shortfall = _shortfall(order * ahead, noise)
        tied = order == 0
        if tied.any():
            halves = (_shortfall(ahead, noise) + _shortfall(-ahead, noise)) / 2 - _tie(noise)
            shortfall = torch.where(tied, halves, shortfall)
        return epsilon * shortfall.sum(-1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        theta, ranks = ctx.saved_tensors
        return upstream.unsqueeze(-1) * (ranking_maximiser(theta, ctx.epsilon, ctx.noise) - ranks), None, None, None


class _IntegralOfExponential(torch.autograd.Function):
    """`E_1(exp(a))`, the mean of `max(-a - Z, 0)` for a standard Gumbel Z; its derivative is `-exp(-exp(a))`."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        # exp(a) must not vanish: from -40 on the series -gamma - a is exact to rounding.
        values = exp1(np.exp(a.detach().cpu().double().clamp(-40.0, 700.0).numpy()))
        below = (-40.0 - a).clamp(min=0.0)
        integral: Tensor = torch.from_numpy(np.asarray(values)).to(a) + below
        return integral

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        slope: Tensor = -(-a.exp()).exp()
        return upstream * slope
