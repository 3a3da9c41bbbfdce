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
from torch.nn.functional import max_pool2d_with_indices


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
    # As a matrix: for these torch has a fast transposition.
    grids = exact.reshape(-1, height * width).T.contiguous().view(height, width, -1)
    distances = _distances(grids, diagonal)
    least, previous = _least_neighbour(distances, diagonal)
    # Following the least neighbour cannot go in circles where each step lowers the distance. A cost of 0, or one so
    # small that it is lost in the sum, gives steps on the level: those grids are solved with a memory of improvements.
    level = (least == distances)[1:-1, 1:-1].flatten(0, 1).any(0)
    if level.any():
        previous[:, :, level] = _predecessors(grids[:, :, level], diagonal)
    path = _follow(previous, diagonal).to(costs.dtype, memory_format=torch.contiguous_format)
    return ShortestPath(path.view(costs.shape), distances[-2, -2].to(costs.dtype).view(batch))


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


def _framed(grids: Tensor, diagonal: bool) -> Tensor:
    """Distances (H + 2, W + 2, B) before the first sweep: infinite, but 0 at the source beside the first cell."""
    height, width, batch = grids.shape
    distances = grids.new_full((height + 2, width + 2, batch), torch.inf)
    distances[_source(diagonal)] = 0
    return distances


def _source(diagonal: bool) -> tuple[int, int]:
    """The frame cell whose only neighbour in the grid is the first cell."""
    return (0, 0) if diagonal else (0, 1)


def _distances(grids: Tensor, diagonal: bool) -> Tensor:
    """Framed distances (H + 2, W + 2, B) of all cells of `grids` (H, W, B), each with its own cost and the start's."""
    height, width, _ = grids.shape
    distances = _framed(grids, diagonal)
    scratch = torch.empty_like(distances)[1:-1], torch.empty_like(grids)
    # In k sweeps a path leaves the k x k block at the start in no case: the first sweeps need not be whole.
    for k in range(1, max(height, width) + 1):
        h, w = min(k, height), min(k, width)
        block = distances[: h + 2, : w + 2]
        near = _least_around(block, (scratch[0][:h, : w + 2], scratch[1][:h, :w]), diagonal)
        torch.add(near, grids[:h, :w], out=block[1:-1, 1:-1])
    inner = distances[1:-1, 1:-1]
    while True:
        swept = _least_around(distances, scratch, diagonal).add_(grids)
        if torch.equal(swept, inner):
            return distances
        inner.copy_(swept)


def _least_around(block: Tensor, scratch: tuple[Tensor, Tensor], diagonal: bool) -> Tensor:
    """The least distance (h, w, B) among each cell's neighbours in the framed `block`, in `scratch[1]`.

    The cell itself may be among them, as no cost is negative: with 8 neighbours, the minimum over 3 x 3 cells is one
    over 3 rows and then over 3 columns.
    """
    rows, result = scratch
    torch.minimum(block[:-2], block[2:], out=rows)
    if diagonal:
        torch.minimum(rows, block[1:-1], out=rows)
        torch.minimum(rows[:, :-2], rows[:, 2:], out=result)
        return torch.minimum(result, rows[:, 1:-1], out=result)
    torch.minimum(block[1:-1, :-2], block[1:-1, 2:], out=result)
    return torch.minimum(result, rows[:, 1:-1], out=result)


def _least_neighbour(distances: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """The least distance in each cell's closed neighbourhood and its flat framed index, both (H + 2, W + 2, B)."""
    # Batch last is what pooling calls channels-last. The source is nearer than its neighbour and points to itself.
    planes = distances.neg().permute(2, 0, 1).unsqueeze(0)
    if diagonal:
        value, index = max_pool2d_with_indices(planes, (3, 3), (1, 1), (1, 1))
    else:
        value, index = max_pool2d_with_indices(planes, (3, 1), (1, 1), (1, 0))
        across, index_across = max_pool2d_with_indices(planes, (1, 3), (1, 1), (0, 1))
        index = torch.where(value >= across, index, index_across)
        value = torch.maximum(value, across)
    return value[0].permute(1, 2, 0).neg(), index[0].permute(1, 2, 0).contiguous()


def _predecessors(grids: Tensor, diagonal: bool) -> Tensor:
    """Flat framed index (H + 2, W + 2, B) of the cell from which each cell was last *strictly* improved.

    A cycle of such pointers would have one distance all along it, and each of its cells would have reached that
    distance after the next one: impossible, with rounding as well, as adding a cost never lowers a distance.
    """
    distances = _framed(grids, diagonal)
    inner = distances[1:-1, 1:-1]
    cells = torch.arange(distances[:, :, 0].numel(), device=grids.device).view(*distances.shape[:2], 1)
    previous = cells.repeat(1, 1, grids.shape[2])
    while True:
        least, index = _least_neighbour(distances, diagonal)
        swept = least[1:-1, 1:-1] + grids
        better = swept < inner
        if not better.any():
            return previous
        previous[1:-1, 1:-1] = torch.where(better, index[1:-1, 1:-1], previous[1:-1, 1:-1])
        inner.copy_(torch.where(better, swept, inner))


def _follow(previous: Tensor, diagonal: bool) -> Tensor:
    """Indicators (B, H, W) of the paths from the last cells along `previous` (H + 2, W + 2, B) to the source."""
    framed_height, framed_width, batch = previous.shape
    row, column = _source(diagonal)
    source = row * framed_width + column
    pointers = previous.flatten(0, 1)
    last = (framed_height - 2) * framed_width + framed_width - 2
    walk = [pointers.new_full((1, batch), last)]
    # No path is shorter than the longer side; from there on look whether all have arrived.
    shortest = max(framed_height, framed_width) - 2
    while len(walk) <= shortest or not bool((walk[-1] == source).all()):
        walk.append(pointers.gather(0, walk[-1]))
    visited = torch.zeros(batch, pointers.shape[0], device=previous.device).scatter_(1, torch.cat(walk).T, 1)
    return visited.view(batch, framed_height, framed_width)[:, 1:-1, 1:-1]
