"""Figures of what networks draw: samples, distal adversaries, the course of chains; see `figures_images`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from papers.jem.figures_data import Pictures, Rows, Tables, chosen, looks, of_table
from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import Look, legend_above
from shared.report.style import draw_grid, draw_seeds, new_figure, save

Images = np.ndarray[Any, np.dtype[Any]]

CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
OBJECTS = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Adversaries of `robustness.SURE`, and the columns of images of each.
SURE, COLUMNS = {"distal": "90 %", "distal_surer": "99.9 %"}, 3


def names_of(images: Images) -> tuple[str, ...]:
    """The ten classes of grey images (N, 1, H, W) or of coloured ones."""
    return CLOTHES if images.shape[1] == 1 else OBJECTS


def first_of_each(images: Images, count: int) -> Images:
    """The first `count` of each of ten classes (10 count, C, H, W), class by class, of images that are so ordered."""
    each = images.reshape(10, -1, *images.shape[1:])[:, :count]
    return each.reshape(-1, *images.shape[1:])


def samples(folder: Path, pictures: Pictures, arms: Mapping[str, str]) -> None:
    """Chains on log p(x) and on the logit of each class, old ones first, of the first arm that has both; a flow's."""
    arm = next((arm for arm in arms if {"samples", "conditional"} <= pictures.get(arm, {}).keys()), None)
    if arm is None:
        return
    free, given = pictures[arm]["samples"], pictures[arm]["conditional"]
    other = pictures.get("flow", {}).get("samples")
    figure, (left, right, *more) = new_figure(11 if other is None else 14.5, 5.3, columns=2 if other is None else 3)
    draw_grid(left, free, 10, "p(x)")
    draw_grid(right, given, max(1, len(given) // 10), "p(x | y)", names_of(given))
    for axes in more:
        draw_grid(axes, other, 8, "the flow's p(x)")
    save(figure, folder / "samples.png")
    figure, (only,) = new_figure(6, 2.5)
    four = first_of_each(given, 4)
    by_row = four.reshape(10, -1, *four.shape[1:]).swapaxes(0, 1).reshape(four.shape)
    draw_grid(only, by_row, 10)
    save(figure, folder / "gallery.png")


def distal(folder: Path, metrics: Metrics, pictures: Pictures, arms: Mapping[str, str]) -> None:
    """Noise that networks call a class, a row a class: when they are sure to 90 %, and to 99.9 %."""
    shown = chosen([arm for arm in arms if SURE.keys() <= pictures.get(arm, {}).keys()], 3)
    if not shown:
        return
    figure, axes = new_figure(3.7 * len(shown) + 0.8, 6.6, columns=2 * len(shown))
    for i, arm in enumerate(shown):
        for j, (level, sure) in enumerate(SURE.items()):
            images = first_of_each(pictures[arm][level], COLUMNS)
            steps = summary(metrics, f"{level}_steps_mean", arm)
            told = f"{arms[arm] if j == 0 else ''}\n{sure}" + (f", {steps.mean:.0f} steps" if steps else "")
            rows = names_of(images) if i == j == 0 else ()
            draw_grid(axes[2 * i + j], images, max(1, len(images) // 10), told, rows)
            axes[2 * i + j].title.set_fontsize(12)
    save(figure, folder / "distal.png")


def chains(folder: Path, tables: Tables, arms: Mapping[str, str]) -> None:
    """Log density of chains from noise, against that of test images, and how long settled chains remember."""
    found = {arm: of_table(tables, arm, "course") for arm in arms}
    shown = chosen([arm for arm in arms if found[arm] and of_table(tables, arm, "autocorrelation")], 4)
    if not shown:
        return
    figure, (left, right) = new_figure(10, 4.8, columns=2)
    for arm in shown:
        look = looks(arms)[arm]
        _curve(left, found[arm], "step", "log_density_nats", look)
        level = [rows[0]["test_log_density_nats"] for rows in found[arm].values()]
        left.axhline(sum(level) / len(level), color=look.colour, linestyle="--", linewidth=1.4)
        _curve(right, of_table(tables, arm, "autocorrelation"), "lag", "correlation", look)
    left.set_xlabel("Langevin step from noise")
    left.set_ylabel("log p(x) + log Z (nats); dashed: data")
    right.set_xlabel("lag (steps)")
    right.set_ylabel("autocorrelation of settled chains")
    right.set_ylim(bottom=min(0.0, right.get_ylim()[0]), top=1.03)
    legend_above(figure, [left], 2)
    save(figure, folder / "chains.png")


def _curve(axes: Axes, seeds: Mapping[str, Rows], x: str, y: str, look: Look) -> None:
    values = {seed: [row[y] for row in rows] for seed, rows in seeds.items()}
    draw_seeds(axes, [row[x] for row in next(iter(seeds.values()))], values, look.label, color=look.colour)
