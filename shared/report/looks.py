"""How arms are told apart in figures, and what figures of several papers have in common: legends, axes, error bars."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from shared.comparisons import Metrics
from shared.measurements import summary

__all__ = ["GREY", "Look", "error_bar", "legend_above", "plain_log"]

#: Of what is no arm: reference lines, chance.
GREY = "#777777"


class Look(NamedTuple):
    """How an arm is called and drawn."""

    label: str
    colour: str
    marker: str

    def line(self) -> dict[str, Any]:
        """For `Axes.plot` and `draw_seeds`."""
        return {"color": self.colour, "marker": self.marker}


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


def error_bar(metrics: Metrics, metric: str, arm: str) -> tuple[float, list[list[float]] | None] | None:
    """Mean and the two lengths of its 95 % interval, as `Axes.errorbar` takes them; None where nothing was measured."""
    found = summary(metrics, metric, arm)
    if found is None:
        return None
    ends = found.interval
    return found.mean, None if ends is None else [[found.mean - ends.low], [ends.high - found.mean]]
