"""Train one arm on images for every seed: `python -m papers.jem.train --preset laptop --arm jem`.

On the CPU the seeds run in parallel processes of one thread each. Of every run the averaged weights of the end and
those with the least validation NLL are kept. A run that diverges returns to its last good state with a new sampler
seed; every return is recorded.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from papers.jem.data import Data, load_data
from papers.jem.settings import PARAMS, Settings
from papers.jem.training import Trainer, network, read_arm, to_plain
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_bytes, write_json
from shared.paths import paper, runs
from shared.provenance import code_sha256
from shared.results import Metrics, load_weights, put, save_weights, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence, Record, fit

#: Which weights of a run: those with the least validation NLL, or the last.
KINDS = ("best", "last")


def load_network(preset: str, name: str, seed: int, kind: str = "best") -> nn.Module:
    """The trained network of an arm, in evaluation mode.

    Raises:
        UserError: the arm was not trained.
    """
    arm, s = read_arm(preset, name)
    model = network(s, arm)
    load_weights(paper("jem") / "weights" / preset / name / f"{kind}-seed{seed}.pt", model)
    return model.to(pick_device()).eval()


def data_of(s: Settings, seed: int, preset: str) -> Data:
    """The images of a run; which labels are known depends on the seed."""
    return load_data(s.images, s.labels_per_class, seed, sample=preset == "smoke")


def train(trainer: Trainer, folder: StateFolder, label: str, save_seconds: float = 20.0) -> Record:
    """Run or resume the training."""
    return fit(
        trainer.recovery.watching(trainer.step),
        steps=trainer.settings.steps,
        seed=trainer.seed,
        state=trainer.state(),
        folder=folder,
        guard=trainer.recovery.guard,
        record_every=max(1, trainer.settings.steps // 50),
        check_every=20,
        save_seconds=save_seconds,
        label=label,
    )


def one_seed(preset: str, name: str, seed: int) -> dict[str, Any]:
    """Train one seed: `rows`, `looks` at validation images, `events`, seconds of both, and the state `folder`."""
    arm, s = read_arm(preset, name)
    device, label = pick_device(), f"{preset}-{name}-seed{seed}"
    data = data_of(s, seed, preset)
    where = {"seed": seed, "device": digest_of_device(device), "data": data.sha256()}
    identity = digest(code=code_sha256(Path(__file__)), **where, **to_plain(s, arm))
    with StateFolder(f"jem-{label}", identity) as folder:

        def work() -> dict[str, Any]:
            trainer = Trainer(arm, s, data, seed, device)
            try:
                record = train(trainer, folder, label)
            except Divergence as error:
                raise UserError(f"{name} seed {seed} {error}; lower learning_rate or raise chain_steps") from None
            for kind, weights in zip(KINDS, (trainer.best.weights, trainer.average.vector), strict=True):
                assert weights is not None
                with torch.no_grad():
                    trainer.vector.copy_(weights)
                save_weights(folder.folder / f"{kind}.pt", trainer.model)
            events = trainer.recovery.state_dict()["events"]
            best = trainer.best
            result = {"rows": record.rows, "looks": best.rows, "look_seconds": best.seconds, "best_step": best.step}
            result["events"] = events
            return {**result, "seconds": record.seconds, "interruptions": record.interruptions}

        return {**remembered(folder, work), "folder": str(folder.folder)}


def write(preset: str, name: str, s: Settings, seeds: Sequence[int], results: Sequence[dict[str, Any]]) -> None:
    """Curves, events, costs and weights of every seed."""
    metrics: Metrics = {}
    target = runs("jem", preset) / "train" / name
    for seed, result in zip(seeds, results, strict=True):
        key = f"seed{seed}"
        write_rows(target / f"record-{key}.csv", result["rows"])
        write_rows(target / f"validation-{key}.csv", result["looks"])
        if result["events"]:
            write_json(target / f"returns-{key}.json", result["events"])
        put(metrics, "train_seconds", name, key, result["seconds"])
        # Looks at validation images are no part of an iteration.
        put(metrics, "train_iterations_per_s", name, key, s.steps / (result["seconds"] - result["look_seconds"]))
        put(metrics, "divergences", name, key, len(result["events"]))
        put(metrics, "best_step", name, key, result["best_step"])
        for kind in KINDS:
            place = paper("jem") / "weights" / preset / name / f"{kind}-{key}.pt"
            write_bytes(place, (Path(result["folder"]) / f"{kind}.pt").read_bytes())
    put(metrics, "train_steps", name, "exact", s.steps)
    write_metrics(target / "metrics.json", metrics)


def main() -> None:
    """Parse, resolve, train all seeds, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train one arm on images for every seed.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    parser.add_argument("--arm", default="jem", help="one of the arms in the same file")
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
    place = runs("jem", preset) / "provenance" / f"train-{name}.json"
    origin.finish(place, sum(result["interruptions"] for result in results))
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
