"""How often does training diverge? Stage `stability`: `python -m papers.jem.stability --preset laptop`.

Short trainings over learning rate, length of the chains and noise on the data, several seeds each, without recovery: a
loss past its bound ends a run. Two of the cells are trained again with each of three remedies that were proposed later.
Along each run the largest curvature of the energy at the samples is measured: chains are stable while step size times
curvature is below 2 (Grathwohl et al., 2020, section 5 and appendix, tell of divergences and of restarts by hand).
"""

import argparse
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from papers.jem import settings as presets
from papers.jem.data import load_data
from papers.jem.looks import Looks
from papers.jem.settings import PARAMS, Settings
from papers.jem.sgld import chain_generator, largest_curvature
from papers.jem.training import Arm, Trainer, short_steps, to_plain
from shared import errors, provenance
from shared.paths import runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence, fit

#: Factors of the preset's learning rate, lengths of chains, and noise on the data as multiples of the preset's.
RATES, CHAIN_STEPS, NOISES = (1.0, 4.0), (1, 5, 20), (0.0, 1.0)
#: Arms that are said to train more stably, and the cells where they are tried: factor of the rate, and eta.
REMEDIES = {
    "energy_l2": Arm(energy_l2=0.1),
    "gradient_clamp": Arm(gradient_clamp=1.0),
    "leaky_relu": Arm(activation="leaky_relu"),
}
REMEDIED = ((1.0, 1), (4.0, 5))
#: Looks at the curvature along a run; samples and power iterations of a look.
LOOKS, SAMPLES, ITERATIONS = 12, 16, 8


class Cell(NamedTuple):
    """One training: factor of the learning rate, eta, factor of the noise, seed, and a remedy."""

    rate: float
    chain_steps: int
    noise: float
    seed: int
    remedy: str = ""

    @property
    def arm(self) -> str:
        """The name of its metrics."""
        return f"rate{self.rate:g}_eta{self.chain_steps}_noise{self.noise:g}" + bool(self.remedy) * f"_{self.remedy}"


def plan(seeds: Sequence[int]) -> list[Cell]:
    """All trainings, those with long chains first."""
    grid = [Cell(*each) for each in itertools.product(RATES, CHAIN_STEPS, NOISES, seeds)]
    mended = [
        Cell(rate, steps, 0.0, seed, remedy)
        for (rate, steps), seed, remedy in itertools.product(REMEDIED, seeds, REMEDIES)
    ]
    return sorted(grid + mended, key=lambda cell: -cell.chain_steps)


def steps_of(s: Settings) -> int:
    """Steps of a run: a quarter of a short training."""
    return max(2, short_steps(s) // 4)


def settings_of(preset: str, cell: Cell) -> Settings:
    """The preset, shorter, with the cell's choices."""
    s = presets.load(preset)
    changed = {"learning_rate": s.learning_rate * cell.rate, "data_noise": s.data_noise * cell.noise}
    return presets.load(preset, steps=steps_of(s), chain_steps=cell.chain_steps, **changed)


def curvature_times_step(trainer: Trainer, k: int) -> float:
    """The largest over some of the last samples of step size times curvature; 2 is the edge of stability."""
    buffer = trainer.buffer
    states = buffer.states[buffer.recent[:SAMPLES]] if len(buffer.recent) else buffer.states[:SAMPLES]
    generator = chain_generator(trainer.seed, 2**29 + k, trainer.device)
    found = largest_curvature(trainer.model, states, iterations=ITERATIONS, generator=generator)
    return trainer.langevin.step_size * found.amax().item()


def one_run(preset: str, cell: Cell) -> dict[str, Any]:
    """Train one cell: `diverged_at` (steps done, or None), rows of `curvatures`, and the state `folder`."""
    s, device, arm = settings_of(preset, cell), pick_device(), REMEDIES.get(cell.remedy, Arm())
    data = load_data(s.images, s.labels_per_class, cell.seed, sample=preset == "smoke")
    where = {"seed": cell.seed, "device": digest_of_device(device), "data": data.sha256()}
    identity = digest(code=code_sha256(Path(__file__)), **where, **to_plain(s, arm))
    with StateFolder(f"jem-{preset}-stability-{cell.arm}-seed{cell.seed}", identity) as folder:

        def work() -> dict[str, Any]:
            trainer, seen = Trainer(arm, s, data, cell.seed, device), Looks()
            trainer.recovery.most = 0
            every = max(1, s.steps // LOOKS)

            def step(k: int) -> dict[str, Tensor | float]:
                if k % every == 0:
                    seen.rows.append({"step": k, "step_times_curvature": curvature_times_step(trainer, k)})
                return trainer.step(k)

            try:
                fit(
                    trainer.recovery.watching(step),
                    steps=s.steps,
                    seed=cell.seed,
                    state={**trainer.state(), "seen": seen},
                    folder=folder,
                    guard=trainer.recovery.guard,
                    record_every=every,
                    check_every=1,
                    label=f"{cell.arm} seed {cell.seed}",
                )
            except Divergence as error:
                return {"diverged_at": error.step, "curvatures": finite(seen.rows)}
            return {"diverged_at": None, "curvatures": finite(seen.rows)}

        return {**remembered(folder, work), "folder": str(folder.folder)}


def finite(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows up to the first curvature that is no number."""
    good = itertools.takewhile(lambda row: bool(torch.tensor(row["step_times_curvature"]).isfinite()), rows)
    return list(good)


def main() -> None:
    """Run every cell, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Count divergences over learning rate, chain length and noise.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    preset = parser.parse_args().preset
    origin = provenance.begin("stability", preset, None, Path(__file__))
    seeds = read_yaml(PARAMS)["seeds"]
    cells = plan(seeds)
    results = parallel(partial(one_run, preset), cells)
    metrics: Metrics = {}
    rows = []
    steps = steps_of(presets.load(preset))
    for cell, result in zip(cells, results, strict=True):
        ended = result["diverged_at"]
        put(metrics, "diverged", cell.arm, f"seed{cell.seed}", float(ended is not None))
        put(metrics, "steps_survived", cell.arm, f"seed{cell.seed}", float(steps if ended is None else ended))
        own = {"rate": cell.rate, "chain_steps": cell.chain_steps, "noise": cell.noise, "seed": cell.seed}
        rows += [{**own, **row} for row in result["curvatures"] if not cell.remedy]
    for seed in seeds:
        of_grid = [r["diverged_at"] is not None for c, r in zip(cells, results, strict=True) if c[3:] == (seed, "")]
        put(metrics, "diverged_percent", "grid", f"seed{seed}", 100 * sum(of_grid) / len(of_grid))
    folder = runs("jem", preset) / "stability"
    write_rows(folder / "curvature.csv", rows)
    write_metrics(folder / "metrics.json", metrics)
    origin.finish(runs("jem", preset) / "provenance" / "stability.json")
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
