"""Relaxations of one-hot vectors, binary vectors and k-subsets whose maximiser needs one dual variable at most.

Each function gives the maximiser of `<u, x> - t f(x)` over the convex hull of its set (Paulus et al., 2020, sections 4
and 5), for utilities u of shape (..., n) and a temperature t > 0, in the same shape and dtype.
As t goes to 0 the point goes to the vertex that `shared.solvers.simple` gives for the same u. `f` is one of

- Euclidean: half the squared norm; the point has exact zeros;
- categorical entropy: the sum of x log x;
- binary entropy: the sum of x log x + (1 - x) log(1 - x).

The exponential-family entropy is in `chains`. All Jacobians are symmetric and are applied in closed form.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The brackets below are a few units wide, or as wide as the gap between two scores: 2^-60 of that is below rounding.
BISECTIONS = 60

#: Scores (..., n) -> the relaxed point and the slopes dx_i/du_i at a fixed dual variable, all of one shape.
Solution = Callable[[Tensor], tuple[Tensor, Tensor]]


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless the temperature is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature of a relaxation is positive and finite, got {temperature}")


def check_choice(utilities: Tensor, k: int) -> None:
    """Raise a ValueError unless `utilities` are floating-point numbers (..., n) and `k` is in 0..n."""
    if utilities.ndim == 0 or utilities.shape[-1] == 0 or not utilities.is_floating_point():
        raise ValueError(f"utilities are floating-point numbers (..., n), got {utilities.dtype} {utilities.shape}")
    if not 0 <= k <= utilities.shape[-1]:
        raise ValueError(f"cannot choose {k} of {utilities.shape[-1]}")


def categorical(utilities: Tensor, temperature: float) -> Tensor:
    """One-hot vectors, categorical entropy: softmax(u / t), the Gumbel-softmax trick. Differentiable twice."""
    check_temperature(temperature)
    return torch.softmax(utilities / temperature, -1)


def categorical_euclidean(utilities: Tensor, temperature: float) -> Tensor:
    """One-hot vectors, Euclidean: the projection of u / t on the simplex (sparsemax)."""
    return k_subset_euclidean(utilities, 1, temperature)


def binary_vector(utilities: Tensor) -> Tensor:
    """The best binary vector: 1 where the utility is positive, 0 elsewhere; without gradient."""
    return (utilities > 0).to(utilities.dtype)


def binary(utilities: Tensor, temperature: float) -> Tensor:
    """Binary vectors, binary entropy: sigmoid(u / t). Differentiable twice."""
    check_temperature(temperature)
    return torch.sigmoid(utilities / temperature)


def binary_euclidean(utilities: Tensor, temperature: float) -> Tensor:
    """Binary vectors, Euclidean: u / t clipped to [0, 1]."""
    check_temperature(temperature)
    return (utilities / temperature).clamp(0, 1)


def k_subset_euclidean(utilities: Tensor, k: int, temperature: float) -> Tensor:
    """k-subsets, Euclidean: the projection of u / t on the hypersimplex, clip(u / t - tau, 0, 1) with sum `k`.

    `tau` is bisected in the unit interval below the k-th largest score, where a root always is; the coordinates that
    are neither 0 nor 1 then give it exactly.

    Raises:
        ValueError: no utilities, `k` is not in 0..n, or the temperature is not positive.
    """

    def solve(scores: Tensor) -> tuple[Tensor, Tensor]:
        # Relative to the k-th largest score, so that no digits are lost where the temperature is low.
        scores = scores - scores.topk(k, -1).values[..., -1:]
        low = scores.new_full((*scores.shape[:-1], 1), -1.0)
        tau = _bisect(lambda tau: (scores - tau).clamp(0, 1), k, low, torch.zeros_like(low))
        x = (scores - tau).clamp(0, 1)
        free = (x > 0) & (x < 1)
        excess = torch.where(free, scores, x).sum(-1, keepdim=True) - k
        tau = torch.where(free.any(-1, keepdim=True), excess / free.sum(-1, keepdim=True).clamp_min(1), tau)
        x = (scores - tau).clamp(0, 1)
        return x, ((x > 0) & (x < 1)).to(x.dtype)

    return _relax(utilities, k, temperature, solve)


def k_subset_categorical(utilities: Tensor, k: int, temperature: float) -> Tensor:
    """k-subsets, categorical entropy: the capped softmax min(1, exp(u / t + nu)) with sum `k`.

    Sorted, with the m largest capped, nu is the log of (k - m) over the sum of the other exponentials. The right m is
    the smallest that leaves nobody else above 1; no iteration is needed.

    Raises:
        ValueError: no utilities, `k` is not in 0..n, or the temperature is not positive.
    """

    def solve(scores: Tensor) -> tuple[Tensor, Tensor]:
        ordered = scores.sort(-1, descending=True).values
        tails = ordered.flip(-1).logcumsumexp(-1).flip(-1)[..., :k]
        shares = torch.arange(k, 0, -1, dtype=scores.dtype, device=scores.device).log()
        above = ordered[..., :k] + shares > tails
        capped = above.sum(-1, keepdim=True).clamp_max(k - 1)  # the last comparison can only fail by rounding
        nu = (shares - tails).gather(-1, capped)
        x = (scores + nu).exp().clamp_max(1)
        return x, torch.where(x < 1, x, 0)

    return _relax(utilities, k, temperature, solve)


def k_subset_binary(utilities: Tensor, k: int, temperature: float) -> Tensor:
    """k-subsets, binary entropy: sigmoid(u / t - tau) with sum `k`, by bisection on the dual variable tau.

    A root lies between the (k + 1)-th largest score less log n and the k-th plus log n: beyond, the sum is too large or
    too small whatever the other scores are.

    Raises:
        ValueError: no utilities, `k` is not in 0..n, or the temperature is not positive.
    """

    def solve(scores: Tensor) -> tuple[Tensor, Tensor]:
        around = scores.topk(k + 1, -1).values[..., k - 1 :]
        scores, around = scores - around[..., :1], around - around[..., :1]
        margin = math.log(scores.shape[-1])
        tau = _bisect(lambda tau: torch.sigmoid(scores - tau), k, around[..., 1:] - margin, around[..., :1] + margin)
        x = torch.sigmoid(scores - tau)
        return x, x * torch.sigmoid(tau - scores)

    return _relax(utilities, k, temperature, solve)


def _bisect(point: Callable[[Tensor], Tensor], k: int, low: Tensor, high: Tensor) -> Tensor:
    """The tau (..., 1) in [low, high] at which the coordinates of `point`, decreasing in tau, sum up to `k`."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_much = point(middle).sum(-1, keepdim=True) > k
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (low + high) / 2


def _relax(utilities: Tensor, k: int, temperature: float, solve: Solution) -> Tensor:
    """The relaxed k-subset with its gradient; 0 and n items leave no choice."""
    check_temperature(temperature)
    check_choice(utilities, k)
    if k in (0, utilities.shape[-1]):
        return torch.full_like(utilities, float(k > 0)) + utilities * 0
    x: Tensor = _FixedSum.apply(utilities, temperature, solve)  # type: ignore[no-untyped-call]
    return x


class _FixedSum(torch.autograd.Function):
    """A point x(u / t) on a plane of constant sum: x_i is an increasing function of u_i / t less a common variable.

    With the slopes d of these functions, the implicit-function theorem gives the Jacobian (diag(d) - d d' / sum d) / t.
    """

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, temperature: float, solve: Solution) -> Tensor:
        x, slopes = solve(utilities / temperature)
        ctx.save_for_backward(slopes)
        ctx.temperature = temperature
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        total = slopes.sum(-1, keepdim=True).clamp_min(torch.finfo(slopes.dtype).tiny)
        mean = (slopes * v).sum(-1, keepdim=True) / total
        return slopes * (v - mean) / ctx.temperature, None, None
