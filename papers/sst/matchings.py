"""Matchings: permutation matrices and their entropic relaxation over doubly stochastic matrices (Sinkhorn).

The maximiser of <U, X> is `shared.solvers.assignment.assignment`. With f(X) the sum of X log X, the relaxed one is the
doubly stochastic matrix diag(a) exp(U / t) diag(b) (Paulus et al., 2020, section 5; Mena et al., Learning latent
permutations with Gumbel-Sinkhorn networks, 2018). The exponential-family relaxation would need permanents.

Sinkhorn's iteration, scaling rows and columns in turn, needs thousands of steps where the temperature is low. Here
Newton's method on the logarithms of a and b follows a few of them, and a low temperature is reached from a high one in
halves. Both the Newton step and the derivative of the result solve the same system.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from papers.sst.subsets import check_temperature

# The first temperature is one at which scores span so much or less: there Sinkhorn's iteration is fast.
FIRST_SPAN = 8.0
SWEEPS = 5
# A step changes no logarithm of an entry by more: far from the solution a full one would overshoot.
LONGEST_STEP = 3.0
# 30 x 30 Gumbel utilities at temperature 0.0001 take fewer in all.
MOST_STEPS = 100
# Of the row sums before the temperature is halved.
ROUGHLY = 0.1
# Weak links between the columns make the linear system singular up to rounding. Along them the dual variables cancel
# in the answer, so that this weight, relative to sums of 1, does not show in it.
RIDGE = 1e-13


def sinkhorn(utilities: Tensor, temperature: float, tolerance: float = 1e-9) -> Tensor:
    """The entropic relaxation of a matching, utilities and result (..., n, n), with gradient.

    It is computed in the log domain and in float64, whatever the dtype of the utilities, so that no range has to be
    clipped. Columns sum up to 1, rows to within `tolerance`; only if 100 Newton steps have not been enough they are
    farther off. The backward pass is the implicit derivative at the result, one n x n system for each matrix.

    Raises:
        ValueError: the matrices are not square or empty, hold no floating-point numbers, or one that is not finite; or
            the temperature is not positive.
    """
    check_temperature(temperature)
    n = utilities.shape[-1] if utilities.ndim else 0
    if utilities.ndim < 2 or utilities.shape[-2] != n or n == 0 or not utilities.is_floating_point():
        raise ValueError(f"utilities are floating-point numbers (..., n, n), got {utilities.dtype} {utilities.shape}")
    if not utilities.isfinite().all():
        raise ValueError("a utility of a matching is infinite or not a number: no such scores can be scaled")
    x: Tensor = _Sinkhorn.apply(utilities, temperature, tolerance)  # type: ignore[no-untyped-call]
    return x


def _scale(scores: Tensor, tolerance: float) -> Tensor:
    """The doubly stochastic matrices diag(a) exp(scores) diag(b)."""
    span = (scores.amax((-1, -2)) - scores.amin((-1, -2))).amax().item()
    halvings = math.ceil(math.log2(max(1.0, span / FIRST_SPAN)))
    columns = torch.zeros_like(scores[..., :1, :])
    for halving in range(halvings, -1, -1):
        rows, columns = _balance(scores * 2.0**-halving, columns, ROUGHLY if halving else tolerance)
        if halving:
            columns = columns * 2
    return (scores + rows + columns).exp()


def _balance(scores: Tensor, columns: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The logarithms (..., n, 1) and (..., 1, n) of a and b, from first ones of b."""
    for _ in range(SWEEPS):
        rows, columns = _sweep(scores, columns)
    for _ in range(MOST_STEPS):
        x = (scores + rows + columns).exp()
        missing = 1 - x.sum(-1, keepdim=True)
        if missing.abs().amax().item() <= tolerance:
            break
        alpha, beta = _keep_sums(x, missing, 1 - x.sum(-2, keepdim=True))
        most = alpha.amax(-2, keepdim=True) + beta.amax(-1, keepdim=True)
        least = alpha.amin(-2, keepdim=True) + beta.amin(-1, keepdim=True)
        length = torch.maximum(most, -least).clamp_min(LONGEST_STEP)
        rows, columns = _sweep(scores, columns + beta * (LONGEST_STEP / length))
    return rows, columns


def _sweep(scores: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration of Sinkhorn's: rows that sum up to 1, then columns that do."""
    rows = -(scores + columns).logsumexp(-1, keepdim=True)
    return rows, -(scores + rows).logsumexp(-2, keepdim=True)


def _keep_sums(x: Tensor, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (..., n, 1) and beta (..., 1, n) for which x o (alpha + beta) has the sums `by_row` and `by_column`.

    Columns of x sum up to 1. Without alpha, beta solves a system with the Laplacian of a graph on the columns.
    """
    sums = x.sum(-1, keepdim=True)
    links = x.mT @ (x / sums)
    links.diagonal(dim1=-2, dim2=-1).zero_()
    # Degrees as sums of links, not as 1 less the diagonal: small ones keep their digits.
    laplacian = torch.diag_embed(links.sum(-1) + RIDGE) - links + 1 / x.shape[-1]
    beta = torch.linalg.solve(laplacian, by_column.mT - x.mT @ (by_row / sums))
    return (by_row - x @ beta) / sums, beta.mT


class _Sinkhorn(torch.autograd.Function):
    """P = diag(a) exp(U / t) diag(b) with sums of 1: along a change V of U it changes by P o (V - alpha - beta) / t.

    Alpha, one for each row, and beta, one for each column, keep the sums. This map is symmetric.
    """

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, temperature: float, tolerance: float) -> Tensor:
        scores = utilities.double() / temperature
        x = _scale(scores, tolerance) if scores.numel() else scores
        ctx.save_for_backward(x)
        ctx.temperature = temperature
        return x.to(utilities.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        weighted = x * v.double()
        alpha, beta = _keep_sums(x, weighted.sum(-1, keepdim=True), weighted.sum(-2, keepdim=True))
        gradient = x * (v.double() - alpha - beta) / ctx.temperature
        return gradient.to(v.dtype), None, None
