"""Maps of 12 x 12 cells with five kinds of terrain and their cheapest paths (the Warcraft experiment).

The published maps are those of Vlastelica et al. (2020). Here maps are drawn at run time from real tile art, with the
published costs of the kinds: each kind has a smooth random field, a cell is of the kind whose field is highest, and
its tile follows from its true neighbours. Brightness varies between maps and between cells, and pixels are noisy. The
labels are exact: the cheapest path from the upper left to the lower right cell, with 8 neighbours, start and end paid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from papers.perturbed_optimizers.terrain_tiles import CELL, EAST, KINDS, NORTH, SOUTH, WEST, load_tiles
from shared.errors import UserError
from shared.paths import DATA
from shared.solvers.shortest_path import shortest_path

Split = Literal["train", "validation", "test"]

#: Cells along one side of a map.
SIDE = 12
#: The published cost of a step onto a cell of each kind, in the order of `KINDS`.
COSTS = (0.8, 1.2, 5.3, 7.7, 9.2)
#: Standard deviations of the relative brightness of a map and of a cell, and of a pixel's noise, in grey levels.
MAP_GAIN, CELL_GAIN, PIXEL_NOISE = 0.12, 0.08, 10.0
#: The fields are smoothed by Gaussians of a width drawn uniformly between these, in cells, one width a map.
SMOOTHING_CELLS = (0.5, 1.6)
#: Standard deviation of a kind's preference in a map, in standard deviations of its field.
PREFERENCE = 0.4
#: Largest random addition to a cell's cost that chooses one of several optimal paths for the label. Costs of paths
#: differ by 0.1 or not at all, so that 144 such additions never make another path the cheapest.
TIE_BREAK = 1e-6
#: Two paths cost the same if they differ by less: far below the step of 0.1, far above the rounding of float32.
COST_TOLERANCE = 0.01

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Candidates drawn together. Which map comes i-th depends on this number, as do all results.
_BLOCK = 256


@dataclass(frozen=True)
class Maps:
    """N maps with their labels, tensors on the CPU.

    `pixels` uint8 (N, 3, 96, 96), RGB; `kinds` uint8 (N, 12, 12), indices into `COSTS`; `costs` float32 (N, 12, 12);
    `paths` float32 (N, 12, 12), 1 on the cells of one optimal path; `optimal_cost` float32 (N,).
    """

    pixels: Tensor
    kinds: Tensor
    costs: Tensor
    paths: Tensor
    optimal_cost: Tensor


def draw_maps(count: int, seed: int, split: Split, folder: Path = DATA, allow_sample: bool = False) -> Maps:
    """The first `count` maps of a split, a pure function of the tiles, `seed` and `split`.

    Map i does not depend on `count`: more maps extend fewer. Splits and seeds have random numbers of their own. Maps on
    which the straight diagonal is optimal are left out, for on these equal costs, or none, give the right answer.

    Args:
        count: maps, 1 or more.
        seed: 0 or more.
        split: "train", "validation" or "test".
        folder: what stands for `data/`.
        allow_sample: accept the tests' stand-in for the tiles.

    Raises:
        UserError: a number or the split is not as above, or the tiles are missing, damaged or an unwanted sample.
    """
    if split not in _SPLITS:
        raise UserError(f"unknown split {split!r} of the terrain maps: choose {', '.join(_SPLITS)}")
    if count < 1 or seed < 0:
        raise UserError(f"terrain maps: {count} maps of seed {seed} were asked for; give 1 or more, and a seed >= 0")
    tiles = load_tiles(folder, allow_sample)
    pixels = np.empty((count, 3, SIDE * CELL, SIDE * CELL), dtype=np.uint8)
    labels: list[tuple[Tensor, ...]] = []
    done = 0
    while done < count:
        rng = np.random.default_rng([seed, _SPLITS.index(split), len(labels)])
        kinds, costs, paths, optimal = _solved_maps(rng)
        used = min(count - done, len(kinds))
        for start in range(0, used, 32):  # a part's pixels in float32 stay in the cache
            part = kinds[start : min(start + 32, used)].numpy()
            pixels[done + start : done + start + len(part)] = draw_pixels(part, tiles, rng)
        labels.append((kinds[:used], costs[:used], paths[:used], optimal[:used]))
        done += used
    return Maps(torch.from_numpy(pixels), *(torch.cat(parts) for parts in zip(*labels, strict=True)))


def _solved_maps(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kinds, costs, paths and optimal costs of those maps of one block whose optimum is not the straight diagonal."""
    kinds = torch.from_numpy(draw_kinds(_BLOCK, rng))
    costs = torch.tensor(COSTS, dtype=torch.float64)[kinds.long()]
    ties = torch.from_numpy(rng.uniform(0, TIE_BREAK, costs.shape))
    paths = shortest_path(costs + ties).path
    optimal = (paths * costs).sum((1, 2))
    straight = costs.diagonal(dim1=1, dim2=2).sum(1)
    kept = straight > optimal + COST_TOLERANCE
    return kinds[kept], costs[kept].float(), paths[kept].float(), optimal[kept].float()


def draw_kinds(count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random terrain: uint8 (count, 12, 12), indices into `COSTS`.

    Each kind has a Gaussian field, smoothed by the width of the map and scaled to variance 1 in every cell, and a
    preference of the map; the highest sum wins. Widths and preferences make maps of large and small, many and few
    patches.
    """
    width = rng.uniform(*SMOOTHING_CELLS, size=(count, 1, 1))
    steps = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    smoothing = np.exp(-0.5 * (steps / width) ** 2)
    smoothing /= np.linalg.norm(smoothing, axis=2, keepdims=True)
    white = rng.standard_normal((count, len(KINDS), SIDE, SIDE))
    fields = smoothing[:, None] @ white @ smoothing[:, None].swapaxes(2, 3)
    preference = PREFERENCE * rng.standard_normal((count, len(KINDS), 1, 1))
    kinds: NDArray[np.uint8] = (fields + preference).argmax(axis=1).astype(np.uint8)
    return kinds


def like_neighbours(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The index of each cell's tile: the sum of NORTH, EAST, SOUTH, WEST where that neighbour is of the same kind.

    Terrain goes on beyond the edge of a map: a neighbour outside counts as the same. Shapes (N, H, W), both.
    """
    framed = np.pad(kinds, ((0, 0), (1, 1), (1, 1)), mode="edge")
    sides = {
        NORTH: framed[:, :-2, 1:-1],
        EAST: framed[:, 1:-1, 2:],
        SOUTH: framed[:, 2:, 1:-1],
        WEST: framed[:, 1:-1, :-2],
    }
    flags = np.zeros_like(kinds)
    for bit, side in sides.items():
        flags |= np.where(side == kinds, np.uint8(bit), np.uint8(0))
    return flags


def draw_pixels(kinds: NDArray[np.uint8], tiles: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures of maps: uint8 (N, 3, 96, 96) from kinds (N, 12, 12) and tiles (5, 16, 3, 8, 8).

    The random numbers of a map are drawn together, so that the first maps do not depend on how many follow.
    """
    count, height, width = kinds.shape
    pixels = tiles[kinds, like_neighbours(kinds)]  # (N, 12, 12, 3, 8, 8)
    noise = np.empty((count, height * width * (1 + 3 * CELL * CELL) + 1), dtype=np.float32)
    rng.standard_normal(out=noise, dtype=np.float32)
    gain = 1 + MAP_GAIN * noise[:, 0, None]
    gain = gain * (1 + CELL_GAIN * noise[:, 1 : height * width + 1])
    pixels *= gain.reshape(count, height, width, 1, 1, 1)
    pixels += PIXEL_NOISE * noise[:, height * width + 1 :].reshape(pixels.shape)
    np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels)
    by_rows = pixels.astype(np.uint8).transpose(0, 3, 1, 4, 2, 5)  # (N, 3, 12, 8, 12, 8)
    return by_rows.reshape(count, 3, height * CELL, width * CELL)


@dataclass(frozen=True)
class PathMetrics:
    """How good predicted paths are under the true costs: means over the maps, and the values of each map, (N,).

    `optimal_path_rate`: share of maps whose predicted path costs the optimum, up to `COST_TOLERANCE`; the official
    metric. `cost_ratio`: mean of optimal cost / predicted cost, at most 1. `exact_match_rate`: share of maps whose
    predicted path is the labelled one; there are mostly several optimal paths, so that it stays below 1. A prediction
    that does not lead from corner to corner counts as not optimal, with ratio 0.
    """

    optimal_path_rate: float
    cost_ratio: float
    exact_match_rate: float
    optimal: Tensor
    ratio: Tensor
    exact: Tensor
    valid: Tensor


def path_metrics(paths: Tensor, maps: Maps) -> PathMetrics:
    """Compare predicted paths, indicators (N, 12, 12) of any dtype and device, with the optima of `maps`.

    Raises:
        ValueError: another shape than that of `maps.paths`, or values other than 0 and 1.
    """
    if paths.shape != maps.paths.shape:
        raise ValueError(f"predicted paths have the shape {tuple(paths.shape)}, the maps {tuple(maps.paths.shape)}")
    paths = paths.detach().to("cpu", torch.float64)
    if not ((paths == 0) | (paths == 1)).all():
        raise ValueError("predicted paths are indicators, 0 or 1: solve for the predicted costs first")
    # Leaving the predicted cells is made to cost more than visiting all of them.
    valid = shortest_path(torch.where(paths == 1, 1.0, float(paths[0].numel() + 1))).cost <= paths[0].numel()
    predicted = (paths * maps.costs.double()).sum((1, 2))
    best = maps.optimal_cost.double()
    optimal = valid & (predicted <= best + COST_TOLERANCE)
    # Exactly 1 for an optimal path, which rounding could put above or below.
    ratio = torch.where(optimal, 1.0, torch.where(valid, best / predicted, 0.0))
    exact = (paths == maps.paths).flatten(1).all(1)
    rates = [each.double().mean().item() for each in (optimal, ratio, exact)]
    return PathMetrics(rates[0], rates[1], rates[2], optimal, ratio, exact, valid)


def cost_metrics(costs: Tensor, maps: Maps) -> PathMetrics:
    """`path_metrics` of the cheapest paths for predicted costs (N, 12, 12), which have to be 0 or more.

    Raises:
        ValueError: a cost is negative or not a number, or another shape.
    """
    return path_metrics(shortest_path(costs.detach()).path, maps)
