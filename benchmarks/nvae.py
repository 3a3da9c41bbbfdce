"""Speed of NVAE against a straightforward implementation of equal mathematics: `python -m benchmarks.nvae`.

The baseline is what one writes first from the paper: float32, default memory layout, batch norm and Swish as two
modules, cells as their formula reads, resolution doubled by the library's interpolation, both penalties layer by layer,
the optimiser parameter by parameter, nothing compiled. Both take turns, so that both see the same machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nvae import settings as nvae_settings
from papers.nvae.cells import Cell
from papers.nvae.experiment import Images, Trainer, likelihood, load_images
from papers.nvae.losses import reconstruction_nats
from papers.nvae.settings import Settings
from shared import errors, provenance
from shared.data.batches import seed_step
from shared.files import read_json, write_json
from shared.layers import effective_weight
from shared.paths import reports, runs
from shared.spectral import SpectralPenalty
from shared.training.compiled import can_compile
from shared.training.device import describe, pick_device
from shared.upsampling import Bilinear, Nearest

TURN = 10  # steps of one trainer before the other's turn


class LayerwisePenalty(nn.Module):
    """The spectral penalty one convolution at a time, as the formula reads, from the same first vectors."""

    def __init__(self, penalty: SpectralPenalty) -> None:
        super().__init__()
        self._vectors = {conv: u.clone() for conv, u in penalty.left_vectors().items()}
        self.iterations, self.first_iterations, self.started = penalty.iterations, penalty.first_iterations, False

    def forward(self) -> Tensor:
        iterations = self.iterations if self.started else self.first_iterations
        self.started = True
        total = torch.zeros((), device=next(iter(self._vectors.values())).device)
        for conv, u in self._vectors.items():
            w = effective_weight(conv).flatten(1)
            with torch.no_grad():
                for _ in range(iterations):
                    v = F.normalize(w.T @ u, dim=0, eps=1e-3)
                    u = F.normalize(w @ v, dim=0, eps=1e-3)
            self._vectors[conv] = u
            total = total + u @ w @ v
        return total


class PlainTrainer(Trainer):
    """The same training step written plainly."""

    def __init__(self, settings: Settings, images: Images, seed: int, steps: int, device: torch.device) -> None:
        plain = msgspec.structs.replace(settings, precision="float32", bn_swish="separate")
        super().__init__(plain, images, seed, steps, device)
        for module in list(self.model.modules()):
            if isinstance(module, Cell):
                module._residual = partial(plain_residual, module)  # type: ignore[method-assign]
            for name, child in module.named_children():
                if isinstance(child, Nearest):
                    setattr(module, name, nn.Upsample(scale_factor=2))
                elif isinstance(child, nn.Sequential) and len(child) == 2 and isinstance(child[1], Bilinear):
                    doubled = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                    setattr(module, name, nn.Sequential(doubled, child[0]))  # the paper's order
        self.model = self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for p in self.model.parameters():
            p.data, p.grad = p.data.clone(), None  # out of the common buffer
        self.spectral = LayerwisePenalty(self.spectral)  # type: ignore[assignment]
        group = self.optimizer.param_groups[0]
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        self.optimizer = torch.optim.Adamax(self.model.parameters(), foreach=False, **options)

    def _parts(self, x: Tensor, padded: Tensor, noise: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        inference = self.model(padded.contiguous(), [n.contiguous() for n in noise])
        penalty = self.spectral()
        for layer in self.batch_norms:
            penalty = penalty + layer.weight.abs().max()
        used = penalty if self.settings.spectral_weight > 0 else None
        return reconstruction_nats(inference.logits, x, self.settings), inference.kl_nats, used


def plain_residual(cell: Cell, x: Tensor) -> Tensor:
    """A residual cell as its formula reads: gate, scale and add one after the other."""
    branch = cell.branch(x)
    if cell.squeeze_excite is not None:
        branch = cell.squeeze_excite(branch)
    return cell.skip(x) + cell.scale * branch  # type: ignore[no-any-return]


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def training(settings: Settings, images: Images, turns: int, fast: bool) -> list[dict[str, object]]:
    """Images a second of both trainers, in turns, and their likelihood after the same steps; `fast` compiles ours."""
    device, steps = pick_device(), TURN * turns
    pair = [Trainer(settings, images, 0, steps, device, fast), PlainTrainer(settings, images, 0, steps, device)]
    elapsed: list[list[float]] = [[], []]
    for turn in range(turns):
        for side, trainer in enumerate(pair):

            def some_steps(trainer: Trainer = trainer, first: int = TURN * turn) -> None:
                for k in range(first, first + TURN):
                    seed_step(0, k)
                    trainer.step(k)

            elapsed[side].append(seconds_of(some_steps))
    # The first turn compiles and warms up.
    ours, plain = (TURN * settings.batch_size / statistics.median(times[1:]) for times in elapsed)
    part = images.validation[:1000]
    nll = [likelihood(t.evaluated(), part, t.settings, images.side, 20).nll_nats.mean().item() for t in pair]
    how = f"{describe(device)}; {'compiled' if fast else 'not compiled'}; batch {settings.batch_size}"
    after = f"lower is better; validation NLL after {steps} steps, 20 importance samples, {len(part)} images"
    return [
        entry(
            "train_images_per_s", ours, plain, "images/s", ours / plain,
            f"higher is better; {how}; median of {turns - 1} turns of {TURN} steps",
        ),
        entry("nll_after_equal_steps", nll[0], nll[1], "nats", nll[0] / nll[1], after),
    ]  # fmt: skip


def sampling(settings: Settings, images: Images, rounds: int) -> dict[str, object]:
    """Images a second drawn from the prior, in bfloat16 and channels-last, and in float32 and default layout."""
    device = pick_device()
    pair = [kind(settings, images, 0, 1, device) for kind in (Trainer, PlainTrainer)]
    elapsed: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for side, trainer in enumerate(pair):
            model = trainer.evaluated()

            def draw(trainer: Trainer = trainer, model: nn.Module = model) -> None:
                bf16 = trainer.settings.precision == "bfloat16"
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    model.sample(250, 0.8)  # type: ignore[operator]

            elapsed[side].append(seconds_of(draw))
    ours, plain = (250 / statistics.median(times[1:]) for times in elapsed)
    return entry(
        "sample_images_per_s",
        ours,
        plain,
        "images/s",
        ours / plain,
        f"higher is better; {describe(device)}; 250 images a pass; median of {rounds}",
    )


def entry(name: str, ours: float, baseline: float, unit: str, ratio: float, conditions: str) -> dict[str, object]:
    """One record of `benchmark.json`."""
    return {
        "name": name,
        "ours": float(f"{ours:.5g}"),
        "baseline": float(f"{baseline:.5g}"),
        "unit": unit,
        "ratio": float(f"{ratio:.4g}"),
        "conditions": conditions,
    }


def from_memory_table(preset: str) -> list[dict[str, object]]:
    """The rows of BN+Swish, from what the memory stage measured."""
    path: Path = runs("nvae", preset) / "memory" / "metrics.json"
    metrics = read_json(path)
    layer = {arm: metrics["layer_saved_bytes"][arm]["exact"] for arm in ("fused", "bn_silu")}
    times = {arm: statistics.median(metrics["step_ms"][arm].values()) for arm in ("fused", "bn_silu")}
    ratio = statistics.median(metrics["step_time_ratio"]["fused"].values())
    layer_of = "lower is better; one layer, input 32 x 32 x 16 x 16 in float32; baseline BatchNorm2d + SiLU"
    step_of = (
        f"lower is better; forward and backward of the whole {preset} model; median of the ratios of paired rounds"
    )
    saved = layer["fused"] / layer["bn_silu"]
    return [
        entry("bn_swish_saved_bytes", layer["fused"], layer["bn_silu"], "bytes", saved, layer_of),
        entry("bn_swish_step_time", times["fused"], times["bn_silu"], "ms", ratio, step_of),
    ]


def main() -> None:
    """Measure and write `reports/nvae/benchmark.json`."""
    parser = argparse.ArgumentParser(description="Speed of NVAE against a plain implementation.")
    parser.add_argument("--preset", default="laptop")
    preset = parser.parse_args().preset
    settings, smoke = nvae_settings.load(preset), preset == "smoke"
    origin = provenance.begin("benchmark", preset, None, Path(__file__))
    images = load_images(settings, sample=smoke)
    entries = training(settings, images, 2 if smoke else 60, fast=not smoke and can_compile(pick_device()))
    entries += [sampling(settings, images, 1 if smoke else 10), *from_memory_table(preset)]
    write_json(reports("nvae") / "benchmark.json", entries)
    origin.finish(runs("nvae", preset) / "provenance" / "benchmark.json")
    for row in entries:
        print(f"{row['name']}: {row['ours']} against {row['baseline']} {row['unit']}, ratio {row['ratio']}")


if __name__ == "__main__":
    errors.run(main)
