"""One look for every figure: colours that the colour-blind can tell apart, letters that a projector can carry.

A figure is made by `new_figure`, drawn on through its axes, and written by `save`, which gives the same bytes for the
same drawing and refuses axes without labels.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from shared.errors import UserError
from shared.files import write_bytes
from shared.statistics import mean, student_interval

__all__ = ["COLOURS", "STYLE", "draw_grid", "draw_seeds", "grid", "new_figure", "save"]

#: Okabe and Ito (2008), Color universal design, in the order of use; yellow is left out, it is faint on white.
COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}

#: Letters of at least 12 points on figures about 8 inches wide, which fill a slide.
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 14.0,
    "axes.titlesize": 15.0,
    "axes.labelsize": 14.0,
    "xtick.labelsize": 12.0,
    "ytick.labelsize": 12.0,
    "legend.fontsize": 12.0,
    "figure.titlesize": 16.0,
    "axes.prop_cycle": cycler(color=list(COLOURS.values())),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 2.2,
    "lines.markersize": 7.0,
    "errorbar.capsize": 4.0,
    "legend.frameon": False,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "figures",
}
DOTS_PER_INCH = 150


def new_figure(
    width: float = 8.0, height: float = 4.5, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """Make an empty figure in the common style.

    Args:
        width: in inches; 8 by 4.5 fills a slide.
        height: in inches.
        rows: of axes.
        columns: of axes.
        subplots: passed to `Figure.subplots`, e.g. `sharey=True`, `width_ratios=[2, 1]`.

    Returns:
        The figure and its axes, row by row in one list.
    """
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, list(axes.ravel())


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG: no date and no version inside, so that the same drawing gives the same bytes.

    Args:
        figure: from `new_figure`.
        path: ends in .png.

    Raises:
        UserError: an axis has no label (images switch their axes off with `axes.axis("off")`), or the disk refuses.
    """
    if path.suffix != ".png":
        raise UserError(f"{path}: figures are PNG files")
    for number, axes in enumerate(figure.axes):
        for direction in _bare(figure, axes):
            raise UserError(f"{path.name}: axes {number} has no {direction} label; name the quantity and its unit")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def draw_seeds(axes: Axes, x: Sequence[float], runs: Mapping[str, Sequence[float]], label: str, **line: Any) -> None:
    """Draw the mean over seeds as a line, and its 95 % Student interval as a band (from two seeds on).

    Args:
        axes: to draw on.
        x: positions, shared by all seeds.
        runs: seed -> values, as many as `x`.
        label: of the line, for the legend.
        line: passed to `Axes.plot`.
    """
    columns = [[values[i] for values in runs.values()] for i in range(len(x))]
    (drawn,) = axes.plot(x, [mean(column) for column in columns], label=label, **line)
    if len(runs) > 1:
        ends = [student_interval(column) for column in columns]
        axes.fill_between(
            x, [end.low for end in ends], [end.high for end in ends], color=drawn.get_color(), alpha=0.2, linewidth=0
        )


def grid(images: Any, columns: int, padding: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Tile images into one picture, row by row, with white lines between them.

    Args:
        images: tensor or array of shape (N, H, W), (N, 1, H, W) or (N, 3, H, W) values cut to [0, 1].
        columns: images in a row.
        padding: width of the lines in pixels.

    Returns:
        Array of shape (rows * (H + padding) - padding, columns * (W + padding) - padding, 3), in [0, 1].

    Raises:
        ValueError: the shape is none of these.
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu().float().numpy()
    array = np.clip(np.asarray(images, dtype=np.float32), 0.0, 1.0)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise ValueError(f"images must be (N, H, W), (N, 1, H, W) or (N, 3, H, W), got {np.shape(images)}")
    count, _, height, width = array.shape
    rows = -(-count // columns)
    picture = np.ones((rows * (height + padding), columns * (width + padding), 3), dtype=np.float32)
    for i, image in enumerate(array.transpose(0, 2, 3, 1)):
        top, left = i // columns * (height + padding), i % columns * (width + padding)
        picture[top : top + height, left : left + width] = image
    return picture[: rows * (height + padding) - padding, : columns * (width + padding) - padding]


def draw_grid(axes: Axes, images: Any, columns: int, title: str = "", row_labels: Sequence[str] = ()) -> None:
    """Show images as a grid, with a title above and a label to the left of each row; see `grid` for the shapes."""
    picture = grid(images, columns)
    axes.imshow(picture)
    axes.axis("off")
    axes.set_title(title)
    step = (picture.shape[0] + 2) / max(-(-len(images) // columns), 1)
    for row, label in enumerate(row_labels):
        axes.text(-0.02 * picture.shape[1], (row + 0.5) * step - 1, label, ha="right", va="center", fontsize=12)


def _bare(figure: Figure, axes: Axes) -> list[str]:
    """Which of the two directions of visible axes has a label neither of its own nor from axes that share it."""
    if not axes.axison or axes.get_label() == "<colorbar>":
        return []
    missing = []
    shared_x, shared_y = axes.get_shared_x_axes().get_siblings(axes), axes.get_shared_y_axes().get_siblings(axes)
    if not figure.get_supxlabel() and not any(other.get_xlabel() for other in shared_x):
        missing.append("x")
    if not figure.get_supylabel() and not any(other.get_ylabel() for other in shared_y):
        missing.append("y")
    return missing
