"""Gather what the stages measured, and draw it: `python -m papers.nvae.report --preset laptop`.

Writes `runs/<preset>/metrics.json`, and the headline, figures and tables in `reports/nvae/`. What a preset did not
measure (an arm, the memory table) is left out. `python -m shared.report.publish nvae` fills in the text afterwards.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from papers.nvae import figures
from papers.nvae.figures import Curves, Pictures
from papers.nvae.tables import write_tables
from shared import errors
from shared.errors import UserError
from shared.files import read_json
from shared.measurements import read_metrics
from shared.paths import ROOT
from shared.report.records import Headline, headline, write_headline
from shared.results import Metrics, merge, put, read_rows, write_metrics
from shared.settings import read_yaml
from shared.statistics import mean, paired_differences, student_interval

#: The comparisons by question: label, arm, and the arm it is compared with.
QUESTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "depth": (("one group", "one_group", "base"), ("twice as many groups", "deep", "base")),
    "stability": (
        ("absolute posterior", "absolute", "base"),
        ("no spectral penalty", "no_spectral", "base"),
        ("no KL balancing", "no_balancing", "base"),
        ("no KL warm-up", "no_warmup", "base"),
    ),
    "normalisation": (
        ("BN+ELU", "bn_elu", "base"),
        ("WN+ELU", "wn_elu", "base"),
        ("BN+ELU, deep", "deep_bn_elu", "deep"),
        ("WN+ELU, deep", "deep_wn_elu", "deep"),
        ("weight norm beside BN", "weight_norm", "base"),
    ),
    "cells": (
        ("no squeeze-and-excitation", "no_squeeze_excite", "base"),
        ("branches scaled by 0.1", "residual_tenth", "base"),
        ("separable decoder", "decoder_separable", "base"),
        ("separable encoder", "encoder_separable", "base"),
        ("separable on both sides", "both_separable", "base"),
    ),
    "flows": (("flows in the posterior", "flows", "base"),),
    "stress": (
        ("stress, fewer steps", "stress", "deep"),
        ("stress: no spectral penalty", "stress_no_spectral", "stress"),
        ("stress: absolute posterior", "stress_absolute", "stress"),
    ),
}

MNIST_OF_PAPER, CIFAR10_OF_PAPER = 78.01, 2.91
#: Share of the steps over which the KL coefficient rises, in every arm that warms up.
WARMUP_SHARE = 0.3


def read_pictures(path: Path) -> Pictures:
    """The arrays of `evaluate`, in [0, 1]: those of RGB images lie in [-1, 1] on disk.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name].astype(np.float32) for name in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluate stage") from None
    return {name: (array + 1) / 2 if array.shape[-3] == 3 else array for name, array in arrays.items()}


def read_curves(run: Path, seeds: Sequence[int], arms: Sequence[str]) -> Curves:
    """The training records of the main model and of every arm: arm -> seed -> rows, fewer for a diverged run."""
    found = {"main": {f"seed{seed}": read_rows(run / "train" / f"seed{seed}" / "curve.csv") for seed in seeds}}
    for arm in arms:
        files = sorted((run / "ablate" / arm).glob("curve-seed*.csv"))
        found[arm] = {path.stem.removeprefix("curve-"): read_rows(path) for path in files}
    return found


def gather(run: Path, seeds: Sequence[int], arms: Sequence[str]) -> Metrics:
    """One tree of what evaluate, memory and the arms measured; memory and arms may be absent."""
    needed = [run / "evaluate" / f"seed{seed}" / "metrics.json" for seed in seeds]
    optional = [run / "memory" / "metrics.json", *(run / "ablate" / arm / "metrics.json" for arm in arms)]
    return merge([read_metrics(path) for path in (*needed, *optional) if path in needed or path.is_file()])


def derive(metrics: Metrics, run: Path, curves: Curves, binary: bool) -> None:
    """Add what follows from the measured numbers: the likelihood by the data set's name, and the sizes of the runs."""
    names = {"test_nll_nats": "mnist_nll_nats", "test_bound_nats": "mnist_bound_nats"} if binary else {}
    for old, new in names.items():
        for suffix in ("", "_standard_error"):
            for seed, value in metrics[old + suffix]["main"].items():
                put(metrics, new + suffix, "main", seed, value)
    for seed, nats in metrics["test_nll_nats"]["main"].items() if not binary else ():
        bits = metrics["test_nll_bits_per_dim"]["main"][seed]
        put(metrics, "cifar10_bits_per_dim", "main", seed, bits)
        error = metrics["test_nll_nats_standard_error"]["main"][seed] * bits / nats
        put(metrics, "cifar10_bits_per_dim_standard_error", "main", seed, error)
    for seed in curves["main"]:
        told = read_json(run / "train" / seed / "metrics.json")
        put(metrics, "train_bound_nats", "main", seed, told["bound_nats"])
        for name in ("parameters", "steps"):
            put(metrics, name, "main", "exact", told[name])
    derive_stability(metrics, curves)
    for arm, seeds in curves.items():
        rows = next((rows for rows in seeds.values() if rows), None)
        if rows is not None:
            put(metrics, "groups", arm, "exact", figures.group_count(rows))
    for arm, seeds in finished(metrics, curves).items():
        if seeds and arm != "main":
            put(metrics, "steps", arm, "exact", int(next(iter(seeds.values()))[-1]["step"]))


def finished(metrics: Metrics, curves: Curves) -> Curves:
    """The curves of the runs that did not diverge."""
    diverged = metrics.get("diverged", {})
    return {
        arm: {seed: rows for seed, rows in seeds.items() if rows and not diverged.get(arm, {}).get(seed)}
        for arm, seeds in curves.items()
    }


def derive_stability(metrics: Metrics, curves: Curves) -> None:
    """How calm each run was once its KL warm-up had ended: the first steps only tell of the initialisation.

    The largest KL of any step, in nats, and the largest gradient norm of any step as a multiple of the median one (of
    the rows, which are means over 50 steps), so that networks of different size can be compared. Diverged runs are left
    out: they are counted elsewhere, and their curves end early.
    """
    for arm, seeds in finished(metrics, curves).items():
        for seed, rows in seeds.items():
            late = [row for row in rows if row["step"] > WARMUP_SHARE * rows[-1]["step"]]
            peak = max(row["largest_gradient_norm"] for row in late)
            median = statistics.median(row["gradient_norm"] for row in late)
            put(metrics, "late_largest_kl_nats", arm, seed, max(row["largest_kl_nats"] for row in late))
            put(metrics, "late_gradient_peak_ratio", arm, seed, peak / median)


def comparison(metrics: Metrics, label: str, arm: str, against: str) -> dict[str, Any]:
    """One row of the comparisons: difference of the test NLL in nats over common seeds, and how many runs diverged."""
    nll, diverged = metrics.get("nll_nats", {}), metrics.get("diverged", {}).get(arm, {})
    differences = list(paired_differences(nll.get(arm, {}), nll.get(against, {})).values())
    ends = student_interval(differences) if len(differences) > 1 else None
    return {
        "label": label,
        "arm": arm,
        "against": against,
        "difference": mean(differences) if differences else None,
        "low": ends.low if ends else None,
        "high": ends.high if ends else None,
        "n": len(differences),
        "diverged": int(sum(diverged.values())),
        "runs": len(diverged),
    }


def comparisons(metrics: Metrics, arms: Sequence[str]) -> list[dict[str, Any]]:
    """A row for every arm that was run and has a reference, by question; arms that no question names come last."""
    named = {arm for listed in QUESTIONS.values() for _, arm, _ in listed} | {"base"}
    others = tuple((arm, arm, "base") for arm in arms if arm not in named)
    rows: list[dict[str, Any]] = []
    for question, listed in {**QUESTIONS, "others": others}.items():
        present = [each for each in listed if each[1] in arms and each[2] in arms]
        place = len({row["question"] for row in rows})
        rows += [{**comparison(metrics, *each), "question": question, "place": place} for each in present]
    for above, row in zip([None, *rows], rows, strict=False):
        row["first"] = above is None or above["question"] != row["question"]
    return rows


def headlines(metrics: Metrics, preset: str, binary: bool) -> list[Headline]:
    """The few numbers that a reader asks for first."""
    if binary:
        found = [
            headline("mnist_nll_nats", metrics, "mnist_nll_nats", preset=preset, unit="nats", paper=MNIST_OF_PAPER),
            headline("mnist_bound_nats", metrics, "mnist_bound_nats", preset=preset, unit="nats"),
        ]
    else:
        told: dict[str, Any] = {"preset": preset, "unit": "bits/dim", "paper": CIFAR10_OF_PAPER}
        found = [headline("bits_per_dim", metrics, "cifar10_bits_per_dim", **told)]
    layer = metrics.get("layer_saved_bytes", {})
    if {"fused", "bn_silu"} <= set(layer):
        ratio = layer["fused"]["exact"] / layer["bn_silu"]["exact"]
        exact: dict[str, Any] = {"unit": "of BN, then SiLU", "n": 1, "spread_over": "nothing: exact", "preset": preset}
        found.append(Headline(name="fused_layer_memory_ratio", value=ratio, interval=None, paper=None, **exact))
    if "fused" in metrics.get("step_time_ratio", {}):
        told = {"preset": preset, "unit": "of BN, then SiLU", "spread_over": "interleaved rounds"}
        found.append(headline("fused_step_time_ratio", metrics, "step_time_ratio", "fused", **told))
    return found


def draw(folder: Path, metrics: Metrics, curves: Curves, pictures: Pictures, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every figure whose data there are."""
    figures.samples(folder, pictures)
    figures.reconstructions(folder, pictures)
    figures.training(folder, curves)
    figures.kl_per_group(folder, curves, metrics)
    figures.from_prior_curve(folder, metrics)
    figures.feature_distance(folder, metrics)
    figures.memory(folder, metrics)
    if rows:
        figures.ablations(folder, rows)
        figures.stability(folder, curves)


def report(preset: str, root: Path = ROOT) -> None:
    """Write everything but the text, for one preset.

    Raises:
        UserError: the train or evaluate stage has not run at this preset.
    """
    paper, target = root / "papers" / "nvae", root / "reports" / "nvae"
    run = paper / "runs" / preset
    params = read_yaml(paper / "params.yaml")
    arms = [arm for arm in params["arms_to_run"] if (run / "ablate" / arm / "metrics.json").is_file()]
    pictures = read_pictures(paper / "pictures" / preset / f"seed{params['seeds'][0]}.npz")
    curves = read_curves(run, params["seeds"], arms)
    binary = pictures["originals"].shape[1] == 1
    metrics = gather(run, params["seeds"], arms)
    derive(metrics, run, curves, binary)
    rows = comparisons(metrics, arms)
    for stale in (*(target / "figures").glob("*.png"), *(target / "tables").glob("*.csv")):
        stale.unlink()  # of another preset, which may have measured more
    draw(target / "figures", metrics, curves, pictures, rows)
    write_tables(target / "tables", metrics, preset, rows)
    write_headline(target / "headline.json", headlines(metrics, preset, binary))
    write_metrics(run / "metrics.json", metrics)


def main() -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(description="Gather and draw what the stages of a preset measured.")
    parser.add_argument("--preset", required=True, help="block of papers/nvae/params.yaml")
    report(parser.parse_args().preset)


if __name__ == "__main__":
    errors.run(main)
