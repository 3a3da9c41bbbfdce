"""The best subset with scores on neighbours, against brute force over all subsets."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.solvers.chains import correlated_top_k, with_products
from shared.solvers.simple import top_k


def vertices(n: int, k: int) -> Tensor:
    chosen = [y for y in itertools.product((0.0, 1.0), repeat=n) if sum(y) == k]
    return with_products(torch.tensor(chosen))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_best_of_all_vertices(n: int, dtype: torch.dtype) -> None:
    theta = torch.randn(3, 7, 2 * n - 1, dtype=dtype)
    for k in range(n + 1):
        feasible = vertices(n, k).to(dtype)
        y = correlated_top_k(theta, k)
        assert (y.shape, y.dtype) == (theta.shape, theta.dtype)
        torch.testing.assert_close(y, feasible[(theta @ feasible.T).argmax(-1)], rtol=0, atol=0)


@given(scores=st.lists(st.integers(-2, 2), min_size=1, max_size=11).filter(lambda s: len(s) % 2 == 1), data=st.data())
def test_ties_give_a_best_vertex_too(scores: list[int], data: st.DataObject) -> None:
    n = (len(scores) + 1) // 2
    k = data.draw(st.integers(0, n))
    theta = torch.tensor(scores, dtype=torch.float32)
    y, feasible = correlated_top_k(theta, k), vertices(n, k)
    assert (feasible == y).all(-1).any()
    assert (y @ theta).item() == (feasible @ theta).max().item()


def test_without_scores_on_neighbours_it_is_top_k() -> None:
    theta = torch.randn(20, 50)
    y = correlated_top_k(torch.cat([theta, torch.zeros(20, 49)], -1), 9)
    torch.testing.assert_close(y, with_products(top_k(theta, 9)), rtol=0, atol=0)


def test_no_gradient_no_change_of_the_input_and_an_empty_batch() -> None:
    theta = torch.randn(4, 9, requires_grad=True)
    before = theta.detach().clone()
    assert not correlated_top_k(theta, 2).requires_grad
    torch.testing.assert_close(theta.detach(), before, rtol=0, atol=0)
    assert correlated_top_k(torch.empty(0, 9), 2).shape == (0, 9)


@pytest.mark.parametrize("theta", [torch.tensor(1.0), torch.empty(2, 0), torch.zeros(2, 4), torch.tensor([1, 2, 3])])
def test_refuses_what_are_no_scores(theta: Tensor) -> None:
    with pytest.raises(ValueError, match="scores"):
        correlated_top_k(theta, 1)


@pytest.mark.parametrize("k", [-1, 4])
def test_refuses_to_choose_more_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {k} of 3"):
        correlated_top_k(torch.randn(5), k)
