"""Train one NVAE and measure its likelihood: what `train.py` and `ablate.py` share."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nvae import losses
from papers.nvae.model import NVAE, Inference, convolutions
from papers.nvae.settings import Settings
from shared.data.batches import batch_indices, seed_step
from shared.data.images import load_cifar10, load_mnist
from shared.paths import DATA
from shared.provenance import code_sha256
from shared.spectral import SpectralPenalty
from shared.training.checkpoint import digest
from shared.training.compiled import compiled
from shared.training.device import autocast, digest_of_device
from shared.training.distributed import uniform_like, world_size
from shared.training.flat import flatten
from shared.training.loop import Record, StateFolder, fit, gradient_step, parameters_average
from shared.training.schedules import cosine_with_warmup

#: A negative bound past this is a diverged run; untrained networks start at about 600 nats on MNIST.
LOSS_BOUND = 1e5
VALIDATION_IMAGES = 5_000  # the last of the training images; choices are made on them, never on test images


@dataclass(frozen=True)
class Images:
    """Pixels (N, C, H, W): uint8, or float32 in [0, 1] where they were pooled; and the side the networks work at."""

    train: Tensor
    validation: Tensor
    test: Tensor
    side: int

    @property
    def channels(self) -> int:
        return self.train.shape[1]


def load_images(settings: Settings, sample: bool = False, folder: Path = DATA) -> Images:
    """The data of the settings, split; `sample` accepts the small test samples in place of the full sets."""
    load = load_mnist if settings.data == "mnist" else load_cifar10
    train, test = (load(split, folder=folder, allow_sample=sample).pixels for split in ("train", "test"))
    side = 32
    if settings.image_side:
        side = settings.image_side
        train, test = (F.adaptive_avg_pool2d(F.pad(x.float() / 255, (2, 2, 2, 2)), side) for x in (train, test))
    held_out = min(VALIDATION_IMAGES, len(train) // 4)
    return Images(train[:-held_out], train[-held_out:], test, side)


def observe(pixels: Tensor, settings: Settings, side: int) -> tuple[Tensor, Tensor]:
    """What the likelihood scores and what the encoder sees, from pixels (B, C, h, w).

    MNIST: a fresh binarisation of the image (dynamic, section 4), and the same padded to `side` on [-1, 1].
    CIFAR-10: the image at `image_bits` bits on [-1, 1], twice.
    """
    if pixels.shape[1] == 1:
        x = losses.binarise(pixels, uniform_like(pixels))
        return x, (losses.pad_centred(x, side) * 2 - 1).contiguous(memory_format=torch.channels_last)
    top = 2**settings.image_bits - 1
    x = torch.floor(pixels.float() / 2 ** (8 - settings.image_bits)) / top * 2 - 1
    return x, x.contiguous(memory_format=torch.channels_last)


class Trainer:
    """The pieces of one training run: model, optimiser, penalties, and `step(k)` for the shared loop.

    Args:
        steps: length of the run, on which the schedules depend.
        fast: compile the model (see `shared.training.compiled`).
    """

    def __init__(
        self, settings: Settings, images: Images, seed: int, steps: int, device: torch.device, fast: bool = False
    ) -> None:
        seed_step(seed, -1)
        self.settings, self.seed, self.steps, self.device = settings, seed, steps, device
        self.pixels, self.side = images.train.to(device), images.side
        model = NVAE(settings, images.channels, images.side)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.alpha = losses.group_weights(settings.groups_per_scale)
        self.spectral = SpectralPenalty(convolutions(self.model)).to(device)
        self.batch_norms = losses.batch_norms(self.model)
        self.parts = compiled(self._parts) if fast else self._parts
        # eps 1e-3 and the coupled weight decay are the paper's; the default eps of 1e-8 is much less stable.
        self.optimizer = torch.optim.Adamax(
            [flatten(self.model)],
            betas=(0.9, settings.beta2),
            eps=settings.adamax_epsilon,
            weight_decay=settings.weight_decay,
        )
        self.average = parameters_average(self.model, settings.averaging) if settings.averaging else None

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """All that must be saved to go on; the vectors of the power iteration too."""
        parts: dict[str, nn.Module | torch.optim.Optimizer]
        parts = {"model": self.model, "optimizer": self.optimizer, "spectral": self.spectral}
        return parts | ({"average": self.average} if self.average is not None else {})

    def evaluated(self) -> NVAE:
        """The model to evaluate: the average of the weights if one is kept, in evaluation mode."""
        model: NVAE = self.average.module if self.average is not None else self.model  # type: ignore[assignment]
        return model.eval()

    def _learning_rate(self, k: int) -> float:
        s = self.settings
        return cosine_with_warmup(
            k, self.steps, s.learning_rate, s.learning_rate_final, round(s.learning_rate_warmup * self.steps)
        )

    def _parts(self, x: Tensor, padded: Tensor, noise: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Reconstruction (B,) and KL of each group (B,), in nats, and the two regularisers before their weight."""
        with autocast(self.device, self.settings.precision):
            inference: Inference = self.model(padded, noise)
        penalty = None
        if self.settings.spectral_weight > 0:
            penalty = self.spectral() + losses.batch_norm_penalty(self.batch_norms)
        return losses.reconstruction_nats(inference.logits, x, self.settings), inference.kl_nats, penalty

    def terms(self, k: int) -> losses.Terms:
        """Forward pass and objective of step k."""
        s = self.settings
        index = batch_indices(len(self.pixels), s.batch_size, self.seed, k)
        x, padded = observe(self.pixels[index.to(self.device)], s, self.side)
        # The first call of the penalty has ten times the power iterations: too much to compile for a single use.
        parts = self.parts if self.spectral.started or s.spectral_weight == 0 else self._parts
        reconstruction, kl_nats, penalty = parts(x, padded, self.model.noise(len(x)))
        beta = losses.kl_coefficient(k, self.steps, s.kl_warmup)
        if penalty is not None:
            penalty = losses.regularisation_weight(beta, s.spectral_weight, s.spectral_weight_initial) * penalty
        return losses.objective(reconstruction, kl_nats, beta, self.alpha, s.kl_balancing, penalty)

    def step(self, k: int) -> dict[str, Tensor]:
        """One optimiser step; gives the row of the record."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(k)
        if not self.model.training:
            self.model.train()
        terms = self.terms(k)
        gradient = gradient_step(terms.loss, self.optimizer)
        if self.average is not None:
            self.average.update_parameters(self.model)
        kl = {f"kl_nats_{i}": value for i, value in enumerate(terms.kl_nats)}
        return {
            "bound_nats": terms.bound_nats,
            "reconstruction_nats": terms.reconstruction_nats,
            "loss": terms.loss.detach(),
            "gradient_norm": gradient["gradient_norm"],
            "kl_nats": terms.kl_nats.sum(),
            **kl,
        }


def run_digest(
    settings: Settings, images: Images, seed: int, steps: int, script: Path, device: torch.device, fast: bool = False
) -> str:
    """The name of a run's state: code, settings, data, seed, device, processes, and whether it is compiled."""
    data = hashlib.sha256()
    for pixels in (images.train, images.validation, images.test):  # test too: a finished arm keeps its measurement
        data.update(pixels.numpy().tobytes())
    return digest(
        code=code_sha256(script),
        settings=msgspec.to_builtins(settings),
        data=data.hexdigest(),
        seed=seed,
        steps=steps,
        device=digest_of_device(device),
        processes=world_size(),
        compiled=fast,
    )


def train(trainer: Trainer, folder: StateFolder, label: str, save_seconds: float = 20.0) -> Record:
    """Run the shared loop; `Divergence` if the bound is not finite or passes `LOSS_BOUND`."""
    return fit(
        trainer.step,
        steps=trainer.steps,
        seed=trainer.seed,
        state=trainer.state(),
        folder=folder,
        guard=("bound_nats", LOSS_BOUND),
        check_every=1 if trainer.device.type == "cpu" else 20,
        largest=("gradient_norm", "kl_nats"),
        save_seconds=save_seconds,
        label=label,
    )


@dataclass(frozen=True)
class Likelihood:
    """Of each image (N,), in nats."""

    bound_nats: Tensor  # mean over the samples of the negative evidence lower bound
    nll_nats: Tensor  # importance-weighted estimate of -log p(x)
    kl_nats: Tensor  # (N, L), each group, coarsest first, first sample


@torch.no_grad()
def likelihood(
    model: NVAE,
    pixels: Tensor,
    settings: Settings,
    side: int,
    samples: int,
    batch: int = 250,
    seed: int = 0,
    fast: bool = False,
) -> Likelihood:
    """Importance-weighted likelihood with running batch-norm statistics (section 4 of the paper: K = 1000).

    The encoder runs once an image, the top-down pass `samples` times; with `fast` that pass is compiled.

    Raises:
        ValueError: the model is in training mode, where batch statistics would leak between images.
    """
    if model.training:
        raise ValueError("the likelihood needs the model in evaluation mode")
    device = next(model.parameters()).device

    def one_sample(x: Tensor, encoded: list[Tensor], noise: list[Tensor]) -> tuple[Tensor, Tensor]:
        with autocast(device, settings.precision):
            inference = model.infer(encoded, noise, log_ratio=True)
        assert inference.log_ratio_nats is not None
        log_weight = inference.log_ratio_nats - losses.reconstruction_nats(inference.logits, x, settings)
        return log_weight, torch.stack(inference.kl_nats, dim=1)

    run = compiled(one_sample) if fast else one_sample
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(pixels), batch):
        seed_step(seed, start)
        x, padded = observe(pixels[start : start + batch].to(device), settings, side)
        with autocast(device, settings.precision):
            encoded = model.encoder(padded)
        log_weights, kls = zip(*(run(x, encoded, model.noise(len(x))) for _ in range(samples)), strict=True)
        stacked = torch.stack(log_weights)
        nll = losses.importance_weighted_nll_nats(stacked)
        parts.append((-stacked.mean(0).cpu(), nll.cpu(), kls[0].cpu()))
    bound, nll, kl = (torch.cat(column) for column in zip(*parts, strict=True))
    return Likelihood(bound, nll, kl)


def bits_per_dim(nats: float, shape: tuple[int, ...]) -> float:
    """Nats an image to bits a dimension, for images (C, H, W)."""
    return nats / (math.log(2) * math.prod(shape))
