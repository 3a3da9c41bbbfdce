"""Linear assignment against all permutations."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from shared.solvers.assignment import assignment


def all_matrices(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[torch.tensor(list(itertools.permutations(range(n))))]


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 2, 2), (2, 3, 4, 4), (6, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_is_the_best_of_all_permutations(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    theta = torch.randn(shape).to(dtype)
    y = assignment(theta)
    assert (y.shape, y.dtype, y.device) == (theta.shape, theta.dtype, theta.device)
    n = shape[-1]
    assert set(y.unique().tolist()) <= {0.0, 1.0}
    for dim in (-1, -2):
        assert (y.sum(dim) == 1).all()
    values = torch.einsum("...ij,pij->...p", theta.double(), all_matrices(n))
    torch.testing.assert_close((theta.double() * y.double()).sum((-1, -2)), values.amax(-1))


def test_rows_columns_and_constants() -> None:
    theta = torch.randn(8, 4, 4, dtype=torch.float64)
    y, order = assignment(theta), torch.randperm(4)
    torch.testing.assert_close(assignment(theta[:, order]), y[:, order], rtol=0, atol=0)
    torch.testing.assert_close(assignment(theta.mT), y.mT, rtol=0, atol=0)
    torch.testing.assert_close(assignment(theta + torch.randn(8, 4, 1).double()), y, rtol=0, atol=0)


def test_ties_no_gradient_and_an_empty_batch() -> None:
    y = assignment(torch.zeros(3, 3, requires_grad=True))
    assert not y.requires_grad
    assert (y.sum(0) == 1).all()
    assert (y.sum(1) == 1).all()
    assert assignment(torch.empty(0, 2, 3, 3)).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0, 0)])
def test_refuses_matrices_that_are_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        assignment(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_scores_that_are_not_finite(value: float) -> None:
    theta = torch.zeros(2, 3, 3)
    theta[1, 0, 2] = value
    with pytest.raises(ValueError, match=r"the score at \[1, 0, 2\] is -?(nan|inf)"):
        assignment(theta)


def test_refuses_integers() -> None:
    with pytest.raises(ValueError, match="int64"):
        assignment(torch.zeros(2, 2, dtype=torch.int64))
