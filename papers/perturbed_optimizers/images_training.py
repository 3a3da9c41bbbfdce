"""Train one classifier of CIFAR-10 on one loss (Berthet et al., 2020, section 4.1): images, arms, steps, accuracy.

The same network learns by cross-entropy, by the Fenchel-Young loss of a perturbed argmax at some temperature and number
of samples, and by the squared distance of that perturbed argmax to the label, which needs the derivative of the layer.
"""

import functools
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.model import VanillaCNN
from papers.perturbed_optimizers.perturbed import Perturbation, perturbed_maximiser
from papers.perturbed_optimizers.settings import Settings
from shared.data.batches import batch_indices, seed_step
from shared.data.images import load_cifar10
from shared.paths import DATA
from shared.solvers.simple import argmax
from shared.training.device import autocast
from shared.training.flat import flatten
from shared.training.loop import gradient_step
from shared.training.schedules import cosine_with_warmup

CLASSES = 10
VALIDATION_IMAGES = 5_000  # the last of the training images; choices are made on them, never on test images
BATCH = 32  # the paper's
WARM_UP = 0.1  # share of the steps over which the learning rate rises; without it one noisy sample can end a run
SHIFT_PIXELS = 3  # largest shift in each direction: a tenth of the side
CURVE_POINTS = 5  # looks at the validation images over a run, if it has no more epochs than that
CURVE_IMAGES = 1_000


@dataclass(frozen=True)
class Images:
    """Pixels uint8 (N, 32, 32, 3) with labels int64 (N,); no image is in two parts."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def sha256(self) -> str:
        """A name for the content, in hexadecimal."""
        digest = hashlib.sha256()
        for tensor in vars(self).values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


@functools.cache
def load_images(count: int, sample: bool = False, folder: Path = DATA) -> Images:
    """CIFAR-10, the training part cut to its first `count` images; read once a process.

    Args:
        sample: accept the small test sample in place of the full set.

    Raises:
        UserError: a file is missing, damaged, or an unwanted sample.
    """
    train, test = (load_cifar10(split, folder=folder, allow_sample=sample) for split in ("train", "test"))
    held_out = min(VALIDATION_IMAGES, len(train.pixels) // 4)
    chosen = slice(0, min(count, len(train.pixels) - held_out))
    rest = slice(len(train.pixels) - held_out, None)

    def channels_last(pixels: Tensor) -> Tensor:
        return pixels.permute(0, 2, 3, 1).contiguous()

    return Images(
        channels_last(train.pixels[chosen]),
        train.labels[chosen],
        channels_last(train.pixels[rest]),
        train.labels[rest],
        channels_last(test.pixels),
        test.labels,
    )


# --- augmentation ---


def draw_augmentation(count: int) -> tuple[Tensor, Tensor]:
    """From torch's generator: which images are mirrored, bool (B,), and their shifts in rows and columns (B, 2)."""
    return torch.rand(count) < 0.5, torch.randint(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (count, 2))


def augment(pixels: Tensor, mirrored: Tensor, shift: Tensor) -> Tensor:
    """Mirror images (B, H, W, C) left to right, then move them down and right by `shift`, with zeros where they left.

    It is one look-up in the padded images: padding, cropping and mirroring only say which pixel goes where.
    """
    count, height, width, _ = pixels.shape
    s, device = SHIFT_PIXELS, pixels.device
    mirrored, shift = mirrored.to(device), shift.to(device)
    rows = torch.arange(height, device=device) + s - shift[:, :1]
    columns = torch.arange(width, device=device) - shift[:, 1:]
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + s
    padded = F.pad(pixels, (0, 0, s, s, s, s))
    row_starts = (torch.arange(count, device=device)[:, None] * padded.shape[1] + rows) * padded.shape[2]
    return padded.flatten(0, 2)[row_starts[:, :, None] + columns[:, None, :]]


# --- arms ---


@dataclass(frozen=True)
class Arm:
    """What is minimised, and Adam's largest learning rate; `perturbation` is None for cross-entropy only."""

    loss: Literal["cross_entropy", "fenchel_young", "squared"]
    perturbation: Perturbation | None = None
    learning_rate: float = 1e-3  # 2e-3 was two points worse on validation images, with one seed

    @property
    def name(self) -> str:
        """Such as `cross_entropy`, `fy_eps0.1_m10`, `fy_gumbel_eps1_m100`, `squared_eps1_m100`."""
        if self.perturbation is None:
            return self.loss
        p, short = self.perturbation, "fy" if self.loss == "fenchel_young" else self.loss
        noise = "" if p.noise == "gaussian" else f"_{p.noise}"
        return f"{short}{noise}_eps{p.epsilon:g}_m{p.samples}"


#: Its gradients have no noise of their own: with one seed, twice the rate was a point better on validation images.
CROSS_ENTROPY = Arm("cross_entropy", learning_rate=2e-3)
#: With Gumbel noise and many samples the Fenchel-Young loss is cross-entropy, so it gets the same rate.
GUMBEL = Arm("fenchel_young", Perturbation(epsilon=1.0, samples=100, noise="gumbel"), learning_rate=2e-3)
#: The rival: the same perturbed argmax, but its Jacobian is estimated, with the control variate in its favour.
SQUARED = Arm("squared", Perturbation(epsilon=1.0, samples=100, control="leave_one_out"))


def grid(settings: Settings) -> list[Arm]:
    """The Fenchel-Young arms with Gaussian noise: every temperature with every number of samples."""
    pairs = itertools.product(settings.image_epsilons, settings.image_samples)
    return [Arm("fenchel_young", Perturbation(epsilon=epsilon, samples=samples)) for epsilon, samples in pairs]


def objective(theta: Tensor, labels: Tensor, arm: Arm) -> Tensor:
    """The loss (B,) of scores (B, classes) and labels (B,); noise is drawn from torch's generator.

    Cross-entropy is in nats. Fenchel-Young losses (equation 6) are in the unit of the scores, less the term that does
    not depend on them. The squared loss is ||mean solution - label||^2 over one batch of noise.
    """
    if arm.perturbation is None:
        return F.cross_entropy(theta, labels, reduction="none")
    target = F.one_hot(labels, theta.shape[1]).to(theta.dtype)
    if arm.loss == "fenchel_young":
        return fenchel_young_loss(theta, target, argmax, arm.perturbation)
    return (perturbed_maximiser(theta, argmax, arm.perturbation) - target).square().sum(1)


# --- training ---


def scores(model: VanillaCNN, pixels: Tensor) -> Tensor:
    """Scores float32 (B, classes) of pixels uint8 (B, 32, 32, 3).

    The last layer is computed in float32: scores of eight bits would be equal too often for an argmax.
    """
    x = pixels.permute(0, 3, 1, 2).float() / 255
    with autocast(x.device, "bfloat16"):
        hidden = model.head[:-1](model.features(x))
    return model.head[-1](hidden.float())  # type: ignore[no-any-return]


@torch.no_grad()
def evaluate(model: VanillaCNN, pixels: Tensor, labels: Tensor, batch: int = 250) -> tuple[float, float]:
    """Accuracy of the unperturbed argmax on images as they are, and mean negative log-likelihood of the softmax."""
    right, nll_nats = 0.0, 0.0
    for x, y in zip(pixels.split(batch), labels.split(batch), strict=True):
        theta = scores(model, x)
        right += float((theta.argmax(1) == y).sum())
        nll_nats += float(F.cross_entropy(theta, y, reduction="sum"))
    return right / len(labels), nll_nats / len(labels)


def initialise(model: nn.Module) -> None:
    """Glorot's uniform weights and zero biases, drawn from torch's generator: the defaults of the published code.

    PyTorch's own are so much smaller here that the first thousands of images only make up for them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class Curve:
    """Validation accuracy along a run, as a part of its state."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []  # steps done, accuracy

    def state_dict(self) -> dict[str, Any]:
        """For the shared loop."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For the shared loop."""
        self.points = state_dict["points"]


class Trainer:
    """One training run of `arm`: model, optimiser, curve, and `step(k)` for the shared loop.

    Arms of one seed begin with the same weights and see the same batches with the same augmentation.
    """

    def __init__(
        self,
        images: Images,
        arm: Arm,
        seed: int,
        epochs: int,
        device: torch.device,
        batch: int = BATCH,
    ) -> None:
        seed_step(seed, -1)
        self.arm, self.seed = arm, seed
        self.images = Images(*(tensor.to(device) for tensor in vars(images).values()))
        self.batch = min(batch, len(images.train))
        self.steps_per_epoch = len(images.train) // self.batch
        self.steps = epochs * self.steps_per_epoch
        self.curve_every = -(-self.steps // max(CURVE_POINTS, epochs))
        model = VanillaCNN()
        initialise(model)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam([flatten(self.model)], lr=arm.learning_rate, fused=True)
        self.curve = Curve()

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer | Curve]:
        """All that must be saved to go on."""
        return {"model": self.model, "optimizer": self.optimizer, "curve": self.curve}

    def augmented_batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B, 32, 32, 3) and labels (B,) of step k; draws from torch's generator, before anything else."""
        index = batch_indices(len(self.images.train), self.batch, self.seed, k).to(self.images.train.device)
        pixels = augment(self.images.train[index], *draw_augmentation(len(index)))
        return pixels, self.images.train_labels[index]

    def step(self, k: int) -> dict[str, Tensor]:
        """One optimiser step; gives the row of the record."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_with_warmup(k, self.steps, self.arm.learning_rate, 0.0, round(WARM_UP * self.steps))
        pixels, labels = self.augmented_batch(k)
        loss = objective(scores(self.model, pixels), labels, self.arm).mean()
        gradient = gradient_step(loss, self.optimizer)
        if (k + 1) % self.curve_every == 0 or k + 1 == self.steps:
            shown = self.images.validation[:CURVE_IMAGES], self.images.validation_labels[:CURVE_IMAGES]
            self.curve.points.append((k + 1, evaluate(self.model, *shown)[0]))
        return {"loss": loss.detach(), "gradient_norm": gradient["gradient_norm"]}
