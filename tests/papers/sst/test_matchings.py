"""Sinkhorn's relaxation of matchings: sums, optimality, limits, and its implicit derivative."""

import itertools
import math

import pytest
import torch

from papers.sst.matchings import sinkhorn
from papers.sst.utilities import sample
from shared.solvers.assignment import assignment

REFERENCE = torch.tensor([[1, 0, -1], [0.5, 2, 0], [0, -0.5, 1]], dtype=torch.float64)


def permutations(n: int) -> torch.Tensor:
    return torch.stack([torch.eye(n, dtype=torch.float64)[list(p)] for p in itertools.permutations(range(n))])


def test_the_reference_point() -> None:
    expected = torch.tensor(
        [[0.652164, 0.217985, 0.129850], [0.167664, 0.682725, 0.149612], [0.180172, 0.099290, 0.720538]]
    ).double()
    torch.testing.assert_close(sinkhorn(REFERENCE, 1.0), expected, rtol=0, atol=1e-6)
    hard = assignment(REFERENCE)
    torch.testing.assert_close(hard, torch.eye(3, dtype=torch.float64))
    assert (hard * REFERENCE).sum().item() == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 10.0])
def test_is_doubly_stochastic_and_keeps_the_cross_ratios(dtype: torch.dtype, temperature: float) -> None:
    """The two conditions that make it the optimum: the sums, and log P = U / t + rows + columns."""
    u = torch.randn(4, 2, 5, 5, dtype=dtype)
    x = sinkhorn(u, temperature)
    assert (x.shape, x.dtype) == (u.shape, u.dtype)
    for dim in (-1, -2):
        torch.testing.assert_close(x.sum(dim), torch.ones(4, 2, 5, dtype=dtype), rtol=0, atol=2e-6)

    def cross_ratios(m: torch.Tensor) -> torch.Tensor:
        return m - m[..., :1] - m[..., :1, :] + m[..., :1, :1]

    torch.testing.assert_close(cross_ratios(x.log()), cross_ratios(u / temperature), rtol=1e-4, atol=1e-4)
    assert sinkhorn(u[:0], temperature).shape == (0, 2, 5, 5)
    torch.testing.assert_close(sinkhorn(u[0, 0, :1, :1], temperature), torch.ones(1, 1, dtype=dtype))


@pytest.mark.parametrize("n", [2, 10, 30])
@pytest.mark.parametrize("temperature", [0.1, 0.01, 1e-3])
def test_low_temperatures_converge_too(n: int, temperature: float) -> None:
    """Where Sinkhorn's iteration alone takes thousands of steps; a batch with an easy instance among hard ones."""
    u = sample(torch.zeros(8, n, n), "gumbel")
    u[0] *= 1e-3
    x = sinkhorn(u.double(), temperature)
    for dim in (-1, -2):
        torch.testing.assert_close(x.sum(dim), torch.ones(8, n, dtype=torch.float64), rtol=0, atol=2e-9)
    # Scores of thousands have few digits after the point in float32: the computation is not done in it.
    torch.testing.assert_close(sinkhorn(u, temperature), x.float(), rtol=1e-6, atol=1e-7)
    value = (x * u).sum((-1, -2))
    best = (assignment(u) * u).sum((-1, -2))
    # The optimal relaxed value is below the best one by the entropy, n log n at most, times the temperature.
    assert (value <= best + 1e-5).all()
    assert (value >= best - temperature * n * math.log(n) - 1e-5).all()


def test_no_mixture_of_permutations_is_better() -> None:
    u, t = torch.randn(1, 4, 4, dtype=torch.float64), 0.5
    x = sinkhorn(u, t)
    others = torch.cat(
        [permutations(4), torch.einsum("sp,pij->sij", torch.rand(99, 24).softmax(-1).double(), permutations(4))]
    )

    def value(x: torch.Tensor) -> torch.Tensor:
        return (u * x - t * torch.xlogy(x, x)).sum((-1, -2))

    for step in (1.0, 1e-2, 1e-4):
        assert (value(x + step * (others - x)) <= value(x) + 1e-9).all()


def test_the_limit_is_the_best_matching() -> None:
    u = torch.randn(60, 4, 4, dtype=torch.float64)
    values = (u[:, None] * permutations(4)).sum((-1, -2)).sort(-1, descending=True).values
    u = u[values[:, 0] - values[:, 1] > 0.4]
    assert len(u) > 15
    errors = [(sinkhorn(u, t) - assignment(u)).abs().max().item() for t in (1.0, 0.1, 0.01)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_vector_jacobian_product_is_the_finite_difference(n: int, temperature: float) -> None:
    u = torch.randn(2, n, n, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: sinkhorn(u, temperature, tolerance=1e-12), u, eps=1e-6, atol=1e-6)


def test_jacobian_is_symmetric_and_positive_and_keeps_the_sums() -> None:
    jacobian = torch.autograd.functional.jacobian(lambda u: sinkhorn(u, 0.5), REFERENCE).reshape(9, 9)
    torch.testing.assert_close(jacobian, jacobian.T)
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-10
    torch.testing.assert_close(jacobian.reshape(3, 3, 9).sum(0), torch.zeros(3, 9, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.1, 0.01, 1e-3])
def test_derivative_where_the_matrix_is_almost_a_permutation(temperature: float) -> None:
    """The system of the backward pass is singular up to rounding; the derivative is finite and goes to 0."""
    u = (REFERENCE + 0).requires_grad_()
    v = torch.randn(3, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(sinkhorn(u, temperature), u, v)
    h = 1e-4 * temperature
    moved = (sinkhorn(REFERENCE + h * v, temperature) - sinkhorn(REFERENCE - h * v, temperature)) / (2 * h)
    torch.testing.assert_close(gradient, moved, rtol=1e-3, atol=1e-5)


def test_refusals() -> None:
    for u in (torch.zeros(3), torch.zeros(2, 3), torch.zeros(0, 0), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="utilities are floating-point numbers"):
            sinkhorn(u, 1.0)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="infinite or not a number"):
            sinkhorn(torch.full((2, 2), bad), 1.0)
    with pytest.raises(ValueError, match="temperature"):
        sinkhorn(REFERENCE, 0.0)
