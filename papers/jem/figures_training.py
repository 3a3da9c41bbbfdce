"""Figures of trainings: how networks learn, and where training diverges; what was not measured is not drawn."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes

from papers.jem.figures_data import Rows, looks
from shared.comparisons import Metrics
from shared.report.looks import GREY, legend_above
from shared.report.style import COLOURS, draw_seeds, new_figure, save
from shared.results import read_rows

#: Arms whose course is drawn; both are trained for the whole length.
COURSES = ("classifier", "jem")
#: What was tried against divergence, as in stability.py.
REMEDIES = {
    "": "none",
    "energy_l2": "squared energies penalised by 0.1",
    "gradient_clamp": "scores clamped to 1",
    "leaky_relu": "LeakyReLU in place of Swish",
}
_CELL = re.compile(r"rate([\d.]+)_eta(\d+)_noise([\d.]+)_?(.*)")


class Cell(NamedTuple):
    """What a short training of the study of divergences was like; numbers are factors of the preset's, and eta."""

    rate: float
    chain_steps: int
    noise: float
    remedy: str


def cell_of(arm: str) -> Cell | None:
    """The cell that a name of stability.py means; None if it means none."""
    match = _CELL.fullmatch(arm)
    if match is None or match[4] not in REMEDIES:
        return None
    return Cell(float(match[1]), int(match[2]), float(match[3]), match[4])


def read_courses(folder: Path) -> dict[str, dict[str, dict[str, Rows]]]:
    """Arm -> `record` or `validation` -> seed -> rows, of the folder of `train`."""
    found: dict[str, dict[str, dict[str, Rows]]] = {}
    for path in sorted(folder.glob("*/*-seed*.csv")):
        kind, seed = path.stem.split("-")
        found.setdefault(path.parent.name, {}).setdefault(kind, {})[seed] = read_rows(path)
    return found


def draw(folder: Path, metrics: Metrics, train: Path, study: Path, arms: Mapping[str, str]) -> None:
    """Every figure whose numbers there are; `train` and `study` are the folders of two stages, which may be absent."""
    course(folder, read_courses(train), arms)
    costs(folder, metrics)
    divergences(folder, metrics)
    curvatures(folder, read_rows(study / "curvature.csv") if (study / "curvature.csv").is_file() else [])


def course(folder: Path, courses: Mapping[str, Mapping[str, Mapping[str, Rows]]], arms: Mapping[str, str]) -> None:
    """Validation NLL and accuracy of the averaged weights, and the gap between log densities of data and samples."""
    shown = [arm for arm in COURSES if arm in courses]
    if not shown:
        return
    figure, (nll, accuracy, gap) = new_figure(13.5, 4.4, columns=3)
    for arm in shown:
        look = looks(arms)[arm]
        for axes, column in ((nll, "nll_nats"), (accuracy, "accuracy_percent")):
            _seeds(axes, courses[arm]["validation"], column, look.label, look.colour)
        rows = courses[arm]["record"]
        if any(row["log_density_samples"] for seed in rows.values() for row in seed):
            steps = [row["step"] for row in next(iter(rows.values()))]
            gaps = {
                seed: [row["log_density_data"] - row["log_density_samples"] for row in own]
                for seed, own in rows.items()
            }
            draw_seeds(gap, steps, gaps, look.label, color=look.colour)
    gap.axhline(0, color=GREY, linestyle="--", linewidth=1.2)
    nll.set_ylabel("validation NLL (nats)")
    accuracy.set_ylabel("validation accuracy (%)")
    gap.set_ylabel("log p(x) of data less samples (nats)")
    for axes in (nll, accuracy, gap):
        axes.set_xlabel("training step")
    legend_above(figure, [nll], len(shown))
    save(figure, folder / "training.png")


def _seeds(axes: Axes, seeds: Mapping[str, Rows], column: str, label: str, colour: str) -> None:
    steps = [row["step"] for row in next(iter(seeds.values()))]
    draw_seeds(axes, steps, {seed: [row[column] for row in rows] for seed, rows in seeds.items()}, label, color=colour)


def costs(folder: Path, metrics: Metrics) -> None:
    """Time of an iteration over that of a plain classifier against the steps of chains, and what counting says."""
    found = {
        int(match[1]): fmean(ratios.values())
        for name, ratios in metrics.get("benchmark_ratio", {}).items()
        if (match := re.fullmatch(r"cost_ratio_eta(\d+)", name))
    }
    if not found:
        return
    steps = sorted(found)
    figure, (axes,) = new_figure(7.5, 4.6)
    axes.plot(
        steps, [(2 * eta + 9) / 3 for eta in steps], color=GREY, linestyle="--", label="(2η + 9) / 3, counting passes"
    )
    axes.plot(steps, [found[eta] for eta in steps], "o-", color=COLOURS["blue"], label="measured")
    axes.set_xlabel("steps of a chain (η)")
    axes.set_ylabel("time of an iteration / a classifier's")
    axes.set_ylim(bottom=0)
    legend_above(figure, [axes], 2)
    save(figure, folder / "cost.png")


def divergences(folder: Path, metrics: Metrics) -> None:
    """Steps that runs lasted, a mark a run: over eta for each learning rate and noise, and with remedies."""
    survived = {cell: seeds for arm, seeds in metrics.get("steps_survived", {}).items() if (cell := cell_of(arm))}
    if not survived:
        return
    whole = max(value for seeds in survived.values() for value in seeds.values())
    figure, (left, right) = new_figure(13.5, 4.8, columns=2)
    lengths = sorted({cell.chain_steps for cell in survived})
    kinds = sorted({(cell.rate, cell.noise) for cell in survived})
    for number, (rate, noise) in enumerate(kinds):
        colour = list(COLOURS.values())[number]
        label = f"learning rate × {rate:g}, {'noise' if noise else 'no noise'} on images"
        for place, steps in enumerate(lengths):
            values = survived.get(Cell(rate, steps, noise, ""), {})
            _marks(left, place + 0.17 * (number - (len(kinds) - 1) / 2), values, colour, label)
    left.set_xticks(range(len(lengths)), [str(steps) for steps in lengths])
    left.set_xlabel("steps of a chain (η)")
    remedied = sorted({cell[:3] for cell in survived if cell.remedy})
    for number, (remedy, words) in enumerate(REMEDIES.items()):
        for place, where in enumerate(remedied):
            offset = 0.17 * (number - (len(REMEDIES) - 1) / 2)
            colour = list(COLOURS.values())[number + 3] if remedy else GREY
            _marks(right, place + offset, survived.get(Cell(*where, remedy), {}), colour, words)
    names = [f"learning rate × {rate:g}, η = {steps}" for rate, steps, _ in remedied]
    right.set_xticks(range(len(names)), names)
    right.set_xlabel("no noise on images; remedy as coloured")
    for axes in (left, right):
        axes.set_ylim(0, 1.06 * whole)
        axes.axhline(whole, color=GREY, linestyle="--", linewidth=1.2)
        axes.set_ylabel("steps before divergence")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.28), ncols=2, fontsize=11)
    save(figure, folder / "divergences.png")


def _marks(axes: Axes, place: float, values: Mapping[str, float], colour: str, label: str) -> None:
    """A mark for each run, side by side; the label once an axes."""
    known = {text for text in axes.get_legend_handles_labels()[1]}
    count = len(values)
    across = [place + 0.03 * (i - (count - 1) / 2) for i in range(count)]
    axes.scatter(across, list(values.values()), s=42, color=colour, label=None if label in known else label)


def curvatures(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Step size times the largest curvature at the last samples, along the short trainings; a line a run."""
    if not rows:
        return
    lengths = sorted({row["chain_steps"] for row in rows})
    figure, panels = new_figure(13.5, 4.4, columns=len(lengths), sharey=True)
    rates = sorted({row["rate"] for row in rows})
    for axes, steps in zip(panels, lengths, strict=True):
        for rate, colour in zip(rates, (COLOURS["blue"], COLOURS["vermilion"]), strict=False):
            for noise, line in ((0.0, "-"), (1.0, ":")):
                label = f"learning rate × {rate:g}, {'noise' if noise else 'no noise'}"
                chosen = [r for r in rows if (r["chain_steps"], r["rate"], r["noise"]) == (steps, rate, noise)]
                for seed in sorted({row["seed"] for row in chosen}):
                    own = [row for row in chosen if row["seed"] == seed]
                    y = [row["step_times_curvature"] for row in own]
                    axes.plot([r["step"] for r in own], y, color=colour, linestyle=line, linewidth=1.5, label=label)
        axes.axhline(2, color=GREY, linestyle="--", linewidth=1.5)
        axes.set_title(f"η = {steps:g}")
        axes.set_xlabel("training step")
    panels[0].set_ylabel("step size × largest curvature")
    legend_above(figure, panels, 4)
    save(figure, folder / "curvature.png")
