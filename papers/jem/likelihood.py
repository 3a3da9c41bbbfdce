"""What the exact density of a normalising flow says of images: `python -m papers.jem.likelihood --preset laptop`.

The paper's table 3 compares with Glow, which finds some unfamiliar images more likely than its own (Nalisnick et al.,
2019). Here a small flow takes its place: trained by maximum likelihood on the images that feed JEM's p(x), tested on
the same familiar and unfamiliar images, once. It sees no labels. Files go into `runs/<preset>/likelihood/`.
"""

import argparse
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from papers.jem import settings as presets
from papers.jem.data import Data, load_data, out_of_distribution_sets, scale, unlabelled_batch
from papers.jem.flow import Flow, bits_per_dim, dequantise, levels_of, to_logits
from papers.jem.looks import Looks
from papers.jem.ood import auroc, histograms
from papers.jem.settings import PARAMS, Settings
from papers.jem.sgld import chain_generator, still
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_bytes
from shared.paths import runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.flat import flatten
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence, Record, Stateful, fit, gradient_step

ARM = "flow"
#: Steps of a training as a share of JEM's, which cost more each.
STEPS_SHARE = 0.8
#: Adam's rate, its rise in steps, and the share of the steps before it falls, linearly, to nothing.
RATE, WARMUP_STEPS, FLAT_SHARE = 6e-3, 100, 0.4
#: Gradients of the loss in bits per dimension are cut to this norm.
CLIP_NORM = 1.0
#: Bits per dimension past this are a divergence: a uniform density needs 8, new weights about as many.
BITS_BOUND = 40.0
#: In the couplings, while training; tests are in float32.
PRECISION = "bfloat16"
#: Images that set the actnorms; looks at validation images along a run, and how many batches a look takes.
FIRST_IMAGES, LOOKS, LOOK_BATCHES = 512, 25, 16
#: At most so many images of each unfamiliar set, as in `evaluate`; pictures drawn by the first seed.
OUTSIDE, SAMPLES = 2_000, 64
#: At most so many familiar images as a multiple of the attacked ones: at `laptop` all test images.
TEST_SHARE = 10
SCORES = ("log_density", "approximate_mass", "approximate_mass_logit")
_BATCH = 250


def steps_of(s: Settings) -> int:
    """Steps of a training."""
    return max(2, round(STEPS_SHARE * s.steps))


def rate_at(step: int, steps: int) -> float:
    """The learning rate: a rise from 0, flat, then linearly to 0; a function of the step alone."""
    risen = min(1.0, (step + 1) / min(WARMUP_STEPS, max(1, steps // 8)))
    return RATE * risen * min(1.0, (steps - step) / (steps * (1 - FLAT_SHARE)))


class FlowTrainer:
    """Flow, optimiser and `step(k)` for the shared loop; images and their order are those of JEM's p(x)."""

    def __init__(self, s: Settings, data: Data, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device, self.steps = s, seed, device, steps_of(s)
        self.data = data.to(device)
        torch.manual_seed(seed)
        self.flow = Flow(data.train.shape[1], data.train.shape[-1]).to(device)
        first = unlabelled_batch(self.data, min(FIRST_IMAGES, len(data.train)), seed, 0)
        self.flow.initialise(dequantise(first, chain_generator(seed, 2**30, device)))
        self.vector = flatten(self.flow)
        self.optimizer = torch.optim.Adam([self.vector], RATE, fused=True)
        self.looks = Looks()

    def state(self) -> dict[str, Stateful]:
        """All that changes."""
        return {"flow": self.flow, "optimizer": self.optimizer, "looks": self.looks}

    def step(self, k: int) -> dict[str, Tensor | float]:
        """One optimiser step; gives the row of the record."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(k, self.steps)
        x = dequantise(unlabelled_batch(self.data, s.batch, self.seed, k))
        loss = bits_per_dim(self.flow.log_prob(x, PRECISION), self.flow.dims).mean()
        row = gradient_step(loss, self.optimizer, clip_norm=CLIP_NORM)
        if (k + 1) % max(1, self.steps // LOOKS) == 0 or k + 1 == self.steps:
            bits = mean_bits(self.flow, self.data.validation[: LOOK_BATCHES * s.batch], self.seed)
            self.looks.rows.append({"step": float(k + 1), "bits_per_dim": bits})
        return {"train_bits_per_dim": loss.detach(), **row}


def train(trainer: FlowTrainer, folder: StateFolder, label: str, save_seconds: float = 20.0) -> Record:
    """Run or resume the training."""
    return fit(
        trainer.step,
        steps=trainer.steps,
        seed=trainer.seed,
        state=trainer.state(),
        folder=folder,
        guard=("train_bits_per_dim", BITS_BOUND),
        record_every=max(1, trainer.steps // 50),
        check_every=20,
        save_seconds=save_seconds,
        label=label,
    )


# --- tests ---


@torch.no_grad()
def mean_bits(flow: Flow, pixels: Tensor, seed: int) -> float:
    """Mean bits per dimension of pixels uint8 (N, C, H, W), with one draw of the noise each."""
    generator = chain_generator(seed, 2**29, pixels.device)
    parts = [flow.log_prob(dequantise(scale(x), generator)) for x in pixels.split(_BATCH)]
    return float(bits_per_dim(torch.cat(parts).double(), flow.dims).mean())


def score(flow: Flow, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Name of each score -> values (N,), on the CPU, of images (N, C, H, W) in [-1, 1]; higher is more familiar.

    `log_density`: log p(x) in nats on the scale [-1, 1], after `dequantise`; `approximate_mass`: -|d log p(x) / dx|.
    A norm of a gradient depends on the scale, and the logit scale, on which the flow sees images, is steep at black and
    white. So `approximate_mass_logit` is -|d log p(y) / dy| of images y on that scale.
    """
    generator = chain_generator(seed, 2**29, images.device)
    found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    with still(flow):
        for batch in images.split(_BATCH):
            x = dequantise(batch, generator).requires_grad_()
            with torch.enable_grad():
                y, of_scale = to_logits(x)
                of_logits = flow.log_prob_of_logits(y)
                log_density = of_logits + of_scale
                (slope,) = torch.autograd.grad(log_density.sum(), x, retain_graph=True)
                (slope_logit,) = torch.autograd.grad(of_logits.sum(), y)
            found["log_density"].append(log_density.detach().cpu())
            found["approximate_mass"].append(-slope.flatten(1).norm(dim=1).cpu())
            found["approximate_mass_logit"].append(-slope_logit.flatten(1).norm(dim=1).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def familiarity(flow: Flow, images: Tensor, outside: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """Numbers `auroc_<score>_<set>`, their means, and `<score>_mean_<set>`; `histogram_<score>` rows, as `evaluate`.

    Args:
        images: the familiar ones (N, C, H, W) in [-1, 1]; the set `test`.
        outside: name -> unfamiliar ones.
    """
    sets = {"test": score(flow, images, seed)} | {name: score(flow, x, seed) for name, x in outside.items()}
    numbers: dict[str, float] = {}
    tables: dict[str, list[dict[str, float]]] = {}
    for kind in SCORES:
        values = {name: scores[kind] for name, scores in sets.items()}
        row = {name: auroc(values["test"], values[name]) for name in outside}
        numbers |= {f"auroc_{kind}_{name}": value for name, value in row.items()}
        numbers[f"auroc_{kind}_mean"] = sum(row.values()) / len(row)
        numbers |= {f"{kind}_mean_{name}": float(each.double().mean()) for name, each in values.items()}
        drawn = histograms(values)
        width = float(drawn.edges[1] - drawn.edges[0])
        tables[f"histogram_{kind}"] = [
            {"low": float(low), "width": width} | {name: float(each[i]) for name, each in drawn.density.items()}
            for i, low in enumerate(drawn.edges[:-1])
        ]
    return {"numbers": numbers, "tables": tables}


def measure(trainer: FlowTrainer, outside: Mapping[str, Tensor]) -> dict[str, Any]:
    """All that is measured of a trained flow: `numbers`, `tables`, and `samples` as nested lists of levels."""
    flow, data, seed = trainer.flow, trainer.data, trainer.seed
    count = min(TEST_SHARE * trainer.settings.attacked_images, len(data.test))
    found = familiarity(flow, scale(data.test[:count]), outside, seed)
    found["numbers"] |= {
        "test_bits_per_dim": mean_bits(flow, data.test[:count], seed),
        "train_bits_per_dim": mean_bits(flow, data.train[:count], seed),
        "validation_bits_per_dim": mean_bits(flow, data.validation[:count], seed),
    }
    drawn = flow.sample(SAMPLES, chain_generator(seed, 2**28, trainer.device))
    return {**found, "samples": levels_of(drawn).cpu().tolist()}


# --- the stage ---


def one_seed(preset: str, seed: int) -> dict[str, Any]:
    """Train and test one seed: what `measure` gives, `rows`, `looks`, `seconds`, and the state `folder`."""
    s, device = presets.load(preset), pick_device()
    data = load_data(s.images, s.labels_per_class, seed, sample=preset == "smoke")
    where = {"seed": seed, "device": digest_of_device(device), "data": data.sha256()}
    identity = digest(code=code_sha256(Path(__file__)), **where, settings=msgspec.to_builtins(s))
    with StateFolder(f"jem-{preset}-likelihood-seed{seed}", identity) as folder:

        def work() -> dict[str, Any]:
            trainer = FlowTrainer(s, data, seed, device)
            try:
                record = train(trainer, folder, f"{preset}-{ARM}-seed{seed}")
            except Divergence as error:
                raise UserError(f"the flow of seed {seed} {error}; lower RATE in papers/jem/likelihood.py") from None
            count = min(OUTSIDE, 2 * s.attacked_images)
            outside = out_of_distribution_sets(trainer.data, count, seed, sample=preset == "smoke")
            result = {"rows": record.rows, "looks": trainer.looks.rows, "seconds": record.seconds}
            return {**result, "interruptions": record.interruptions, **measure(trainer, outside)}

        return {**remembered(folder, work), "folder": str(folder.folder)}


def write(preset: str, seeds: Sequence[int], results: Sequence[Mapping[str, Any]]) -> None:
    """`metrics.json`; each seed's curves and histograms in `seed<k>/`; of the first seed `samples.npz`."""
    metrics: Metrics = {}
    target = runs("jem", preset) / "likelihood"
    for seed, result in zip(seeds, results, strict=True):
        key = f"seed{seed}"
        for metric, value in result["numbers"].items():
            put(metrics, metric, ARM, key, value)
        put(metrics, "train_seconds", ARM, key, result["seconds"])
        tables = {"record": result["rows"], "validation": result["looks"], **result["tables"]}
        for name, rows in tables.items():
            write_rows(target / key / f"{name}.csv", rows)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, samples=np.array(results[0]["samples"], dtype=np.uint8))
    write_bytes(target / "samples.npz", buffer.getvalue())
    write_metrics(target / "metrics.json", metrics)


def main() -> None:
    """Train and test the flow for every seed, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train a normalising flow for every seed, and test its density.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    preset = parser.parse_args().preset
    origin = provenance.begin("likelihood", preset, None, Path(__file__))
    seeds = read_yaml(PARAMS)["seeds"]
    results = parallel(partial(one_seed, preset), seeds)
    write(preset, seeds, results)
    interruptions = sum(result["interruptions"] for result in results)
    origin.finish(runs("jem", preset) / "provenance" / "likelihood.json", interruptions)
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
