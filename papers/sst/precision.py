"""Rounding of spanning-tree marginals: plain log-determinants in float32 and float64, and ours, against range.

The reference loses no digits whatever the range is: it eliminates nodes by star-mesh transforms, which only add and
multiply positive numbers, until two nodes are left, between which the conductance is the inverse of the resistance.
"""

import torch
from torch import Tensor

from papers.sst.spanning_trees import marginals
from shared.solvers.spanning_tree import edge_ends, to_matrix

__all__ = ["ARMS", "FAILED", "by_log_determinant", "by_star_mesh", "errors"]

#: An error in a marginal from which on it is called a failure.
FAILED = 0.01
ARMS = ("float32_log_determinant", "float64_log_determinant", "closed_form", "closed_form_max_range_15")


def by_log_determinant(utilities: Tensor) -> Tensor:
    """Marginals (B, E) as the derivative of log det of the Laplacian without node 0, in the dtype of the utilities.

    The plain way, as it is found in code: weights relative to the heaviest, automatic differentiation, no other care.
    """
    w = (utilities - utilities.amax(-1, keepdim=True)).detach().requires_grad_()
    weights = to_matrix(w.exp())
    laplacian = torch.diag_embed(weights.sum(-1)) - weights
    log_z = torch.linalg.slogdet(laplacian[:, 1:, 1:]).logabsdet
    # A singular minor has no inverse: its derivative is not a number, or an error of the library.
    try:
        (mu,) = torch.autograd.grad(log_z.sum(), w)
    except RuntimeError:
        if len(utilities) > 1:
            return torch.cat([by_log_determinant(each) for each in utilities.split(1)])
        mu = torch.full_like(utilities, torch.nan)
    return mu


def by_star_mesh(utilities: Tensor) -> Tensor:
    """Marginals (B, E) = weight times effective resistance, right to rounding in every entry, float64.

    Eliminating node k joins its neighbours i and j by w_ik w_kj / sum_l w_kl more. For each edge all other nodes are
    eliminated, so that this takes O(n^5): a reference, not a method.
    """
    w = to_matrix((utilities - utilities.amax(-1, keepdim=True)).double().exp())
    n = w.shape[-1]
    resistances = []
    for i, j in zip(*(ends.tolist() for ends in edge_ends(n)), strict=True):
        left = torch.tensor([i, j, *(k for k in range(n) if k not in (i, j))])
        reduced = w[:, left][:, :, left]
        for size in range(n - 1, 1, -1):
            last = reduced[:, size, :size]
            mesh = last.unsqueeze(2) * (last / last.sum(-1, keepdim=True)).unsqueeze(1)
            reduced = reduced[:, :size, :size] + mesh
            reduced.diagonal(dim1=-2, dim2=-1).zero_()
        resistances.append(1 / reduced[:, 0, 1])
    first, second = edge_ends(n)
    return w[:, first, second] * torch.stack(resistances, -1)


def errors(utilities: Tensor) -> dict[str, Tensor]:
    """For each of `ARMS` the largest error of a marginal of each instance, (B,); NaN where it was refused.

    `closed_form` refuses what float64 cannot give. `closed_form_max_range_15` never does, as it limits the range:
    its error is that of the limit, which follows from another law than the one asked for.

    Args:
        utilities: (B, n(n-1)/2), float64.
    """
    exact = by_star_mesh(utilities)
    points = {
        "float32_log_determinant": by_log_determinant(utilities.float()).double(),
        "float64_log_determinant": by_log_determinant(utilities),
        "closed_form": torch.cat([_accepted(each) for each in utilities.split(1)]),
        "closed_form_max_range_15": marginals(utilities, max_range=15.0),
    }
    return {name: (mu - exact).abs().amax(-1) for name, mu in points.items()}


def _accepted(utilities: Tensor) -> Tensor:
    try:
        return marginals(utilities)
    except ValueError:
        return torch.full_like(utilities, torch.nan)
