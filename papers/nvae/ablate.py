"""Train one arm of the comparison for every seed: `python -m papers.nvae.ablate --preset laptop --arm absolute`.

Arms of one seed see the same batches and the same draws, so differences are paired. On the CPU the seeds run in
parallel processes of one thread each, which for networks this small does more work than one process with all threads.
"""

import argparse
import math
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from papers.nvae import settings as nvae_settings
from papers.nvae.experiment import Images, Trainer, likelihood, load_images, run_digest, train
from papers.nvae.memory import saved_bytes
from papers.nvae.settings import PARAMS, Settings
from shared import errors, provenance
from shared.errors import UserError
from shared.files import read_json, write_json
from shared.paths import runs
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, discard
from shared.training.device import pick_device
from shared.training.loop import Divergence, Record

#: Importance samples for the comparisons; fewer than for the main model, equal for all arms.
SAMPLES = 16
TEST_IMAGES = 2_000
#: Counts that follow from the settings alone.
DETERMINISTIC = {"saved_bytes", "parameters"}


def arm_settings(preset: str, arm: str, path: Path = PARAMS) -> Settings:
    """The settings of one arm: the preset, changed by `ablation`, changed by the arm itself.

    Raises:
        UserError: no such arm.
    """
    document = read_yaml(path)
    if arm not in document["arms"]:
        raise UserError(f"{path}: no arm named {arm!r}; there are: {', '.join(document['arms'])}")
    changes: dict[str, Any] = {**document["ablation"], **document["arms"][arm]}
    changes["steps"] = min(changes["steps"], nvae_settings.load(preset, path).steps)
    return nvae_settings.load(preset, path, **changes)


def measure(trainer: Trainer, images: Images, record: Record) -> dict[str, float]:
    """One finished run: test likelihood, its terms, latent use, and the largest gradient and KL of any step."""
    model, settings_ = trainer.evaluated(), trainer.settings
    result = likelihood(model, images.test[:TEST_IMAGES], settings_, images.side, SAMPLES)
    groups = range(result.kl_nats.shape[1])
    model.train()
    kept = saved_bytes(lambda: trainer.terms(0).loss)
    late = record.rows[-max(len(record.rows) // 10, 1) :]
    with torch.no_grad():
        spectral_norm_sum = trainer.spectral().item()
    return {
        "nll_nats": result.nll_nats.mean().item(),
        "bound_nats": result.bound_nats.mean().item(),
        "test_kl_nats": result.kl_nats.sum(1).mean().item(),
        "train_kl_nats": statistics.mean(sum(row[f"kl_nats_{i}"] for i in groups) for row in late),
        "train_bound_nats": statistics.mean(row["bound_nats"] for row in late),
        "active_groups": float((result.kl_nats.mean(0) > 0.1).sum()),
        "largest_kl_nats": max(row["largest_kl_nats"] for row in record.rows),
        "largest_gradient_norm": max(row["largest_gradient_norm"] for row in record.rows),
        "saved_bytes": float(kept),
        "spectral_norm_sum": spectral_norm_sum,
    }


def outcome(trainer: Trainer, images: Images, folder: StateFolder, label: str) -> tuple[dict[str, float], Record]:
    """Numbers and record of one run, from its beginning or its saved state.

    A run that ends with a measurement that is not finite has diverged too, after its last step. Of a diverged run
    there are no numbers but that it diverged and when; its record goes as far as the run went.
    """
    parameters = float(sum(p.numel() for p in trainer.model.parameters()))
    try:
        record = train(trainer, folder, label)
    except Divergence as error:
        print(f"{label} {error}")
        return {"parameters": parameters, "diverged": 1.0, "diverged_step": float(error.step)}, error.record
    numbers = measure(trainer, images, record)
    unfit = [name for name, value in numbers.items() if not math.isfinite(value)]
    if unfit:
        print(f"{label} diverged: after its last step {', '.join(unfit)} is not finite")
        return {"parameters": parameters, "diverged": 1.0, "diverged_step": float(trainer.steps)}, record
    return {**numbers, "parameters": parameters, "diverged": 0.0}, record


def one_seed(settings: Settings, preset: str, arm: str, seed: int) -> dict[str, Any]:
    """Train and measure one seed: its `numbers`, its curve `rows`, how often it was resumed, and its state `folder`.

    A finished seed leaves its result in the state folder, so that a killed stage repeats no finished seed.
    """
    device = pick_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    images = load_images(settings, sample=preset == "smoke")
    key = run_digest(settings, images, seed, settings.steps, Path(__file__), device)
    with StateFolder(f"nvae-{preset}-ablate-{arm}-seed{seed}", key) as folder:
        finished = folder.folder / "result.json"
        if not finished.exists():
            trainer = Trainer(settings, images, seed, settings.steps, device)
            numbers, record = outcome(trainer, images, folder, f"{arm} seed {seed}")
            write_json(finished, {"numbers": numbers, "rows": record.rows, "interruptions": record.interruptions})
        result: dict[str, Any] = read_json(finished)
        return {**result, "folder": str(folder.folder)}


def all_seeds(settings: Settings, preset: str, arm: str, seeds: list[int]) -> list[dict[str, Any]]:
    """The results of every seed, in order; on the CPU one process a core."""
    job = partial(one_seed, settings, preset, arm)
    if pick_device().type == "cuda":
        return [job(seed) for seed in seeds]
    # Forked before any kernel has run here, so the children inherit no threads.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        return list(pool.map(job, seeds))


def write(folder: Path, arm: str, seeds: list[int], results: list[dict[str, Any]]) -> None:
    """The arm's numbers as metric -> arm -> seed -> value, and one curve a seed.

    What does not depend on the seed is one exact number, not a sample without spread.
    """
    metrics: Metrics = {}
    for seed, result in zip(seeds, results, strict=True):
        for name, value in result["numbers"].items():
            put(metrics, name, arm, f"seed{seed}", value)
        write_rows(folder / f"curve-seed{seed}.csv", result["rows"])
    for name in DETERMINISTIC & metrics.keys():
        values = set(metrics[name][arm].values())
        if len(values) == 1:
            metrics[name][arm] = {"exact": values.pop()}
    write_metrics(folder / "metrics.json", metrics)


def main() -> None:
    """Parse, resolve, run all seeds, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train one arm of the comparison for every ablation seed.")
    parser.add_argument("--preset", required=True, help="block of papers/nvae/params.yaml")
    parser.add_argument("--arm", required=True, help="one of the arms in papers/nvae/params.yaml")
    options = parser.parse_args()
    settings = arm_settings(options.preset, options.arm)
    seeds = read_yaml(PARAMS)["ablation_seeds"]
    origin = provenance.begin(f"ablate-{options.arm}", options.preset, None, Path(__file__))
    results = all_seeds(settings, options.preset, options.arm, seeds)
    write(runs("nvae", options.preset) / "ablate" / options.arm, options.arm, seeds, results)
    place = runs("nvae", options.preset) / "provenance" / f"ablate-{options.arm}.json"
    origin.finish(place, sum(result["interruptions"] for result in results))
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
