"""Figures of the graph layouts: each function draws one picture from what `train` and `evaluate` wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import GREY, Look, legend_above
from shared.report.style import COLOURS, draw_seeds, new_figure, save

Rows = Sequence[Mapping[str, float]]
#: arm -> horizon -> seed -> rows of a validation curve.
Curves = Mapping[str, Mapping[int, Mapping[str, Rows]]]


ARMS = {
    "tree": Look("spanning tree, long", COLOURS["black"], "X"),
    "tree_short": Look("spanning tree", COLOURS["blue"], "o"),
    "top_k_short": Look("n - 1 edges", COLOURS["vermilion"], "s"),
    "independent_short": Look("independent edges", COLOURS["green"], "^"),
    "reinforce_short": Look("tree, REINFORCE", COLOURS["orange"], "v"),
    "nvil_short": Look("tree, NVIL", COLOURS["purple"], "D"),
}
#: What knows nothing of the motion.
RULES = {
    "nearest_tree": "shortest tree of the last frame",
    "closest_pairs": "closest pairs of the last frame",
    "approaching_tree": "pairs that came nearer",
    "chance": "chance",
}
HORIZONS = (10, 20)
#: Models of the pictures of graphs, in this order.
SHOWN = ("tree", "tree_short", "top_k_short", "independent_short")


def draw(
    folder: Path, metrics: Metrics, curves: Curves, starts: Mapping[str, Rows], examples: Mapping[str, Any]
) -> None:
    """Every figure whose numbers there are; `starts` is arm -> rows, `examples` what `evaluate` kept."""
    if any(f"t{horizon}_edge_precision" in metrics for horizon in HORIZONS):
        arms(folder, metrics)
    if any(curves.values()):
        training(folder, curves)
    if "tree" in starts:
        basins(folder, starts)
    for horizon in HORIZONS:
        if f"t{horizon}" in examples:
            graphs(folder / f"graphs_t{horizon}.png", examples[f"t{horizon}"], horizon)
    if "tree" in examples.get("t10", {}):
        gallery(folder, examples["t10"])


def precision_of(arm: str) -> str:
    """The precision that tells what an arm has learnt: which of two symmetric types is the edge means nothing."""
    return "edge_precision" if arm == "independent_short" else "raw_precision"


def arms(folder: Path, metrics: Metrics) -> None:
    """Precision of the graphs drawn by every arm, a mark a seed, and what geometry alone gives."""
    figure, panels = new_figure(12.5, 5.6, columns=2, sharey=True)
    names = [name for name in ARMS if name in metrics.get("t10_raw_precision", {})]
    for axes, horizon in zip(panels, HORIZONS, strict=True):
        for place, name in enumerate(names):
            metric, look = f"t{horizon}_{precision_of(name)}", ARMS[name]
            found = summary(metrics, metric, name)
            if found is None:
                continue
            for value in metrics[metric][name].values():
                axes.plot(place, value, look.marker, color=look.colour, alpha=0.45, markersize=7)
            axes.plot([place - 0.25, place + 0.25], [found.mean] * 2, color=look.colour, linewidth=3)
            axes.annotate(f"{found.mean:.1f}", (place, found.mean), (0, 9), textcoords="offset points", ha="center")
        for rule, style in (("nearest_tree", "--"), ("chance", ":")):
            level = metrics.get(f"t{horizon}_edge_precision", {}).get(rule, {}).get("exact")
            if level is not None:
                axes.axhline(level, color=GREY, linestyle=style, linewidth=1.5, label=RULES[rule])
        axes.set_title(f"T = {horizon} frames")
        axes.set_xticks(range(len(names)), [ARMS[name].label for name in names], rotation=25, ha="right")
        axes.set_xlabel("model")
        axes.set_ylim(0, 108)
    panels[0].set_ylabel("edge precision, %")
    legend_above(figure, panels, 2)
    save(figure, folder / "layout_arms.png")


def training(folder: Path, curves: Curves) -> None:
    """The bound on validation graphs over the steps, on a logarithmic axis of its negative."""
    figure, panels = new_figure(12.5, 5.2, columns=2, sharey=True)
    for axes, horizon in zip(panels, HORIZONS, strict=True):
        for name, look in ARMS.items():
            seeds = {seed: rows for seed, rows in curves.get(name, {}).get(horizon, {}).items() if rows}
            if not seeds:
                continue
            steps = [row["step"] for row in next(iter(seeds.values()))]
            values = {seed: [-row["elbo_nats"] for row in rows] for seed, rows in seeds.items()}
            draw_seeds(axes, steps, values, look.label, color=look.colour, marker=look.marker, markersize=5)
        axes.set_title(f"T = {horizon} frames")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("training steps")
    panels[0].set_ylabel("negative validation ELBO, nats")
    panels[1].legend(loc="upper right", fontsize=10)
    save(figure, folder / "layout_curves.png")


def basins(folder: Path, starts: Mapping[str, Rows]) -> None:
    """Every short start of the tree models: its validation bound against the share of edges it has right."""
    figure, panels = new_figure(11.0, 4.6, columns=2)
    for axes, horizon in zip(panels, HORIZONS, strict=True):
        for name in ("tree", "tree_short", "top_k_short"):
            rows = [row for row in starts.get(name, ()) if row["horizon"] == horizon]
            if rows:
                look = ARMS[name]
                values = [row["elbo_nats"] for row in rows], [row["raw_precision"] for row in rows]
                axes.plot(*values, look.marker, color=look.colour, label=look.label, alpha=0.7, markersize=8)
        axes.axhline(20, color=GREY, linestyle=":", label="chance")
        axes.set_title(f"T = {horizon} frames")
        axes.set_xlabel("validation ELBO after the start, nats")
        axes.set_ylabel("raw edge precision, %")
        axes.set_ylim(0, 100)
    panels[0].legend(loc="upper left")
    save(figure, folder / "basins.png")


def directed_pairs(vertices: int) -> list[tuple[int, int]]:
    """(sender, receiver) of each directed edge in the order of `papers.sst.model`."""
    return [(sender, receiver) for receiver in range(vertices) for sender in range(vertices) if sender != receiver]


def edge_set(indicators: Sequence[int], vertices: int) -> set[tuple[int, int]]:
    """The pairs i < j that have an edge in at least one direction."""
    pairs = zip(directed_pairs(vertices), indicators, strict=True)
    return {(min(pair), max(pair)) for pair, there in pairs if there}


def drawn_edges(examples: Mapping[str, Any], arm: str, vertices: int) -> list[set[tuple[int, int]]]:
    """The graphs of an arm; of independent edges in the labelling that agrees better with the true ones."""
    true = [edge_set(indicators, vertices) for indicators in examples["true_edges"]]
    found = [edge_set(indicators, vertices) for indicators in examples[arm]]
    if arm != "independent_short":
        return found
    other = [edge_set([1 - value for value in indicators], vertices) for indicators in examples[arm]]
    return max(
        (found, other), key=lambda graphs: sum(len(a & b) / max(len(a), 1) for a, b in zip(graphs, true, strict=True))
    )


def graphs(path: Path, examples: Mapping[str, Any], horizon: int) -> None:
    """Test trajectories with the true tree and with what the models drew: right, wrong and missing edges."""
    frames = [np.asarray(each).reshape(-1, horizon, 2) for each in examples["frames"]]
    names = ["true_edges", *(name for name in SHOWN if name in examples)]
    columns = [drawn_edges(examples, name, len(frames[0])) for name in names]
    figure, panels = new_figure(3.1 * len(names), 3.0 * len(frames), rows=len(frames), columns=len(names))
    for place, axes in enumerate(panels):
        row, column = divmod(place, len(names))
        picture(axes, frames[row], columns[0][row], columns[column][row])
        if row == 0:
            axes.set_title(ARMS[names[column]].label if column else "true tree")
    handles = [
        Line2D([], [], color=COLOURS["blue"], linewidth=2.5, label="right edge"),
        Line2D([], [], color=COLOURS["vermilion"], linewidth=2.5, linestyle="--", label="wrong edge"),
        Line2D([], [], color=GREY, linewidth=1.5, linestyle=":", label="missing edge"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    save(figure, path)


def gallery(folder: Path, examples: Mapping[str, Any]) -> None:
    """The picture of the index: trajectories at T = 10 with the trees that were found in them."""
    count = min(2, len(examples["true_edges"]))
    figure, panels = new_figure(3.0 * count, 3.05, columns=count)
    for axes, row in zip(panels, range(count), strict=True):
        frames = np.asarray(examples["frames"][row]).reshape(-1, 10, 2)
        true, found = (edge_set(examples[name][row], len(frames)) for name in ("true_edges", "tree"))
        picture(axes, frames, true, found)
    panels[0].set_title("trees found in motion", fontsize=13)
    save(figure, folder / "gallery.png")


def picture(axes: Axes, frames: NDArray[np.float64], true: set[tuple[int, int]], found: set[tuple[int, int]]) -> None:
    """Paths of the vertices (n, T, 2), fading towards the past, and edges between their last positions."""
    last = frames[:, -1]
    for vertex in frames:
        axes.plot(vertex[:, 0], vertex[:, 1], color="#bbbbbb", linewidth=1, zorder=1)
    kinds = ((true & found, COLOURS["blue"], "-", 2.5), (found - true, COLOURS["vermilion"], "--", 2.5))
    for edges, colour, style, width in (*kinds, (true - found, GREY, ":", 1.5)):
        for i, j in sorted(edges):
            axes.plot(*last[[i, j]].T, color=colour, linestyle=style, linewidth=width, zorder=2)
    axes.scatter(*last.T, s=30, color="black", zorder=3)
    axes.set_aspect("equal")
    axes.axis("off")
