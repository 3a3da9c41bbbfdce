"""Figures of the trained image networks: calibration, robustness, scores of unfamiliar images.

Each function draws one picture from what `evaluate` wrote and returns nothing; what was not measured is not drawn.
`arms` are those to draw, name -> label, in their order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from papers.jem import figures_samples
from papers.jem.figures_data import Pictures, Tables, chosen, looks, of_table, read_pictures, read_tables
from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import GREY, error_bar, legend_above
from shared.report.style import COLOURS, draw_seeds, new_figure, save

__all__ = ["draw", "read_pictures", "read_tables"]

SCORES = {"log_density": "log p(x)", "confidence": "max p(y|x)", "approximate_mass": "−‖∇ log p(x)‖"}
SETS = {
    "uniform": "uniform noise",
    "interpolation": "interpolations",
    "tiles": "tiles",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
}
DEFENCES = {
    "jem0": "JEM-0",
    "jem1": "JEM-1",
    "jem1_full": "JEM-1, full\ngradient",
    "jem1_noisy": "JEM-1, of 5\nnoisy copies",
    "jem10": "JEM-10",
    "jem10_full": "JEM-10, full\ngradient",
    "jem10_noisy": "JEM-10, of 5\nnoisy copies",
}


def draw(folder: Path, metrics: Metrics, tables: Tables, pictures: Pictures, arms: Mapping[str, str]) -> None:
    """Every figure whose numbers there are."""
    reliability(folder, metrics, tables, arms)
    robust_accuracy(folder, tables, arms)
    refinement(folder, metrics, arms)
    score_histograms(folder, tables, arms)
    auroc(folder, metrics, arms)
    figures_samples.samples(folder, pictures, arms)
    figures_samples.distal(folder, metrics, pictures, arms)
    figures_samples.chains(folder, tables, arms)


def reliability(folder: Path, metrics: Metrics, tables: Tables, arms: Mapping[str, str]) -> None:
    """Accuracy in each of 20 bins of the confidence, all seeds together; a mark has the area of its share of images."""
    found = {arm: of_table(tables, arm, "reliability") for arm in arms}
    shown = chosen([arm for arm in arms if found[arm]], 4)
    if not shown:
        return
    figure, axes = new_figure(max(3.3 * len(shown), 5.0), 4.3, columns=len(shown), sharey=True)
    for each, arm in zip(axes, shown, strict=True):
        rows = [row for seed in found[arm].values() for row in seed]
        total = sum(row["count"] for row in rows)
        for number in sorted({row["bin"] for row in rows}):
            inside = [row for row in rows if row["bin"] == number]
            count = sum(row["count"] for row in inside)
            height = sum(row["count"] * row["accuracy_percent"] for row in inside) / count
            mean = sum(row["count"] * row["confidence_percent"] for row in inside) / count
            each.bar(5 * number + 2.5, height, 4.4, color=COLOURS["sky"])
            each.scatter(mean, height, s=12 + 600 * count / total, color=COLOURS["blue"], zorder=3)
        each.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1.4)
        ece = summary(metrics, "ece20_percent", arm)
        each.set_title(arms[arm] + (f"\nECE {ece.mean:.1f} %" if ece else ""))
        each.set_xlim(0, 102)
        each.set_ylim(0, 104)
    axes[0].set_ylabel("accuracy (%)")
    figure.supxlabel("confidence (%)")
    save(figure, folder / "reliability.png")


def robust_accuracy(folder: Path, tables: Tables, arms: Mapping[str, str]) -> None:
    """Accuracy under PGD against the radius, one panel a norm."""
    norms = {"robust_linf": "L∞ radius", "robust_l2": "L2 radius"}
    norms = {name: label for name, label in norms.items() if any(of_table(tables, arm, name) for arm in arms)}
    if not norms:
        return
    shown = chosen([arm for arm in arms if any(of_table(tables, arm, name) for name in norms)], 6)
    figure, axes = new_figure(5.0 * len(norms), 5.0, columns=len(norms), sharey=True)
    for each, (name, label) in zip(axes, norms.items(), strict=True):
        for arm in shown:
            seeds, look = of_table(tables, arm, name), looks(arms)[arm]
            if seeds:
                eps = [row["eps"] for row in next(iter(seeds.values()))]
                values = {seed: [row["jem0_percent"] for row in rows] for seed, rows in seeds.items()}
                draw_seeds(each, eps, values, look.label, **look.line())
        each.set_xlabel(f"{label}, images in [0, 1]")
        each.set_ylim(bottom=0)
        each.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_ylabel("accuracy under attack (%)")
    legend_above(figure, axes, 2)
    save(figure, folder / "robust_accuracy.png")


def refinement(folder: Path, metrics: Metrics, arms: Mapping[str, str]) -> None:
    """Accuracy under L-inf attacks with refinement before classification, a panel for each of two arms.

    Pale is what the attack through the refinement leaves, full what also stands the attack on JEM-0.
    """
    refined = chosen([arm for arm in arms if summary(metrics, "jem1_clean_percent", arm)], 2)
    if not refined:
        return
    defences = {arm: [name for name in DEFENCES if summary(metrics, f"{name}_clean_percent", arm)] for arm in refined}
    counts = [len(names) for names in defences.values()]
    figure, axes = new_figure(
        max(1.55 * sum(counts) + 0.8, 6.0), 5.0, columns=len(refined), sharey=True, width_ratios=counts
    )
    levels = {"clean": "no attack", "linf_eps0_05": "ε = 0.05", "linf_eps0_1": "ε = 0.1"}
    for each, (arm, names) in zip(axes, defences.items(), strict=True):
        for i, (level, label) in enumerate(levels.items()):
            colour = list(COLOURS.values())[i]
            for j, name in enumerate(names):
                place, found = j + 0.27 * (i - 1), error_bar(metrics, f"{name}_{level}_percent", arm)
                own = summary(metrics, f"{name}_own_{level}_percent", arm)
                if own:
                    each.bar(place, own.mean, 0.25, color=colour, alpha=0.35)
                if found:
                    each.bar(place, found[0], 0.25, yerr=found[1], color=colour, label=label if j == 0 else None)
        each.set_xticks(range(len(names)), [DEFENCES[name] for name in names], fontsize=10.5)
        each.set_xlabel(arms[arm])
        each.grid(axis="x", visible=False)
    axes[0].set_ylabel("accuracy (%); pale: only attacked\nthrough the refinement")
    legend_above(figure, axes, 3)
    save(figure, folder / "refinement.png")


def score_histograms(folder: Path, tables: Tables, arms: Mapping[str, str]) -> None:
    """The three scores on test images and on unfamiliar ones: a row for each of three arms, first seed."""
    shown = chosen([arm for arm in arms if any(of_table(tables, arm, f"histogram_{score}") for score in SCORES)], 3)
    if not shown:
        return
    figure, axes = new_figure(11, 3.2 * len(shown) + 0.6, rows=len(shown), columns=3)
    colours = dict(zip(("test", *SETS), ("black", "orange", "blue", "green", "vermilion", "vermilion"), strict=True))
    for i, arm in enumerate(shown):
        for j, (score, label) in enumerate(SCORES.items()):
            each = axes[3 * i + j]
            rows = next(iter(of_table(tables, arm, f"histogram_{score}").values()), [])
            if not rows:
                each.set_axis_off()
                continue
            for name in colours:
                if name in rows[0]:
                    ends = [row["low"] for row in rows] + [rows[-1]["low"] + rows[-1]["width"]]
                    told = {"test": "test images", **SETS}[name]
                    line: dict[str, Any] = {
                        "color": COLOURS[colours[name]],
                        "linewidth": 2.4 if name == "test" else 1.6,
                    }
                    each.stairs([row[name] for row in rows], ends, label=told, **line)
            heights = sorted(row[name] for row in rows for name in colours if name in row)
            if heights[-1] > 0:
                # One set that sits in one bin would flatten all the others.
                each.set_ylim(0, 1.05 * min(heights[-1], max(4 * heights[int(0.95 * len(heights))], 1e-9)))
            each.set_xlabel(label)
            each.set_yticks([])
            each.set_ylabel(arms[arm] if j == 0 else " ")
    legend_above(figure, axes, 5, ["test images"])
    save(figure, folder / "scores.png")


def auroc(folder: Path, metrics: Metrics, arms: Mapping[str, str]) -> None:
    """AUROC between test images and unfamiliar ones, scores of arms by sets, as table 3 of the paper."""
    names = [name for name in SETS if any(f"auroc_{score}_{name}" in metrics for score in SCORES)]

    def measured(score: str, arm: str) -> bool:
        return any(arm in metrics.get(f"auroc_{score}_{name}", {}) for name in names)

    shown = chosen([arm for arm in arms if any(measured(score, arm) for score in SCORES)], 5)
    lines = [(score, arm) for score in SCORES for arm in shown if measured(score, arm)]
    if not lines:
        return
    values = np.full((len(lines), len(names)), np.nan)
    for i, (score, arm) in enumerate(lines):
        for j, name in enumerate(names):
            found = summary(metrics, f"auroc_{score}_{name}", arm)
            values[i, j] = found.mean if found else np.nan
    figure, (axes,) = new_figure(2.0 * len(names) + 4.0, 0.48 * len(lines) + 1.6)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="RdBu", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value - 0.5) > 0.35 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=12)
    axes.set_xticks(range(len(names)), [SETS[name] for name in names])
    axes.set_yticks(range(len(lines)), [f"{SCORES[score]}: {arms[arm]}" for score, arm in lines])
    axes.set_xlabel("unfamiliar images")
    axes.set_ylabel("score and network")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="AUROC (0.5 is chance)")
    save(figure, folder / "auroc.png")
