"""Compare gradient estimators on problems with an exact gradient: `python -m papers.sst.gradients --preset laptop`.

Writes `runs/<preset>/gradients/metrics.json`, the table `gradients.csv`, one row for each problem and arm, and
`training.csv`, curves at equal evaluations of the loss. Seeds are independent repeats; the arms of a seed have the same
random numbers where they draw the same.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from papers.sst import settings as paper_settings
from papers.sst.gradient_curves import EVALUATIONS, chosen_curve, training_arms
from papers.sst.gradient_problems import Problem, exact_gradient, problems
from papers.sst.gradient_study import ARMS, Arm, controlled, measure, tuned_control
from shared import errors, provenance
from shared.paths import runs
from shared.provenance import code_sha256
from shared.report.tables import Cell, write_csv
from shared.results import Metrics, merge, put, write_metrics, write_rows
from shared.statistics import mean
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered

PAPER = "sst"
SEEDS = range(5)
PROBLEMS = ("spanning_trees", "k_subsets", "categorical")
#: Trainings of an arm that are told.
TRAININGS = 50
MEASURES = ("bias", "bias_se", "bias_z", "variance", "cost_variance")
#: Problem or "training", and seed or arm.
Key = tuple[str, int | str]


def seeded(seed: int, stream: int) -> torch.Generator:
    """A generator for each repeat and each problem."""
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


def problem_of(name: str) -> Problem:
    """The problem with this name."""
    return next(problem for problem in problems() if problem.name == name)


def study(name: str, seed: int, samples: int) -> dict[str, Any]:
    """Bias and variance of every arm on one problem: `metrics`."""
    problem, metrics, stream = problem_of(name), Metrics(), PROBLEMS.index(name)
    temperature, scale = tuned_control(problem, max(100, samples // 5), seeded(seed, 10 + stream))
    control = Arm(partial(controlled, temperature=temperature, scale=scale), evaluations=3)
    put(metrics, f"{name}_control_temperature", "relax", f"seed{seed}", temperature)
    put(metrics, f"{name}_control_scale", "relax", f"seed{seed}", scale)
    for arm, estimator in {**ARMS, "relax": control}.items():
        for measured, value in measure(problem, estimator, samples, seeded(seed, 20 + stream)).items():
            put(metrics, f"{name}_{measured}", arm, f"seed{seed}", value)
    return {"metrics": metrics}


def train(arm: str, samples: int) -> dict[str, Any]:
    """Curves of one arm on the spanning trees, (seeds, points) in percent of the first gap, and the learning rate."""
    steps = max(10, min(200, samples // 500))
    streams = (seeded(0, 40), seeded(1, 40))
    found, rate = chosen_curve(problem_of("spanning_trees"), arm, TRAININGS, steps, max(1, steps // 40), streams)
    return {"curves": found.tolist(), "rate": rate, "every": max(1, steps // 40)}


def job(preset: str, key: Key) -> dict[str, Any]:
    """One problem for one seed, or one arm's trainings; with the state `folder` in which it is remembered."""
    samples = paper_settings.load(preset).gradient_samples
    code = code_sha256(Path(__file__))
    made_by = digest(code=code, key=key, samples=samples, device=digest_of_device(pick_device()))
    name, which = key
    with StateFolder(f"sst-{preset}-gradients-{name}-{which}", made_by) as folder:
        work = partial(train, str(which), samples) if name == "training" else partial(study, name, int(which), samples)
        return {**remembered(folder, work), "folder": str(folder.folder)}


def gradient_rows(metrics: Metrics) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of `gradients.csv`: means over seeds, one row for each problem and arm."""
    rows: list[list[Cell]] = []
    for name in PROBLEMS[::-1]:
        evaluations = {**{arm: each.evaluations for arm, each in ARMS.items()}, "relax": 3}
        for arm in metrics[f"{name}_bias"]:
            means = [mean(list(metrics[f"{name}_{measured}"][arm].values())) for measured in MEASURES]
            rows.append([name, arm, evaluations[arm], *(float(f"{value:.6g}") for value in means)])
    return ["problem", "estimator", "evaluations", *MEASURES], rows


def training_rows(results: dict[str, dict[str, Any]]) -> list[dict[str, float]]:
    """Rows of `training.csv`: seed, evaluations, and a column for each arm."""
    first = next(iter(results.values()))
    return [
        {
            "seed": seed,
            "evaluations": point * first["every"] * EVALUATIONS,
            **{arm: result["curves"][seed][point] for arm, result in results.items()},
        }
        for seed in range(TRAININGS)
        for point in range(len(first["curves"][0]))
    ]


def collect_training(results: dict[str, dict[str, Any]]) -> Metrics:
    """`training_gap_percent` at the end, `training_mean_gap_percent` over the curve, `training_rate`."""
    metrics: Metrics = {}
    for arm, result in results.items():
        put(metrics, "training_rate", arm, "exact", result["rate"])
        for seed, curve in enumerate(result["curves"]):
            put(metrics, "training_gap_percent", arm, f"seed{seed}", curve[-1])
            put(metrics, "training_mean_gap_percent", arm, f"seed{seed}", mean(curve))
    return metrics


def main() -> None:
    """Parse, run all problems and trainings, write, and only then forget the finished jobs."""
    parser = argparse.ArgumentParser(description="Compare gradient estimators on problems with an exact gradient.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    preset = parser.parse_args().preset
    paper_settings.load(preset)
    # The longest first, so that no core is idle at the end.
    keys: list[Key] = [(name, seed) for name in PROBLEMS for seed in SEEDS]
    keys += [("training", arm) for arm in training_arms()]
    origin = provenance.begin("gradients", preset, None, Path(__file__))
    results = dict(zip(keys, parallel(partial(job, preset), keys)))
    trained = {arm: results["training", arm] for arm in training_arms()}
    metrics = merge([collect_training(trained), *(results[name, s]["metrics"] for name in PROBLEMS for s in SEEDS)])
    for name in PROBLEMS:
        problem = problem_of(name)
        norm = exact_gradient(problem, problem.theta).norm().item()
        put(metrics, f"{name}_gradient_norm", "exact", "exact", norm)
    place = runs(PAPER, preset)
    write_metrics(place / "gradients" / "metrics.json", metrics)
    write_csv(place / "gradients" / "gradients.csv", *gradient_rows(metrics))
    write_rows(place / "gradients" / "training.csv", training_rows(trained))
    origin.finish(place / "provenance" / "gradients.json")
    for result in results.values():
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
