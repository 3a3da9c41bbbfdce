"""The tables of the report as CSV: classification and calibration, unfamiliar images, attacks, divergences."""

import re
from collections.abc import Sequence
from pathlib import Path

from papers.jem.figures_training import REMEDIES, cell_of
from shared.comparisons import Metrics
from shared.measurements import mean_and_ends
from shared.report.tables import Cell, write_csv

Lines = tuple[list[str], list[list[Cell]]]

#: The views of the networks, in the order of tables and figures.
VIEWS = {
    "classifier": "classifier",
    "classifier_early": "classifier, stopped early",
    "classifier_noiseless": "classifier, no input noise",
    "classifier_smoothed": "classifier, label smoothing",
    "jem": "JEM",
    "jem_last": "JEM, last weights",
    "jem_short": "JEM, short",
    "jem_conditional": "log p(x|y), short",
    "jem_labelled_only": "JEM without unlabelled images, short",
    "jem_energy_l2": "JEM, energies penalised, short",
    "flow": "flow, a likelihood",
}
#: Steps of refinement, and who attacks, in the order of the table.
DEFENCES = {
    "jem0": "none",
    "jem1": "1 step; its gradient, and that without refinement",
    "jem1_full": "1 step; back through the step, and without refinement",
    "jem1_worst": "1 step; all of these attacks",
    "jem1_noisy": "1 step, 5 noisy copies; mean gradient, and without",
    "jem10": "10 steps; its gradient, and that without refinement",
    "jem10_full": "10 steps; back through all steps, and without refinement",
    "jem10_worst": "10 steps; all of these attacks",
    "jem10_noisy": "10 steps, 5 noisy copies; mean gradient, and without",
}
SCORES = {"log_density": "log p(x)", "confidence": "max p(y|x)", "approximate_mass": "-|d log p(x)/dx|"}
#: A row for what only the flow has.
ROWS = SCORES | {"approximate_mass_logit": "-|d log p(y)/dy|, y logits of the pixels"}
SETS = ("mnist", "fashion_mnist", "uniform", "interpolation", "tiles")


def write_tables(folder: Path, metrics: Metrics) -> None:
    """Every table that has a row."""
    tables = {
        "classification": classification(metrics),
        "unfamiliar": unfamiliar(metrics),
        "attacks": attacks(metrics),
        "refinement": refinement(metrics),
        "samples": samples(metrics),
        "chains": chains(metrics),
        "stability": stability(metrics),
        "training": training(metrics),
    }
    for name, (header, lines) in tables.items():
        if lines:
            write_csv(folder / f"{name}.csv", header, lines)


def by_view(metrics: Metrics, metric_names: Sequence[str], first: int = 1) -> list[list[Cell]]:
    """A line a view: its label, mean and both ends of the first few metrics, the means of the others."""
    lines: list[list[Cell]] = []
    for view, label in VIEWS.items():
        if any(view in metrics.get(name, {}) for name in metric_names):
            cells: list[Cell] = [label]
            for place, name in enumerate(metric_names):
                found = mean_and_ends(metrics, name, view)
                cells += found if place < first else found[:1]
            lines.append(cells)
    return lines


def classification(metrics: Metrics) -> Lines:
    """Accuracy, proper scores and calibration, before and after temperature scaling."""
    names = ["accuracy_percent", "ece20_percent", "ece20_scaled_percent", "temperature", "nll_nats", "nll_scaled_nats"]
    names += ["brier", "train_accuracy_percent"]
    header = ["network", "accuracy, %", "low", "high", "ECE, %", "low", "high", "ECE scaled, %", "temperature"]
    return [*header, "NLL, nats", "NLL scaled", "Brier", "train accuracy, %"], by_view(metrics, names, first=2)


def unfamiliar(metrics: Metrics) -> Lines:
    """AUROC of the three scores against each set of unfamiliar images."""
    present = [name for name in SETS if f"auroc_confidence_{name}" in metrics]
    header = ["network", "score", *present]
    lines: list[list[Cell]] = []
    for view, label in VIEWS.items():
        for score, words in ROWS.items():
            cells: list[Cell] = [mean_and_ends(metrics, f"auroc_{score}_{name}", view)[0] for name in present]
            if any(cell is not None for cell in cells):
                lines.append([label, words, *cells])
    return header, lines


def attacks(metrics: Metrics) -> Lines:
    """Accuracy under projected gradient descent, a column a norm and radius."""
    pattern = re.compile(r"robust_(linf|l2)_eps([\d_]+)_percent")
    matches = sorted(
        (match for match in map(pattern.fullmatch, metrics) if match),
        key=lambda match: (match[1] != "linf", float(match[2].replace("_", "."))),
    )
    names = ["accuracy_percent", *(match[0] for match in matches)]
    titles = [f"{match[1]} {match[2].replace('_', '.')}" for match in matches]
    return ["network", "accuracy, %", *titles], by_view(metrics, names, first=0)


def refinement(metrics: Metrics) -> Lines:
    """Accuracy under attack with steps of refinement before classification, against several attackers."""
    names = ["clean", "linf_eps0_05", "linf_eps0_1", "l2_eps0_5", "l2_eps1"]
    header = [
        "network",
        "refinement and attacks",
        "no attack, %",
        "linf 0.05",
        "low",
        "high",
        "linf 0.1",
        "low",
        "high",
    ]
    lines: list[list[Cell]] = []
    for view, label in VIEWS.items():
        for defence, words in DEFENCES.items():
            found = [mean_and_ends(metrics, f"{defence}_{name}_percent", view) for name in names]
            if found[1][0] is not None:
                lines.append([label, words, found[0][0], *found[1], *found[2], found[3][0], found[4][0]])
    return [*header, "l2 0.5", "l2 1"], lines


def samples(metrics: Metrics) -> Lines:
    """Distance of samples from images, and what classes they are to another network; then what a distance means."""
    names = ["samples_kernel_distance", "samples_frechet_distance", "samples_judged_label_entropy_nats"]
    names += ["samples_judged_classes", "conditional_judged_percent", "samples_nearest_train", "test_nearest_train"]
    header = ["samples of", "kernel distance, x 1,000", "low", "high", "Frechet distance", "entropy of labels, nats"]
    header += ["classes", "of the class asked for, %", "L2 to the nearest training image", "the same of test images"]
    lines = by_view(metrics, names)
    for metric in metrics:
        if match := re.fullmatch(r"reference_(\w+)_kernel_distance", metric):
            arm = next(iter(metrics[metric]))
            spread = mean_and_ends(metrics, metric, arm)
            frechet = mean_and_ends(metrics, f"reference_{match[1]}_frechet_distance", arm)[0]
            lines.append([f"({match[1].replace('_', ' ')})", *spread, frechet, *[None] * (len(header) - 5)])
    return header, lines


def chains(metrics: Metrics) -> Lines:
    """Are settled chains at rest, stable and mixing?"""
    names = ["log_density_gap_nats", "curvature_test_mean", "curvature_test_max", "curvature_samples_mean"]
    names += ["curvature_samples_max", "autocorrelation_lag1", "autocorrelation_lag10", "autocorrelation_lag100"]
    header = ["network", "log p(x) of data less samples, nats", "low", "high"]
    header += ["step x curvature at data", "largest", "at samples", "largest", "autocorrelation, lag 1", "10", "100"]
    return header, by_view(metrics, names)


def stability(metrics: Metrics) -> Lines:
    """How many of the short trainings without recovery diverged, and how long they lasted."""
    lines: list[list[Cell]] = []
    for arm, seeds in metrics.get("diverged", {}).items():
        if cell := cell_of(arm):
            survived = mean_and_ends(metrics, "steps_survived", arm)[0]
            lines.append([*cell[:3], REMEDIES[cell.remedy], len(seeds), round(sum(seeds.values())), survived])
    lines.sort(key=lambda line: (*(float(cell or 0) for cell in line[:3]), str(line[3])))
    return [
        "learning rate, times the preset's",
        "chain steps",
        "noise, times",
        "remedy",
        "runs",
        "diverged",
        "steps, mean",
    ], lines


def training(metrics: Metrics) -> Lines:
    """What a training cost, and how often it had to go back."""
    header = ["arm", "steps", "seconds", "iterations/s", "returns after a divergence", "step of the best weights"]
    names = ("train_steps", "train_seconds", "train_iterations_per_s", "divergences", "best_step")
    lines: list[list[Cell]] = []
    for arm in sorted(metrics.get("train_seconds", {}), key=list(VIEWS).index):
        lines.append([arm, *(mean_and_ends(metrics, name, arm)[0] for name in names)])
    return header, lines
