"""Linear maximisers that need a sort at most: a vertex `y` with the largest `<theta, y>` for each score vector.

Each function takes scores `theta` of shape (..., n) with any leading dimensions and gives the maximiser in the same
shape, dtype and device. The result is piecewise constant in the scores and carries no gradient: smoothing it is the
work of whoever calls (Berthet et al., Learning with Differentiable Perturbed Optimizers, 2020; Paulus et al., Gradient
Estimation with Stochastic Softmax Tricks, 2020). Ties have probability 0 under continuous noise; what happens with
them is said in each docstring. NaN is not looked for: it would cost as much as the solving.
"""

import torch
from torch import Tensor


def _n(theta: Tensor) -> int:
    """The number of scores, after checking that there are some."""
    if theta.ndim == 0 or theta.shape[-1] == 0:
        raise ValueError(f"scores have the shape (..., n) with n >= 1, got {tuple(theta.shape)}")
    if not theta.is_floating_point():
        raise ValueError(f"scores are floating-point numbers, got {theta.dtype}")
    return theta.shape[-1]


def argmax(theta: Tensor) -> Tensor:
    """The best vertex of the simplex: one-hot at the largest score, at the first one of several.

    Raises:
        ValueError: no scores, or scores that are no floating-point numbers.
    """
    _n(theta)
    return torch.zeros_like(theta).scatter_(-1, theta.argmax(-1, keepdim=True), 1)


def top_k(theta: Tensor, k: int) -> Tensor:
    """The best vertex of the hypersimplex: 1 at the `k` largest scores, 0 elsewhere.

    Of equal scores at the boundary `torch.topk` chooses some, and does not say which; the number of ones is always `k`.

    Raises:
        ValueError: `k` is not in 0..n; no scores, or scores that are no floating-point numbers.
    """
    n = _n(theta)
    if not 0 <= k <= n:
        raise ValueError(f"cannot choose {k} of {n}")
    return torch.zeros_like(theta).scatter_(-1, theta.topk(k, -1, sorted=False).indices, 1)


def ranking(theta: Tensor) -> Tensor:
    """The best vertex of the permutahedron: ascending ranks, 1 for the smallest score and n for the largest.

    By the rearrangement inequality this permutation of (1, ..., n) has the largest inner product with the scores. Flip
    it, `n + 1 - ranking(theta)`, where rank 1 means the best. Equal scores are ranked in the order of their positions.

    Raises:
        ValueError: no scores, or scores that are no floating-point numbers.
    """
    ranks = torch.arange(1, _n(theta) + 1, dtype=theta.dtype, device=theta.device)
    order = theta.argsort(dim=-1, stable=True)
    # The inverse of the order; a scatter is cheaper than a second sort.
    return torch.empty_like(theta).scatter_(-1, order, ranks.expand_as(theta))


def sign(theta: Tensor) -> Tensor:
    """The best vertex of the cube [-1, 1]^n: 1 where the score is 0 or more, -1 elsewhere; never 0, no vertex.

    Raises:
        ValueError: no scores, or scores that are no floating-point numbers.
    """
    _n(theta)
    return (theta >= 0).to(theta.dtype).mul_(2).sub_(1)
