"""The figures of NVAE's report: each function draws one picture from records and returns nothing.

`metrics` is metric -> arm -> key -> number; `Curves` is arm -> seed -> rows of the training record; pictures are arrays
(N, C, H, W) in [0, 1]. A function whose data were not measured at a preset draws nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.style import COLOURS, draw_grid, draw_seeds, new_figure, save

Rows = Sequence[Mapping[str, float]]
Curves = Mapping[str, Mapping[str, Rows]]
Pictures = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

MEGABYTE = 1e6
#: A group counts as active above this KL, in nats an image.
ACTIVE_NATS = 0.1
VARIANTS = {
    "naive": "x·sigmoid(x)",
    "bn_silu": "BN, then SiLU",
    "fused": "fused BN+Swish",
    "checkpoint": "whole cells again",
    "fused_float32": "fused, float32",
}


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis with numbers that a listener can read."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def whole(axes: Axes, upright: bool = False) -> None:
    """Ticks at whole numbers only, on x, or on y where `upright`."""
    (axes.yaxis if upright else axes.xaxis).set_major_locator(MaxNLocator(integer=True))


def group_count(rows: Rows) -> int:
    """Latent groups in a training record: its columns `kl_nats_i`."""
    return sum(name.startswith("kl_nats_") for name in rows[0])


def total_kl(row: Mapping[str, float]) -> float:
    """KL of all groups, in nats an image."""
    return sum(value for name, value in row.items() if name.startswith("kl_nats_"))


def draw_curve(axes: Axes, seeds: Mapping[str, Rows], of: Any, label: str, **line: Any) -> None:
    """One quantity over training, `of` a row: mean and band; a run that diverged is a thin line that ends in a cross.

    A run has diverged if it is shorter than the longest of its arm; seeds without rows are left out.
    """
    runs = {seed: rows for seed, rows in seeds.items() if rows}
    if not runs:
        return
    last = max(rows[-1]["step"] for rows in runs.values())
    whole_runs = {seed: rows for seed, rows in runs.items() if rows[-1]["step"] == last}
    steps = [row["step"] for row in next(iter(whole_runs.values()))]
    values = {seed: [of(row) for row in rows] for seed, rows in whole_runs.items()}
    draw_seeds(axes, steps, values, label, marker="o" if len(steps) == 1 else None, **line)
    colour = axes.lines[-1].get_color()
    for rows in (rows for seed, rows in runs.items() if seed not in whole_runs):
        told = {"color": colour, "linewidth": 1.0, "marker": "x", "markevery": [len(rows) - 1]}
        axes.plot([row["step"] for row in rows], [of(row) for row in rows], **told)


def training(folder: Path, curves: Curves) -> None:
    """The bound and its two terms, and the gradient, while the main model learns."""
    figure, (left, right) = new_figure(11, 4.6, columns=2)
    draw_curve(left, curves["main"], lambda row: row["bound_nats"], "negative bound")
    draw_curve(left, curves["main"], lambda row: row["reconstruction_nats"], "reconstruction", linestyle="--")
    draw_curve(left, curves["main"], total_kl, "KL of all groups", linestyle=":")
    left.set_ylabel("training images (nats)")
    draw_curve(right, curves["main"], lambda row: row["gradient_norm"], "gradient norm")
    right.set_ylabel("norm of the gradient")
    for axes in (left, right):
        plain_log(axes)
        axes.set_xlabel("optimiser step")
    left.legend(loc="upper right")
    save(figure, folder / "training.png")


def kl_per_group(folder: Path, curves: Curves, metrics: Metrics) -> None:
    """KL of every latent group over training (left) and on the test images (right)."""
    rows = next(iter(curves["main"].values()))
    count = group_count(rows)
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.92, count))
    figure, (left, right) = new_figure(11, 4.6, columns=2, width_ratios=[1.35, 1])
    steps = [row["step"] for row in rows]
    for i in range(count):
        values = [max(row[f"kl_nats_{i}"], ACTIVE_NATS / 10) for row in rows]
        left.plot(steps, values, color=colours[i], marker="o" if len(rows) == 1 else None)
    left.axhline(ACTIVE_NATS, color="black", linewidth=1.2, linestyle=":")
    left.annotate(
        "active above", (1, ACTIVE_NATS), xycoords=("axes fraction", "data"), va="bottom", ha="right", fontsize=12
    )
    plain_log(left)
    left.set_xlabel("optimiser step")
    left.set_ylabel("KL on training images (nats)")
    found = [summary(metrics, "test_kl_nats", f"group{i + 1}") for i in range(count)]
    right.bar(range(1, count + 1), [each.mean if each else 0.0 for each in found], color=colours)
    right.set_xlabel("latent group, 1 is the coarsest")
    right.set_ylabel("KL on test images (nats)")
    whole(right)
    right.grid(axis="x", visible=False)
    save(figure, folder / "kl_per_group.png")


def samples(folder: Path, pictures: Pictures) -> None:
    """Samples by temperature, batch norm re-adjusted; the comparison with running statistics; the index's picture."""
    temperatures = sorted(key.removeprefix("samples_readjusted_") for key in pictures if "samples_readjusted_" in key)
    figure, axes = _panels(len(temperatures), 1, 3.6)
    for each, t in zip(axes, temperatures, strict=True):
        draw_grid(each, pictures[f"samples_readjusted_{t}"][:25], 5, f"t = {t}")
    save(figure, folder / "samples.png")
    figure, axes = _panels(len(temperatures), 2, 4.9)
    for row, kind in enumerate(("running", "readjusted")):
        for column, t in enumerate(temperatures):
            name = "as trained" if kind == "running" else "re-adjusted"
            draw_grid(
                axes[row * len(temperatures) + column], pictures[f"samples_{kind}_{t}"][:24], 6, f"{name}, t = {t}"
            )
    save(figure, folder / "readjustment.png")
    chosen = temperatures[min(1, len(temperatures) - 1)]
    figure, (only,) = new_figure(6, 3.05)
    draw_grid(only, pictures[f"samples_readjusted_{chosen}"][:32], 8)
    save(figure, folder / "gallery.png")


def _panels(columns: int, rows: int, height: float) -> tuple[Figure, list[Axes]]:
    """Axes for grids of images, with room between them."""
    figure, axes = new_figure(3.0 * columns, height, rows=rows, columns=columns)
    figure.get_layout_engine().set(wspace=0.06, w_pad=0.05, hspace=0.06)  # type: ignore[union-attr, call-arg]
    return figure, axes


def reconstructions(folder: Path, pictures: Pictures) -> None:
    """Test images above their reconstructions; reconstructions from fewer and fewer latents; lines in latent space."""
    figure, (axes,) = new_figure(8, 2.1)
    both = np.concatenate([pictures["originals"], pictures["reconstructions"]])
    draw_grid(axes, both, len(pictures["originals"]), row_labels=("image", "decoded"))
    save(figure, folder / "reconstructions.png")

    rows = pictures["from_prior"]  # (L + 2, 8, C, H, W): the images, then k = 0 .. L
    kept = sorted({0, *np.linspace(1, len(rows) - 1, min(len(rows) - 1, 8)).round().astype(int).tolist()})
    labels = ["image" if i == 0 else f"k = {i - 1}" for i in kept]
    figure, (axes,) = new_figure(7.2, 0.82 * len(kept) + 0.3)
    draw_grid(axes, rows[kept].reshape(-1, *rows.shape[2:]), rows.shape[1], row_labels=labels)
    save(figure, folder / "from_prior.png")

    figure, (axes,) = new_figure(8, 5.4)
    draw_grid(axes, pictures["interpolations"], 9)
    save(figure, folder / "interpolations.png")


def from_prior_curve(folder: Path, metrics: Metrics) -> None:
    """How the reconstruction fails as the coarsest k groups forget the image."""
    found = metrics["reconstruction_nats_from_prior"]
    counts = sorted(int(arm.removeprefix("groups")) for arm in found)
    seeds = {key: [found[f"groups{k}"][key] for k in counts] for key in found["groups0"]}
    figure, (axes,) = new_figure(8, 4.5)
    draw_seeds(axes, counts, seeds, "", marker="o")
    axes.set_xlabel("k: groups drawn from the prior, coarsest first")
    axes.set_ylabel("reconstruction of test images (nats)")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    whole(axes)
    save(figure, folder / "from_prior_curve.png")


def feature_distance(folder: Path, metrics: Metrics) -> None:
    """Distance of samples from test images over temperature, with and without re-adjusted batch norm."""
    found = metrics.get("feature_distance", {})
    temperatures = sorted(arm.removeprefix("running_") for arm in found if arm.startswith("running_"))
    if not temperatures:
        return
    figure, (axes,) = new_figure(8, 4.5)
    x = [float(t) for t in temperatures]
    for kind, label, marker in (
        ("running", "running statistics of training", "o"),
        ("readjusted", "re-adjusted at each t", "s"),
    ):
        seeds = {key: [found[f"{kind}_{t}"][key] for t in temperatures] for key in found[f"{kind}_{temperatures[0]}"]}
        draw_seeds(axes, x, seeds, label, marker=marker)
    floor = summary(metrics, "feature_distance", "validation_images")
    if floor:
        axes.axhline(floor.mean, color="black", linestyle="--", linewidth=1.6, label="held-out images")
    axes.set_xlabel("temperature t of the prior")
    axes.set_ylabel("feature distance (no unit)")
    axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper right")
    save(figure, folder / "feature_distance.png")


def ablations(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One dot an arm: the paired difference of the test NLL to its reference with the 95 % interval, by question."""
    starts = [i for i, row in enumerate(rows) if row["first"]]
    middle = min(starts, key=lambda i: abs(i - (len(rows) + 1) / 2)) if len(rows) > 8 else 0
    halves = [rows[:middle], rows[middle:]] if middle else [rows]
    height = 0.38 * max(len(half) + sum(row["first"] for row in half) for half in halves) + 1.0
    figure, columns = new_figure(max(6.2 * len(halves), 8.0), max(height, 2.8), columns=len(halves), sharex=True)
    largest = max((abs(row[name] or 0) for row in rows for name in ("difference", "low", "high")), default=0.0)
    note = ";\nlogarithmic beyond 2" if largest > 10 else ""
    for axes, half in zip(columns, halves, strict=True):
        _draw_comparisons(axes, half)
        if note:
            axes.set_xscale("symlog", linthresh=2, linscale=4)
            outer = 10 ** (len(f"{largest:.0f}") - 1)  # the largest power of ten in view
            axes.set_xticks(ticks := [-outer, -2, -1, 0, 1, 2, outer], [f"{tick}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
    figure.supxlabel(f"test NLL minus the reference's (nats; right of 0 is worse{note})", fontsize=14)
    figure.supylabel("what was changed", fontsize=14)
    save(figure, folder / "ablations.png")


def _draw_comparisons(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The dots of some comparisons from top to bottom, each question under its name."""
    palette = [colour for name, colour in COLOURS.items() if name != "black"]
    y = -1.0
    ticks: list[float] = []
    for row in rows:
        y += 2.0 if row["first"] and ticks else 1.0
        ticks.append(y)
        colour = palette[row["place"] % len(palette)]
        if row["first"]:
            place = (0.01, y - 0.75)
            text = axes.annotate(row["question"], place, xycoords=("axes fraction", "data"), va="center", fontsize=13)
            text.set(color=colour, fontweight="bold")
        if row["difference"] is not None:
            low, high = (row["difference"], row["difference"]) if row["low"] is None else (row["low"], row["high"])
            error = [[row["difference"] - low], [high - row["difference"]]]
            axes.errorbar(row["difference"], y, xerr=error, fmt="o", color=colour, markersize=9)
    axes.axvline(0, color="black", linewidth=1.4)
    told = (f"\n{row['diverged']} of {row['runs']} diverged" if row["diverged"] else "" for row in rows)
    axes.set_yticks(ticks, [row["label"] + note for row, note in zip(rows, told, strict=True)])
    axes.set_ylim(y + 0.7, -1.3)
    axes.grid(axis="y", visible=False)


def stability(folder: Path, curves: Curves) -> None:
    """Largest gradient norm of shallow and deep networks, largest KL with and without each remedy, over training."""
    figure, (left, right) = new_figure(12, 4.8, columns=2)
    gradient = {
        "base": "base",
        "deep": "deep",
        "wn_elu": "base, no BN",
        "deep_wn_elu": "deep, no BN",
        "no_spectral": "no spectral",
    }
    kl = {"base": "base", "absolute": "absolute posterior", "no_balancing": "no balancing", "no_warmup": "no warm-up"}
    for arm, label in gradient.items():
        draw_curve(left, curves.get(arm, {}), lambda row: row["largest_gradient_norm"], label)
    for arm, label in kl.items():
        draw_curve(right, curves.get(arm, {}), lambda row: row["largest_kl_nats"], label)
    left.set_ylabel("largest gradient norm of 50 steps")
    right.set_ylabel("largest KL of 50 steps (nats)")
    for axes in (left, right):
        plain_log(axes)
        axes.set_xlabel("optimiser step")
        axes.legend(loc="upper right")
    save(figure, folder / "stability.png")


def memory(folder: Path, metrics: Metrics) -> None:
    """What each way to compute BN+Swish keeps, its peak, and the time of a step."""
    names = [name for name in VARIANTS if name in metrics.get("saved_bytes", {})]
    if not names:
        return
    panels = (
        ("saved_bytes", MEGABYTE, "kept for backward (MB)"),
        ("peak_bytes", MEGABYTE, "peak of a step (MB)"),
        ("step_time_ratio", 1.0, "time of a step (BN, then SiLU = 1)"),
    )
    figure, axes = new_figure(13, 0.55 * len(names) + 1.5, columns=3, sharey=True)
    palette = list(COLOURS.values())
    for each, (metric, unit, label) in zip(axes, panels, strict=True):
        for y, name in enumerate(names):
            found = summary(metrics, metric, name)
            if found:
                ends = found.interval
                error = None if ends is None else [[(found.mean - ends.low) / unit], [(ends.high - found.mean) / unit]]
                each.barh(y, found.mean / unit, xerr=error, color=palette[y], height=0.7)
        each.set_xlabel(label)
        each.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(names)), [VARIANTS[name] for name in names])
    axes[0].invert_yaxis()
    axes[0].set_ylabel("BN+Swish as")
    save(figure, folder / "memory.png")
