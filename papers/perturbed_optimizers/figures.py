"""What the figures and tables of this report have in common: names and looks of the arms, legends, axes, seeds.

The same loss has the same colour in every figure. `Metrics` is metric -> arm -> key -> number; `Curves` is arm -> seed
-> rows of a record.
"""

from collections.abc import Mapping, Sequence

from shared.comparisons import Metrics
from shared.report.looks import GREY, Look
from shared.report.style import COLOURS

Rows = Sequence[Mapping[str, float]]
Curves = Mapping[str, Mapping[str, Rows]]


#: The losses on terrain maps.
TERRAIN = {
    "fenchel_young": Look("Fenchel-Young", COLOURS["blue"], "o"),
    "black_box": Look("black-box", COLOURS["vermilion"], "s"),
    "squared": Look("squared, through the layer", COLOURS["green"], "^"),
    "squared_two_batches": Look("squared, two batches of noise", COLOURS["purple"], "v"),
    "cost_regression": Look("regression on true costs", COLOURS["orange"], "D"),
    "direct": Look("cells predicted directly", COLOURS["sky"], "P"),
    "fenchel_young_small": Look("Fenchel-Young, small network", COLOURS["black"], "X"),
}
#: The reference points on terrain maps.
BASELINES = {
    "random_forest": "random forest, shown true terrain",
    "nearest_colour": "nearest mean colour",
    "constant": "straight diagonal",
}
#: The losses on rankings.
RANKING = {
    "fy": Look("Fenchel-Young", COLOURS["blue"], "o"),
    "fy_gaussian": Look("Fenchel-Young, Gaussian", COLOURS["sky"], "P"),
    "fy_m1": Look("Fenchel-Young, one sample", COLOURS["black"], "X"),
    "ranknet": Look("RankNet", COLOURS["purple"], "v"),
    "squared_perturbed": Look("squared, through the layer", COLOURS["green"], "^"),
    "least_squares": Look("least squares on ranks", COLOURS["orange"], "D"),
    "black_box": Look("black-box, scale pinned", COLOURS["vermilion"], "s"),
    "black_box_raw": Look("black-box, raw", COLOURS["vermilion"], "d"),
    "constant": Look("same ranking for all", GREY, "*"),
}


def by_seed(metrics: Metrics, places: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    """Seed -> the values at some (metric, arm), of the seeds that all of them have; empty where one is missing."""
    found = [metrics.get(metric, {}).get(arm, {}) for metric, arm in places]
    return {seed: [values[seed] for values in found] for seed in found[0] if all(seed in values for values in found)}


def whole_runs(seeds: Mapping[str, Rows]) -> dict[str, Rows]:
    """The records of the runs that did not end early."""
    longest = max((len(rows) for rows in seeds.values()), default=0)
    return {seed: rows for seed, rows in seeds.items() if longest and len(rows) == longest}


def column(seeds: Mapping[str, Rows], name: str) -> dict[str, list[float]]:
    """Seed -> one column of its record."""
    return {seed: [row[name] for row in rows] for seed, rows in seeds.items()}
