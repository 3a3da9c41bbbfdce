"""Figures of the stages `theory` and `gradients`: each function draws one picture from what they wrote.

`Metrics` is metric -> arm -> key -> number; `curves` is the name of a CSV file without its ending -> its rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import GREY, legend_above, plain_log
from shared.report.style import COLOURS, draw_seeds, new_figure, save
from shared.statistics import mean

__all__ = ["draw"]

Rows = Sequence[Mapping[str, float]]

#: Label, colour, marker.
STRUCTURES = {
    "categorical": ("one of 5", COLOURS["black"], "X"),
    "k_subsets_marginals": ("2 of 5", COLOURS["blue"], "o"),
    "correlated_k_subsets": ("3 of 6 in a row", COLOURS["sky"], "P"),
    "matchings": ("matching, 3 x 3", COLOURS["orange"], "D"),
    "spanning_trees": ("spanning tree, 4 nodes", COLOURS["green"], "^"),
    "arborescences": ("arborescence, 4 nodes", COLOURS["vermilion"], "s"),
}
SUBSETS = {
    "k_subsets_euclidean": ("Euclidean", COLOURS["vermilion"], "s"),
    "k_subsets_categorical": ("categorical entropy", COLOURS["green"], "^"),
    "k_subsets_marginals": ("exponential family", COLOURS["blue"], "o"),
    "k_subsets_binary": ("binary entropy", COLOURS["purple"], "v"),
}
PROBLEMS = {"categorical": "one of 3", "k_subsets": "2 of 5", "spanning_trees": "spanning tree, 4 nodes"}
TRICKS = {
    "relaxed": ("relaxed", COLOURS["blue"], "o"),
    "straight_through": ("straight-through", COLOURS["orange"], "D"),
}
TEMPERATURES = (0.1, 0.3, 0.5, 1.0, 2.0)
SCORES = {
    "reinforce_utilities": ("REINFORCE on utilities", COLOURS["vermilion"], "s"),
    "reinforce_trace": ("REINFORCE on the trace", COLOURS["black"], "X"),
    "reinforce_leave_one_out_4": ("leave-one-out, 4 samples", COLOURS["green"], "^"),
    "reinforce_moving_average": ("moving average", COLOURS["purple"], "v"),
    "relax": ("RELAX", COLOURS["sky"], "P"),
}
TRAINED = {
    "exact": ("exact gradient", GREY, "*"),
    "relaxed_t0.1": ("relaxed, t = 0.1", COLOURS["sky"], "P"),
    "relaxed_t0.5": ("relaxed, t = 0.5", COLOURS["blue"], "o"),
    "relaxed_t2": ("relaxed, t = 2", "#004C7F", "d"),
    "straight_through_t1": ("straight-through, t = 1", COLOURS["orange"], "D"),
    "reinforce_utilities": ("REINFORCE on utilities", COLOURS["vermilion"], "s"),
    "reinforce_leave_one_out": ("leave-one-out", COLOURS["green"], "^"),
    "rebar_t0.5": ("REBAR", COLOURS["purple"], "v"),
    "implicit_mle_h1": ("implicit MLE, h = 1", COLOURS["black"], "X"),
}
METHODS = {
    "float32_log_determinant": ("log-determinant, float32", COLOURS["vermilion"], "s"),
    "float64_log_determinant": ("log-determinant, float64", COLOURS["orange"], "D"),
    "closed_form_max_range_15": ("closed form, range limited to 15", COLOURS["purple"], "v"),
    "closed_form": ("closed form", COLOURS["blue"], "o"),
}


def draw(folder: Path, metrics: Metrics, curves: Mapping[str, Rows]) -> None:
    """Every figure whose numbers there are."""
    for name, figure in (("limit", limit), ("example", example), ("precision", precision)):
        if curves.get(name):
            figure(folder, curves[name])
    if curves.get("race") and "inclusion_percent_01" in metrics:
        laws(folder, curves["race"], metrics)
    measured = [name for name in PROBLEMS if f"{name}_bias" in metrics]
    if measured:
        bias_and_variance(folder, metrics, measured)
        trade_off(folder, metrics, measured)
    if curves.get("training"):
        training(folder, curves["training"])


def by_seed(rows: Rows, x: str, y: str) -> tuple[list[float], dict[str, list[float]]]:
    """Positions, and seed -> values, of one column over another."""
    seeds: dict[str, list[float]] = {}
    for row in rows:
        seeds.setdefault(f"seed{row['seed']:g}", []).append(row[y])
    return sorted({row[x] for row in rows}), seeds


def limit(folder: Path, rows: Rows) -> None:
    """Distance between the relaxed point and the best vertex over the temperature."""
    figure, axes = new_figure(12, 5.2, columns=2, sharey=True)
    rows = sorted(rows, key=lambda row: row["temperature"])
    for each, looks, title in zip(axes, (STRUCTURES, SUBSETS), ("structures", "relaxations of 2 of 5"), strict=True):
        for name, (label, colour, marker) in looks.items():
            temperatures, seeds = by_seed(rows, "temperature", name)
            # An interval could reach below 0, which a logarithmic axis has no place for.
            means = [mean(values) for values in zip(*seeds.values(), strict=True)]
            each.plot(temperatures, means, color=colour, marker=marker, label=label)
        plain_log(each, (0.01, 0.1, 1, 10))
        each.set_yscale("log")
        each.set_title(title)
        each.set_xlabel("temperature t (unit of the utilities)")
        each.legend(loc="lower right")
    axes[0].set_ylabel("mean largest |relaxed - hard|")
    save(figure, folder / "limit.png")


def example(folder: Path, rows: Rows) -> None:
    """A relaxed tree on four nodes: the width of an edge is its weight, below each picture the temperature."""
    rows = sorted(rows, key=lambda row: -row["temperature"])
    figure, axes = new_figure(12, 3.0, columns=len(rows))
    corners = ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    for each, row in zip(axes, rows, strict=True):
        for number, (i, j) in enumerate(itertools.combinations(range(4), 2)):
            ends = tuple(zip(corners[i], corners[j], strict=True))
            weight = row[f"edge{number}"]
            each.plot(*ends, color="#DDDDDD", linewidth=0.8, zorder=1)
            each.plot(*ends, color=COLOURS["blue"], linewidth=8 * weight, zorder=2, solid_capstyle="round")
        for i, (x, y) in enumerate(corners):
            each.scatter([x], [y], s=260, color="white", edgecolors="black", zorder=3)
            each.text(x, y, str(i), ha="center", va="center", zorder=4, fontsize=12)
        each.set_title(f"t = {row['temperature']:g}" if row["temperature"] else "hard tree")
        each.set(xlim=(-0.25, 1.25), ylim=(-0.25, 1.25), aspect="equal")
        each.axis("off")
    save(figure, folder / "example_tree.png")


def laws(folder: Path, race: Rows, metrics: Metrics) -> None:
    """Who wins a race of exponential clocks, early and late; which edges a triangle's random trees have."""
    figure, (left, right) = new_figure(12, 4.8, columns=2)
    colours = (COLOURS["sky"], COLOURS["green"], COLOURS["orange"], COLOURS["vermilion"])
    clocks = [name for name in race[0] if name.startswith("clock")]
    for i, (name, colour, marker) in enumerate(zip(clocks, colours, "osD^"), 1):
        shares = [row[name] for row in race]
        left.plot([row["tenth"] for row in race], shares, color=colour, marker=marker, label=f"clock of rate {i}")
        left.axhline(100 * i / sum(range(1, len(clocks) + 1)), color="black", linestyle=":", linewidth=1.2)
    left.set(xlabel="tenth of the first times, early to late", ylabel="% of races won", ylim=(0, 55))
    left.legend(ncols=2, loc="upper center")
    kinds = (
        ("sampled", "counted", COLOURS["blue"]),
        ("enumerated", "Plackett-Luce orders", COLOURS["orange"]),
        ("gibbs", "Gibbs law", GREY),
    )
    edges = ("01", "02", "12")
    for shift, (arm, label, colour) in enumerate(kinds):
        found = [summary(metrics, f"inclusion_percent_{edge}", arm) for edge in edges]
        heights = [each.mean if each else 0.0 for each in found]
        right.bar([x + 0.27 * (shift - 1) for x in range(3)], heights, 0.25, color=colour, label=label)
    right.set_xticks(range(3), [f"edge {edge}" for edge in edges])
    right.set(xlabel="utilities 0.5, -1 and 0.3, plus Gumbel noise", ylabel="% of trees with the edge", ylim=(0, 118))
    right.legend(ncols=3, loc="upper center", columnspacing=1.0, handlelength=1.2)
    save(figure, folder / "laws.png")


def precision(folder: Path, rows: Rows) -> None:
    """How often marginals of trees on ten nodes are wrong, over the range of the utilities."""
    figure, (axes,) = new_figure(8, 4.8)
    for name, (label, colour, marker) in METHODS.items():
        ranges, seeds = by_seed(rows, "range", name)
        draw_seeds(axes, ranges, seeds, label, color=colour, marker=marker)
    axes.set_xlabel("range of the utilities over t")
    axes.set_ylabel("% of graphs with an error > 0.01")
    axes.set_ylim(-3, 103)
    axes.legend(loc="upper left")
    save(figure, folder / "precision.png")


def _curve(metrics: Metrics, metric: str, trick: str) -> tuple[list[float], list[float]]:
    """Temperatures, and means over seeds."""
    found = [(t, summary(metrics, metric, f"{trick}_t{t:g}")) for t in TEMPERATURES]
    return [t for t, each in found if each], [each.mean for _, each in found if each]


def bias_and_variance(folder: Path, metrics: Metrics, measured: Sequence[str]) -> None:
    """Bias and variance at equal cost over the temperature, with score functions as horizontal lines."""
    figure, axes = new_figure(12, 7.6, rows=2, columns=len(measured), sharex=True, sharey="row")
    for column, name in enumerate(measured):
        top, bottom = axes[column], axes[len(measured) + column]
        for trick, (label, colour, marker) in TRICKS.items():
            top.plot(*_curve(metrics, f"{name}_bias", trick), color=colour, marker=marker, label=label)
            bottom.plot(*_curve(metrics, f"{name}_cost_variance", trick), color=colour, marker=marker, label=label)
        norm = summary(metrics, f"{name}_gradient_norm", "exact")
        if norm:
            top.axhline(norm.mean, color=GREY, linestyle="--", linewidth=1.6, label="norm of the gradient")
        for arm, (label, colour, _) in SCORES.items():
            found = summary(metrics, f"{name}_cost_variance", arm)
            if found:
                bottom.axhline(found.mean, color=colour, linestyle=":", linewidth=2.2, label=label)
        top.set_title(PROBLEMS[name])
        bottom.set_yscale("log")
        plain_log(bottom, TEMPERATURES)
        bottom.set_xlabel("temperature t")
    axes[0].set_ylabel("norm of the bias")
    axes[len(measured)].set_ylabel("variance x evaluations")
    legend_above(figure, [axes[0], axes[len(measured)]], 4)
    save(figure, folder / "bias_and_variance.png")


def trade_off(folder: Path, metrics: Metrics, measured: Sequence[str]) -> None:
    """Variance at equal cost over bias: relaxations trade one for the other, score functions have no bias."""
    figure, axes = new_figure(12, 5.6, columns=len(measured), sharey=True)
    for each, name in zip(axes, measured, strict=True):
        for trick, (label, colour, marker) in TRICKS.items():
            temperatures, x = _curve(metrics, f"{name}_bias", trick)
            y = _curve(metrics, f"{name}_cost_variance", trick)[1]
            each.plot(x, y, color=colour, marker=marker, label=label)
            if trick == "relaxed":
                for t, bias_at, variance_at in zip(temperatures, x, y):
                    if t >= 1:  # the others lie too close to the score functions
                        place = (bias_at, variance_at)
                        each.annotate(f"t = {t:g}", place, (-6, -6), textcoords="offset points", ha="right", va="top")
        steps = [f"implicit_mle_h{h:g}" for h in (0.1, 1.0, 10.0)]
        implicit = [summary(metrics, f"{name}_{kind}", arm) for arm in steps for kind in ("bias", "cost_variance")]
        places = [found.mean for found in implicit if found]
        each.plot(
            places[::2], places[1::2], color=GREY, marker="*", linestyle="--", label="implicit MLE, h = 0.1, 1, 10"
        )
        for arm, (label, colour, marker) in SCORES.items():
            bias, variance = (summary(metrics, f"{name}_{kind}", arm) for kind in ("bias", "cost_variance"))
            if bias and variance:
                each.plot([bias.mean], [variance.mean], color=colour, marker=marker, linestyle="none", label=label)
        each.set_yscale("log")
        each.margins(y=0.1)
        each.set_title(PROBLEMS[name])
        each.set_xlabel("norm of the bias")
    axes[0].set_ylabel("variance x evaluations of the loss")
    legend_above(figure, axes[:1], 3)
    save(figure, folder / "trade_off.png")


def training(folder: Path, rows: Rows) -> None:
    """Expected loss over the evaluations spent, and where each training ended."""
    figure, (left, right) = new_figure(13, 6.0, columns=2, width_ratios=[1.25, 1])
    arms = [name for name in TRAINED if name in rows[0]]
    for name in arms:
        label, colour, marker = TRAINED[name]
        evaluations, seeds = by_seed(rows, "evaluations", name)
        means = [mean(values) for values in zip(*seeds.values(), strict=True)]
        every = max(1, len(evaluations) // 8)
        left.plot(evaluations, means, color=colour, marker=marker, markevery=every, label=label)
        ends = [max(values[-1], 1e-4) for values in seeds.values()]
        place = len(arms) - arms.index(name)
        right.plot(ends, [place + 0.02 * (i % 7 - 3) for i in range(len(ends))], color=colour, marker=marker,
                   linestyle="none", alpha=0.6)  # fmt: skip
    left.set(xlabel="evaluations of the loss", ylabel="expected loss, % of the first gap to the least", ylim=(-2, 102))
    left.legend(fontsize=11)
    right.set_xscale("log")
    right.set_yticks(range(len(arms), 0, -1), [TRAINED[name][0] for name in arms])
    right.set(xlabel="at the end, each training, %", ylabel="estimator")
    save(figure, folder / "gradient_training.png")
