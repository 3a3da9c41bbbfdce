"""Figures of the rankings: each function draws one picture from what `rank` and `noise_study` wrote.

A `Table` is a row of `sets.csv`: column -> cell. What was not measured at a preset is not drawn.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from papers.perturbed_optimizers.figures import RANKING, by_seed
from shared.comparisons import Metrics
from shared.report.looks import GREY, error_bar, legend_above
from shared.report.style import COLOURS, draw_seeds, new_figure, save
from shared.statistics import mean

Table = Mapping[str, Any]

#: Whom the Fenchel-Young loss is compared with table by table.
RIVALS = {
    "least_squares": "least squares on ranks",
    "black_box": "black-box, scale pinned",
    "squared_perturbed": "squared, through the layer",
}
VERDICTS = {
    "win": ("ahead", COLOURS["blue"], "o"),
    "tie": ("no measurable difference", GREY, "s"),
    "loss": ("behind", COLOURS["vermilion"], "X"),
}
#: Standard errors on either side: those of the verdicts.
ERRORS = 2.0
MEASURES = {"kendall": "Kendall's tau", "perfect": "share of perfect rankings"}


def draw(folder: Path, metrics: Metrics, tables: Sequence[Table]) -> None:
    """Every figure whose numbers there are."""
    if tables:
        ranking_sets(folder, tables)
        ranking_arms(folder, metrics)
        ranking_wins(folder, metrics)
    if noise_levels(metrics):
        noise(folder, metrics)
        noise_lead(folder, metrics)


def ranking_sets(folder: Path, tables: Sequence[Table]) -> None:
    """On each table, Spearman's rho of the Fenchel-Young loss less that of three rivals."""
    rows = sorted(tables, key=lambda row: row["ahead_of_least_squares"])
    figure, axes = new_figure(13, 0.27 * len(rows) + 1.8, columns=len(RIVALS), sharey=True)
    for each, (rival, title) in zip(axes, RIVALS.items(), strict=True):
        each.axvline(0, color="black", linewidth=1.4)
        for y, row in enumerate(rows):
            label, colour, marker = VERDICTS[row[f"verdict_{rival}"]]
            half = ERRORS * row[f"standard_error_{rival}"]
            each.errorbar(
                row[f"ahead_of_{rival}"], y, xerr=half, fmt=marker, color=colour, label=label, markersize=6, capsize=2
            )
        each.set_title(f"against {title}", fontsize=13)
        each.locator_params(axis="x", nbins=5)
        each.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(rows)), [row["set"] for row in rows])
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    axes[0].set_ylabel("table")
    figure.supxlabel("Spearman's rho of Fenchel-Young less the rival's (right of 0: better)", fontsize=14)
    legend_above(figure, axes, 3, [label for label, *_ in VERDICTS.values()])
    save(figure, folder / "ranking_sets.png")


def ranking_arms(folder: Path, metrics: Metrics) -> None:
    """The mean rho and tau over the tables, of every arm that looks at features, with the interval over repetitions."""
    arms = [arm for arm in RANKING if arm in metrics.get("spearman", {}) and arm != "constant"]
    arms.sort(key=lambda arm: (error_bar(metrics, "spearman", arm) or (0.0, None))[0])
    figure, (axes,) = new_figure(9, 0.42 * len(arms) + 1.7)
    measures = (("kendall", "Kendall's tau", "s", "vermilion"), ("spearman", "Spearman's rho", "o", "blue"))
    for measure, label, marker, colour in measures:
        for y, arm in enumerate(arms):
            found = error_bar(metrics, measure, arm)
            if found:
                axes.errorbar(found[0], y, xerr=found[1], fmt=marker, color=COLOURS[colour], label=label)
    axes.set_yticks(range(len(arms)), [RANKING[arm].label for arm in arms])
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlabel("mean correlation with the true ranking over the tables")
    axes.set_ylabel("trained by")
    legend_above(figure, [axes], 2)
    save(figure, folder / "ranking_arms.png")


def ranking_wins(folder: Path, metrics: Metrics) -> None:
    """On how many tables the Fenchel-Young loss is ahead of, level with and behind each other arm."""
    rivals = [arm for arm in RANKING if "fy" in metrics.get(f"wins_{arm}", {})]
    figure, (axes,) = new_figure(9, 0.5 * len(rivals) + 1.7)
    for y, rival in enumerate(reversed(rivals)):
        left = 0.0
        for plural, verdict in (("wins", "win"), ("ties", "tie"), ("losses", "loss")):
            label, colour, _ = VERDICTS[verdict]
            count = metrics[f"{plural}_{rival}"]["fy"]["exact"]
            axes.barh(y, count, left=left, color=colour, height=0.7, label=label)
            if count:
                axes.text(left + count / 2, y, f"{count:g}", color="white", ha="center", va="center", fontweight="bold")
            left += count
    axes.set_yticks(range(len(rivals)), [RANKING[arm].label for arm in reversed(rivals)])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("tables")
    axes.set_ylabel("Fenchel-Young against")
    legend_above(figure, [axes], 3)
    save(figure, folder / "ranking_wins.png")


def noise_levels(metrics: Metrics) -> dict[int, list[str]]:
    """Number of training lists -> the levels of noise that were measured, as the metrics name them, ascending."""
    found: dict[int, list[str]] = {}
    for name in metrics:
        match = re.fullmatch(r"noise_kendall_n(\d+)_sigma([\d_]+)", name)
        if match:
            found.setdefault(int(match[1]), []).append(match[2])
    return {count: sorted(found[count], key=level) for count in sorted(found)}


def level(label: str) -> float:
    """The number behind a label: "0_1" -> 0.1."""
    return float(label.replace("_", "."))


def noise(folder: Path, metrics: Metrics) -> None:
    """Tau and the share of perfect rankings against the noise in the labels, for each number of training lists.

    Means only: weights that are harder to learn are so for all arms, which `noise_lead` takes out.
    """
    found = noise_levels(metrics)
    figure, axes = new_figure(6.2 * len(found), 7.6, rows=2, columns=len(found), sharex=True)
    for i, (measure, words) in enumerate(MEASURES.items()):
        for j, (count, labels) in enumerate(found.items()):
            each = axes[i * len(found) + j]
            for arm, look in RANKING.items():
                seeds = by_seed(metrics, [(f"noise_{measure}_n{count}_sigma{label}", arm) for label in labels])
                if seeds:
                    means = [mean(values) for values in zip(*seeds.values(), strict=True)]
                    each.plot(range(len(labels)), means, label=look.label, **look.line())
            each.set_xticks(range(len(labels)), [f"{level(label):g}" for label in labels])
            each.set_ylabel(words)
            each.set_title("" if i else f"{count} training lists")
            each.set_xlabel("standard deviation σ of the label noise" if i else "")
    legend_above(figure, axes, 2 if len(found) == 1 else 3)
    save(figure, folder / "noise.png")


def noise_lead(folder: Path, metrics: Metrics) -> None:
    """How far the Fenchel-Young loss is ahead of each arm in tau, paired over the seeds, against the noise."""
    found = noise_levels(metrics)
    figure, axes = new_figure(6.2 * len(found), 4.8, columns=len(found))
    for each, (count, labels) in zip(axes, found.items(), strict=True):
        each.axhline(0, color="black", linewidth=1.4)
        for arm, look in RANKING.items():
            places = [(f"noise_kendall_n{count}_sigma{label}", name) for label in labels for name in ("fy", arm)]
            seeds = by_seed(metrics, places)
            if seeds and arm != "fy":
                leads = {
                    seed: [ours - theirs for ours, theirs in zip(values[::2], values[1::2], strict=True)]
                    for seed, values in seeds.items()
                }
                draw_seeds(each, range(len(labels)), leads, look.label, **look.line())
        each.set_xticks(range(len(labels)), [f"{level(label):g}" for label in labels])
        each.set_title(f"{count} training lists")
        each.set_xlabel("standard deviation σ of the label noise")
        each.set_ylabel("lead of Fenchel-Young in tau")
    legend_above(figure, axes, 2)
    save(figure, folder / "noise_lead.png")
