"""Independent answers about paths on grids: heap Dijkstra, scipy, brute force, and what makes a set of cells a path."""

import heapq
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

Cell = tuple[int, int]


def neighbours(cell: Cell, shape: tuple[int, ...], diagonal: bool) -> list[Cell]:
    """The cells one step away."""
    around = itertools.product((-1, 0, 1), repeat=2)
    steps = [s for s in around if s != (0, 0) and (diagonal or 0 in s)]
    cells = [(cell[0] + i, cell[1] + j) for i, j in steps]
    return [(i, j) for i, j in cells if 0 <= i < shape[0] and 0 <= j < shape[1]]


def heap_dijkstra(costs: Tensor, diagonal: bool = True) -> float:
    """Cost of the cheapest path of one grid (H, W), start and end included, in Python's floats."""
    rows = costs.tolist()
    shape = tuple(costs.shape)
    best = {(0, 0): rows[0][0]}
    queue, done = [(rows[0][0], (0, 0))], set()
    while queue:
        distance, cell = heapq.heappop(queue)
        if cell in done:
            continue
        done.add(cell)
        for i, j in neighbours(cell, shape, diagonal):
            further = distance + rows[i][j]
            if further < best.get((i, j), np.inf):
                best[i, j] = further
                heapq.heappush(queue, (further, (i, j)))
    return float(best[shape[0] - 1, shape[1] - 1])


def scipy_dijkstra(costs: Tensor, diagonal: bool = True) -> float:
    """The same by scipy; an edge weighs what its head costs. Costs are positive: scipy drops edges of weight 0."""
    flat, shape = costs.double().numpy(), tuple(costs.shape)
    edges = [
        (i * shape[1] + j, r * shape[1] + s, flat[r, s])
        for i, j in np.ndindex(*shape)
        for r, s in neighbours((i, j), shape, diagonal)
    ]
    tails, heads, weights = (np.array(x) for x in zip(*edges, strict=True)) if edges else (np.empty(0),) * 3
    graph = coo_array((weights, (tails.astype(int), heads.astype(int))), shape=(flat.size, flat.size)).tocsr()
    return float(dijkstra(graph, indices=0)[-1] + flat[0, 0])


def simple_paths(shape: tuple[int, int], diagonal: bool) -> Iterator[list[Cell]]:
    """Every path without repetition from the upper left to the lower right cell."""
    end = (shape[0] - 1, shape[1] - 1)
    stack: list[list[Cell]] = [[(0, 0)]]
    while stack:
        path = stack.pop()
        if path[-1] == end:
            yield path
            continue
        stack += [[*path, cell] for cell in neighbours(path[-1], shape, diagonal) if cell not in path]


def is_path(indicator: Tensor, diagonal: bool = True) -> bool:
    """Whether the cells with 1, all of them and each once, are a walk from corner to corner; all others hold 0."""
    shape = tuple(indicator.shape)
    marked = {(int(i), int(j)) for i, j in indicator.nonzero().tolist()}
    if not ((indicator == 0) | (indicator == 1)).all() or (0, 0) not in marked:
        return False
    stack: list[list[Cell]] = [[(0, 0)]]
    while stack:
        path = stack.pop()
        if path[-1] == (shape[0] - 1, shape[1] - 1) and len(path) == len(marked):
            return True
        stack += [[*path, x] for x in neighbours(path[-1], shape, diagonal) if x in marked and x not in path]
    return False


def terrain(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Grids of five costs as in the Warcraft maps: full of ties."""
    return torch.tensor([0.8, 1.2, 5.3, 7.7, 9.2], dtype=dtype)[torch.randint(5, shape)]
