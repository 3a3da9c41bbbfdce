"""Figures of the two-dimensional toys: each function draws one picture from what the stage `toys` wrote."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from shared.comparisons import Metrics
from shared.errors import UserError
from shared.measurements import summary
from shared.report.looks import GREY, Look, legend_above, plain_log
from shared.report.style import COLOURS, new_figure, save
from shared.results import read_rows
from shared.statistics import mean

Rows = Sequence[Mapping[str, float]]
Tables = Mapping[str, Rows]

LAWS = {"eight_gaussians": "eight Gaussians", "moons": "moons", "rings": "rings", "pinwheel": "pinwheel"}
#: The order is that of the numbers in `training.csv`.
ARMS = {
    "eight_gaussians": Look("eight Gaussians", COLOURS["blue"], "o"),
    "moons": Look("moons", COLOURS["green"], "s"),
    "rings": Look("rings", COLOURS["vermilion"], "^"),
    "pinwheel": Look("pinwheel", COLOURS["purple"], "v"),
    "eight_gaussians_no_buffer": Look("eight Gaussians, no buffer", COLOURS["orange"], "D"),
    "eight_gaussians_cold": Look("eight Gaussians, little noise", COLOURS["black"], "X"),
}
SAMPLERS = {
    "matched_buffer": (Look("matched noise, from the buffer", COLOURS["blue"], "o"), "-"),
    "matched_noise": (Look("matched noise, from fresh starts", COLOURS["sky"], "s"), "-"),
    "cold_buffer": (Look("little noise, from the buffer", COLOURS["vermilion"], "^"), "--"),
    "cold_noise": (Look("little noise, from fresh starts", COLOURS["orange"], "v"), "--"),
}
#: Panels of the second picture: column of `densities.csv`, arm of the metrics, its KL, title.
SAME_LAW = (
    ("true_eight_gaussians", "", "", "the law"),
    ("model_eight_gaussians", "eight_gaussians", "toy_kl_nats", "JEM"),
    ("model_eight_gaussians_no_buffer", "eight_gaussians_no_buffer", "toy_kl_nats", "without a buffer"),
    ("model_eight_gaussians_cold", "eight_gaussians_cold", "toy_kl_nats", "with little noise"),
    ("classifier_eight_gaussians", "eight_gaussians_classifier", "toy_kl_nats", "classifier alone"),
    ("shifted_eight_gaussians", "eight_gaussians", "toy_shifted_kl_nats", "JEM, logits shifted"),
)


def read_tables(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Every table of the stage: name -> rows; none where it did not run."""
    return {path.stem: read_rows(path) for path in sorted(folder.glob("*.csv"))}


def draw(folder: Path, metrics: Metrics, source: Path) -> None:
    """Every figure whose numbers there are; `source` is the folder of the stage, which may be absent."""
    draw_tables(folder, metrics, read_tables(source))


def draw_tables(folder: Path, metrics: Metrics, tables: Tables) -> None:
    """Every figure whose rows there are; `tables` is the name of a CSV file -> its rows."""
    if tables.get("densities") and tables.get("samples"):
        densities(folder, tables["densities"], tables["samples"])
        same_law(folder, tables["densities"], metrics)
    if tables.get("training"):
        loss_and_likelihood(folder, tables["training"])
    if any(tables.get(f"angles_{law}") for law in LAWS):
        angles(folder, {law: tables[f"angles_{law}"] for law in LAWS if tables.get(f"angles_{law}")})
    if tables.get("variances") and tables.get("variance_course"):
        variances(folder, tables["variances"], tables["variance_course"])
    if tables.get("divergence"):
        divergence(folder, tables["divergence"])


def by_seed(rows: Rows, x: str, y: str) -> tuple[list[float], dict[str, list[float]]]:
    """Positions that all seeds have, and seed -> values there, of one column over another."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        found.setdefault(f"seed{row['seed']:g}", {})[row[x]] = row[y]
    shared = sorted(set.intersection(*(set(each) for each in found.values())))
    return shared, {seed: [each[at] for at in shared] for seed, each in found.items()}


def draw_each(axes: Axes, x: Sequence[float], seeds: Mapping[str, Sequence[float]], label: str, **line: Any) -> None:
    """A faint line for every seed and their mean: seeds break in different ways, of which a band would say nothing."""
    for values in seeds.values():
        axes.plot(x, values, color=line["color"], linewidth=0.9, alpha=0.45)
    axes.plot(x, [mean(values) for values in zip(*seeds.values(), strict=True)], label=label, **line)


def show_density(axes: Axes, rows: Rows, column: str, largest: float) -> None:
    """One density over the square of the picture; brightness is the square root, so that faint places are seen.

    Raises:
        UserError: the points are no square grid.
    """
    side = math.isqrt(len(rows))
    if side * side != len(rows):
        raise UserError(f"densities.csv has {len(rows)} rows, which are no square grid; run the stage toys again")
    # Rows run through x2 first.
    picture = np.array([row[column] for row in rows]).reshape(side, side).T
    half = half_width(rows)
    axes.imshow(np.sqrt(picture.clip(0) / largest), origin="lower", extent=(-half, half, -half, half), vmin=0, vmax=1)
    axes.axis("off")


def half_width(rows: Rows) -> float:
    """Of the square that the cells of the picture cover; the points are their centres."""
    side = math.isqrt(len(rows))
    return max(abs(row["x1"]) for row in rows) * side / (side - 1)


def show_samples(axes: Axes, rows: Rows, name: str, colour: str) -> None:
    """Points of a law or of a buffer."""
    axes.scatter([row[f"{name}_x1"] for row in rows], [row[f"{name}_x2"] for row in rows], s=5, color=colour)
    axes.set_xlim(-3, 3)
    axes.set_ylim(-3, 3)
    axes.set_aspect("equal")
    axes.axis("off")


def densities(folder: Path, rows: Rows, samples: Rows) -> None:
    """Of every law the true density, the learnt one on the same scale of brightness, data and samples."""
    names = [law for law in LAWS if {f"true_{law}", f"model_{law}"} <= set(rows[0]) and f"{law}_x1" in samples[0]]
    if not names:
        return
    figure, panels = new_figure(3.0 * len(names), 12.2, rows=4, columns=len(names))
    for column, law in enumerate(names):
        cells = [panels[row * len(names) + column] for row in range(4)]
        largest = max(row[f"true_{law}"] for row in rows)
        show_density(cells[0], rows, f"true_{law}", largest)
        show_density(cells[1], rows, f"model_{law}", largest)
        show_samples(cells[2], samples, f"true_{law}", GREY)
        show_samples(cells[3], samples, law, COLOURS["blue"])
        cells[0].set_title(LAWS[law])
    for row, label in enumerate(("law", "JEM", "data", "samples")):
        panels[row * len(names)].text(
            -0.04, 0.5, label, transform=panels[row * len(names)].transAxes, rotation=90, ha="right", va="center"
        )
    save(figure, folder / "toy_densities.png")


def same_law(folder: Path, rows: Rows, metrics: Metrics) -> None:
    """What other samplers, the classifier and a shift of the logits make of the first law; KL is the mean of seeds.

    Where a model has mass outside the picture, its title tells how much is inside.
    """
    shown = [each for each in SAME_LAW if each[0] in rows[0]]
    if not shown or shown[0][0] != SAME_LAW[0][0]:
        return
    figure, panels = new_figure(9.6, 3.5 * -(-len(shown) // 3), rows=-(-len(shown) // 3), columns=3)
    largest = max(row[shown[0][0]] for row in rows)
    cell = (2 * half_width(rows)) ** 2 / len(rows)
    for axes in panels[len(shown) :]:
        axes.axis("off")
    for axes, (column, arm, metric, title) in zip(panels, shown, strict=False):
        show_density(axes, rows, column, largest)
        found = summary(metrics, metric, arm) if metric else None
        below = f"KL {found.mean:.2f} nats" if found else ""
        shown_percent = 100 * cell * sum(row[column] for row in rows)
        if shown_percent < 90:
            below += f", {shown_percent:.0f} % shown"
        axes.set_title(f"{title}\n{below}", fontsize=13)
    save(figure, folder / "toy_same_law.png")


def loss_and_likelihood(folder: Path, rows: Rows) -> None:
    """The loss that is minimised and the exact likelihood along the trainings, side by side."""
    figure, panels = new_figure(12.5, 5.8, columns=2)
    for place, look in enumerate(ARMS.values()):
        own = [row for row in rows if row["arm"] == place]
        if not own:
            continue
        for axes, column in zip(panels, ("contrast", "nll_nats"), strict=True):
            steps, seeds = by_seed(own, "step", column)
            draw_each(axes, steps, seeds, look.label, color=look.colour, marker=look.marker, markevery=5)
    panels[0].set_ylabel("contrastive loss of a batch, nats")
    panels[1].set_ylabel("exact negative log-likelihood, nats")
    panels[1].set_yscale("log")
    plain_log_inside(panels[1], (1, 2, 3, 5, 10, 20, 50, 100))
    for axes in panels:
        axes.set_xlabel("training step")
    legend_above(figure, panels, 3)
    save(figure, folder / "toy_loss_nll.png")


def plain_log_inside(axes: Axes, ticks: Sequence[float]) -> None:
    """Plain numbers on a logarithmic y axis, as far as they are inside."""
    low, high = axes.get_ylim()
    plain_log(axes, [tick for tick in ticks if low <= tick <= high], upright=True)
    axes.set_ylim(low, high)


def angles(folder: Path, laws: Mapping[str, Rows]) -> None:
    """Cosine between estimated and exact gradient over the length of the chains, for each sampler and start."""
    figure, panels = new_figure(6.2 * max(len(laws), 1), 5.8, columns=len(laws), sharey=True)
    for axes, (law, rows) in zip(panels, laws.items(), strict=True):
        for name, (look, style) in SAMPLERS.items():
            if f"cosine_{name}" in rows[0]:
                lengths, seeds = by_seed(rows, "length", f"cosine_{name}")
                draw_each(axes, lengths, seeds, look.label, **look.line(), linestyle=style)
        if "cosine_exact_samples" in rows[0]:
            lengths, seeds = by_seed(rows, "length", "cosine_exact_samples")
            draw_each(axes, lengths, seeds, "exact samples of the model", color=GREY, linestyle=":")
        plain_log(axes, lengths)
        axes.set_title(LAWS[law])
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("steps of a chain")
    panels[0].set_ylabel("cosine with the exact gradient")
    legend_above(figure, panels, 2 if len(laws) > 1 else 1)
    save(figure, folder / "toy_angles.png")


def variances(folder: Path, rows: Rows, course: Rows) -> None:
    """Variance of chains on quadratic energies: settled against the law, and its course on both sides of the bound."""
    figure, (left, right) = new_figure(12.5, 5.0, columns=2)
    a = np.linspace(0.03, 1.97, 400)
    lines: Sequence[tuple[str, Callable[[np.ndarray], np.ndarray], str, str, str]] = (
        ("variance", lambda a: 1 / (a * (2 - a)), "noise apart from the step, / σ²", COLOURS["blue"], "o"),
        ("matched_over_target", lambda a: 2 / (2 - a), "noise matched to the step, / target", COLOURS["green"], "s"),
    )
    for column, law, label, colour, marker in lines:
        left.plot(a, law(a), color=colour, linewidth=1.5)
        left.plot([row["a"] for row in rows], [row[column] for row in rows], marker, color=colour, label=label)
    left.axvline(2, color=GREY, linestyle="--", linewidth=1.5)
    left.set_yscale("log")
    plain_log_inside(left, (0.5, 1, 2, 5, 10, 20, 50))
    left.set_xlabel("a = step size × curvature")
    left.set_ylabel("variance of settled chains")
    left.legend(loc="upper center", fontsize=11)
    chosen = [name for name in ("a0.1", "a1", "a1.95", "a2", "a2.05", "a2.2") if name in course[0]]
    for name, colour in zip(chosen, COLOURS.values(), strict=False):
        points = [(row["step"], row[name]) for row in course]
        right.plot(*zip(*points, strict=True), color=colour, label=f"a = {name[1:]}")
    right.set_yscale("log")
    right.set_ylim(0.3, 1e8)
    right.set_xlabel("steps of a chain")
    right.set_ylabel("variance / σ²")
    right.legend(loc="upper right", fontsize=11, ncols=2)
    save(figure, folder / "toy_variance.png")


def divergence(folder: Path, rows: Rows) -> None:
    """Step size times the largest curvature, and KL, along trainings with two step sizes; one line a seed."""
    figure, panels = new_figure(12.5, 5.0, columns=2)
    colours = (COLOURS["blue"], COLOURS["vermilion"], COLOURS["green"])
    for alpha, colour in zip(sorted({row["alpha"] for row in rows}), colours, strict=False):
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if row["alpha"] == alpha and row["seed"] == seed]
            steps = [row["step"] for row in own]
            for axes, column in zip(panels, ("step_times_curvature", "kl_nats"), strict=True):
                axes.plot(steps, [row[column] for row in own], color=colour, linewidth=1.4, label=f"α = {alpha:g}")
    panels[0].axhline(2, color=GREY, linestyle="--", linewidth=1.5, label="bound 2")
    panels[0].set_ylabel("step size × largest curvature")
    panels[1].set_ylabel("KL(data || model), nats")
    for axes in panels:
        axes.set_xlabel("training step")
        axes.set_yscale("log")
    legend_above(figure, panels, 3)
    save(figure, folder / "toy_curvature.png")
