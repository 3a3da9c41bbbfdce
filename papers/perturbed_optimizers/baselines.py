"""Reference points for the maps: how far one gets without learning from paths, and how far one could get.

`constant`: equal costs, hence the straight diagonal, which is never optimal on these maps.
`nearest_colour`: each cell is taken for the kind whose mean colour on the training maps is nearest.
`random_forest`: a classifier of cells by statistics of their pixels, trained on the true terrain, which no method that
learns from paths is shown: a ceiling. `true_costs`: 1 by definition, a check of solver and metric.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from papers.perturbed_optimizers.terrain import COSTS, SIDE, Maps, PathMetrics, cost_metrics
from papers.perturbed_optimizers.terrain_tiles import CELL

#: Cells that the random forest learns from, and its trees: enough to name every cell of 1,000 test maps rightly.
FOREST_CELLS, FOREST_TREES = 30_000, 60


def baselines(train: Maps, test: Maps) -> dict[str, dict[str, float]]:
    """`optimal_path_rate` and `cost_ratio` (see `PathMetrics`) of each baseline on `test`."""
    predicted = {
        "constant": torch.ones_like(test.costs),
        "nearest_colour": nearest_colour_costs(train, test),
        "random_forest": forest_costs(train, test),
        "true_costs": test.costs,
    }
    return {name: _rates(cost_metrics(costs, test)) for name, costs in predicted.items()}


def _rates(metrics: PathMetrics) -> dict[str, float]:
    return {"optimal_path_rate": metrics.optimal_path_rate, "cost_ratio": metrics.cost_ratio}


def nearest_colour_costs(train: Maps, test: Maps) -> Tensor:
    """Costs (N, 12, 12) of the kinds whose mean colours on `train` are nearest to the mean colours of the cells.

    A kind that `train` does not show is never predicted.
    """
    colours = cell_pixels(train.pixels).mean((2, 3))
    kinds = train.kinds.flatten().long()
    shown = kinds.unique()
    means = torch.stack([colours[kinds == kind].mean(0) for kind in shown])
    nearest = shown[torch.cdist(cell_pixels(test.pixels).mean((2, 3)), means).argmin(1)]
    return torch.tensor(COSTS)[nearest].view(test.costs.shape)


def forest_costs(train: Maps, test: Maps, seed: int = 0) -> Tensor:
    """Costs (N, 12, 12) of the kinds that a random forest, shown true kinds, sees in each cell."""
    cells = min(FOREST_CELLS, train.kinds.numel())
    maps = -(-cells // SIDE**2)
    forest = RandomForestClassifier(FOREST_TREES, random_state=seed)
    forest.fit(cell_statistics(train.pixels[:maps]), train.kinds[:maps].flatten().numpy())
    kinds = np.concatenate([forest.predict(cell_statistics(part)) for part in test.pixels.split(256)])
    return torch.tensor(COSTS)[torch.from_numpy(kinds).long()].view(test.costs.shape)


def cell_pixels(pixels: Tensor) -> Tensor:
    """Maps uint8 (N, 3, 96, 96) as cells, row by row: float32 (N * 144, 3, 8, 8)."""
    cells = pixels.view(-1, 3, SIDE, CELL, SIDE, CELL).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(-1, 3, CELL, CELL).float()


def cell_statistics(pixels: Tensor) -> NDArray[np.float32]:
    """(N * 144, 25): of each cell's channels the mean, the deviation and differences of neighbours, all relative.

    Dividing by the cell's or the map's brightness takes out the gains. The means of the four quarters tell where in a
    cell its terrain is drawn.
    """
    cells = cell_pixels(pixels)
    mean = cells.mean((2, 3))
    brightness = mean.mean(1, keepdim=True).clamp_min(1)
    whole = brightness.view(len(pixels), -1).mean(1, keepdim=True)
    across, down = cells.diff(dim=3).abs().mean((2, 3)), cells.diff(dim=2).abs().mean((2, 3))
    quarters = torch.nn.functional.avg_pool2d(cells, CELL // 2).flatten(1)
    parts = [mean, cells.std((2, 3)), across, down, quarters]
    relative = [part / brightness for part in parts]
    in_map = (brightness.view(len(pixels), -1) / whole).reshape(-1, 1)
    statistics: NDArray[np.float32] = torch.cat([*relative, in_map], 1).numpy()
    return statistics
