"""Pictures of test maps: true costs, the optimal and the predicted paths on them, and the learnt costs.

`Arrays` is what `evaluate` keeps of its first test maps: `true_costs`, `paths` and one array of learnt costs for each
arm, (N, 12, 12), and `pixels` uint8 (N, 3, 96, 96). The tile art in the pixels may not be passed on under the
project's licence; what is drawn on it is written to a place of its own, which git does not keep.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from papers.perturbed_optimizers.figures import TERRAIN
from shared.report.style import new_figure, save
from shared.solvers.shortest_path import shortest_path

Arrays = Mapping[str, NDArray[Any]]

#: Maps in a figure.
SHOWN = 4
#: Arms whose paths are drawn: dashes and width, so that one remains visible under another.
DRAWN: dict[str, tuple[Any, float]] = {"fenchel_young": ("-", 3.0), "squared": ((0, (1, 1)), 3.0)}
#: Costs in units of the mean, true and learnt, are drawn in these colours up to this cost: lightness tells their order.
COLOUR_MAP, LARGEST = "YlOrBr", 2.6


def draw(folder: Path, pictures: Path, arrays: Arrays) -> None:
    """The figure in flat colours and the index's picture into `folder`, the one with tiles into `pictures`."""
    if "fenchel_young" not in arrays:
        return
    example_maps(folder / "example_maps.png", arrays, tiles=False)
    example_maps(pictures / "maps.png", arrays, tiles=True)
    gallery(folder, arrays)


def ordered(path: NDArray[Any]) -> NDArray[np.int64]:
    """The cells (L, 2) of a path indicator (H, W), row and column, from the upper left to the lower right corner.

    A cheapest path for positive costs has no two cells side by side that do not follow each other, so that each step
    leads to the one neighbour that was not visited yet.

    Raises:
        ValueError: the indicator does not lead from corner to corner in this way.
    """
    left = {(int(i), int(j)) for i, j in np.argwhere(path > 0)}
    end = (path.shape[0] - 1, path.shape[1] - 1)
    walk = [(0, 0)]
    left.discard((0, 0))
    while left:
        near = [cell for cell in left if max(abs(cell[0] - walk[-1][0]), abs(cell[1] - walk[-1][1])) == 1]
        if len(near) != 1:
            raise ValueError("the indicator is no simple path")
        walk.append(near[0])
        left.discard(near[0])
    if walk[-1] != end or path[0, 0] <= 0:
        raise ValueError("the indicator does not lead from corner to corner")
    return np.array(walk)


def solved(costs: NDArray[Any]) -> NDArray[Any]:
    """Indicators of the cheapest paths for costs (N, 12, 12)."""
    found: NDArray[Any] = shortest_path(torch.from_numpy(np.ascontiguousarray(costs))).path.numpy()
    return found


def example_maps(path: Path, arrays: Arrays, tiles: bool) -> None:
    """A column a map: above, the true map with the optimal and the predicted paths; below, the learnt costs."""
    arms = [arm for arm in DRAWN if arm in arrays]
    count = min(SHOWN, len(arrays["true_costs"]))
    figure, axes = new_figure(3.1 * count + 1.2, 7.3, rows=2, columns=count)
    predicted = {arm: solved(arrays[arm][:count]) for arm in arms}
    for i in range(count):
        _draw_terrain(axes[i], arrays, i, tiles)
        _draw_paths(axes[i], arrays["paths"][i], {arm: predicted[arm][i] for arm in arms}, tiles)
        _draw_costs(axes[count + i], arrays["fenchel_young"], i)
        best = (arrays["true_costs"][i] * arrays["paths"][i]).sum()
        spent = {arm: (arrays["true_costs"][i] * predicted[arm][i]).sum() / best for arm in arms}
        told = [f"{TERRAIN[arm].label.partition(',')[0]}: optimum × {ratio:.3f}" for arm, ratio in spent.items()]
        axes[i].set_title("\n".join(told), fontsize=12)
    above = "as the network sees it" if tiles else "true costs"
    for each, label in ((axes[0], above), (axes[count], "learnt by Fenchel-Young")):
        text = each.annotate(label, (-0.06, 0.5), xycoords="axes fraction", rotation=90, fontsize=14)
        text.set(ha="right", va="center")
    optimum = Line2D([], [], color="black", linewidth=7.0)
    lines = [Line2D([], [], color=TERRAIN[a].colour, linestyle=DRAWN[a][0], linewidth=DRAWN[a][1]) for a in arms]
    labels = ["an optimal path", *(f"path of {TERRAIN[arm].label}" for arm in arms)]
    figure.legend([optimum, *lines], labels, loc="outside upper center", ncols=3)
    scale = ScalarMappable(norm=Normalize(0, LARGEST), cmap=COLOUR_MAP)
    figure.colorbar(scale, ax=axes[count:] if tiles else axes, shrink=0.9, aspect=30, label="cost of a cell / mean")
    save(figure, path)


def gallery(folder: Path, arrays: Arrays) -> None:
    """The picture of the index: one map with its paths, and the costs learnt from paths alone."""
    figure, (left, right) = new_figure(6, 3.05, columns=2)
    _draw_terrain(left, arrays, 0, tiles=False)
    _draw_paths(left, arrays["paths"][0], {"fenchel_young": solved(arrays["fenchel_young"][:1])[0]}, tiles=False)
    _draw_costs(right, arrays["fenchel_young"], 0)
    left.set_title("costs and cheapest path", fontsize=13)
    right.set_title("learnt from paths alone", fontsize=13)
    save(figure, folder / "gallery.png")


def _draw_terrain(axes: Axes, arrays: Arrays, i: int, tiles: bool) -> None:
    if tiles:
        axes.imshow(arrays["pixels"][i].transpose(1, 2, 0), extent=(-0.5, 11.5, 11.5, -0.5))
        axes.axis("off")
    else:
        _draw_costs(axes, arrays["true_costs"], i)


def _draw_costs(axes: Axes, costs: NDArray[Any], i: int) -> None:
    """Map i in units of the mean over all maps."""
    axes.imshow(costs[i] / costs.mean(), cmap=COLOUR_MAP, vmin=0, vmax=LARGEST)
    axes.axis("off")


def _draw_paths(axes: Axes, optimal: NDArray[Any], predicted: Mapping[str, NDArray[Any]], tiles: bool) -> None:
    """The labelled optimum in black, wide; predicted paths on it in the colours of their arms, edged white on tiles."""
    cells = ordered(optimal)
    axes.plot(cells[:, 1], cells[:, 0], color="black", linewidth=7.0, solid_capstyle="round")
    edge = [withStroke(linewidth=5.0, foreground="white")] if tiles else []
    for arm, path in predicted.items():
        dashes, width = DRAWN[arm]
        cells = ordered(path)
        told = {"color": TERRAIN[arm].colour, "linestyle": dashes, "linewidth": width, "path_effects": edge}
        axes.plot(cells[:, 1], cells[:, 0], **told)
