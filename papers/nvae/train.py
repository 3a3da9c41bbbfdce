"""Train the main model of a preset for one seed: `python -m papers.nvae.train --preset laptop --seed 0`.

With several processes: `torchrun --nproc-per-node 2 -m papers.nvae.train --preset laptop --seed 0`.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from papers.nvae import settings as nvae_settings
from papers.nvae.experiment import Trainer, load_images, run_digest, train
from papers.nvae.settings import Settings
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_json
from shared.paths import runs, weights
from shared.results import save_weights, write_rows
from shared.training.checkpoint import StateFolder
from shared.training.compiled import WORTH_STEPS, can_compile
from shared.training.device import pick_device
from shared.training.distributed import rank, start_processes, stop_processes
from shared.training.loop import Divergence, Record


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Three options, as in every paper: which preset, which seed, and a look at the settings without a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", required=True, help="block of papers/nvae/params.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return parser.parse_args(arguments)


def write(folder: Path, trainer: Trainer, record: Record) -> None:
    """Curve and last row of the main model."""
    write_rows(folder / "curve.csv", record.rows)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    write_json(folder / "metrics.json", {"parameters": parameters, "steps": trainer.steps, **record.rows[-1]})


def run(settings: Settings, preset: str, seed: int) -> None:
    """Train, resuming if a state of this very run exists, and write the results."""
    device = pick_device()
    start_processes(device)
    origin = provenance.begin(f"train-seed{seed}", preset, seed, Path(__file__))
    images = load_images(settings, sample=preset == "smoke")
    fast = settings.steps >= WORTH_STEPS and can_compile(device)
    key = run_digest(settings, images, seed, settings.steps, Path(__file__), device, fast)
    with StateFolder(f"nvae-{preset}-train-seed{seed}", key, lock=rank() == 0) as folder:
        trainer = Trainer(settings, images, seed, settings.steps, device, fast)
        try:
            record = train(trainer, folder, f"nvae {preset} seed {seed}")
        except Divergence as error:
            raise UserError(
                f"nvae {preset} seed {seed} {error}; lower learning_rate or raise spectral_weight"
            ) from None
        if rank() == 0:
            save_weights(weights("nvae", preset, seed), trainer.evaluated())
            write(runs("nvae", preset) / "train" / f"seed{seed}", trainer, record)
            place = runs("nvae", preset) / "provenance" / f"train-seed{seed}.json"
            origin.finish(place, record.interruptions, record.earlier_seconds)
            folder.discard()


def main() -> None:
    """Parse, resolve, run."""
    options = parse()
    settings = nvae_settings.load(options.preset)
    print(msgspec.json.format(msgspec.json.encode(settings)).decode(), file=sys.stderr)
    if not options.dry_run:
        try:
            run(settings, options.preset, options.seed)
        finally:
            stop_processes()


if __name__ == "__main__":
    errors.run(main)
