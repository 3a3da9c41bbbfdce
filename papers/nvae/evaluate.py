"""Measure a trained model: `python -m papers.nvae.evaluate --preset laptop --seed 0`.

Writes numbers into `runs/<preset>/evaluate/` and pictures, as arrays, into `pictures/<preset>/`.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from papers.nvae import settings as nvae_settings
from papers.nvae.experiment import Images, bits_per_dim, likelihood, load_images, observe
from papers.nvae.losses import reconstruction_nats
from papers.nvae.model import NVAE
from papers.nvae.sampling import draw, interpolate, partly_from_prior, readjusted, shown
from papers.nvae.score import FEATURES, feature_score, train_classifier
from papers.nvae.settings import PARAMS, Settings
from shared import errors, provenance
from shared.data.batches import seed_step
from shared.data.images import load_mnist
from shared.files import write_bytes
from shared.metrics import mean_and_standard_error
from shared.paths import paper, runs, weights
from shared.results import Metrics, load_weights, put, write_metrics
from shared.settings import read_yaml
from shared.training.compiled import can_compile
from shared.training.device import autocast, pick_device

#: Compiling the top-down pass takes a minute; fewer passes than this are done sooner without.
WORTH_PASSES = 500_000
TEMPERATURES = (0.6, 0.8, 0.9, 1.0)
#: Draws of the whole measurement, for the scores whose spread is over repeated sampling.
REPEATS = 3


def measure_likelihood(model: NVAE, images: Images, settings: Settings, key: str, metrics: Metrics) -> None:
    """Importance-weighted test likelihood, bound and KL profile; a float32 and a batch-statistics pass on a part."""
    samples, device = settings.importance_samples, next(model.parameters()).device
    fast = len(images.test) * samples >= WORTH_PASSES and can_compile(device)
    result = likelihood(model, images.test, settings, images.side, samples, fast=fast)
    nll, error = mean_and_standard_error(result.nll_nats)
    put(metrics, "test_nll_nats", "main", key, nll)
    put(metrics, "test_nll_nats_standard_error", "main", key, error)
    put(metrics, "test_nll_bits_per_dim", "main", key, bits_per_dim(nll, tuple(images.test.shape[1:])))
    bound, error = mean_and_standard_error(result.bound_nats)
    put(metrics, "test_bound_nats", "main", key, bound)
    put(metrics, "test_bound_nats_standard_error", "main", key, error)
    for group, kl in enumerate(result.kl_nats.mean(0).tolist()):
        put(metrics, "test_kl_nats", f"group{group + 1}", key, kl)
    part = images.test[: min(1000, len(images.test))]
    running, batchwise = (single_draw_bound(model, part, images.side, settings, batch) for batch in (False, True))
    put(metrics, "bound_nats_running_statistics", "main", key, running.mean().item())
    put(metrics, "bound_nats_batch_statistics", "main", key, batchwise.mean().item())
    excess, error = mean_and_standard_error(running - batchwise)
    put(metrics, "bound_nats_excess_of_running_statistics", "main", key, excess)
    put(metrics, "bound_nats_excess_of_running_statistics_standard_error", "main", key, error)
    exact = msgspec.structs.replace(settings, precision="float32")
    float32 = likelihood(model, part, exact, images.side, min(10, settings.importance_samples))
    same = likelihood(model, part, settings, images.side, min(10, settings.importance_samples))
    difference, error = mean_and_standard_error(same.nll_nats - float32.nll_nats)
    put(metrics, "nll_nats_excess_of_bfloat16", "main", key, difference)
    put(metrics, "nll_nats_excess_of_bfloat16_standard_error", "main", key, error)


@torch.no_grad()
def single_draw_bound(model: NVAE, pixels: Tensor, side: int, settings: Settings, batch_statistics: bool) -> Tensor:
    """Negative bound of each image (N,), nats, one draw; batch norm with running or with each batch's own statistics.

    The draws are the same for both, so that the difference is paired (C10); the model is left as it was.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.train(batch_statistics)
    device, bounds = next(model.parameters()).device, []
    for start in range(0, len(pixels), 250):
        seed_step(0, start)
        x, padded = observe(pixels[start : start + 250].to(device), settings, side)
        with autocast(device, settings.precision):
            inference = model(padded)
        bound = reconstruction_nats(inference.logits, x, settings) + torch.stack(inference.kl_nats).sum(0)
        bounds.append(bound.cpu())
    model.eval()
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return torch.cat(bounds)


def measure_groups(model: NVAE, images: Images, settings: Settings, key: str, metrics: Metrics) -> dict[str, Tensor]:
    """What each group carries: reconstruction with groups 1..k from the prior; and that pixels have no side path."""
    device = next(model.parameters()).device
    pixels = images.test[: min(500, len(images.test))].to(device)
    seed_step(0, 0)
    x, padded = observe(pixels, settings, images.side)
    rows = [x[:8]]
    for k in range(len(model.groups) + 1):
        logits, nats = partly_from_prior(model, x, padded, settings, k, seed=k)
        put(metrics, "reconstruction_nats_from_prior", f"groups{k}", key, nats.mean().item())
        rows.append(shown(logits[:8], settings, images.test.shape[-1]))
    put(metrics, "side_path_gradient", "main", key, side_path_gradient(model, padded[:64]))
    logits, _ = partly_from_prior(model, x[:8], padded[:8], settings, groups=0, seed=0)
    lines = interpolate(model, padded[8:20], settings, steps=9, seed=0)
    return {
        "from_prior": torch.stack([row.cpu() for row in rows]),
        "originals": x[:8].cpu(),
        "reconstructions": shown(logits, settings, images.test.shape[-1]).cpu(),
        "interpolations": shown(lines, settings, images.test.shape[-1]).cpu(),
    }


def side_path_gradient(model: NVAE, padded: Tensor) -> float:
    """Largest gradient of the logits in the image with the latents held fixed (no unit); 0 without a side path.

    A whole inference pass in which every latent is cut from the graph as it is drawn: all that is left are ways from
    `padded` (B, C, H, W) to p(x | z) that avoid z. The logits are summed with random weights, lest paths cancel.

    Raises:
        RuntimeError: not every latent passed the place where it is cut, so that the answer would mean nothing.
    """
    drawn = 0

    def cut(_: nn.Module, __: tuple[Tensor, ...], z: Tensor) -> Tensor:
        nonlocal drawn
        drawn += 1
        return z.detach()

    # Every draw from the posterior passes its group's flows, which may be an empty sequence.
    handles = [group.flows.register_forward_hook(cut) for group in model.groups]
    try:
        image = padded.detach().clone().requires_grad_(True)
        seed_step(0, 0)
        logits = model(image).logits
        weighted = (logits * torch.randn_like(logits)).sum()
        (gradient,) = torch.autograd.grad(weighted, image, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    if drawn != len(model.groups):
        raise RuntimeError(f"{drawn} of {len(model.groups)} latents were cut from the graph")
    return 0.0 if gradient is None else float(gradient.abs().max())


def decoder_passes(model: NVAE) -> int:
    """How often one call of `sample` runs the last part of the decoder (C12: once, whatever the number of images)."""
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model.post.register_forward_hook(count)
    model.sample(4, 1.0)
    handle.remove()
    return passes


def at_temperatures(model: NVAE, settings: Settings, preset: str) -> Iterator[tuple[str, float, NVAE]]:
    """The model with its running statistics and with re-adjusted ones, at each temperature."""
    passes = 5 if preset == "smoke" else 200
    for temperature in TEMPERATURES:
        yield "running", temperature, model
        yield "readjusted", temperature, readjusted(model, settings, temperature, passes, batch=40)


def sample_grids(model: NVAE, images: Images, settings: Settings, preset: str) -> dict[str, Tensor]:
    """64 samples at each temperature, with running and with re-adjusted batch norm."""
    side = images.test.shape[-1]
    return {
        f"samples_{name}_{temperature}": draw(drawn_from, settings, 64, temperature, 0, side)
        for name, temperature, drawn_from in at_temperatures(model, settings, preset)
    }


def measure_samples(model: NVAE, images: Images, settings: Settings, preset: str, metrics: Metrics) -> None:
    """Feature distance of MNIST samples to test images over temperatures; that of validation images beside it."""
    small = preset == "smoke"
    count = 200 if small else 5_000
    train, test = (load_mnist(split, allow_sample=small) for split in ("train", "test"))
    classifier = train_classifier(train.pixels, train.labels, steps=5 if small else 500)
    score = feature_score(classifier, test.pixels, test.labels)
    put(metrics, "classifier_accuracy", "test", "exact", score.accuracy)
    real = images.validation[: max(count, FEATURES + 1)].float() / 255
    for repeat in range(REPEATS):
        put(metrics, "feature_distance", "validation_images", f"repeat{repeat}", score.distance(real, repeat))
    for name, temperature, drawn_from in at_temperatures(model, settings, preset):
        for repeat in range(REPEATS):
            drawn = draw(drawn_from, settings, count, temperature, repeat + 1, images.test.shape[-1])
            arm = f"{name}_{temperature}"
            put(metrics, "feature_distance", arm, f"repeat{repeat}", score.distance(drawn, repeat))


def write_pictures(path: Path, pictures: dict[str, Tensor]) -> None:
    """Write pictures as a compressed archive of float16 arrays (N, C, H, W), whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: value.half().numpy() for name, value in pictures.items()})
    write_bytes(path, buffer.getvalue())


def main() -> None:
    """Measure one seed of the main model and write."""
    parser = argparse.ArgumentParser(description="Measure a trained model of a preset.")
    parser.add_argument("--preset", required=True, help="block of papers/nvae/params.yaml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    preset, seed = options.preset, options.seed
    settings = nvae_settings.load(preset)
    origin = provenance.begin(f"evaluate-seed{seed}", preset, seed, Path(__file__))
    images = load_images(settings, sample=preset == "smoke")
    model = NVAE(settings, images.channels, images.side)
    load_weights(weights("nvae", preset, seed), model)
    model = model.to(pick_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    metrics: Metrics = {}
    measure_likelihood(model, images, settings, f"seed{seed}", metrics)
    pictures = measure_groups(model, images, settings, f"seed{seed}", metrics)
    pictures |= sample_grids(model, images, settings, preset)
    # The scores of samples vary over repeated sampling; those of the first seed stand for the preset.
    if settings.data == "mnist" and seed == read_yaml(PARAMS)["seeds"][0]:
        put(metrics, "decoder_passes_per_sample", "main", "exact", decoder_passes(model))
        measure_samples(model, images, settings, preset, metrics)
    write_pictures(paper("nvae") / "pictures" / preset / f"seed{seed}.npz", pictures)
    write_metrics(runs("nvae", preset) / "evaluate" / f"seed{seed}" / "metrics.json", metrics)
    origin.finish(runs("nvae", preset) / "provenance" / f"evaluate-seed{seed}.json")


if __name__ == "__main__":
    errors.run(main)
