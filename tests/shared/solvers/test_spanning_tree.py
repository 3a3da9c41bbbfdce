"""Maximum spanning trees against all trees, networkx and scipy, and what must hold of every answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.solvers.spanning_tree import edge_ends, from_matrix, max_spanning_tree, n_nodes, to_matrix
from tests.shared.solvers.trees import all_trees, by_networkx, by_scipy, edges, is_tree


def test_numbers_of_trees_are_cayleys() -> None:
    assert [len(all_trees(n)) for n in range(2, 7)] == [1, 3, 16, 125, 1296]


@pytest.mark.parametrize("shape", [(1,), (3,), (7, 6), (2, 4, 10), (5, 15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_is_the_best_of_all_trees(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scores = torch.randn(shape).to(dtype)
    x = max_spanning_tree(scores)
    assert (x.shape, x.dtype, x.device) == (scores.shape, scores.dtype, scores.device)
    assert all(is_tree(one) for one in x.view(-1, shape[-1]))
    values = scores.double() @ all_trees(n_nodes(shape[-1])).T
    torch.testing.assert_close((scores.double() * x.double()).sum(-1), values.amax(-1), rtol=1e-12, atol=1e-12)


@given(scores=st.integers(2, 5).flatmap(lambda n: st.lists(st.integers(-2, 2), min_size=n * (n - 1) // 2, max_size=10)))
def test_ties_give_a_best_tree_too(scores: list[int]) -> None:
    kept = max(n * (n - 1) // 2 for n in range(2, 6) if n * (n - 1) // 2 <= len(scores))
    theta = torch.tensor(scores[:kept], dtype=torch.float64)
    x = max_spanning_tree(theta)
    assert is_tree(x)
    assert x @ theta == (all_trees(n_nodes(kept)) @ theta).max()


@pytest.mark.parametrize("n", [2, 3, 10, 25])
def test_is_the_tree_of_networkx_and_of_scipy(n: int) -> None:
    scores = torch.randn(6, n * (n - 1) // 2, dtype=torch.float64)
    x = max_spanning_tree(scores).float()
    for oracle in (by_networkx, by_scipy):
        torch.testing.assert_close(x, torch.stack([oracle(one, n) for one in scores]), rtol=0, atol=0)


def test_only_the_order_of_the_scores_matters() -> None:
    scores = torch.randn(20, 21, dtype=torch.float64)
    x = max_spanning_tree(scores)
    for same in (scores * 7 - 3, -(-scores).exp(), scores.argsort().argsort().double()):
        assert torch.equal(max_spanning_tree(same), x)


def test_numbering_of_the_nodes_does_not_matter() -> None:
    scores = torch.randn(9, 28, dtype=torch.float64)
    order = torch.randperm(8)
    renumbered = from_matrix(to_matrix(scores)[:, order][:, :, order])
    expected = from_matrix(to_matrix(max_spanning_tree(scores))[:, order][:, :, order])
    assert torch.equal(max_spanning_tree(renumbered), expected)


def test_an_instance_does_not_depend_on_its_batch() -> None:
    scores = torch.randint(0, 4, (40, 45)).float()  # full of ties
    assert torch.equal(max_spanning_tree(scores), torch.stack([max_spanning_tree(one) for one in scores]))


def test_no_gradient_and_an_empty_batch() -> None:
    scores = torch.randn(2, 6, requires_grad=True)
    x = max_spanning_tree(scores)
    assert not x.requires_grad
    assert not x.is_inference()
    (x * scores).sum().backward()  # the result takes part in a graph
    assert torch.equal(scores.grad, x)  # type: ignore[arg-type]
    assert max_spanning_tree(torch.empty(0, 3, 10)).shape == (0, 3, 10)


@pytest.mark.parametrize("n_edges", [0, 2, 4, 5, 44, 46])
def test_refuses_what_is_no_complete_graph(n_edges: int) -> None:
    with pytest.raises(ValueError, match=f"no complete graph has {n_edges} edges"):
        max_spanning_tree(torch.zeros(2, n_edges))
    with pytest.raises(ValueError, match=f"no complete graph has {n_edges} edges"):
        to_matrix(torch.zeros(2, n_edges))


def test_refuses_a_single_number() -> None:
    with pytest.raises(ValueError, match="no complete graph"):
        max_spanning_tree(torch.tensor(1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 5)])
def test_refuses_scores_that_are_not_finite(value: float, place: tuple[int, int]) -> None:
    scores = torch.zeros(3, 6)
    scores[place] = value
    with pytest.raises(ValueError, match=rf"the score at \[{place[0]}, {place[1]}\] is -?(nan|inf)"):
        max_spanning_tree(scores)


def test_takes_scores_whose_difference_overflows() -> None:
    largest = torch.finfo(torch.float32).max
    assert max_spanning_tree(torch.tensor([-largest, 0, largest])).tolist() == [0, 1, 1]


def test_refuses_integers() -> None:
    with pytest.raises(ValueError, match="int64"):
        max_spanning_tree(torch.zeros(3, dtype=torch.int64))


# --- edges and matrices ---


@pytest.mark.parametrize("n", [2, 3, 4, 10])
def test_edges_are_in_the_order_of_pairs(n: int) -> None:
    ends = torch.stack(edge_ends(n), 1).tolist()
    assert [tuple(pair) for pair in ends] == edges(n)
    values = torch.arange(1.0, len(ends) + 1)
    matrix = to_matrix(values, diagonal=-1)
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == -1).all()
    assert [matrix[i, j].item() for i, j in ends] == values.tolist()
    assert torch.equal(from_matrix(matrix), values)


def test_matrices_of_batches_carry_gradients() -> None:
    values = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((to_matrix(values) * weights).sum(), values)
    torch.testing.assert_close(gradient, from_matrix(weights + weights.mT))
    torch.autograd.gradcheck(from_matrix, weights.requires_grad_())


def test_edge_values_are_read_above_the_diagonal() -> None:
    assert from_matrix(torch.arange(9.0).view(3, 3)).tolist() == [1, 2, 5]
    for shape in [(3,), (2, 3), (1, 1), ()]:
        with pytest.raises(ValueError, match="matrices"):
            from_matrix(torch.zeros(shape))


def test_a_first_call_in_inference_mode_leaves_nothing_behind() -> None:
    n_edges = 13 * 12 // 2  # a size that no other test takes
    with torch.inference_mode():
        to_matrix(torch.zeros(n_edges))
    values = torch.zeros(n_edges, requires_grad=True)
    to_matrix(values).sum().backward()
    assert (values.grad == 2).all()  # type: ignore[union-attr]
