"""The tables of the report as CSV: rankings, terrain maps, CIFAR-10, the theory, and the variance of the gradient."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from papers.perturbed_optimizers.figures import BASELINES, RANKING, TERRAIN, Rows
from papers.perturbed_optimizers.figures_ranking import RIVALS, Table
from papers.perturbed_optimizers.figures_terrain import Sweep
from papers.perturbed_optimizers.figures_theory import CONTROLS
from shared.comparisons import Metrics
from shared.measurements import mean_and_ends, summary
from shared.report.tables import Cell, write_csv
from shared.statistics import mean, paired_differences, student_interval

Lines = tuple[list[str], list[list[Cell]]]

#: The losses on images, by the beginning of the arms' names.
LOSSES = {"cross_entropy": "cross-entropy", "fy": "Fenchel-Young", "fy_gumbel": "Fenchel-Young, Gumbel noise"}
LOSSES |= {"squared": "squared, through the layer"}
#: Identity, metric, problem, what is expected (a number, or in words), unit.
IDENTITIES: tuple[tuple[str, str, str, float | str, str], ...] = (
    *(
        (f"{what} ({name})", metric, name, limit, "standard errors")
        for what, metric, limit, names in (
            ("gradient of the perturbed maximum", "gradient_z", "at most 4", ("argmax", "ranking", "path")),
            ("Jacobian of the mean solution", "jacobian_z", "at most 4", ("gumbel_simplex", "gaussian_pair")),
            ("mean solution", "solution_z", "at most 4", ("simplex", "ranking")),
            ("perturbed argmax is softmax", "softmax_z", "at most 4", ("gumbel",)),
            ("perturbed maximum is log-sum-exp", "logsumexp_z", "at most 4", ("gumbel",)),
            ("identity map has the unit Jacobian", "unit_jacobian_z", "at most 4", ("eps0_1", "eps1", "eps10")),
        )
        for name in names
    ),
    ("slope of the error over samples (argmax Jacobian)", "jacobian_error_slope", "gumbel_simplex", -0.5, ""),
    ("slope of the error over samples (pair Jacobian)", "jacobian_error_slope", "gaussian_pair", -0.5, ""),
    ("slope of the error over samples (argmax)", "solution_error_slope", "simplex", -0.5, ""),
    ("slope of the error over samples (ranking)", "solution_error_slope", "ranking", -0.5, ""),
    ("violations of convexity in 1,000 segments (argmax)", "convexity_violations", "argmax", 0.0, ""),
    ("violations of convexity in 1,000 segments (ranking)", "convexity_violations", "ranking", 0.0, ""),
    ("violations of convexity in 1,000 segments (path)", "convexity_violations", "path", 0.0, ""),
    ("distance to the plain solution, cold (argmax)", "small_epsilon_distance", "argmax", 0.0, ""),
    ("distance to the plain solution, cold (ranking)", "small_epsilon_distance", "ranking", 0.0, ""),
    ("distance to the plain solution, cold (path)", "small_epsilon_distance", "path", 0.0, ""),
    ("distance to the centre, hot (argmax)", "large_epsilon_distance", "argmax", 0.0, ""),
    ("distance to the centre, hot (ranking)", "large_epsilon_distance", "ranking", 0.0, ""),
    ("smallest Fenchel-Young loss (argmax)", "fy_minimum", "simplex", "at least 0", ""),
    ("smallest Fenchel-Young loss (ranking)", "fy_minimum", "ranking", "at least 0", ""),
    ("Fenchel-Young loss at its target (argmax)", "fy_at_target", "simplex", 0.0, ""),
    ("Fenchel-Young loss at its target (ranking)", "fy_at_target", "ranking", 0.0, ""),
    ("gradient of the loss is that of its value (argmax)", "fy_gradient_error", "argmax", 0.0, ""),
    ("gradient of the loss is that of its value (ranking)", "fy_gradient_error", "ranking", 0.0, ""),
    ("gradient of the loss is that of its value (path)", "fy_gradient_error", "path", 0.0, ""),
    ("Gumbel loss on the simplex is cross-entropy", "gumbel_cross_entropy_error", "main", 0.0, ""),
    ("Gumbel loss on rankings is RankNet", "ranking_ranknet_error", "main", 0.0, ""),
    ("covariance of the estimate over theory", "estimation_covariance_ratio", "gumbel", 1.0, ""),
)


def write_tables(
    folder: Path, metrics: Metrics, sets: Sequence[Table], variance: Rows, sweep: Mapping[str, Sweep]
) -> None:
    """Every table that has a row."""
    tables = {
        "ranking": ranking(sets),
        "ranking_summary": ranking_summary(metrics),
        "terrain": terrain(metrics),
        "sweep": swept(metrics, sweep),
        "classification": classification(metrics),
        "theory": theory(metrics),
        "variance": variances(variance),
    }
    for name, (header, lines) in tables.items():
        if lines:
            write_csv(folder / f"{name}.csv", header, lines)


def ranking(sets: Sequence[Table]) -> Lines:
    """A line a table: its size, rho of the main arms, and how far the Fenchel-Young loss is ahead of each rival."""
    arms = ("fy", *RIVALS, "constant")
    header = ["table", "instances", "features", "labels", *(f"rho, {RANKING[arm].label}" for arm in arms)]
    for rival in RIVALS:
        header += [f"ahead of {RANKING[rival].label}", "standard error", "verdict"]
    lines: list[list[Cell]] = []
    for row in sorted(sets, key=lambda row: str(row["set"])):
        line: list[Cell] = [row["set"], row["instances"], row["features"], row["labels"]]
        line += [row[f"spearman_{arm}"] for arm in arms]
        for rival in RIVALS:
            line += [row[f"ahead_of_{rival}"], row[f"standard_error_{rival}"], row[f"verdict_{rival}"]]
        lines.append(line)
    return header, lines


def ranking_summary(metrics: Metrics) -> Lines:
    """A line an arm, the best first: means over the tables, how Fenchel-Young fares against it, time of all tables."""
    header = ["trained by", "mean tau", "mean rho", "low", "high", "Fenchel-Young wins", "ties", "losses"]
    lines: list[list[Cell]] = []
    for arm in (arm for arm in RANKING if arm in metrics.get("spearman", {})):
        tau, seconds = summary(metrics, "kendall", arm), summary(metrics, "seconds", arm)
        counts = [metrics.get(f"{plural}_{arm}", {}).get("fy", {}) for plural in ("wins", "ties", "losses")]
        lines.append(
            [RANKING[arm].label, tau.mean if tau else None, *mean_and_ends(metrics, "spearman", arm)]
            + [int(count["exact"]) if count else None for count in counts]
            + [seconds.mean if seconds else None]
        )
    lines.sort(key=lambda line: -float(line[2] or 0))
    return [*header, "seconds a cross-validation"], lines


def terrain(metrics: Metrics) -> Lines:
    """A line an arm and a baseline, on test maps."""
    header = [
        "learnt by",
        "optimal-path rate",
        "rate low",
        "rate high",
        "cost ratio",
        "ratio low",
        "ratio high",
        "exact match",
    ]
    header += ["rank correlation of costs", "training maps", "paths solved", "training (s)", "n"]
    lines: list[list[Cell]] = []
    names = {**{arm: look.label for arm, look in TERRAIN.items()}, **BASELINES}
    for arm in (arm for arm in names if arm in metrics.get("optimal_path_rate", {})):
        rest = [
            summary(metrics, name, arm)
            for name in ("exact_match_rate", "cost_rank_correlation", "training_maps", "solver_calls", "train_seconds")
        ]
        exact, correlation, maps, calls, seconds = [each.mean if each else None for each in rest]
        line = [
            names[arm],
            *mean_and_ends(metrics, "optimal_path_rate", arm),
            *mean_and_ends(metrics, "cost_ratio", arm),
        ]
        line += [
            exact,
            correlation,
            None if maps is None else round(maps),
            None if calls is None else round(calls),
            seconds,
        ]
        lines.append([*line, _count(metrics, "optimal_path_rate", arm)])
    return header, lines


def _count(metrics: Metrics, metric: str, arm: str) -> int | None:
    found = summary(metrics, metric, arm)
    return found.n if found else None


def swept(metrics: Metrics, sweep: Mapping[str, Sweep]) -> Lines:
    """A line for each of the shorter trainings."""
    header = ["noise", "temperature", "samples", "optimal-path rate", "low", "high", "cost ratio", "paths solved"]
    lines: list[list[Cell]] = []
    arms = [arm for arm in sweep if arm in metrics.get("optimal_path_rate", {})]
    for arm in sorted(arms, key=lambda arm: (len(sweep[arm].kind), sweep[arm])):
        ratio, calls, seconds = (
            summary(metrics, name, arm) for name in ("cost_ratio", "solver_calls", "train_seconds")
        )
        line = [
            sweep[arm].kind,
            sweep[arm].epsilon,
            sweep[arm].samples,
            *mean_and_ends(metrics, "optimal_path_rate", arm),
        ]
        line += [ratio.mean if ratio else None, round(calls.mean) if calls else None]
        lines.append([*line, seconds.mean if seconds else None, _count(metrics, "optimal_path_rate", arm)])
    return [*header, "training (s)", "n"], lines


def classification(metrics: Metrics) -> Lines:
    """A line an arm of CIFAR-10: accuracies, and the difference to cross-entropy paired over the seeds."""
    header = ["loss", "temperature", "samples", "test accuracy", "low", "high", "minus cross-entropy", "difference low"]
    header += ["difference high", "validation accuracy", "n"]
    accuracies = metrics.get("test_accuracy", {})
    lines: list[list[Cell]] = []
    for arm in (arm for arm in accuracies if arm != "fy_best"):
        kind, at = arm.partition("_eps")[0], re.search(r"eps([\d.e+-]+)_m(\d+)", arm)
        drawn: list[Cell] = [float(at[1]), int(at[2])] if at else [None, None]
        paired = list(paired_differences(accuracies[arm], accuracies.get("cross_entropy", {})).values())
        ends = student_interval(paired) if len(paired) > 1 else None
        differs: list[Cell] = [mean(paired) if paired else None, *(ends or (None, None))]
        validation = summary(metrics, "validation_accuracy", arm)
        line = [LOSSES.get(kind, kind), *drawn, *mean_and_ends(metrics, "test_accuracy", arm), *differs]
        lines.append([*line, validation.mean if validation else None, _count(metrics, "test_accuracy", arm)])
    lines.sort(key=lambda line: (line[0] != "cross-entropy", str(line[0]), line[1] or 0, line[2] or 0))
    return header, lines


def theory(metrics: Metrics) -> Lines:
    """A line an identity: measured, expected, and the distance between them where a number is expected."""
    header = ["identity", "measured", "expected", "error", "largest over repeats", "unit", "n"]
    lines: list[list[Cell]] = []
    for identity, metric, arm, expected, unit in IDENTITIES:
        found = summary(metrics, metric, arm)
        if found:
            error = abs(found.mean - expected) if isinstance(expected, float) else None
            largest = max(metrics[metric][arm].values(), key=abs)
            lines.append([identity, found.mean, expected, error, largest, unit or None, found.n])
    return header, lines


def variances(rows: Rows) -> Lines:
    """A line for each problem and temperature: standard deviation of the gradient by control variate."""
    header = ["problem", "temperature", *(label for label, *_ in CONTROLS.values()), "share of the plain variance"]
    lines: list[list[Cell]] = []
    for problem, words in (("argmax", "argmax"), ("path", "shortest path")):
        for epsilon in sorted({row["epsilon"] for row in rows}):
            chosen = [row for row in rows if row["epsilon"] == epsilon]
            means = {name: mean([row[f"{problem}_{name}"] for row in chosen]) for name in CONTROLS}
            share = (means["leave_one_out"] / means["plain"]) ** 2 if means["plain"] else None
            lines.append([words, epsilon, *means.values(), share])
    return header, lines
