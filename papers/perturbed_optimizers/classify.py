"""CIFAR-10 with a perturbed argmax, stage `classify`: `python -m papers.perturbed_optimizers.classify --preset laptop`.

Every arm is trained for every seed: cross-entropy, the Fenchel-Young loss for each temperature and number of samples,
and two checks. Arms of one seed see the same batches, so differences are paired. Temperature and number of samples of
the arm `fy_best` are chosen on validation images.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from papers.perturbed_optimizers import settings as perturbed_settings
from papers.perturbed_optimizers.images_training import (
    BATCH,
    CROSS_ENTROPY,
    GUMBEL,
    SQUARED,
    Arm,
    Trainer,
    evaluate,
    grid,
    load_images,
)
from papers.perturbed_optimizers.settings import Settings
from shared import errors, provenance
from shared.paths import runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics, write_rows
from shared.statistics import mean
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence, Record, fit

#: Training images, without augmentation, on which the accuracy after training is measured.
TRAIN_IMAGES = 1_000
#: Losses are of the order of the temperature; this is far above the largest.
LOSS_BOUND = 1e6

Key = tuple[Arm, int]


def train(trainer: Trainer, folder: StateFolder, save_seconds: float = 20.0) -> Record:
    """Run the shared loop to its end, or to its divergence: what was recorded up to then."""
    try:
        return fit(
            trainer.step,
            steps=trainer.steps,
            seed=trainer.seed,
            state=trainer.state(),
            folder=folder,
            guard=("loss", LOSS_BOUND),
            record_every=trainer.curve_every,
            check_every=20,
            save_seconds=save_seconds,
            label=f"{trainer.arm.name} seed {trainer.seed}",
        )
    except Divergence as error:
        print(f"{trainer.arm.name} seed {trainer.seed} {error}")
        return error.record


def measure(trainer: Trainer) -> dict[str, float]:
    """Accuracies of a finished run with the unperturbed argmax; for cross-entropy the likelihood of its softmax too."""
    images, model = trainer.images, trainer.model
    test_accuracy, test_nll_nats = evaluate(model, images.test, images.test_labels)
    numbers = {
        "test_accuracy": test_accuracy,
        "validation_accuracy": evaluate(model, images.validation, images.validation_labels)[0],
        "train_accuracy": evaluate(model, images.train[:TRAIN_IMAGES], images.train_labels[:TRAIN_IMAGES])[0],
    }
    if trainer.arm in (CROSS_ENTROPY, GUMBEL) and math.isfinite(test_nll_nats):
        numbers["test_nll_nats"] = test_nll_nats
    return numbers


def curve(trainer: Trainer, record: Record) -> list[dict[str, float]]:
    """Rows of epoch, mean training loss since the row before, and validation accuracy."""
    accuracy = dict(trainer.curve.points)
    return [
        {
            "epoch": row["step"] / trainer.steps_per_epoch,
            "loss": row["loss"],
            "validation_accuracy": accuracy[int(row["step"])],
        }
        for row in record.rows
        if row["step"] in accuracy
    ]


def one_run(settings: Settings, preset: str, key: Key) -> dict[str, Any]:
    """Train and measure one arm for one seed, or take it from the state folder if it was finished before."""
    arm, seed = key
    device = pick_device()
    images = load_images(settings.images, sample=preset == "smoke")
    name = digest(
        code=code_sha256(Path(__file__)),
        images=images.sha256(),
        arm=msgspec.to_builtins(arm),
        seed=seed,
        epochs=settings.image_epochs,
        batch=BATCH,
        device=digest_of_device(device),
    )
    with StateFolder(f"perturbed_optimizers-{preset}-classify-{arm.name}-seed{seed}", name) as folder:

        def work() -> dict[str, Any]:
            trainer = Trainer(images, arm, seed, settings.image_epochs, device)
            record = train(trainer, folder)
            return {
                "numbers": {**measure(trainer), "wall_s": round(record.seconds, 1)},
                "rows": curve(trainer, record),
                "interruptions": record.interruptions,
            }

        return {**remembered(folder, work), "folder": str(folder.folder)}


def best(metrics: Metrics, arms: list[Arm]) -> Arm:
    """The arm with the highest mean validation accuracy over the seeds; of equal ones the first."""
    return max(arms, key=lambda arm: mean(list(metrics["validation_accuracy"][arm.name].values())))


def summary(keys: list[Key], results: list[dict[str, Any]], candidates: list[Arm]) -> Metrics:
    """metric -> arm -> seed -> value, and the candidate chosen on validation images once more as `fy_best`."""
    metrics: Metrics = {}
    for (arm, seed), result in zip(keys, results, strict=True):
        for name, value in result["numbers"].items():
            put(metrics, name, arm.name, f"seed{seed}", value)
    chosen = best(metrics, candidates)
    assert chosen.perturbation is not None
    for name in ("test_accuracy", "validation_accuracy", "train_accuracy"):
        metrics[name]["fy_best"] = dict(metrics[name][chosen.name])
    put(metrics, "best_epsilon", "fy_best", "exact", chosen.perturbation.epsilon)
    put(metrics, "best_samples", "fy_best", "exact", chosen.perturbation.samples)
    return metrics


def main() -> None:
    """Parse, run every arm for every seed, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Compare losses of a perturbed argmax on CIFAR-10.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    options = parser.parse_args()
    settings = perturbed_settings.load(options.preset)
    origin = provenance.begin("classify", options.preset, None, Path(__file__))
    candidates = grid(settings)
    arms = [CROSS_ENTROPY, GUMBEL, SQUARED, *candidates]
    keys = [(arm, seed) for seed in range(settings.image_seeds) for arm in arms]
    results = parallel(partial(one_run, settings, options.preset), keys)
    folder = runs("perturbed_optimizers", options.preset)
    for (arm, seed), result in zip(keys, results, strict=True):
        write_rows(folder / "classify" / f"curve-{arm.name}-seed{seed}.csv", result["rows"])
    write_metrics(folder / "classify" / "metrics.json", summary(keys, results, candidates))
    origin.finish(folder / "provenance" / "classify.json", sum(result["interruptions"] for result in results))
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
