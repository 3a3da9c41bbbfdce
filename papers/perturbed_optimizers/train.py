"""Train one arm of the terrain experiment for every seed.

`python -m papers.perturbed_optimizers.train --preset laptop --arm black_box`. On the CPU the seeds run in parallel
processes of one thread each.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from papers.perturbed_optimizers.settings import PARAMS, Settings
from papers.perturbed_optimizers.terrain import Maps, cost_metrics, draw_maps
from papers.perturbed_optimizers.terrain_training import Trainer, predicted_costs, read_arm, to_plain, train
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_bytes
from shared.paths import paper, runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, save_weights, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence


def curve(trainer: Trainer, rows: list[dict[str, float]], validation: Maps) -> list[dict[str, float]]:
    """The record with solver calls as a running total and, after each epoch, rate and ratio on validation maps."""
    total, found = 0.0, []
    for epoch, (row, weights) in enumerate(zip(rows, trainer.snapshots.weights, strict=True), 1):
        trainer.model.load_state_dict(weights)
        metrics = cost_metrics(predicted_costs(trainer.model, validation.pixels), validation)
        total += row["solver_calls"] * trainer.steps_per_epoch
        found.append(
            {
                "epoch": epoch,
                "loss": row["loss"],
                "gradient_norm": row["gradient_norm"],
                "mean_cost": row["mean_cost"],
                "solver_calls": total,
                "optimal_path_rate": metrics.optimal_path_rate,
                "cost_ratio": metrics.cost_ratio,
            }
        )
    return found


def one_seed(preset: str, name: str, seed: int) -> dict[str, Any]:
    """Train one seed: its curve `rows`, `seconds`, `interruptions`, and the state `folder` with its weights."""
    arm, s = read_arm(preset, name)
    device = pick_device()
    sample = preset == "smoke"
    key = digest(
        code=code_sha256(Path(__file__)), seed=seed, device=digest_of_device(device), sample=sample, **to_plain(s, arm)
    )
    with StateFolder(f"perturbed_optimizers-{preset}-{name}-seed{seed}", key) as folder:

        def work() -> dict[str, Any]:
            maps = draw_maps(s.maps, seed, "train", allow_sample=sample)
            trainer = Trainer(arm, s, maps, seed, device)
            try:
                record = train(trainer, folder, f"{name} seed {seed}")
            except Divergence as error:
                raise UserError(f"{name} seed {seed} {error}; lower terrain_learning_rate") from None
            validation = draw_maps(max(1, s.test_maps // 2), 0, "validation", allow_sample=sample)
            rows = curve(trainer, record.rows, validation)
            save_weights(folder.folder / "weights.pt", trainer.model)
            return {"rows": rows, "seconds": record.seconds, "interruptions": record.interruptions}

        return {**remembered(folder, work), "folder": str(folder.folder)}


def write(preset: str, name: str, s: Settings, seeds: list[int], results: list[dict[str, Any]]) -> None:
    """Curves, last numbers and weights of every seed."""
    metrics: Metrics = {}
    put(metrics, "training_maps", name, "exact", s.maps)
    put(metrics, "terrain_epochs", name, "exact", s.terrain_epochs)
    target = runs("perturbed_optimizers", preset) / "train" / name
    for seed, result in zip(seeds, results, strict=True):
        write_rows(target / f"curve-seed{seed}.csv", result["rows"])
        rates = [row["optimal_path_rate"] for row in result["rows"]]
        put(metrics, "train_seconds", name, f"seed{seed}", result["seconds"])
        put(metrics, "solver_calls", name, f"seed{seed}", result["rows"][-1]["solver_calls"])
        put(metrics, "validation_optimal_path_rate", name, f"seed{seed}", rates[-1])
        put(metrics, "mean_rate_over_epochs", name, f"seed{seed}", sum(rates) / len(rates))
        put(metrics, "first_epoch_rate", name, f"seed{seed}", rates[0])
        place = paper("perturbed_optimizers") / "weights" / preset / name / f"seed{seed}.pt"
        write_bytes(place, (Path(result["folder"]) / "weights.pt").read_bytes())
    write_metrics(target / "metrics.json", metrics)


def main() -> None:
    """Parse, resolve, train all seeds, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train one arm of the terrain experiment for every seed.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    parser.add_argument("--arm", default="fenchel_young", help="one of the arms in the same file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    options = parser.parse_args()
    preset, name = options.preset, options.arm
    arm, s = read_arm(preset, name)
    print(msgspec.json.format(msgspec.json.encode(to_plain(s, arm))).decode(), file=sys.stderr)
    if options.dry_run:
        return
    seeds = read_yaml(PARAMS)["seeds"]
    origin = provenance.begin(f"train-{name}", preset, None, Path(__file__))
    results = parallel(partial(one_seed, preset, name), seeds)
    write(preset, name, s, seeds, results)
    place = runs("perturbed_optimizers", preset) / "provenance" / f"train-{name}.json"
    origin.finish(place, sum(result["interruptions"] for result in results))
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
