"""The baselines of the benchmark solve the same task, and its measurements measure what they say."""

import pytest
import torch

from benchmarks.perturbed_optimizers import (
    MAPS,
    assert_equal_costs,
    layer_entries,
    maps_costs,
    neighbour_lists,
    solver_entries,
    with_heap,
    with_scipy,
)
from shared.solvers.shortest_path import ShortestPath, shortest_path
from tests.shared.solvers.grids import heap_dijkstra, is_path


@pytest.mark.parametrize("baseline", [with_heap, with_scipy])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3), (12, 12)])
def test_baselines_find_optimal_paths(baseline, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    costs = torch.rand(5, *size) + 0.1
    solved = baseline(*size)(costs)
    assert solved.path.shape == costs.shape
    assert all(is_path(path) for path in solved.path)
    expected = torch.tensor([heap_dijkstra(one) for one in costs])
    torch.testing.assert_close(solved.cost, expected)
    assert_equal_costs(costs, shortest_path(costs), solved)


def test_neighbours_of_a_corner_and_of_the_middle() -> None:
    lists = neighbour_lists(3, 4)
    assert lists[0] == [1, 4, 5]
    assert lists[5] == [0, 1, 2, 4, 6, 8, 9, 10]


def test_another_path_is_noticed() -> None:
    costs = torch.tensor([[[1.0, 9], [1, 1]]])
    wrong = ShortestPath(torch.ones(1, 2, 2), torch.tensor([2.0]))
    assert_equal_costs(costs, shortest_path(costs), shortest_path(costs))
    with pytest.raises(AssertionError):
        assert_equal_costs(costs, wrong, shortest_path(costs))
    with pytest.raises(AssertionError):
        assert_equal_costs(costs, shortest_path(costs), wrong)


def test_costs_are_those_of_terrain_in_units_of_their_mean() -> None:
    costs = maps_costs(0)
    assert costs.shape == (MAPS, 12, 12)
    torch.testing.assert_close(costs.mean((1, 2)), torch.ones(MAPS))
    assert max(len(one.unique()) for one in costs) <= 5


def test_entries_are_complete_and_consistent() -> None:
    entries = [*solver_entries(1, 1), *layer_entries(1)]
    assert [row["name"] for row in entries] == [
        "shortest_path_vs_heap_dijkstra",
        "shortest_path_vs_scipy",
        "perturbed_layer_overhead",
        "perturbed_layer_overhead_beside_noise",
        "perturbed_maximiser_overhead",
        "perturbed_maximiser_overhead_forward",
    ]
    for row in entries:
        ours, baseline, ratio = (float(row[key]) for key in ("ours", "baseline", "ratio"))  # type: ignore[arg-type]
        assert ours > 0
        assert baseline > 0
        expected = ours / baseline - (1 if row["unit"] == "ms" else 0)
        assert ratio == pytest.approx(expected, rel=1e-3, abs=1e-3)
