"""Shortest paths on grids with costs on the cells, for many grids at once.

The distances of all cells of all grids come from Bellman-Ford sweeps: `D <- c + min over neighbours of D`, a running
minimum over shifted views, with the batch as the last, contiguous dimension so that each kernel works on long runs. A
sweep costs the same for every grid and there are about as many as the longest shortest path has cells: some 20 on
12 x 12. Dijkstra's method needs a heap and a different order for every grid, which no batch can share.

The frame around the grids is infinitely far, with one exception: a source of distance 0 that touches the first cell
and no other. Paths end there, so that neither the start nor the border needs a case of its own.

This is the solver of the Warcraft experiment (Vlastelica et al., Differentiation of Blackbox Combinatorial Solvers,
2020; Berthet et al., Learning with Differentiable Perturbed Optimizers, 2020).
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Of all grids that are solved together: 128 KiB for each of the five float32 arrays of a sweep.
CACHED_CELLS = 2**15


class ShortestPath(NamedTuple):
    """Optimal paths: `path` (..., H, W), 1 on visited cells and 0 elsewhere, and `cost` (...), their total costs."""

    path: Tensor
    cost: Tensor


def best_path(theta: Tensor, diagonal: bool = True) -> Tensor:
    """The maximiser of `<theta, y>` over path indicators `y`: `shortest_path(-theta).path`, shape (..., H, W).

    Raises:
        ValueError: as `shortest_path`; every `theta` has to be 0 or less.
    """
    return shortest_path(-theta, diagonal).path


@torch.no_grad()
def shortest_path(costs: Tensor, diagonal: bool = True) -> ShortestPath:
    """The cheapest path from the upper left to the lower right cell of each grid; start and end are paid as well.

    Costs must not be negative: a cycle of negative cost leaves no shortest path. Noise added to costs can make them so;
    the caller then clamps at a small positive floor, which biases the smallest costs, or multiplies the costs by
    positive noise such as `exp(eps * z - eps**2 / 2)`, whose estimators are scaled otherwise (by `1 / (eps * c)`).

    Args:
        costs: (..., H, W) with any leading dimensions, in the unit of the answer. Half precision is summed in float32.
        diagonal: a step goes to any of 8 neighbours; False: to 4.

    Returns:
        Indicators and costs in the dtype and on the device of the input, without gradient. Each path is simple, with
        zero costs too, and optimal up to the rounding of its sum. Of several optimal paths one is returned, the same
        in any batch.

    Raises:
        ValueError: no H x W grid, no floating-point numbers, or a cost that is negative, not a number or so large
            that a path's cost could overflow; the message names the first one.
    """
    if costs.ndim < 2 or 0 in costs.shape[-2:]:
        raise ValueError(f"costs have the shape (..., H, W) with H, W >= 1, got {tuple(costs.shape)}")
    if not costs.is_floating_point():
        raise ValueError(f"costs are floating-point numbers, got {costs.dtype}")
    *batch, height, width = costs.shape
    exact = costs.double() if costs.dtype == torch.float64 else costs.float()
    if costs.numel() == 0:
        return ShortestPath(torch.zeros_like(costs), costs.new_zeros(batch))
    _refuse_bad(costs)
    # On a CPU the sweeps of a part have to stay in the cache; a GPU wants few and large kernels.
    part = max(1, CACHED_CELLS // (height * width)) if costs.device.type == "cpu" else costs.numel()
    solved = [_solve(grids, diagonal) for grids in exact.reshape(-1, height, width).split(part)]
    path, cost = (torch.cat(parts).to(costs.dtype) for parts in zip(*solved, strict=True))
    return ShortestPath(path.view(costs.shape), cost.view(batch))


def _solve(grids: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Indicators (B, H, W) and costs (B,) of checked `grids` (B, H, W)."""
    batch, height, width = grids.shape
    # As a matrix: for these torch has a fast transposition.
    grids = grids.reshape(batch, -1).T.contiguous().view(height, width, batch)
    sweeps = _Sweeps(grids, diagonal)
    sweeps.settle()
    sweeps.look_around()
    previous = sweeps.nearest()
    # Following the nearest neighbour cannot go in circles where each step lowers the distance. A cost of 0, or one so
    # small that it is lost in the sum, gives steps on the level: those grids are solved with a memory of improvements.
    level = torch.eq(sweeps.least, sweeps.inner, out=sweeps.hit).flatten(0, 1).amax(0) == 1
    if level.any():
        previous[:, :, level] = _predecessors(grids[:, :, level], diagonal)
    return _follow(previous, diagonal).contiguous(), sweeps.inner[-1, -1]


def _refuse_bad(costs: Tensor) -> None:
    """Raise for the first cost that is negative, NaN, or large enough for a sum over all cells to overflow."""
    most = torch.finfo(costs.dtype).max / (costs.shape[-2] * costs.shape[-1])
    low, high = costs.aminmax()  # NaN if there is one
    if low >= 0 and high <= most:
        return
    *instance, row, column = ((costs >= 0) & (costs <= most)).logical_not_().nonzero()[0].tolist()
    value = costs[(*instance, row, column)].item()
    where = f"of instance {tuple(instance)} " if instance else ""
    raise ValueError(f"the cost {where}at row {row}, column {column} is {value}: it has to be in [0, {most:.3g}]")


class _Sweeps:
    """Framed distances (H + 2, W + 2, B) of `grids` (H, W, B), with the views and buffers of a sweep, made once.

    The kernels take 2-3 us each at 210 grids of 12 x 12, no longer than making a few views. Comparisons are written as
    0 or 1 into floating-point buffers: those to bool are not vectorised and take five times as long.
    """

    def __init__(self, grids: Tensor, diagonal: bool) -> None:
        self.grids, self.diagonal = grids, diagonal
        height, width, batch = grids.shape
        self.distances = grids.new_full((height + 2, width + 2, batch), torch.inf)
        self.distances[_source(diagonal)] = 0
        self.inner = self.distances[1:-1, 1:-1]
        self.least, self.hit = torch.empty_like(grids), torch.empty_like(grids)
        self.up, self.middle, self.down = (self.distances[i : i + height] for i in range(3))
        # The minimum over columns is one over the rows' minima with 8 neighbours, over the cells beside with 4.
        self.rows = torch.empty_like(self.middle)
        across = self.rows if diagonal else self.middle
        self.left, self.right = across[:, :-2], across[:, 2:]
        self.centre = self.rows[:, 1:-1]

    def look_around(self) -> Tensor:
        """The least distance (H, W, B) among each cell's neighbours, in `least`; with 8, the cell itself included.

        That one does not matter, as no cost is negative: 3 x 3 cells are a minimum over 3 rows, then over 3 columns.
        """
        torch.minimum(self.up, self.down, out=self.rows)
        if self.diagonal:
            torch.minimum(self.rows, self.middle, out=self.rows)
        torch.minimum(self.left, self.right, out=self.least)
        return torch.minimum(self.least, self.centre, out=self.least)

    def settle(self) -> None:
        """Sweep until nothing changes: after as many sweeps as the longest shortest path has cells."""
        # Nothing is settled before the far end is reached. From there on look at every other sweep.
        for _ in range(max(self.grids.shape[:2])):
            torch.add(self.look_around(), self.grids, out=self.inner)
        while True:
            torch.add(self.look_around(), self.grids, out=self.inner)
            self.look_around().add_(self.grids)
            if torch.eq(self.least, self.inner, out=self.hit).amin().item() == 1:
                return
            self.inner.copy_(self.least)

    def nearest(self) -> Tensor:
        """Flat framed index (H, W, B), int64, of the neighbour whose distance is in `least`, one of several."""
        framed_width = self.distances.shape[1]
        step = torch.zeros_like(self.least)
        steps = _steps(self.diagonal)
        offsets = step.new_tensor([i * framed_width + j for i, j in steps])
        for (i, j), offset in zip(steps, offsets, strict=True):
            view = self.distances[1 + i : 1 + i + step.shape[0], 1 + j : 1 + j + step.shape[1]]
            # Weights 0 and 1 make of the interpolation a selection; floating-point numbers hold such steps exactly.
            step.lerp_(offset, torch.eq(view, self.least, out=self.hit))
        framed = torch.arange(self.distances[:, :, 0].numel(), device=step.device).view(-1, framed_width, 1)
        return step.long().add_(framed[1:-1, 1:-1])


def _source(diagonal: bool) -> tuple[int, int]:
    """The frame cell whose only neighbour in the grid is the first cell."""
    return (0, 0) if diagonal else (0, 1)


def _steps(diagonal: bool) -> list[tuple[int, int]]:
    """The 8 or 4 steps to a neighbour, in rows and columns."""
    return [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i or j) and (diagonal or not (i and j))]


def _predecessors(grids: Tensor, diagonal: bool) -> Tensor:
    """Flat framed index (H, W, B) of the cell from which each cell was last *strictly* improved.

    A cycle of such pointers would have one distance all along it, and each of its cells would have reached that
    distance after the next one: impossible, with rounding as well, as adding a cost never lowers a distance.
    """
    sweeps = _Sweeps(grids, diagonal)
    previous = torch.zeros_like(grids, dtype=torch.int64)
    while True:
        swept = sweeps.look_around() + grids
        better = swept < sweeps.inner
        if not better.any():
            return previous
        previous = torch.where(better, sweeps.nearest(), previous)
        torch.minimum(sweeps.inner, swept, out=sweeps.inner)


def _follow(previous: Tensor, diagonal: bool) -> Tensor:
    """Indicators (B, H, W) of the paths from the last cells along `previous` (H, W, B), framed indices."""
    height, width, batch = previous.shape
    row, column = _source(diagonal)
    source = row * (width + 2) + column
    # The frame points to the source, and so does the source itself: who has arrived stays.
    pointers = previous.new_full((height + 2, width + 2, batch), source)
    pointers[1:-1, 1:-1] = previous
    pointers = pointers.flatten(0, 1)
    walk = [pointers.new_full((1, batch), height * (width + 2) + width)]
    # No path is shorter than the longer side; from there on look now and then whether all have arrived.
    while len(walk) <= max(height, width) or len(walk) % 4 or not bool((walk[-1] == source).all()):
        walk.append(pointers.gather(0, walk[-1]))
    visited = torch.zeros(batch, pointers.shape[0], device=previous.device).scatter_(1, torch.cat(walk).T, 1)
    return visited.view(batch, height + 2, width + 2)[:, 1:-1, 1:-1]
