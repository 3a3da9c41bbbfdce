"""The exponential-family relaxation of spanning trees: marginals by the matrix-tree theorem.

Of the structures of Paulus et al., Gradient Estimation with Stochastic Softmax Tricks, 2020. Utilities u stand on the
n(n-1)/2 undirected edges of the complete graph, in the order of `shared.solvers.spanning_tree`. The relaxation of the
maximum spanning tree at temperature t is its mean under the Gibbs distribution p(x) ~ exp(<u, x> / t), the gradient of
t log Z. With weights W = exp(u / t), the Laplacian L = diag(W 1) - W and G = (L + e_r e_r')^-1, Kirchhoff's theorem is

    log Z = log det(L + e_r e_r'),      mu_ij = W_ij R_ij,      R_ij = G_ii + G_jj - 2 G_ij,

where R is the effective resistance between the ends of an edge. Adding 1 at node r, instead of deleting its row and its
column, gives the determinant of the same minor, and for G the inverse of the minor, padded with zeros, plus 11'.

Derivative. From dG = -G dL G for a cotangent v comes, in place of a second pass of automatic differentiation,

    t du = mu o v - W o R(M),      M = G Lap(W o v) G,      R(M)_ij = M_ii + M_jj - 2 M_ij,

o the elementwise product and Lap(A) = diag(A 1) - A. Trees are a determinantal process (Burton and Pemantle, 1993): for
the edges' signed incidence B the covariance is diag(mu) - K o K, where K = W^1/2 B' G B W^1/2, and K_ee = mu_e.

Numerics. Weights are taken relative to the heaviest edge, and r is one of its ends: then small weights are never added
to large entries that matter. Everything behind the weights is float64, whatever the utilities are. In float32 marginals
would be wrong by up to 0.1 in a graph of two clusters whose u / t are lower by 15 in between than inside, against 4e-10
in float64, and be hardly faster on a CPU. What float64 cannot give is refused: marginals sum to n - 1 (Foster, 1949),
and those that rounding has spoilt do not.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.solvers.spanning_tree import edge_ends, from_matrix, n_nodes, to_matrix

# Marginals of an instance are trusted while their sum is n - 1 up to this.
TRUSTED_ERROR = 1e-6


def marginals(utilities: Tensor, temperature: float = 1.0, max_range: float | None = None) -> Tensor:
    """Probabilities mu of the edges, the relaxed spanning tree; utilities and result are (..., n(n-1)/2).

    As the temperature goes to 0 this goes to `max_spanning_tree(utilities)`. The sum over the edges is n - 1. The
    gradient is the exact derivative of what is computed, by the closed form above; there is no second derivative.

    Args:
        temperature: t, in the unit of the utilities.
        max_range: lower limit of u / t, counted from the heaviest edge of the graph. The weights are then apart by
            exp(max_range) at most, so that the minor cannot become singular: 15, the authors' choice, leaves errors
            below 1e-8. It follows the heaviest edge, so gradients of limited edges go to that edge. At low
            temperatures it makes edges equal that are not, and the maximum spanning tree is no longer approached.

    Raises:
        ValueError: so many utilities belong to no complete graph, or they are no floating-point numbers; a temperature
            or range that is not positive; a minor that is singular in float64, as utilities are too far apart, NaN
            or infinite.
    """
    _check(utilities, temperature, max_range)
    result: Tensor = _Marginals.apply(utilities, temperature, max_range)  # type: ignore[no-untyped-call]
    return result


def log_partition(utilities: Tensor, temperature: float = 1.0, max_range: float | None = None) -> Tensor:
    """log Z, shape (...), in nats: the log of the sum of exp(<u, x> / t) over all n^(n-2) spanning trees x.

    Differentiable twice: t d log Z / du is `marginals`. Arguments and errors are those of `marginals`.
    """
    _check(utilities, temperature, max_range)
    result: Tensor = _LogPartition.apply(utilities, temperature, max_range)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def covariance(utilities: Tensor, temperature: float = 1.0, max_range: float | None = None) -> Tensor:
    """Covariance of the edges under the Gibbs distribution, (..., E, E) for E = n(n-1)/2 edges: diag(mu) - K o K.

    It is t times the Jacobian of `marginals` where nothing is limited. Without gradient; for studies and tests, as
    E^2 numbers are more than a gradient needs. Arguments and errors are those of `marginals`.
    """
    _check(utilities, temperature, max_range)
    weights, _, heaviest, _ = _weights(utilities, temperature, max_range)
    inverse, mu = _solve(weights, heaviest)
    first, second = edge_ends(inverse.shape[-1], utilities.device)
    ends = inverse[..., first, :] - inverse[..., second, :]  # B' G
    transfer = ends[..., first] - ends[..., second]  # B' G B
    squared = transfer.square_() * (weights[..., :, None] * weights[..., None, :])
    return (torch.diag_embed(mu) - squared).to(utilities.dtype)


class _Marginals(torch.autograd.Function):
    """mu (..., E) of utilities (..., E), with the closed-form vector-Jacobian product."""

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, temperature: float, max_range: float | None) -> Tensor:
        weights, _, heaviest, limited = _weights(utilities, temperature, max_range)
        inverse, mu = _solve(weights, heaviest)
        ctx.save_for_backward(weights, inverse, mu, heaviest, limited)
        ctx.temperature = temperature
        return mu.to(utilities.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        weights, inverse, mu, heaviest, limited = ctx.saved_tensors
        v = cotangent.double()
        change = inverse @ _laplacian(weights * v) @ inverse
        slopes = (mu * v).addcmul_(weights, _resistances(change), value=-1)
        return _through_limit(slopes, heaviest, limited).div_(ctx.temperature).to(cotangent.dtype), None, None


class _LogPartition(torch.autograd.Function):
    """log Z (...) of utilities (..., E); the derivative is `marginals`, which is differentiable once more."""

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, temperature: float, max_range: float | None) -> Tensor:
        weights, top, heaviest, _ = _weights(utilities, temperature, max_range)
        inverse, _ = _solve(weights, heaviest)
        ctx.save_for_backward(utilities)
        ctx.options = temperature, max_range
        result: Tensor = (inverse.shape[-1] - 1) * top.squeeze(-1) - torch.linalg.slogdet(inverse).logabsdet
        return result.to(utilities.dtype)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        (utilities,) = ctx.saved_tensors
        temperature, max_range = ctx.options
        _, _, heaviest, limited = _weights(utilities.detach(), temperature, max_range)
        mu = _through_limit(marginals(utilities, temperature, max_range), heaviest, limited)
        slopes: Tensor = cotangent.unsqueeze(-1) * mu / temperature
        return slopes, None, None


def _check(utilities: Tensor, temperature: float, max_range: float | None) -> None:
    n_nodes(utilities.shape[-1] if utilities.ndim else 0)
    if not utilities.is_floating_point():
        raise ValueError(f"utilities are floating-point numbers, got {utilities.dtype}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature is a positive number, got {temperature}")
    if max_range is not None and not 0 < max_range < math.inf:
        raise ValueError(f"the range of the utilities is a positive number, got {max_range}")


def _weights(
    utilities: Tensor, temperature: float, max_range: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """W (..., E), at most 1, in float64; the largest u / t and its edge, (..., 1); which edges are limited, if any."""
    exponents = (utilities if utilities.dtype == torch.float64 else utilities.float()) / temperature
    top, heaviest = exponents.max(-1, keepdim=True)
    exponents = exponents.sub_(top)
    limited = None
    if max_range is not None and exponents.numel() and float(exponents.amin()) < -max_range:
        limited = exponents < -max_range
        exponents.clamp_min_(-max_range)
    return exponents.exp_().double(), top, heaviest, limited


def _through_limit(slopes: Tensor, heaviest: Tensor, limited: Tensor | None) -> Tensor:
    """The derivative in u / t from that in its limited values: what limited edges have goes to the heaviest edge."""
    if limited is None:
        return slopes
    moved = torch.where(limited, slopes, 0)
    return (slopes - moved).scatter_add(-1, heaviest, moved.sum(-1, keepdim=True))


def _laplacian(weights: Tensor) -> Tensor:
    """diag(W 1) - W, (..., n, n), of edge weights (..., E)."""
    matrix = to_matrix(weights)
    degrees = matrix.sum(-1)
    matrix.neg_().diagonal(dim1=-2, dim2=-1).copy_(degrees)
    return matrix


@functools.cache
def _touches(n: int, device: torch.device) -> Tensor:
    """Which nodes are ends of which edges, 0 or 1, (n, E), float64."""
    with torch.inference_mode(False), torch.no_grad():  # autograd refuses what was made in inference mode
        first, second = edge_ends(n, device)
        nodes = torch.arange(n, device=device).unsqueeze(1)
        return ((nodes == first) | (nodes == second)).double()


def _resistances(matrix: Tensor) -> Tensor:
    """M_ii + M_jj - 2 M_ij for the edges, (..., E), of symmetric M (..., n, n) in float64."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    ends = diagonal @ _touches(matrix.shape[-1], matrix.device)  # half the time of two gathers
    return ends.sub_(from_matrix(matrix), alpha=2)


def _solve(weights: Tensor, heaviest: Tensor) -> tuple[Tensor, Tensor]:
    """G (..., n, n) and mu (..., E) of float64 weights (..., E) up to 1; refuses what rounding has spoilt."""
    grounded = _laplacian(weights)
    n = grounded.shape[-1]
    r = edge_ends(n, weights.device)[0].take(heaviest)
    grounded.diagonal(dim1=-2, dim2=-1).scatter_add_(-1, r, torch.ones_like(r, dtype=weights.dtype))
    inverse, info = torch.linalg.inv_ex(grounded)
    inverse = inverse.mT  # symmetric, but torch lays it out by columns
    mu = _resistances(inverse).mul_(weights)
    if mu.numel() == 0:
        return inverse, mu
    least, largest = (float(x) for x in mu.sum(-1).aminmax())  # NaN if there is one: the comparison is false
    if n - 1 - TRUSTED_ERROR <= least <= largest <= n - 1 + TRUSTED_ERROR and not info.any():
        return inverse, mu
    spoilt = ~((mu.sum(-1) - (n - 1)).abs() <= TRUSTED_ERROR) | (info != 0)
    instance = tuple(spoilt.nonzero()[0].tolist())
    where = f" of instance {instance}" if instance else ""
    raise ValueError(
        f"the minor of the Laplacian{where} is singular in float64: utilities are too far apart, NaN or infinite; "
        "set max_range (15 is safe) or raise the temperature"
    )
