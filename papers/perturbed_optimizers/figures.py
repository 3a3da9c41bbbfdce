"""What the figures and tables of this report have in common: names and looks of the arms, legends, axes, seeds.

The same loss has the same colour in every figure. `Metrics` is metric -> arm -> key -> number; `Curves` is arm -> seed
-> rows of a record.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.style import COLOURS

Rows = Sequence[Mapping[str, float]]
Curves = Mapping[str, Mapping[str, Rows]]


class Look(NamedTuple):
    """How an arm is called and drawn."""

    label: str
    colour: str
    marker: str

    def line(self) -> dict[str, Any]:
        """For `Axes.plot` and `draw_seeds`."""
        return {"color": self.colour, "marker": self.marker}


GREY = "#777777"
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


def legend_above(figure: Figure, axes: Sequence[Axes], columns: int, first: Sequence[str] = ()) -> None:
    """One legend above all axes, where it covers nothing; a label that several axes use comes once.

    `first` are the labels that come first, in their order; those that nothing has are left out.
    """
    found: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found = {**{label: found[label] for label in first if label in found}, **found}
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns)


def plain_log(axes: Axes, values: Sequence[float], upright: bool = False) -> None:
    """A logarithmic axis (x, or y where `upright`) with ticks at `values`, written as plain numbers."""
    (axes.set_yscale if upright else axes.set_xscale)("log")
    axis = axes.yaxis if upright else axes.xaxis
    axis.set_major_locator(FixedLocator(sorted(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


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


def error_bar(metrics: Metrics, metric: str, arm: str) -> tuple[float, list[list[float]] | None] | None:
    """Mean and the two lengths of its 95 % interval, as `Axes.errorbar` takes them; None where nothing was measured."""
    found = summary(metrics, metric, arm)
    if found is None:
        return None
    ends = found.interval
    return found.mean, None if ends is None else [[found.mean - ends.low], [ends.high - found.mean]]
