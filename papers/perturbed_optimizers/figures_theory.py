"""Figures of the theory: each function draws one picture from the rows that the `theory` stage wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from papers.perturbed_optimizers.figures import Rows
from shared.report.looks import legend_above, plain_log
from shared.report.style import COLOURS, draw_seeds, new_figure, save
from shared.statistics import mean

#: Label, colour, marker and dashes; the lines nearly coincide.
CONTROLS = {
    "plain": ("no control variate", COLOURS["black"], "s", "-"),
    "leave_one_out": ("minus the mean of the others", COLOURS["blue"], "o", "-"),
    "solution": ("minus the plain solution", COLOURS["vermilion"], "^", "--"),
    "antithetic": ("noise in pairs Z, -Z", COLOURS["green"], "v", ":"),
}
PROBLEMS = {"argmax": ("argmax", COLOURS["blue"], "o"), "ranking": ("ranking", COLOURS["vermilion"], "s")}
PROBLEMS |= {"path": ("shortest path", COLOURS["green"], "^")}


def draw(folder: Path, curves: Mapping[str, Rows]) -> None:
    """Every figure whose rows there are; `curves` is the name of a CSV file -> its rows."""
    figures = {
        "segment": segment,
        "error_vs_samples": error_vs_samples,
        "bias_vs_epsilon": bias_vs_temperature,
        "variance": variance,
        "edge_weight": edge_weight,
    }
    for name, figure in figures.items():
        if curves.get(name):
            figure(folder, curves[name])


def by_seed(rows: Rows, x: str, y: str) -> tuple[list[float], dict[str, list[float]]]:
    """Positions, and seed -> values, of one column over another."""
    seeds: dict[str, list[float]] = {}
    for row in rows:
        seeds.setdefault(f"seed{row['seed']:g}", []).append(row[y])
    return sorted({row[x] for row in rows}), seeds


def segment(folder: Path, rows: Rows) -> None:
    """The three coordinates of the perturbed argmax along a segment of scores, for several temperatures."""
    temperatures = sorted({row["epsilon"] for row in rows})
    colours = ["black", *matplotlib.colormaps["viridis"](np.linspace(0.15, 0.8, len(temperatures) - 1))]
    figure, axes = new_figure(12, 4.6, columns=3, sharey=True)
    for i, each in enumerate(axes):
        for temperature, colour in zip(temperatures, colours, strict=True):
            points = [(row["t"], row[f"y{i}"]) for row in rows if row["epsilon"] == temperature]
            label = f"ε = {temperature:g}" if temperature else "plain argmax"
            style = "-" if temperature else "--"
            each.plot(*zip(*points, strict=True), color=colour, label=label, linestyle=style)
        each.set_title(f"label {i + 1}")
    axes[0].set_ylabel("coordinate of the solution")
    figure.supxlabel("position on the segment from scores (1, 0.2, -1) to (-1, 0.2, 1)", fontsize=14)
    legend_above(figure, axes, len(temperatures))
    save(figure, folder / "segment.png")


def error_vs_samples(folder: Path, rows: Rows) -> None:
    """Errors of Monte-Carlo estimates against the number of samples, with the slope -1/2 that theory gives."""
    lines: Sequence[tuple[str, str, str, str]] = (
        ("jacobian_gaussian_pair", "Jacobian, pair, Gaussian", COLOURS["vermilion"], "s"),
        ("jacobian_gumbel_simplex", "Jacobian, argmax, Gumbel", COLOURS["blue"], "o"),
        ("solution_ranking", "solution, ranking, Gaussian", COLOURS["green"], "^"),
        ("solution_simplex", "solution, argmax, Gumbel", COLOURS["purple"], "v"),
    )
    figure, (axes,) = new_figure(8, 5.2)
    for name, label, colour, marker in lines:
        sizes, seeds = by_seed(rows, "samples", name)
        draw_seeds(axes, sizes, seeds, label, color=colour, marker=marker)
    start = 2.2 * max(row["jacobian_gaussian_pair"] for row in rows if row["samples"] == sizes[0])
    reference = [start * (size / sizes[0]) ** -0.5 for size in sizes]
    axes.plot(sizes, reference, color="black", linestyle=":", label="slope -1/2")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("samples of the noise")
    axes.set_ylabel("root mean square error of an entry")
    legend_above(figure, [axes], 2)
    save(figure, folder / "error_vs_samples.png")


def bias_vs_temperature(folder: Path, rows: Rows) -> None:
    """How far the perturbed solution is from the plain one, for three problems."""
    figure, (axes,) = new_figure(8, 4.8)
    temperatures = [row["epsilon"] for row in rows]
    for name, (label, colour, marker) in PROBLEMS.items():
        axes.plot(temperatures, [row[name] for row in rows], color=colour, marker=marker, label=label)
    plain_log(axes, temperatures)
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    axes.set_xlabel("temperature ε (scores are of the order of 1)")
    axes.set_ylabel("distance to the plain solution")
    legend_above(figure, [axes], 3)
    save(figure, folder / "bias_vs_temperature.png")


def variance(folder: Path, rows: Rows) -> None:
    """Spread of the layer's gradient over the temperature, with and without control variates."""
    figure, axes = new_figure(12, 5.0, columns=2, sharey=True)
    for each, (problem, title) in zip(axes, (("argmax", "argmax"), ("path", "shortest path")), strict=True):
        for name, (label, colour, marker, dashes) in CONTROLS.items():
            temperatures, seeds = by_seed(rows, "epsilon", f"{problem}_{name}")
            draw_seeds(each, temperatures, seeds, label, color=colour, marker=marker, linestyle=dashes)
        plain_log(each, temperatures)
        low, high = each.get_ylim()
        plain_log(each, [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if low < tick < high], upright=True)
        each.set_title(title)
        each.set_xlabel("temperature ε")
    axes[0].set_ylabel("standard deviation of the gradient")
    legend_above(figure, axes, 2)
    save(figure, folder / "variance.png")


def edge_weight(folder: Path, rows: Rows) -> None:
    """Gradient ascent on how often a path visits one cell: the weight, and the norm of the gradient.

    The repeats are grids of their own: each is drawn, as a band over them would leave the range of a weight.
    """
    figure, (left, right) = new_figure(12, 4.6, columns=2)
    for axes, name in ((left, "weight"), (right, "gradient_norm")):
        steps, seeds = by_seed(rows, "step", name)
        for values in seeds.values():
            axes.plot(steps, values, color=COLOURS["sky"], linewidth=1.2, label="one grid")
        means = [mean(values) for values in zip(*seeds.values(), strict=True)]
        axes.plot(steps, means, color=COLOURS["blue"], linewidth=3.0, label="mean")
        axes.set_xlabel("step of gradient ascent on the scores")
    right.axhline(0, color="black", linestyle="--", linewidth=1.8, label="plain solver: zero at every step")
    left.set_ylabel("weight of the cell in the mean path")
    left.set_ylim(0, 1.03)
    right.set_ylabel("norm of the gradient")
    right.set_ylim(bottom=-0.05 * right.get_ylim()[1])
    legend_above(figure, [right], 3)
    save(figure, folder / "edge_weight.png")
