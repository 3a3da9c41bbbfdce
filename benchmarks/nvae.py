"""Speed of NVAE against a straightforward implementation of equal mathematics: `python -m benchmarks.nvae`.

The baseline is what one writes first: float32, default memory layout, batch norm and Swish as two modules, the spectral
penalty layer by layer, the optimiser parameter by parameter. Both take turns, so that both see the same machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nvae import settings as nvae_settings
from papers.nvae.experiment import Images, Trainer, likelihood, load_images
from papers.nvae.model import convolutions
from papers.nvae.settings import Settings
from shared import errors, provenance
from shared.data.batches import seed_step
from shared.files import read_json, write_json
from shared.layers import effective_weight
from shared.paths import reports, runs
from shared.training.device import describe, pick_device


class LayerwisePenalty(nn.Module):
    """The spectral penalty one convolution at a time, as the formula reads."""

    def __init__(self, convs: list[nn.Conv2d]) -> None:
        super().__init__()
        self._convs = tuple(convs)
        self.vectors: list[tuple[Tensor, Tensor]] = []
        for conv in convs:
            w = conv.weight.flatten(1)
            self.vectors.append(
                (F.normalize(torch.randn(w.shape[0]), dim=0), F.normalize(torch.randn(w.shape[1]), dim=0))
            )

    def forward(self) -> Tensor:
        total = torch.zeros(())
        for i, conv in enumerate(self._convs):
            w = effective_weight(conv).flatten(1)
            u, v = self.vectors[i]
            with torch.no_grad():
                for _ in range(4):
                    v = F.normalize(w.T @ u, dim=0, eps=1e-3)
                    u = F.normalize(w @ v, dim=0, eps=1e-3)
            self.vectors[i] = (u, v)
            total = total + u @ w @ v
        return total


class PlainTrainer(Trainer):
    """The same training step written plainly."""

    def __init__(self, settings: Settings, images: Images, seed: int, steps: int, device: torch.device) -> None:
        plain = msgspec.structs.replace(settings, precision="float32", bn_swish="separate")
        super().__init__(plain, images, seed, steps, device)
        self.model = self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.spectral = LayerwisePenalty(convolutions(self.model))  # type: ignore[assignment]
        self.optimizer = torch.optim.Adamax(
            self.model.parameters(),
            betas=(0.9, settings.beta2),
            eps=settings.adamax_epsilon,
            weight_decay=settings.weight_decay,
            foreach=False,
        )
        self.model.encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def training(settings: Settings, images: Images, rounds: int) -> list[dict[str, object]]:
    """Images a second of both trainers, in turns of 10 steps, and their likelihood after the same steps."""
    device, steps = pick_device(), 10 * (rounds + 1)
    pair = [kind(settings, images, 0, steps, device) for kind in (Trainer, PlainTrainer)]
    elapsed: list[list[float]] = [[], []]
    for round_ in range(rounds + 1):
        for side, trainer in enumerate(pair):

            def ten_steps(trainer: Trainer = trainer, first: int = 10 * round_) -> None:
                for k in range(first, first + 10):
                    seed_step(0, k)
                    trainer.step(k)

            elapsed[side].append(seconds_of(ten_steps))
    ours, plain = (10 * settings.batch_size / statistics.median(times[1:]) for times in elapsed)
    part = images.validation[:500]
    nll = [likelihood(t.evaluated(), part, t.settings, images.side, 10).nll_nats.mean().item() for t in pair]
    conditions = f"{describe(device)}; batch {settings.batch_size}; median of {rounds} turns of 10 steps"
    after = f"validation NLL after {steps} steps, 10 importance samples, 500 images"
    return [
        entry("train_images_per_s", ours, plain, "images/s", ours / plain, conditions),
        entry("nll_after_equal_steps", nll[0], nll[1], "nats", nll[0] / nll[1], after),
    ]


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
        f"{describe(device)}; 250 images a pass; median of {rounds}",
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
    layer_of = "one layer, input 32 x 32 x 16 x 16 in float32; baseline BatchNorm2d + SiLU"
    step_of = f"forward and backward of the whole {preset} model; median of the ratios of paired rounds"
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
    images, rounds = load_images(settings, sample=smoke), 1 if smoke else 10
    entries = training(settings, images, rounds)
    entries += [sampling(settings, images, rounds), *from_memory_table(preset)]
    write_json(reports("nvae") / "benchmark.json", entries)
    origin.finish(runs("nvae", preset) / "provenance" / "benchmark.json")
    for row in entries:
        print(f"{row['name']}: {row['ours']} against {row['baseline']} {row['unit']}, ratio {row['ratio']}")


if __name__ == "__main__":
    errors.run(main)
