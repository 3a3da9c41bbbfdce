"""Figures of the terrain maps in numbers: each function draws one picture from what `train` and `evaluate` wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from papers.perturbed_optimizers.figures import BASELINES, TERRAIN, Curves, Rows, column, whole_runs
from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import error_bar, legend_above, plain_log
from shared.report.style import COLOURS, draw_seeds, new_figure, save
from shared.statistics import mean

#: The distance of a ratio to 1 is drawn from here on.
SMALLEST_GAP = 1e-4
KINDS = ("plains", "grass", "forest", "swamp", "mountain")


class Sweep(NamedTuple):
    """What an arm of the sweep was trained with."""

    epsilon: float
    samples: int
    noise: str
    multiplicative: bool
    normalised: bool

    @property
    def kind(self) -> str:
        """All but temperature and number of samples, in words."""
        words = f"{self.noise.capitalize()} noise{', multiplied' if self.multiplicative else ''}"
        return words if self.normalised else f"{words}, costs as they are"


def draw(folder: Path, metrics: Metrics, curves: Curves, costs: Mapping[str, Rows], sweep: Mapping[str, Sweep]) -> None:
    """Every figure whose numbers there are; `costs` is arm -> rows of the learnt costs."""
    if any(curves.get(arm) for arm in TERRAIN):
        terrain_curves(folder, metrics, curves)
        solver_calls(folder, curves)
    if any(costs.get(arm) for arm in TERRAIN):
        learnt_costs(folder, costs)
    if any(arm in metrics.get("optimal_path_rate", {}) for arm in sweep):
        terrain_sweep(folder, metrics, sweep)


def read_sweep(params: Mapping[str, Any], preset: str) -> dict[str, Sweep]:
    """The arms marked `short` in params.yaml, with temperature and samples of the preset where they name none."""
    own = params[preset]
    return {
        name: Sweep(
            arm.get("epsilon", own["terrain_epsilon"]),
            arm.get("samples", own["terrain_samples"]),
            arm.get("noise", "gaussian"),
            arm.get("multiplicative", False),
            arm.get("normalised", False),
        )
        for name, arm in params["arms"].items()
        if arm.get("short") and name in params["arms_to_run"]
    }


def ratio_axis(axes: Axes) -> None:
    """The y axis shows 1 - ratio on a logarithmic scale, best on top, written as the ratio."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(high, low)
    ticks = [gap for gap in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005) if low < gap < high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda gap, _: f"{1 - gap:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def gaps(seeds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Cost ratios as their distances to 1."""
    return {seed: [max(1 - ratio, SMALLEST_GAP) for ratio in ratios] for seed, ratios in seeds.items()}


def terrain_curves(folder: Path, metrics: Metrics, curves: Curves) -> None:
    """Optimal-path rate and cost ratio on validation maps after each epoch, and the baselines on test maps."""
    figure, (left, right) = new_figure(13, 6.2, columns=2)
    for arm, look in TERRAIN.items():
        seeds = whole_runs(curves.get(arm, {}))
        if not seeds:
            continue
        epochs = [row["epoch"] for row in next(iter(seeds.values()))]
        draw_seeds(left, epochs, column(seeds, "optimal_path_rate"), look.label, **look.line())
        ratios = gaps(column(seeds, "cost_ratio"))
        means = [mean(values) for values in zip(*ratios.values(), strict=True)]
        right.plot(epochs, means, label=look.label, **look.line())
        # The interval of a mean near 1 may pass 1: the range of the seeds cannot.
        columns = list(zip(*ratios.values(), strict=True))
        ends = [min(values) for values in columns], [max(values) for values in columns]
        right.fill_between(epochs, *ends, color=look.colour, alpha=0.2, linewidth=0)
    for arm, label in BASELINES.items():
        rate, ratio = summary(metrics, "optimal_path_rate", arm), summary(metrics, "cost_ratio", arm)
        if rate and ratio:
            for axes, value in ((left, rate.mean), (right, max(1 - ratio.mean, SMALLEST_GAP))):
                axes.axhline(value, color="black", linestyle="--", linewidth=1.3)
                place = (0.99, value)
                axes.annotate(label, place, xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=11)
    left.set_ylabel("share of validation maps with an optimal path")
    left.set_ylim(-0.03, 1.06)
    right.set_ylabel("cost ratio, optimal / predicted")
    ratio_axis(right)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, [left], 3)
    save(figure, folder / "terrain_curves.png")


def solver_calls(folder: Path, curves: Curves) -> None:
    """Optimal-path rate against the solver calls that were spent on it; arms without a solver are left out."""
    figure, (axes,) = new_figure(9, 5.4)
    for arm, look in TERRAIN.items():
        seeds = whole_runs(curves.get(arm, {}))
        if seeds and all(rows[-1]["solver_calls"] > 0 for rows in seeds.values()):
            calls = [row["solver_calls"] for row in next(iter(seeds.values()))]
            draw_seeds(axes, calls, column(seeds, "optimal_path_rate"), look.label, **look.line())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda calls, _: f"{calls:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(top=1.0)
    axes.set_xlabel("shortest paths solved in training")
    axes.set_ylabel("share of validation maps\nwith an optimal path")
    legend_above(figure, [axes], 2)
    save(figure, folder / "solver_calls.png")


def learnt_costs(folder: Path, costs: Mapping[str, Rows]) -> None:
    """Learnt against true costs for each kind of terrain, both in units of their mean; bars are over the cells."""
    arms = [arm for arm in ("fenchel_young", "black_box", "squared", "cost_regression") if costs.get(arm)]
    figure, axes = new_figure(3.4 * len(arms) + 0.8, 4.6, columns=len(arms), sharex=True, sharey=True)
    for each, arm in zip(axes, arms, strict=True):
        look = TERRAIN[arm]
        kinds: dict[float, list[Mapping[str, float]]] = {}
        for row in costs[arm]:
            kinds.setdefault(row["true_cost"], []).append(row)
        true = sorted(kinds)
        learnt = [mean([row["learnt_cost"] for row in kinds[kind]]) for kind in true]
        spread = [mean([row["spread"] for row in kinds[kind]]) for kind in true]
        each.plot([0, max(true)], [0, max(true)], color="black", linestyle="--", linewidth=1.4)
        each.errorbar(true, learnt, yerr=spread, fmt=look.marker, color=look.colour)
        each.set_title(look.label, fontsize=13)
        each.set_ylim(bottom=0)
    figure.supxlabel(f"true cost of a cell (in units of the mean): {', '.join(KINDS)} from left to right", fontsize=14)
    axes[0].set_ylabel("learnt cost (in units of the mean)")
    save(figure, folder / "learnt_costs.png")


def terrain_sweep(folder: Path, metrics: Metrics, sweep: Mapping[str, Sweep]) -> None:
    """Optimal-path rate of shorter trainings over the temperature (left) and over the number of samples (right)."""
    figure, (left, right) = new_figure(12, 5.2, columns=2, sharey=True, width_ratios=[1.4, 1])
    # The last is a factor that keeps points of the same temperature apart.
    looks = {
        "Gaussian noise": (COLOURS["blue"], "o", 1.0),
        "Gumbel noise": (COLOURS["vermilion"], "s", 1.25),
        "Gaussian noise, multiplied": (COLOURS["green"], "^", 1.25),
        "Gaussian noise, costs as they are": (COLOURS["orange"], "D", 0.8),
    }
    base = sweep.get("short")
    measured = {name: arm for name, arm in sweep.items() if name in metrics["optimal_path_rate"]}
    for kind, (colour, marker, apart) in looks.items():
        arms = {name: arm for name, arm in measured.items() if arm.kind == kind}
        style = {"color": colour, "marker": marker, "capsize": 4}
        for axes, name_of, fixed in ((left, "epsilon", "samples"), (right, "samples", "epsilon")):
            if axes is right and kind != "Gaussian noise":
                continue
            line = {
                getattr(arm, name_of) * apart: name
                for name, arm in arms.items()
                if base is None or getattr(arm, fixed) == getattr(base, fixed)
            }
            _draw_line(axes, metrics, dict(sorted(line.items())), kind, **style)
    for axes, words, name_of in ((left, "temperature ε", "epsilon"), (right, "samples M of the noise", "samples")):
        plain_log(axes, sorted({getattr(arm, name_of) for arm in measured.values()}))
        axes.set_xlabel(words)
    if base:
        left.set_title(f"M = {base.samples}")
        right.set_title(f"ε = {base.epsilon:g}")
    left.set_ylabel("share of test maps with an optimal path")
    legend_above(figure, [left], 2)
    save(figure, folder / "terrain_sweep.png")


def _draw_line(axes: Axes, metrics: Metrics, line: Mapping[float, str], label: str, **style: Any) -> None:
    """The rates of some arms over a quantity, with their intervals; a single arm is a point."""
    found = {x: error_bar(metrics, "optimal_path_rate", name) for x, name in line.items()}
    points = {x: bar for x, bar in found.items() if bar}
    if not points:
        return
    ends = [bar[1] or [[0.0], [0.0]] for bar in points.values()]
    lengths = [[end[side][0] for end in ends] for side in (0, 1)]
    axes.errorbar(list(points), [bar[0] for bar in points.values()], yerr=lengths, label=label, **style)
