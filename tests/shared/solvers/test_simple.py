"""The maximisers that need a sort at most, against brute force over all vertices and against scipy."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from shared.solvers.simple import argmax, ranking, sign, top_k


def subsets(n: int, k: int) -> list[tuple[int, ...]]:
    return [y for y in itertools.product((0, 1), repeat=n) if sum(y) == k]


Solver = Callable[[Tensor], Tensor]
SOLVERS: dict[str, tuple[Solver, Callable[[int], list[tuple[int, ...]]]]] = {
    "argmax": (argmax, lambda n: subsets(n, 1)),
    "top_1": (lambda theta: top_k(theta, 1), lambda n: subsets(n, 1)),
    "top_2": (lambda theta: top_k(theta, min((2, *theta.shape[-1:]))), lambda n: subsets(n, min(2, n))),
    "top_0": (lambda theta: top_k(theta, 0), lambda n: subsets(n, 0)),
    "ranking": (ranking, lambda n: list(itertools.permutations(range(1, n + 1)))),
    "sign": (sign, lambda n: list(itertools.product((-1, 1), repeat=n))),
}
every_solver = pytest.mark.parametrize("name", SOLVERS)


@every_solver
@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (7, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_best_of_all_vertices(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    solve, vertices = SOLVERS[name]
    theta = torch.randn(shape, dtype=dtype)
    y = solve(theta)
    assert (y.shape, y.dtype, y.device) == (theta.shape, theta.dtype, theta.device)
    feasible = torch.tensor(vertices(shape[-1]), dtype=dtype)
    torch.testing.assert_close(y, feasible[(theta @ feasible.T).argmax(-1)], rtol=0, atol=0)


@every_solver
@given(scores=st.lists(st.integers(-2, 2), min_size=1, max_size=5))
def test_ties_give_a_best_vertex_too(name: str, scores: list[int]) -> None:
    solve, vertices = SOLVERS[name]
    y = solve(torch.tensor(scores, dtype=torch.float64))
    feasible = vertices(len(scores))
    assert tuple(y.int().tolist()) in feasible
    best = max(sum(a * b for a, b in zip(scores, v, strict=True)) for v in feasible)
    assert (y @ torch.tensor(scores, dtype=torch.float64)).item() == best


def test_ties_as_documented() -> None:
    zeros = torch.zeros(3)
    assert argmax(zeros).tolist() == [1, 0, 0]
    assert ranking(torch.tensor([2.0, 1, 2, 1])).tolist() == [3, 1, 4, 2]
    assert sign(torch.tensor([0.0, -0.0, -1e-30])).tolist() == [1, 1, -1]
    assert top_k(zeros, 2).sum() == 2


@every_solver
def test_no_gradient_no_change_of_the_input_and_an_empty_batch(name: str) -> None:
    solve, _ = SOLVERS[name]
    theta = torch.randn(4, 3, requires_grad=True)
    before = theta.detach().clone()
    y = solve(theta)
    assert not y.requires_grad
    torch.testing.assert_close(theta.detach(), before, rtol=0, atol=0)
    assert solve(torch.empty(0, 3)).shape == (0, 3)


@every_solver
def test_views_are_read_as_they_look(name: str) -> None:
    solve, _ = SOLVERS[name]
    theta = torch.randn(5, 4)
    torch.testing.assert_close(solve(theta.T), solve(theta.T.contiguous()), rtol=0, atol=0)
    one = torch.randn(4)
    torch.testing.assert_close(solve(one.expand(3, 4)), solve(one).expand(3, 4), rtol=0, atol=0)


@every_solver
def test_equivariant_under_permutations(name: str) -> None:
    solve, _ = SOLVERS[name]
    theta, order = torch.randn(20, 6), torch.randperm(6)
    torch.testing.assert_close(solve(theta[:, order]), solve(theta)[:, order], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["argmax", "top_1", "top_2", "ranking"])
def test_a_constant_changes_the_value_and_not_the_maximiser(name: str) -> None:
    """All vertices have the same sum s, so the maximum moves by constant * s."""
    solve, vertices = SOLVERS[name]
    theta = torch.randn(20, 6, dtype=torch.float64)
    y, shifted = solve(theta), solve(theta + 3)
    torch.testing.assert_close(shifted, y, rtol=0, atol=0)
    values = ((theta + 3) * shifted).sum(-1) - (theta * y).sum(-1)
    torch.testing.assert_close(values, torch.full_like(values, 3.0 * sum(vertices(6)[0])))


def test_ranks_are_those_of_scipy_and_the_value_is_the_sum_of_pairwise_maxima() -> None:
    theta = torch.randn(10, 7, dtype=torch.float64)
    ranks = ranking(theta)
    torch.testing.assert_close(ranks, torch.from_numpy(rankdata(theta.numpy(), axis=-1)))
    pairs = torch.maximum(theta.unsqueeze(-1), theta.unsqueeze(-2)).triu(1).sum((-1, -2))
    torch.testing.assert_close(((ranks - 1) * theta).sum(-1), pairs)


def test_top_k_and_its_complement_share_the_scores() -> None:
    theta = torch.randn(10, 7)
    for k in range(8):
        torch.testing.assert_close(top_k(theta, k) + top_k(-theta, 7 - k), torch.ones(10, 7), rtol=0, atol=0)


@every_solver
@pytest.mark.parametrize("theta", [torch.tensor(1.0), torch.empty(2, 0), torch.tensor([1, 2])])
def test_refuses_what_are_no_scores(name: str, theta: Tensor) -> None:
    with pytest.raises(ValueError, match="scores"):
        SOLVERS[name][0](theta)


@pytest.mark.parametrize("k", [-1, 4])
def test_refuses_to_choose_more_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {k} of 3"):
        top_k(torch.randn(3), k)
