"""Figures of ListOps: each function draws one picture from what the stage `parse` wrote.

`Metrics` is metric -> arm -> seed -> percent; `Curves` is arm -> seed -> rows; `Shown` is arm -> expressions. What was
not measured at a preset is not drawn.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shared.comparisons import Metrics
from shared.files import read_json
from shared.report.looks import GREY
from shared.report.style import COLOURS, draw_seeds, new_figure, save
from shared.results import read_rows
from shared.statistics import mean

Rows = Sequence[Mapping[str, float]]
Curves = Mapping[str, Mapping[str, Rows]]
Shown = Mapping[str, Sequence[Mapping[str, Any]]]

#: Sides of a panel of `listops_edges.png` in inches.
PANEL_WIDTH, PANEL_HEIGHT = 6.4, 2.3
#: The arms whose structures are drawn.
DRAWN = ("arborescence", "spanning_tree")
#: The kinds of arcs.
LINES: dict[str, dict[str, Any]] = {
    "true": {"color": "black", "linestyle": "-"},
    "right": {"color": COLOURS["blue"], "linestyle": "-"},
    "wrong": {"color": COLOURS["vermilion"], "linestyle": "--"},
}


class Look(NamedTuple):
    """How an arm is called and drawn."""

    label: str
    colour: str
    marker: str
    style: str = "-"

    def line(self) -> dict[str, Any]:
        """For `Axes.plot` and `draw_seeds`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.style}


ARMS = {
    "gold": Look("true edges", "black", "*", ":"),
    "arborescence": Look("arborescence, Gumbel", COLOURS["blue"], "o"),
    "arborescence_gaussian": Look("arborescence, Gaussian", COLOURS["sky"], "P"),
    "arborescence_negative_exponential": Look("arborescence, negative exponential", COLOURS["vermilion"], "d"),
    "one_parent": Look("one parent each", GREY, "X"),
    "spanning_tree": Look("spanning tree", COLOURS["green"], "^", "--"),
    "directed": Look("independent directed", COLOURS["purple"], "v", "-."),
    "undirected": Look("independent undirected", COLOURS["orange"], "D", "-."),
    "lstm": Look("LSTM, no edges", "black", "s", "--"),
}


def read_curves(folder: Path) -> Curves:
    """The curves that the stage wrote into `folder`: arm -> seed -> rows."""
    found: dict[str, dict[str, Rows]] = {}
    for path in sorted(folder.glob("curve-*-seed*.csv")):
        match = re.fullmatch(r"curve-(\w+)-(seed\d+)", path.stem)
        if match:
            found.setdefault(match[1], {})[match[2]] = read_rows(path)
    return found


def read_shown(folder: Path) -> Shown:
    """The expressions that the stage kept in `folder`; none without the file."""
    path = folder / "examples.json"
    found: Shown = read_json(path) if path.is_file() else {}
    return found


def draw(folder: Path, metrics: Metrics, curves: Curves, shown: Shown) -> None:
    """Every figure whose numbers there are."""
    if metrics.get("listops_edge_precision"):
        accuracy_vs_precision(folder, metrics)
    if any(len(rows) > 1 for seeds in curves.values() for rows in seeds.values()):
        learning(folder, curves)
    if any(shown.get(arm) for arm in DRAWN):
        edges(folder, shown)


def accuracy_vs_precision(folder: Path, metrics: Metrics) -> None:
    """Accuracy over edge precision: one dot a run, with its mean as a large one; the LSTM, without edges, as a line."""
    figure, (axes,) = new_figure(9.2, 5.6)
    for arm, look in ARMS.items():
        accuracy = metrics.get("listops_accuracy", {}).get(arm, {})
        precision = metrics["listops_edge_precision"].get(arm, {})
        seeds = [seed for seed in accuracy if seed in precision]
        if seeds:
            x, y = [precision[seed] for seed in seeds], [accuracy[seed] for seed in seeds]
            shape: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": "none"}
            axes.plot(x, y, markersize=6, alpha=0.55, **shape)
            axes.plot([mean(x)], [mean(y)], markersize=13, markeredgecolor="white", label=look.label, **shape)
        elif accuracy:
            level = mean(list(accuracy.values()))
            axes.axhline(level, label=look.label, color=look.colour, linestyle=look.style)
    axes.set_xlabel("test edge precision of a hard sample [%]")
    axes.set_ylabel("test accuracy [%]")
    legend_beside(figure, axes)
    save(figure, folder / "listops_accuracy_vs_precision.png")


def learning(folder: Path, curves: Curves) -> None:
    """Validation accuracy, and precision of the edges, of hard samples while the parsers learn."""
    figure, axes = new_figure(13, 5.2, columns=2)
    columns = ("validation_accuracy", "validation_edge_precision")
    for each, column, words in zip(axes, columns, ("accuracy", "edge precision"), strict=True):
        for arm, look in ARMS.items():
            runs = {seed: rows for seed, rows in curves.get(arm, {}).items() if rows and column in rows[0]}
            if runs and (arm != "gold" or column == columns[0]):
                steps = [row["step"] for row in next(iter(runs.values()))]
                values = {seed: [row[column] for row in rows] for seed, rows in runs.items() if len(rows) == len(steps)}
                draw_seeds(each, steps, values, look.label, **look.line())
        each.set_xlabel("optimiser step")
        each.set_ylabel(f"validation {words} [%]")
    legend_beside(figure, axes[0])
    save(figure, folder / "listops_learning.png")


def edges(folder: Path, shown: Shown) -> None:
    """Short test expressions with their true edges above and one sample of the inferred ones below."""
    arms = [arm for arm in DRAWN if shown.get(arm)]
    rows = max(len(shown[arm]) for arm in arms)
    figure, axes = new_figure(PANEL_WIDTH * len(arms), PANEL_HEIGHT * rows + 0.7, rows=rows, columns=len(arms))
    for each in axes:
        each.axis("off")
    for column, arm in enumerate(arms):
        for row, expression in enumerate(shown[arm]):
            panel = axes[row * len(arms) + column]
            _expression(panel, expression)
            if row == 0:
                panel.set_title(ARMS[arm].label)
    lines = [_line("true"), _line("right"), _line("wrong")]
    labels = ["true edges (above)", "inferred, right (below)", "inferred, wrong (below)"]
    figure.legend(lines, labels, loc="outside upper center", ncols=3)
    save(figure, folder / "listops_edges.png")


def legend_beside(figure: Figure, axes: Axes) -> None:
    """The legend to the right of everything, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")


def _line(kind: str) -> Line2D:
    return Line2D([], [], **LINES[kind])


def _expression(axes: Axes, expression: Mapping[str, Any]) -> None:
    """The tokens in a row, true arcs above and inferred ones below; arcs end in a dot at the child where directed."""
    tokens, gold = expression["tokens"], {tuple(edge) for edge in expression["gold"]}
    for place, token in enumerate(tokens):
        axes.text(place, 0, token, ha="center", va="center", fontsize=11 if len(token) > 1 else 13, family="monospace")
    reach = 0.5 * (len(tokens) - 1)
    start = 0.22 * reach  # of the arcs: outside the letters, whose height is a fixed share of the panel's
    for edge in sorted(gold):
        _arc(axes, edge, start, "true", expression["directed"])
    for edge in map(tuple, expression["edges"]):
        _arc(axes, edge, -start, "right" if edge in gold else "wrong", expression["directed"])
    axes.set_xlim(-0.6, len(tokens) - 0.4)
    axes.set_ylim(-1.6 * reach, 1.25 * reach)
    verdict = "right" if expression["value"] == expression["predicted"] else "wrong"
    told = f"value {expression['value']}, predicted {expression['predicted']}: {verdict}"
    axes.text(len(tokens) - 0.5, -1.58 * reach, told, ha="right", va="bottom", fontsize=12)


def _arc(axes: Axes, edge: tuple[int, int], start: float, kind: str, directed: bool) -> None:
    """Half an ellipse between two tokens, from the height `start` on: upwards where that is positive, else down."""
    parent, child = edge
    angle = np.linspace(0, np.pi, 40)
    x = (parent + child) / 2 + (parent - child) / 2 * np.cos(angle)
    y = start + np.sign(start) * abs(parent - child) / 2 * np.sin(angle)
    axes.plot(x, y, linewidth=1.6, **LINES[kind])
    if directed:
        axes.plot(x[-1:], y[-1:], marker="o", markersize=4, color=LINES[kind]["color"])
