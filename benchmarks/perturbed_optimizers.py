"""Speed of the batched solver and of the perturbed layer: `python -m benchmarks.perturbed_optimizers`.

The task is that of a training step on the terrain maps: 70 maps of 12 x 12 cells with 3 noises each. The baselines
solve one grid after the other: the textbook Dijkstra with a heap, in Python, and that of scipy. All take turns, and a
turn of each takes about as long, so that they see the same machine.
"""

import argparse
import heapq
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from benchmarks.timing import entry, in_turns, seconds_of
from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.perturbed import Perturbation, draw_noise, perturb, perturbed_maximiser
from papers.perturbed_optimizers.terrain import COSTS, draw_kinds
from shared import errors, provenance
from shared.files import write_json
from shared.paths import reports, runs
from shared.solvers.shortest_path import ShortestPath, best_path, shortest_path
from shared.training.memory import keep_freed_memory

MAPS, SAMPLES, EPSILON = 70, 3, 0.01
#: Costs are clamped here where noise makes them negative, as in training.
SMALLEST_COST = 1e-3

Solve = Callable[[Tensor], ShortestPath]


def neighbour_lists(height: int, width: int) -> list[list[int]]:
    """For each cell i * width + j of a grid, the cells that one of 8 steps leads to."""
    steps = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]
    return [
        [(i + a) * width + j + b for a, b in steps if 0 <= i + a < height and 0 <= j + b < width]
        for i, j in product(range(height), range(width))
    ]


def heap_dijkstra(costs: list[float], neighbours: list[list[int]]) -> tuple[list[int], float]:
    """The cheapest path from the first cell to the last, as its cells from the end, and its cost; stops at the end."""
    distance, previous = [float("inf")] * len(costs), [-1] * len(costs)
    distance[0] = costs[0]
    queue, end = [(costs[0], 0)], len(costs) - 1
    while queue:
        so_far, cell = heapq.heappop(queue)
        if cell == end:
            break
        if so_far > distance[cell]:
            continue
        for neighbour in neighbours[cell]:
            further = so_far + costs[neighbour]
            if further < distance[neighbour]:
                distance[neighbour], previous[neighbour] = further, cell
                heapq.heappush(queue, (further, neighbour))
    return walk_back(previous, end), distance[end]


def walk_back(previous: list[int], end: int) -> list[int]:
    """The cells from `end` to that without a predecessor, which is negative."""
    path = []
    while end >= 0:
        path.append(end)
        end = previous[end]
    return path


def with_heap(height: int, width: int) -> Solve:
    """The heap's Dijkstra for grids (N, H, W), one after the other."""
    neighbours = neighbour_lists(height, width)
    return lambda costs: marked(costs, [heap_dijkstra(one, neighbours) for one in costs.flatten(1).tolist()])


def with_scipy(height: int, width: int) -> Solve:
    """Scipy's Dijkstra for grids (N, H, W), one after the other: the graph is built once, its weights are replaced."""
    neighbours = neighbour_lists(height, width)
    heads = np.concatenate([np.array(cells, dtype=np.int32) for cells in neighbours])
    starts = np.cumsum([0, *map(len, neighbours)], dtype=np.int32)
    graph = csr_array((np.ones(len(heads)), heads, starts), shape=(len(neighbours),) * 2)

    def solve_one(costs: NDArray[np.float64]) -> tuple[list[int], float]:
        graph.data[:] = costs[heads]  # a step costs what its end does
        distance, previous = dijkstra(graph, indices=0, return_predecessors=True)
        return walk_back(previous.tolist(), len(costs) - 1), float(distance[-1] + costs[0])

    return lambda costs: marked(costs, [solve_one(one) for one in costs.flatten(1).double().numpy()])


def marked(costs: Tensor, solved: list[tuple[list[int], float]]) -> ShortestPath:
    """Solutions as cells and costs, in the form of `shortest_path`."""
    path = np.zeros((len(solved), costs[0].numel()), dtype=np.float32)
    for row, (cells, _) in zip(path, solved, strict=True):
        row[cells] = 1
    return ShortestPath(torch.from_numpy(path).view(costs.shape), torch.tensor([cost for _, cost in solved]))


def maps_costs(seed: int) -> Tensor:
    """True costs (70, 12, 12) of random terrain, in units of their mean over a map."""
    kinds = torch.from_numpy(draw_kinds(MAPS, np.random.default_rng(seed)))
    costs = torch.tensor(COSTS)[kinds.long()]
    return costs / costs.mean((1, 2), keepdim=True)


def clamped(theta: Tensor) -> Tensor:
    """The solver of a training step: scores (N, 12, 12) to paths."""
    return best_path(theta.clamp(max=-SMALLEST_COST))


def assert_equal_costs(costs: Tensor, ours: ShortestPath, theirs: ShortestPath) -> None:
    """Raise AssertionError unless both have the optimal costs, and paths of these costs."""
    for cost in (ours.cost, (ours.path * costs).sum((1, 2)), (theirs.path * costs).sum((1, 2))):
        torch.testing.assert_close(cost, theirs.cost, rtol=1e-5, atol=1e-5)


def solver_entries(threads: int, rounds: int) -> list[dict[str, object]]:
    """Grids a second of the batched solver against both baselines."""
    p = Perturbation(EPSILON, SAMPLES)
    theta = -maps_costs(0)
    torch.manual_seed(0)
    costs = perturb(theta, draw_noise(theta, p), p).flatten(0, 1).neg().clamp(min=SMALLEST_COST)
    rivals = {"heap_dijkstra": with_heap(*costs.shape[1:]), "scipy": with_scipy(*costs.shape[1:])}
    for rival in rivals.values():
        assert_equal_costs(costs, shortest_path(costs), rival(costs))
    solves = [shortest_path, *rivals.values()]
    torch.set_num_threads(threads)
    seconds = in_turns([lambda solve=solve: solve(costs) for solve in solves], rounds)
    torch.set_num_threads(1)
    ours, *others = (len(costs) / statistics.median(times) for times in seconds)
    how = f"higher is better; CPU, {threads} thread(s); {MAPS} maps x {SAMPLES} noises, 12 x 12 cells, 8 neighbours"
    suffix = "" if threads == 1 else f"_{threads}_threads"
    return [
        entry(f"shortest_path_vs_{name}{suffix}", ours, other, "grids/s", ours / other, f"{how}; {rounds} rounds")
        for name, other in zip(rivals, others, strict=True)
    ]


def layer_entries(rounds: int) -> list[dict[str, object]]:
    """What the perturbed layer takes beside its solver calls, forward and backward, in units of these.

    The loss is measured with noise drawn by the call, and with noise given: there is no cheaper way to draw it.
    """
    p = Perturbation(EPSILON, SAMPLES)
    costs = maps_costs(0)
    target = shortest_path(costs).path
    theta = (-costs).requires_grad_()
    upstream = torch.rand_like(costs)
    spent = [0.0]

    def timed(scores: Tensor) -> Tensor:
        began = time.perf_counter()
        solutions = clamped(scores)
        spent[0] += time.perf_counter() - began
        return solutions

    def loss(noise: Tensor | None = None) -> None:
        theta.grad = None
        fenchel_young_loss(theta, target, timed, p, noise).mean().backward()

    def maximiser() -> None:
        theta.grad = None
        perturbed_maximiser(theta, timed, p).backward(upstream)

    noise = draw_noise(theta.detach(), p)
    works: dict[str, Callable[[], object]] = {
        "perturbed_layer_overhead": loss,
        "perturbed_layer_overhead_beside_noise": lambda: loss(noise),
        "perturbed_maximiser_overhead": maximiser,
        "perturbed_maximiser_overhead_forward": lambda: perturbed_maximiser(theta, timed, p),
    }
    entries = []
    for name, work in works.items():
        whole, solver, calls = [], [], 20
        work()
        for _ in range(rounds):
            spent[0] = 0.0
            whole.append(seconds_of(work, calls))
            solver.append(spent[0] / calls)
        ratio = statistics.median(w / s - 1 for w, s in zip(whole, solver, strict=True))
        ours, calls_ms = (1000 * statistics.median(times) for times in (whole, solver))
        passes = "forward" if name.endswith("forward") else "forward and backward"
        how = (
            f"lower is better; ours: {passes}, baseline: the solver calls in it, ratio: the rest over "
            f"these; CPU, 1 thread; {MAPS} maps x {SAMPLES} noises, 12 x 12 cells; median of {rounds} rounds"
        )
        entries.append(entry(name, ours, calls_ms, "ms", ratio, how))
    return entries


def main() -> None:
    """Measure and write `reports/perturbed_optimizers/benchmark.json`."""
    parser = argparse.ArgumentParser(description="Speed of the batched shortest paths and of the perturbed layer.")
    parser.add_argument("--preset", default="laptop")
    preset = parser.parse_args().preset
    origin = provenance.begin("benchmark", preset, None, Path(__file__))
    rounds = 3 if preset == "smoke" else 100
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the training stages
    entries = [*solver_entries(1, rounds), *solver_entries(2, rounds), *layer_entries(rounds)]
    write_json(reports("perturbed_optimizers") / "benchmark.json", entries)
    origin.finish(runs("perturbed_optimizers", preset) / "provenance" / "benchmark.json")
    for row in entries:
        print(f"{row['name']}: {row['ours']} against {row['baseline']} {row['unit']}, ratio {row['ratio']}")


if __name__ == "__main__":
    errors.run(main)
