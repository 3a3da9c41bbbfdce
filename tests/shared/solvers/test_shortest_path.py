"""Shortest paths on grids against two Dijkstras and all simple paths, and what must hold of every answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.solvers.shortest_path import CACHED_CELLS, LANES, ShortestPath, best_path, shortest_path
from tests.shared.solvers.grids import heap_dijkstra, is_path, scipy_dijkstra, simple_paths, terrain

both_neighbourhoods = pytest.mark.parametrize("diagonal", [True, False], ids=["8", "4"])
SIZES = [(1, 1), (1, 2), (1, 7), (6, 1), (2, 2), (3, 4), (5, 3), (12, 12), (4, 15)]


def assert_optimal(costs: Tensor, diagonal: bool, rtol: float = 1e-12) -> ShortestPath:
    """Every path is one, costs what is said, and that is the optimum of the heap."""
    solved = shortest_path(costs, diagonal)
    assert solved.path.shape == costs.shape
    assert solved.cost.shape == costs.shape[:-2]
    size = tuple(costs.shape[-2:])
    for one, path, cost in zip(
        costs.double().reshape(-1, *size), solved.path.reshape(-1, *size), solved.cost.flatten().tolist()
    ):
        assert is_path(path, diagonal)
        assert (one * path).sum().item() == pytest.approx(cost, rel=rtol, abs=0)
        assert cost == pytest.approx(heap_dijkstra(one, diagonal), rel=rtol, abs=0)
    return solved


@both_neighbourhoods
@pytest.mark.parametrize("size", SIZES)
def test_cost_is_that_of_both_dijkstras(size: tuple[int, int], diagonal: bool) -> None:
    costs = torch.rand(6, *size, dtype=torch.float64) + 1e-3
    solved = assert_optimal(costs, diagonal)
    expected = torch.tensor([scipy_dijkstra(one, diagonal) for one in costs], dtype=torch.float64)
    torch.testing.assert_close(solved.cost, expected, rtol=1e-12, atol=0)


@both_neighbourhoods
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (3, 3), (4, 3)])
def test_path_is_the_best_of_all_paths(size: tuple[int, int], diagonal: bool) -> None:
    costs = torch.rand(10, *size, dtype=torch.float64)
    feasible = torch.stack(
        [torch.zeros(size, dtype=torch.float64).index_put(tuple(torch.tensor(path).T), torch.tensor(1.0).double())
         for path in simple_paths(size, diagonal)]
    )  # fmt: skip
    solved = shortest_path(costs, diagonal)
    values = torch.einsum("bij,pij->bp", costs, feasible)
    torch.testing.assert_close(solved.path, feasible[values.argmin(1)], rtol=0, atol=0)
    torch.testing.assert_close(solved.cost, values.amin(1))


def test_small_example_by_hand() -> None:
    costs = torch.tensor([[1.0, 9, 1], [1, 9, 1], [9, 1, 1]])
    solved = shortest_path(costs)
    assert solved.path.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert solved.cost == 4
    around = shortest_path(costs, diagonal=False)
    assert around.cost == 13, "by the centre or by the corner"
    assert around.path.sum() == 5


def test_winding_path_with_many_steps_away_from_the_end() -> None:
    """Walls leave one corridor that goes to and fro: more sweeps than the sides have cells, in all four directions."""
    costs = torch.full((9, 9), 1000.0)
    costs[::2] = 1
    costs[1, 8] = costs[3, 0] = costs[5, 8] = costs[7, 0] = 1
    for diagonal, length in ((False, 49), (True, 49 - 8)):
        solved = shortest_path(costs, diagonal)
        assert solved.cost == length
        assert solved.path.sum() == length
        assert is_path(solved.path, diagonal)


@both_neighbourhoods
def test_ties_of_terrain(diagonal: bool) -> None:
    assert_optimal(terrain(8, 12, 12), diagonal)


@both_neighbourhoods
@given(data=st.data())
def test_zero_costs_and_ties_give_simple_paths(diagonal: bool, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    cells = st.lists(st.integers(0, 2), min_size=2 * height * width, max_size=2 * height * width)
    assert_optimal(torch.tensor(data.draw(cells), dtype=torch.float64).view(2, height, width), diagonal)


@both_neighbourhoods
def test_zero_costs_everywhere_or_in_one_grid_only(diagonal: bool) -> None:
    costs = torch.rand(5, 7, 6) + 0.1
    alone = shortest_path(costs, diagonal)
    mixed = costs.clone()
    mixed[2] = 0
    solved = shortest_path(mixed, diagonal)
    assert is_path(solved.path[2], diagonal)
    assert solved.cost[2] == 0
    others = [0, 1, 3, 4]
    torch.testing.assert_close(solved.path[others], alone.path[others], rtol=0, atol=0)
    torch.testing.assert_close(solved.cost[others], alone.cost[others], rtol=0, atol=0)


@both_neighbourhoods
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_costs_that_are_lost_in_the_sum(diagonal: bool, dtype: torch.dtype, rtol: float) -> None:
    """Forty powers of ten between costs: most are absorbed, and steps on the level must not go in circles."""
    costs = 10.0 ** (40 * torch.rand(12, 9, 8, dtype=torch.float64) - 20)
    costs[:6, 0, 0] = 1e20  # paid by all: nothing else is seen in the sum
    assert_optimal(costs.to(dtype), diagonal, rtol)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 3)])
def test_leading_dimensions(batch: tuple[int, ...]) -> None:
    costs = torch.rand(*batch, 5, 6, dtype=torch.float64)
    solved = assert_optimal(costs, True)
    assert solved.path.is_contiguous()
    flat = shortest_path(costs.reshape(-1, 5, 6))
    torch.testing.assert_close(solved.path, flat.path.view(costs.shape), rtol=0, atol=0)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_empty_batch(batch: tuple[int, ...]) -> None:
    solved = shortest_path(torch.empty(*batch, 4, 5))
    assert solved.path.shape == (*batch, 4, 5)
    assert solved.cost.shape == batch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_device_no_gradient_and_the_input_left_alone(dtype: torch.dtype) -> None:
    costs = torch.randint(1, 20, (3, 6, 6)).to(dtype).requires_grad_()
    before = costs.detach().clone()
    solved = shortest_path(costs)
    for result in solved:
        assert (result.dtype, result.device) == (dtype, costs.device)
        assert not result.requires_grad
    torch.testing.assert_close(costs.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(solved.cost.double(), shortest_path(before.double()).cost)


def test_one_grid_is_not_changed_by_its_views() -> None:
    """A batch of one is already in the order of the sweeps: they must not write into the caller's memory."""
    for costs in (torch.rand(1, 4, 4), torch.rand(4, 4), torch.rand(4, 4, 3).permute(2, 0, 1), torch.rand(4, 4).T):
        before = costs.clone()
        solved = shortest_path(costs)
        torch.testing.assert_close(costs, before, rtol=0, atol=0)
        torch.testing.assert_close(solved.path, shortest_path(before).path, rtol=0, atol=0)


@both_neighbourhoods
def test_symmetries_of_the_value(diagonal: bool) -> None:
    costs = torch.rand(10, 7, 9, dtype=torch.float64)
    solved = shortest_path(costs, diagonal)
    turned, flipped = shortest_path(costs.flip(-1, -2), diagonal), shortest_path(costs.mT, diagonal)
    torch.testing.assert_close(turned.cost, solved.cost)
    torch.testing.assert_close(turned.path.flip(-1, -2), solved.path, rtol=0, atol=0)
    torch.testing.assert_close(flipped.path.mT, solved.path, rtol=0, atol=0)
    scaled = shortest_path(4 * costs, diagonal)
    torch.testing.assert_close(scaled.cost, 4 * solved.cost, rtol=0, atol=0)
    torch.testing.assert_close(scaled.path, solved.path, rtol=0, atol=0)
    dearer_start = costs.clone()
    dearer_start[:, 0, 0] += 2
    torch.testing.assert_close(shortest_path(dearer_start, diagonal).cost, solved.cost + 2)


def test_value_is_concave_and_the_path_is_its_gradient() -> None:
    costs, other = torch.rand(2, 10, 6, 6, dtype=torch.float64)
    value = shortest_path(costs).cost
    middle = shortest_path((costs + other) / 2).cost
    assert (middle >= (value + shortest_path(other).cost) / 2 - 1e-12).all()
    direction = torch.rand_like(costs)
    moved = shortest_path(costs + 1e-7 * direction)
    slope = (moved.cost - value) / 1e-7
    torch.testing.assert_close(slope, (shortest_path(costs).path * direction).sum((-1, -2)), rtol=1e-5, atol=1e-6)


def test_maximiser_of_scores() -> None:
    costs = torch.rand(4, 6, 6)
    torch.testing.assert_close(best_path(-costs), shortest_path(costs).path, rtol=0, atol=0)
    torch.testing.assert_close(best_path(-costs, False), shortest_path(costs, False).path, rtol=0, atol=0)
    with pytest.raises(ValueError, match="row 0, column 0"):
        best_path(torch.ones(2, 2))


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf, -math.inf, 2e38])
def test_refuses_a_bad_cost_and_says_where(value: float) -> None:
    costs = torch.ones(2, 3, 4, 5)
    costs[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match=r"the cost of instance \(1, 2\) at row 3, column 0 is"):
        shortest_path(costs)
    with pytest.raises(ValueError, match="the cost at row 3, column 0 is"):
        shortest_path(costs[1, 2])


@pytest.mark.parametrize("costs", [torch.ones(()), torch.ones(3), torch.ones(2, 0, 3), torch.ones(3, 0)])
def test_refuses_what_is_no_grid(costs: Tensor) -> None:
    with pytest.raises(ValueError, match="shape"):
        shortest_path(costs)


def test_refuses_integers() -> None:
    with pytest.raises(ValueError, match="int64"):
        shortest_path(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.gpu
@both_neighbourhoods
def test_cuda_gives_the_paths_of_the_cpu(diagonal: bool) -> None:
    for costs in (torch.rand(50, 12, 12), torch.randint(3, (20, 7, 9)).float()):
        there = shortest_path(costs.cuda(), diagonal)
        assert there.path.is_cuda
        torch.testing.assert_close(there.cost.cpu(), shortest_path(costs, diagonal).cost)
        torch.testing.assert_close((there.path.cpu() * costs).sum((-1, -2)), there.cost.cpu())
        assert all(is_path(path.cpu(), diagonal) for path in there.path)


def test_parts_of_a_large_batch_are_put_together_in_order() -> None:
    costs = torch.rand(3, CACHED_CELLS // 16, 4, 4)
    solved = shortest_path(costs)
    for k in (0, -1):
        alone = shortest_path(costs[:, k])
        torch.testing.assert_close(solved.path[:, k], alone.path, rtol=0, atol=0)
        torch.testing.assert_close(solved.cost[:, k], alone.cost, rtol=0, atol=0)


@both_neighbourhoods
def test_grids_added_for_alignment_and_grids_with_steps_on_the_level_change_no_other(diagonal: bool) -> None:
    costs = torch.rand(8 * LANES + 3, 5, 4)
    costs[7] = 0
    solved = assert_optimal(costs, diagonal, 1e-5)
    for k in (0, 6, 7, -1):
        alone = shortest_path(costs[k], diagonal)
        torch.testing.assert_close(solved.path[k], alone.path, rtol=0, atol=0)
        torch.testing.assert_close(solved.cost[k], alone.cost, rtol=0, atol=0)


def test_answers_take_part_in_what_is_differentiated() -> None:
    """They are computed in inference mode, whose tensors could not be saved for a backward pass."""
    weights = torch.ones(2, 3, 3, requires_grad=True)
    solved = shortest_path(torch.rand(2, 3, 3))
    ((weights * solved.path).sum((1, 2)) * solved.cost).sum().backward()
    torch.testing.assert_close(weights.grad, solved.path * solved.cost.view(2, 1, 1))
