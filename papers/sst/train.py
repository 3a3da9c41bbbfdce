"""Train one arm on the graph layouts, at T = 10 and T = 20, for every seed.

`python -m papers.sst.train --preset laptop --arm tree`. A seed makes several short starts, of which the one with the
best validation bound is trained to the end: many starts learn the complement of the graph, and the bound tells which,
without labels. All starts are recorded. On the CPU the trainings run in parallel processes of one thread each.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from papers.sst.layout_restarts import Restarts, edge_numbers, train
from papers.sst.layout_training import (
    HORIZONS,
    Arm,
    Trainer,
    draw_split,
    measure,
    read_arm,
    steps_of,
    to_plain,
)
from papers.sst.settings import PARAMS, Settings
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

#: A start has failed whose graphs, raw, have a smaller share of their edges right, in percent.
FAILED_BELOW = 50.0

#: Horizon and seed.
Key = tuple[int, int]


def one_training(preset: str, name: str, key: Key) -> dict[str, Any]:
    """All starts of a seed, and the best one to its end: `starts`, `curve`, `rows`, `seconds`, the state `folder`."""
    arm, s = read_arm(preset, name)
    horizon, seed = key
    device, label = pick_device(), f"{preset}-{name}-t{horizon}-seed{seed}"
    where = {"horizon": horizon, "seed": seed, "device": digest_of_device(device)}
    identity = digest(code=code_sha256(Path(__file__)), **where, **to_plain(s, arm))
    with StateFolder(f"sst-{label}", identity) as folder:

        def work() -> dict[str, Any]:
            graphs, steps = draw_split(s, horizon, "train"), steps_of(s, horizon)

            def trainer(start: int) -> Trainer:
                return Trainer(arm, s, graphs, first_seed(seed, start), steps, device)

            run = Restarts(trainer, s.layout_starts, draw_split(s, horizon, "validation"))
            record = train(run, folder, seed, label)
            save_weights(folder.folder / "weights.pt", run.trainer.model)
            last = edge_numbers(measure(run.trainer.model, arm, run.validation, device), run.validation)
            result = {"starts": run.starts, "curve": run.curve, "rows": record.rows, "last": last}
            return {**result, "seconds": record.seconds, "interruptions": record.interruptions}

        return {**remembered(folder, work), "folder": str(folder.folder)}


def first_seed(seed: int, start: int) -> int:
    """The seed of a start: no two seeds of params.yaml share one."""
    return seed * 1000 + start


def one_job(preset: str, name: str, key: Key) -> dict[str, Any]:
    """`one_training`, whose divergence is one line."""
    try:
        return one_training(preset, name, key)
    except Divergence as error:
        reason = f"{name} at T = {key[0]}, seed {key[1]}, {error}"
        raise UserError(f"{reason}; lower layout_learning_rate, or learning_rate of the arm") from None


def write(
    preset: str, name: str, s: Settings, arm: Arm, keys: Sequence[Key], results: Sequence[dict[str, Any]]
) -> None:
    """Curves, starts, costs and weights of every horizon and seed."""
    metrics: Metrics = {}
    target = runs("sst", preset) / "train" / name
    starts = []
    for (horizon, seed), result in zip(keys, results, strict=True):
        stem, short = f"t{horizon}-seed{seed}", f"t{horizon}"
        write_rows(target / f"curve-{stem}.csv", result["curve"])
        write_rows(target / f"record-{stem}.csv", result["rows"])
        failed = [start["raw_precision"] < FAILED_BELOW for start in result["starts"]]
        for k, (row, bad) in enumerate(zip(result["starts"], failed, strict=True)):
            starts.append({"horizon": horizon, "seed": seed, "start": k, "failed": int(bad), **row})
        put(metrics, f"{short}_train_seconds", name, f"seed{seed}", result["seconds"])
        put(metrics, f"{short}_failed_starts", name, f"seed{seed}", 100 * sum(failed) / len(failed))
        put(metrics, f"{short}_validation_elbo_nats", name, f"seed{seed}", result["curve"][-1]["elbo_nats"])
        put(metrics, f"{short}_validation_raw_precision", name, f"seed{seed}", result["last"]["raw_precision"])
        weights = (Path(result["folder"]) / "weights.pt").read_bytes()
        write_bytes(paper("sst") / "weights" / preset / name / f"{stem}.pt", weights)
    for horizon in HORIZONS:
        put(metrics, f"t{horizon}_train_steps", name, "exact", steps_of(s, horizon))
    put(metrics, "temperature", name, "exact", arm.temperature)
    write_rows(target / "starts.csv", starts)
    write_metrics(target / "metrics.json", metrics)


def main() -> None:
    """Parse, resolve, train everything, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train one arm on the graph layouts for every horizon and seed.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    parser.add_argument("--arm", default="tree", help="one of the arms in the same file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    options = parser.parse_args()
    preset, name = options.preset, options.arm
    arm, s = read_arm(preset, name)
    print(msgspec.json.format(msgspec.json.encode(to_plain(s, arm))).decode(), file=sys.stderr)
    if options.dry_run:
        return
    keys = [(horizon, seed) for horizon in HORIZONS for seed in read_yaml(PARAMS)["seeds"]]
    origin = provenance.begin(f"train-{name}", preset, None, Path(__file__))
    results = parallel(partial(one_job, preset, name), keys)
    write(preset, name, s, arm, keys, results)
    place = runs("sst", preset) / "provenance" / f"train-{name}.json"
    origin.finish(place, sum(result["interruptions"] for result in results))
    for (horizon, seed), result in zip(keys, results, strict=True):
        bound, precision = result["curve"][-1]["elbo_nats"], result["last"]["raw_precision"]
        print(f"{name}, T = {horizon}, seed {seed}: validation ELBO {bound:.0f} nats, edge precision {precision:.1f} %")
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
