"""Compare losses on the label-ranking tables: `python -m papers.perturbed_optimizers.rank --preset laptop`.

Each repetition (seed) is a cross-validation with folds of its own, which all arms share. Writes `metrics.json`, with
the numbers of each repetition, and `sets.csv`, with the spread over all folds and a verdict for each table and rival.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from papers.perturbed_optimizers import ranking_data
from papers.perturbed_optimizers import settings as paper_settings
from papers.perturbed_optimizers.cross_validation import Outcome, job, state_of
from papers.perturbed_optimizers.ranking_arms import ARMS
from shared import errors, provenance
from shared.paths import runs
from shared.report.tables import Cell, write_csv
from shared.results import Metrics, put, write_metrics
from shared.training.checkpoint import discard
from shared.training.jobs import parallel

#: Whom `fy` is compared with, table by table.
RIVALS = ("least_squares", "squared_perturbed", "black_box", "black_box_raw", "fy_gaussian", "fy_m1", "constant")
MEASURES = ("spearman", "kendall")
#: Seeds of the folds. Those from 0 on were looked at while the protocol was made (see README.md).
FIRST_SEED = 100
#: A difference of more than this many standard errors is a win or a loss.
ERRORS = 2.0

#: Table -> one outcome a repetition.
Outcomes = dict[str, list[Outcome]]


def corrected_standard_error(differences: Sequence[float], folds: int) -> float:
    """Standard error of the mean of fold-wise differences of a repeated cross-validation (Nadeau and Bengio, 2003).

    s sqrt(1/J + 1/(folds - 1)) for J differences: training sets overlap, so that the J differences are not independent
    and s / sqrt(J) would be far too small; 1/(folds - 1) is the ratio of test rows to training rows.

    Args:
        differences: of all repetitions, at least two.
        folds: the number of folds of one repetition.
    """
    return statistics.stdev(differences) * math.sqrt(1 / len(differences) + 1 / (folds - 1))


def verdict(differences: Sequence[float], folds: int) -> str:
    """`win`, `loss` or `tie`: the mean difference against `ERRORS` corrected standard errors."""
    centre, error = statistics.mean(differences), corrected_standard_error(differences, folds)
    return "tie" if abs(centre) <= ERRORS * error else "win" if centre > 0 else "loss"


def fold_values(outcomes: Sequence[Outcome], arm: str, measure: str) -> list[float]:
    """One number a fold, all repetitions one after the other."""
    return [value for outcome in outcomes for value in outcome[arm][measure]]


def differences(outcomes: Sequence[Outcome], rival: str, measure: str) -> list[float]:
    """`fy` less the rival, fold by fold."""
    pairs = zip(fold_values(outcomes, "fy", measure), fold_values(outcomes, rival, measure), strict=True)
    return [ours - theirs for ours, theirs in pairs]


def by_seed(outcomes: Outcomes, metrics: Metrics, repetition: int) -> None:
    """The numbers of one repetition: of each table, their means over tables, and in how many tables an arm is ahead."""
    key = f"seed{FIRST_SEED + repetition}"
    for measure in MEASURES:
        means = {
            name: {arm: statistics.mean(each[repetition][arm][measure]) for arm in ARMS}
            for name, each in outcomes.items()
        }
        for name, values in means.items():
            for arm, value in values.items():
                put(metrics, f"{measure}_{name}", arm, key, value)
        suffix = "" if measure == "spearman" else f"_{measure}"
        for arm in ARMS:
            put(metrics, measure, arm, key, statistics.mean(values[arm] for values in means.values()))
            for rival in {"least_squares", "black_box", "squared_perturbed", "constant"} - {arm}:
                better = sum(values[arm] > values[rival] for values in means.values())
                put(metrics, f"sets_better_than_{rival}{suffix}", arm, key, better)
            if arm != "least_squares":
                near = sum(values[arm] >= 0.95 * values["least_squares"] for values in means.values())
                put(metrics, f"sets_within_5_percent{suffix}", arm, key, near)
        gap = max(abs(values["fy"] - values["ranknet"]) for values in means.values())
        put(metrics, f"ranknet_{measure}_gap", "fy", key, gap)
    for arm in ARMS:
        put(metrics, "seconds", arm, key, sum(each[repetition][arm]["seconds"][0] for each in outcomes.values()))


def overall(outcomes: Outcomes, metrics: Metrics) -> None:
    """Wins, ties and losses of `fy` over all repetitions: one exact number each, as the spread has gone into them."""
    for measure in MEASURES:
        suffix = "" if measure == "spearman" else f"_{measure}"
        for rival in RIVALS:
            verdicts = [verdict(differences(each, rival, measure), _folds(each)) for each in outcomes.values()]
            for plural, outcome in (("wins", "win"), ("ties", "tie"), ("losses", "loss")):
                put(metrics, f"{plural}_{rival}{suffix}", "fy", "exact", verdicts.count(outcome))


def rows(outcomes: Outcomes) -> tuple[list[str], list[list[Cell]]]:
    """Heading and lines of `sets.csv`: for each table its means, and for each rival difference, error and verdict."""
    header = ["set", "instances", "features", "labels", "folds"]
    header += [f"{measure}_{arm}" for measure in MEASURES for arm in ARMS]
    header += [f"{what}_{rival}" for rival in RIVALS for what in ("ahead_of", "standard_error", "verdict")]
    lines: list[list[Cell]] = []
    for name, each in outcomes.items():
        line: list[Cell] = [name, *ranking_data.SIZES[name], _folds(each)]
        line += [_short(statistics.mean(fold_values(each, arm, measure))) for measure in MEASURES for arm in ARMS]
        for rival in RIVALS:
            gaps = differences(each, rival, "spearman")
            error = corrected_standard_error(gaps, _folds(each))
            line += [_short(statistics.mean(gaps)), _short(error), verdict(gaps, _folds(each))]
        lines.append(line)
    return header, lines


def _folds(outcomes: Sequence[Outcome]) -> int:
    return len(outcomes[0]["fy"]["spearman"])


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def main() -> None:
    """Parse, run all tables and repetitions, write, and only then forget the finished jobs."""
    parser = argparse.ArgumentParser(description="Compare losses on the label-ranking tables.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    preset = parser.parse_args().preset
    settings = paper_settings.load(preset)
    chosen = ranking_data.names(settings.ranking_sets)
    # The costliest first, so that no core is idle at the end.
    chosen.sort(key=lambda name: -ranking_data.SIZES[name][0])
    seeds = range(FIRST_SEED, FIRST_SEED + settings.ranking_repeats)
    keys = [(name, seed) for name in chosen for seed in seeds]
    origin = provenance.begin("rank", preset, None, Path(__file__))
    results = dict(zip(keys, parallel(partial(job, preset), keys)))
    outcomes = {name: [results[name, seed] for seed in seeds] for name in sorted(chosen)}
    metrics: Metrics = {}
    for repetition in range(settings.ranking_repeats):
        by_seed(outcomes, metrics, repetition)
    overall(outcomes, metrics)
    place = runs("perturbed_optimizers", preset)
    write_metrics(place / "rank" / "metrics.json", metrics)
    write_csv(place / "rank" / "sets.csv", *rows(outcomes))
    origin.finish(place / "provenance" / "rank.json")
    for key in keys:
        discard(state_of(preset, *key).folder)


if __name__ == "__main__":
    errors.run(main)
