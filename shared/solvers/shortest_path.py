"""Shortest paths on grids with costs on the cells, for many grids at once.

The distances of all cells of all grids come from Bellman-Ford sweeps: `D <- c + min over neighbours of D`, a running
minimum over shifted views, with the batch as the last, contiguous dimension so that each kernel works on long runs. A
sweep costs the same for every grid and there are about as many as the longest shortest path has cells: some 20 on
12 x 12. Dijkstra's method needs a heap and a different order for every grid, which no batch can share.

The frame around the grids is infinitely far, so that the border needs no case of its own. The start is at distance 0
and its cost, paid by every path, is added at the end.

This is the solver of the Warcraft experiment (Vlastelica et al., Differentiation of Blackbox Combinatorial Solvers,
2020; Berthet et al., Learning with Differentiable Perturbed Optimizers, 2020).
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Of all grids that are solved together: 128 KiB for each of the six float32 arrays of a sweep. Torch splits longer ones
# among threads, and waiting for a second thread takes longer than the kernel where the processors are busy.
CACHED_CELLS = 2**15
# Grids are solved in multiples of so many, if there are many: 64 bytes of float32, so that all operands are aligned.
LANES = 16


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
    part -= part % LANES if part > LANES else 0
    with torch.inference_mode():  # a tenth faster
        solved = [_solve(grids, diagonal) for grids in exact.reshape(-1, height, width).split(part)]
    path, cost = (torch.cat(parts).to(costs.dtype) for parts in zip(*solved, strict=True))
    return ShortestPath(path.view(costs.shape), cost.view(batch))


def _solve(grids: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Indicators (B, H, W) and costs (B,) of checked `grids` (B, H, W)."""
    sweeps = _Sweeps(grids, diagonal)
    sweeps.settle()
    path, arrived = _follow(sweeps.nearest(), *grids.shape[1:])
    # Following the nearest neighbour cannot go in circles where each step lowers the distance. A cost of 0, or one so
    # small that it is lost in the sum, gives steps on the level: who is caught there is solved with a memory.
    if not arrived.all():
        lost = ~arrived
        path[lost] = _follow(_predecessors(grids[lost], diagonal), *grids.shape[1:])[0]
    return path, sweeps.inner[-1, -1, : len(grids)] + grids[:, 0, 0]


def _refuse_bad(costs: Tensor) -> None:
    """Raise for the first cost that is negative, NaN, or large enough for a sum over all cells to overflow."""
    most = torch.finfo(costs.dtype).max / (costs.shape[-2] * costs.shape[-1])
    if costs.amin().item() >= 0 and costs.amax().item() <= most:  # both are NaN if there is one
        return
    *instance, row, column = ((costs >= 0) & (costs <= most)).logical_not_().nonzero()[0].tolist()
    value = costs[(*instance, row, column)].item()
    where = f"of instance {tuple(instance)} " if instance else ""
    raise ValueError(f"the cost {where}at row {row}, column {column} is {value}: it has to be in [0, {most:.3g}]")


class _Sweeps:
    """Distances of the cells of `grids` (B, H, W), with the views and buffers of a sweep, made once.

    All arrays are (H, W, N), with N - B grids of cost 0 added for alignment: it saves a seventh of the time.

    The kernels take 2-3 us each at 210 grids of 12 x 12, no longer than making a few views. Comparisons are written as
    0 or 1 into floating-point buffers: those to bool are not vectorised and take five times as long.
    """

    def __init__(self, grids: Tensor, diagonal: bool) -> None:
        batch, height, width = grids.shape
        self.diagonal = diagonal and width > 1  # which is the same in one column, where there are no pairs
        self.batch = batch
        lanes = batch + (-batch % LANES if batch > 8 * LANES else 0)
        self.costs = grids.new_zeros(height, width, lanes)
        self.costs[:, :, :batch] = grids.permute(1, 2, 0)
        framed = grids.new_empty(height + 2, width, lanes)
        self.up, self.inner, self.down = (framed[i : i + height] for i in range(3))
        for part in (framed[0], self.inner, framed[-1]):
            part.fill_(torch.inf)
        self.rows, self.least, self.earlier = (torch.empty_like(self.costs) for _ in range(3))
        # The minimum over columns is one over the rows' minima with 8 neighbours, over the distances with 4: first of
        # each two cells side by side, then of two such pairs.
        across = self.rows if self.diagonal else self.inner
        self.left, self.right = across[:, :-1], across[:, 1:]
        pairs = grids.new_empty(height, width + 1, lanes)
        pairs[:, 0] = pairs[:, -1] = torch.inf
        self.pairs, self.pair_before, self.pair_after = pairs[:, 1:-1], pairs[:, :-1], pairs[:, 1:]
        # The start is beside a place of distance 0, and is entered for nothing.
        self.costs[0, 0] = self.inner[0, 0] = pairs[0, 0] = 0

    def look_around(self, out: Tensor) -> Tensor:
        """The least distance (H, W, N) among each cell and its neighbours, as a minimum over rows, then over columns.

        The cell itself does not matter, as no cost is negative.
        """
        torch.minimum(self.up, self.down, out=self.rows)
        if self.diagonal:
            torch.minimum(self.rows, self.inner, out=self.rows)
        torch.minimum(self.left, self.right, out=self.pairs)
        torch.minimum(self.pair_before, self.pair_after, out=out)
        return out if self.diagonal else torch.minimum(out, self.rows, out=out)

    def settle(self) -> None:
        """Sweep until nothing changes: after as many sweeps as the longest shortest path has cells."""
        height, width, _ = self.costs.shape
        # Nothing is settled before the far end is reached. From there on look at every other sweep.
        for _ in range(max(height, width) - 1):
            torch.add(self.look_around(self.least), self.costs, out=self.inner)
        for _ in range(height * width):  # more than enough: no path has more cells
            torch.add(self.look_around(self.earlier), self.costs, out=self.inner)
            self.look_around(self.least)
            if torch.eq(self.least, self.earlier, out=self.earlier).amin().item() == 1:
                return
            torch.add(self.least, self.costs, out=self.inner)

    def nearest(self) -> Tensor:
        """Number i * W + j (H * W, B), int64, of the neighbour whose distance is in `least`, one of several.

        That of the start is its own. First the row is found, in each column, then the column.
        """
        height, width, _ = self.rows.shape
        own = torch.arange(height * width, dtype=self.rows.dtype, device=self.rows.device).view(height, width, 1)
        # Weights 0 and 1 make of the interpolation a selection, and floating-point numbers hold such numbers exactly.
        hit = torch.empty_like(self.rows)
        found = torch.eq(self.up, self.rows, out=hit) * -width
        found.lerp_(found.new_full((), width), torch.eq(self.down, self.rows, out=hit)).add_(own)
        across = found.clone() if self.diagonal else own
        hit = hit[:, 1:]
        found[:, 1:].lerp_(across[:, :-1], torch.eq(self.left, self.least[:, 1:], out=hit))
        found[:, :-1].lerp_(across[:, 1:], torch.eq(self.right, self.least[:, :-1], out=hit))
        found[0, 0] = 0
        numbers: Tensor = found[:, :, : self.batch].int().long()  # faster than at once
        return numbers.view(height * width, self.batch)


def _predecessors(grids: Tensor, diagonal: bool) -> Tensor:
    """Number (H * W, B) of the cell from which each cell of `grids` (B, H, W) was last *strictly* improved.

    A cycle of such pointers would have one distance all along it, and each of its cells would have reached that
    distance after the next one: impossible, with rounding as well, as adding a cost never lowers a distance.
    """
    sweeps = _Sweeps(grids, diagonal)
    previous = grids.new_zeros(grids[0].numel(), len(grids), dtype=torch.int64)
    while True:
        swept = sweeps.look_around(sweeps.least) + sweeps.costs
        better = swept < sweeps.inner
        if not better.any():
            return previous
        better = better[:, :, : sweeps.batch].reshape(previous.shape)
        previous = torch.where(better, sweeps.nearest(), previous)
        torch.minimum(sweeps.inner, swept, out=sweeps.inner)


def _follow(previous: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Indicators (B, H, W) of the paths from the last cells along `previous` (H * W, B), and which end at 0, (B,)."""
    cells, batch = previous.shape
    walk = [previous.new_full((1, batch), cells - 1)]
    # No path is shorter than the longer side; from there on look now and then whether all have arrived. Who has stays.
    while len(walk) < cells:
        walk.append(previous.gather(0, walk[-1]))
        if len(walk) >= max(height, width) and len(walk) % 4 == 0 and not walk[-1].any():
            break
    path = torch.zeros(batch, cells, device=previous.device).scatter_(1, torch.cat(walk).T, 1)
    return path.view(batch, height, width), walk[-1][0] == 0
