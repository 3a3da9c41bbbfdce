"""Figures of CIFAR-10: each function draws one picture from what `classify` wrote."""

import re
from pathlib import Path

from papers.perturbed_optimizers.figures import Curves, by_seed, column, whole_runs
from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import legend_above, plain_log
from shared.report.style import COLOURS, draw_seeds, new_figure, save

GRID = re.compile(r"fy_eps([\d.e+-]+)_m(\d+)")
MARKERS = ("o", "s", "^", "v", "D")


def draw(folder: Path, metrics: Metrics, curves: Curves) -> None:
    """Every figure whose numbers there are."""
    if grid(metrics):
        accuracy_vs_temperature(folder, metrics)
    if any(rows for seeds in curves.values() for rows in seeds.values()):
        image_curves(folder, metrics, curves)


def grid(metrics: Metrics) -> dict[int, dict[float, str]]:
    """Samples M -> temperature -> arm, ascending, of the arms of the grid."""
    found: dict[int, dict[float, str]] = {}
    for arm in metrics.get("test_accuracy", {}):
        match = GRID.fullmatch(arm)
        if match:
            found.setdefault(int(match[2]), {})[float(match[1])] = arm
    return {samples: dict(sorted(found[samples].items())) for samples in sorted(found)}


def accuracy_vs_temperature(folder: Path, metrics: Metrics) -> None:
    """Test accuracy over the temperature, for each number of samples, beside that of cross-entropy."""
    figure, (axes,) = new_figure(8, 5.0)
    temperatures: set[float] = set()
    colours = [COLOURS[name] for name in ("blue", "vermilion", "green", "purple", "orange")]
    for i, (samples, arms) in enumerate(grid(metrics).items()):
        seeds = by_seed(metrics, [("test_accuracy", arm) for arm in arms.values()])
        look = {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)]}
        draw_seeds(axes, list(arms), seeds, f"Fenchel-Young, M = {samples}", **look)
        temperatures |= set(arms)
    reference = summary(metrics, "test_accuracy", "cross_entropy")
    if reference:
        axes.axhline(reference.mean, color="black", linestyle="--", linewidth=1.6, label="cross-entropy")
        if reference.interval:
            axes.axhspan(*reference.interval, color="black", alpha=0.12, linewidth=0)
    plain_log(axes, sorted(temperatures))
    axes.set_xlabel("temperature ε")
    axes.set_ylabel("test accuracy of the plain argmax")
    legend_above(figure, [axes], 2)
    save(figure, folder / "accuracy_vs_temperature.png")


def shown_arms(metrics: Metrics) -> dict[str, str]:
    """The arms whose curves are drawn, with their labels: rivals, the best of the grid, and its ends."""
    arms = {"cross_entropy": "cross-entropy", "fy_gumbel_eps1_m100": "Gumbel noise, ε = 1, M = 100"}
    arms |= {"squared_eps1_m100": "squared, through the layer, ε = 1, M = 100"}
    found = grid(metrics)
    best = summary(metrics, "best_epsilon", "fy_best"), summary(metrics, "best_samples", "fy_best")
    if best[0] and best[1]:
        epsilon, samples = best[0].mean, round(best[1].mean)
        arms[found[samples][epsilon]] = f"Fenchel-Young, ε = {epsilon:g}, M = {samples} (best)"
    for samples, line in list(found.items())[:1]:
        for epsilon in (min(line), max(line)):
            arms.setdefault(line[epsilon], f"Fenchel-Young, ε = {epsilon:g}, M = {samples}")
    return arms


def image_curves(folder: Path, metrics: Metrics, curves: Curves) -> None:
    """Accuracy on 1,000 validation images while the networks learn."""
    figure, (axes,) = new_figure(8.6, 5.6)
    names = ("black", "purple", "green", "blue", "vermilion", "orange", "sky")
    for i, (arm, label) in enumerate(shown_arms(metrics).items()):
        runs = {seed: rows for seed, rows in whole_runs(curves.get(arm, {})).items() if rows}
        if runs:
            epochs = [row["epoch"] for row in next(iter(runs.values()))]
            marker = MARKERS[i % len(MARKERS)]
            values = column(runs, "validation_accuracy")
            draw_seeds(axes, epochs, values, label, color=COLOURS[names[i]], marker=marker)
    axes.axhline(0.1, color="black", linestyle=":", linewidth=1.4, label="chance")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy")
    legend_above(figure, [axes], 1 if len(axes.lines) < 4 else 2)
    save(figure, folder / "image_curves.png")
