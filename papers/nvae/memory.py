"""The memory table of BN+Swish (section 3.2): `python -m papers.nvae.memory --preset laptop`.

Ways to compute the same network: x * sigmoid(x) written out, BN then SiLU, one fused function, the recomputation of
whole cells, and the fused function in float32. For each: bytes kept for the backward pass, peak memory, time of a
step, and the distance of the gradients from the first.
"""

import argparse
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from papers.nvae import losses
from papers.nvae import settings as nvae_settings
from papers.nvae.experiment import load_images, observe
from papers.nvae.model import NVAE
from papers.nvae.settings import Settings
from shared import errors, provenance
from shared.bn_swish import BatchNorm, BatchNormSwish
from shared.data.batches import seed_step
from shared.paths import runs
from shared.results import Metrics, put, write_metrics
from shared.training.device import autocast, pick_device

VARIANTS: dict[str, dict[str, Any]] = {
    "naive": {"bn_swish": "naive"},
    "bn_silu": {"bn_swish": "separate"},
    "fused": {"bn_swish": "fused"},
    "checkpoint": {"bn_swish": "separate", "checkpoint_cells": True},
    "fused_float32": {"bn_swish": "fused", "precision": "float32"},
}
ROUNDS = 15
REPEATS = 3


def saved_bytes(run: Any) -> int:
    """Bytes of the distinct tensors that autograd keeps between `run()` and its backward pass, parameters left out."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter) and not (t.is_leaf and t.requires_grad):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = run()
        total = sum(kept.values())
    del result
    return total


class Step:
    """Forward and backward pass of one fixed batch with the same weights, in one of the variants."""

    def __init__(self, settings: Settings, smoke: bool) -> None:
        self.settings, self.device = settings, pick_device()
        images = load_images(settings, sample=smoke)
        seed_step(0, -1)
        model = NVAE(settings, images.channels, images.side)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.x, self.padded = observe(images.train[: settings.batch_size].to(self.device), settings, images.side)

    def forward(self) -> Tensor:
        """The negative bound of the batch, in nats."""
        seed_step(0, 0)
        with autocast(self.device, self.settings.precision):
            inference = self.model(self.padded)
        return (
            losses.reconstruction_nats(inference.logits, self.x, self.settings).mean()
            + torch.stack(inference.kl_nats).sum(0).mean()
        )

    def step(self) -> None:
        """Gradients of the bound, without an optimiser."""
        self.model.zero_grad(set_to_none=True)
        self.forward().backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def gradient(self) -> Tensor:
        """All gradients in the model's order of parameters, one vector."""
        self.step()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def peak_bytes(settings: Settings, smoke: bool) -> int:
    """Peak memory of one step above what the process held before: of the device, or of a fresh process on the CPU."""
    if pick_device().type == "cuda":
        step = Step(settings, smoke)
        step.step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.step()
        return torch.cuda.max_memory_allocated() - before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_fresh_process, (settings, smoke))


def _peak_of_fresh_process(settings: Settings, smoke: bool) -> int:
    step = Step(settings, smoke)
    step.step()  # what is made once, such as the kernels' own buffers, does not count
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from the present size
    before = _status_bytes("VmRSS")
    step.step()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    """A size from the process's status page (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def layer_bytes(fused: bool, shape: tuple[int, int, int, int] = (32, 32, 16, 16)) -> int:
    """Bytes that one BN+Swish keeps for an input of `shape` in float32."""
    x = torch.randn(shape, requires_grad=True) * 1.0
    layer = BatchNormSwish(shape[1]) if fused else nn.Sequential(BatchNorm(shape[1]), nn.SiLU())
    return saved_bytes(lambda: layer(x).sum())


def timed(step: Step) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step.step()
    return time.perf_counter() - began


def measure(settings: Settings, smoke: bool) -> Metrics:
    """The table; step times are taken in turn, one step a variant and round, so that all see the same machine."""
    metrics: Metrics = {}
    variants = {name: msgspec.structs.replace(settings, **change) for name, change in VARIANTS.items()}
    steps = {name: Step(changed, smoke) for name, changed in variants.items()}
    exact = {name: msgspec.structs.replace(changed, precision="float32") for name, changed in variants.items()}
    reference = Step(exact["naive"], smoke).gradient()
    for name, step in steps.items():
        put(metrics, "saved_bytes", name, "exact", saved_bytes(step.forward))
        for repeat in range(1 if smoke else REPEATS):
            put(metrics, "peak_bytes", name, f"repeat{repeat}", peak_bytes(variants[name], smoke))
        difference = (Step(exact[name], smoke).gradient() - reference).abs().max() / reference.abs().max()
        put(metrics, "largest_gradient_difference", name, "exact", float(difference))
        step.step()
    for k in range(2 if smoke else ROUNDS):
        elapsed = {name: timed(step) for name, step in steps.items()}
        for name, seconds in elapsed.items():
            put(metrics, "step_ms", name, f"round{k}", 1e3 * seconds)
            put(metrics, "step_time_ratio", name, f"round{k}", seconds / elapsed["bn_silu"])
    put(metrics, "layer_saved_bytes", "bn_silu", "exact", layer_bytes(fused=False))
    put(metrics, "layer_saved_bytes", "fused", "exact", layer_bytes(fused=True))
    return metrics


def main() -> None:
    """Measure and write `runs/<preset>/memory/metrics.json`."""
    parser = argparse.ArgumentParser(description="The memory table of BN+Swish.")
    parser.add_argument("--preset", required=True, help="block of papers/nvae/params.yaml")
    preset = parser.parse_args().preset
    # For the fresh processes: the C library would keep freed blocks and blur the peak; these go back to the system.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    origin = provenance.begin("memory", preset, None, Path(__file__))
    metrics = measure(nvae_settings.load(preset), smoke=preset == "smoke")
    write_metrics(runs("nvae", preset) / "memory" / "metrics.json", metrics)
    origin.finish(runs("nvae", preset) / "provenance" / "memory.json")


if __name__ == "__main__":
    errors.run(main)
