"""Images with few labels, and images that a model has not seen (Grathwohl et al., 2020, section 5 and appendix).

Of the training images some are held out for choices (`validation`), a few per class carry labels (`labelled`), and all
that remain, labelled or not, feed p(x). Pixels stay uint8 until a batch is taken; a batch is a pure function of
(seed, step). Networks see float32 images scaled to [-1, 1].
"""

import functools
import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from shared.data.batches import batch_indices
from shared.data.images import load_cifar10, load_fashion_mnist, load_mnist
from shared.data.verify import check
from shared.errors import UserError
from shared.paths import DATA
from shared.training.distributed import local_slice

DataSet = Literal["fashion_mnist", "cifar10"]

CLASSES = 10
VALIDATION_IMAGES = 5_000  # the paper's code holds out as many
CROP_PIXELS = 4  # CIFAR-10: reflected border around the image before the crop
_TILE = 30  # pixels along the side of a square of the sheet
_LEAST_OPAQUE = 0.25  # share of opaque pixels of a square that is used
_LOADERS = {"fashion_mnist": load_fashion_mnist, "cifar10": load_cifar10}


@dataclass(frozen=True)
class Data:
    """Pixels uint8 (N, C, H, W) with labels int64 (N,), all on one device; no image is in two of the three parts.

    `labelled` int64 (classes * n,) are the places in `train` of the images whose labels may be used. They are ordered
    so that each run of `classes` holds every class once: a smaller labelled set is the beginning of a larger one.
    """

    train: Tensor
    train_labels: Tensor
    labelled: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    augmented: bool

    def to(self, device: torch.device | str) -> "Data":
        """The same on another device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._tensors().items()}
        return replace(self, **moved)

    def sha256(self) -> str:
        """A name for the content, in hexadecimal."""
        digest = hashlib.sha256(str(self.augmented).encode())
        for tensor in self._tensors().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@functools.cache
def load_data(
    name: DataSet,
    labels_per_class: int | None,
    seed: int,
    *,
    validation_images: int = VALIDATION_IMAGES,
    sample: bool = False,
    folder: Path = DATA,
) -> Data:
    """Fashion-MNIST, or CIFAR-10 with crops and mirror images, cut into its parts; read once a process.

    The last training images are held out, at most a quarter of them; which labels are known depends on the seed only.

    Args:
        labels_per_class: how many labels of each class are known; None for all.
        seed: of the choice of labelled images.
        sample: accept the small test sample in place of the full set.

    Raises:
        UserError: the set is unknown, a file is missing, damaged or an unwanted sample, or a class has too few images.
    """
    if name not in _LOADERS:
        raise UserError(f"unknown data set {name!r}: choose fashion_mnist or cifar10")
    train, test = (_LOADERS[name](split, folder=folder, allow_sample=sample) for split in ("train", "test"))
    cut = len(train.pixels) - min(validation_images, len(train.pixels) // 4)
    return Data(
        train.pixels[:cut],
        train.labels[:cut],
        labelled_subset(train.labels[:cut], labels_per_class, seed),
        train.pixels[cut:],
        train.labels[cut:],
        test.pixels,
        test.labels,
        augmented=name == "cifar10",
    )


def labelled_subset(labels: Tensor, per_class: int | None, seed: int, classes: int = CLASSES) -> Tensor:
    """Places (classes * per_class,) of images drawn without replacement from each class; all places (N,) for None.

    The set for n is the beginning of the set for n + 1 with the same seed.

    Raises:
        UserError: a class has fewer images than are asked for, or none are asked for.
    """
    if per_class is None:
        return torch.arange(len(labels))
    counts = torch.bincount(labels, minlength=classes)
    if not 1 <= per_class <= int(counts.min()):
        raise UserError(f"cannot label {per_class} images of each class: the smallest class has {int(counts.min())}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    starts = counts.cumsum(0) - counts
    return by_class[starts + torch.arange(per_class)[:, None]].flatten()


# --- batches ---


def scale(pixels: Tensor) -> Tensor:
    """Grey levels 0..255 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def labelled_batch(data: Data, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) in [-1, 1] and labels (B,) of batch `step` of the labelled images, for log p(y | x).

    Raises:
        UserError: the batch is larger than the labelled set, or cannot be shared by the processes.
    """
    if batch_size > len(data.labelled):
        raise UserError(f"a batch of {batch_size} is larger than the {len(data.labelled)} labelled images")
    places = data.labelled[batch_indices(len(data.labelled), batch_size, 2 * seed, step).to(data.labelled.device)]
    return _taken(data, places, batch_size, 2 * seed, step), data.train_labels[places]


def unlabelled_batch(data: Data, batch_size: int, seed: int, step: int) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] of batch `step` of all training images, in an order of their own, for log p(x).

    Raises:
        UserError: the batch is larger than the set, or cannot be shared by the processes.
    """
    if batch_size > len(data.train):
        raise UserError(f"a batch of {batch_size} is larger than the {len(data.train)} training images")
    places = batch_indices(len(data.train), batch_size, 2 * seed + 1, step).to(data.train.device)
    return _taken(data, places, batch_size, 2 * seed + 1, step)


def _taken(data: Data, places: Tensor, batch_size: int, seed: int, step: int) -> Tensor:
    if not data.augmented:
        return scale(data.train[places])
    # Drawn for the whole batch on the CPU, so that neither the device nor the number of processes changes them.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    mirrored = torch.rand(batch_size, generator=generator) < 0.5
    shift = torch.randint(-CROP_PIXELS, CROP_PIXELS + 1, (batch_size, 2), generator=generator)
    mine = local_slice(batch_size)
    return scale(crop_and_mirror(data.train, places, mirrored[mine], shift[mine], data.train.shape[-1]))


def crop_and_mirror(pixels: Tensor, places: Tensor, mirrored: Tensor, shift: Tensor, side: int) -> Tensor:
    """Squares (B, C, side, side), channels-last, from `places` (B,) of `pixels` (N, C, H, W).

    One look-up: the crop at `shift` (B, 2), rows and columns, of an image with a reflected border, and the mirror
    image of the crop where `mirrored` (B,), only say which pixel goes where.
    """
    device = pixels.device
    mirrored, shift = mirrored.to(device), shift.to(device)
    line = torch.arange(side, device=device)
    rows = _reflected(line + shift[:, :1], pixels.shape[2])
    columns = _reflected(torch.where(mirrored[:, None], side - 1 - line, line) + shift[:, 1:], pixels.shape[3])
    return pixels[places[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Places outside 0..size-1 reflected about the first and last pixel, which are not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


# --- images out of the distribution ---


def out_of_distribution_sets(
    data: Data, count: int, seed: int, *, sample: bool = False, folder: Path = DATA
) -> dict[str, Tensor]:
    """Name -> float32 images (at most `count`, C, H, W) in [-1, 1] of the shape of the test images, on their device.

    `uniform` noise, `interpolation` (means of two test images), `tiles` (drawn art), and `mnist` for grey images or
    `fashion_mnist` in colours for CIFAR-10. The paper has SVHN, CIFAR-100 and CelebA, which are not in the catalogue.

    Raises:
        UserError: a file is missing, damaged, or an unwanted sample.
    """
    channels, side = data.test.shape[1], data.test.shape[3]
    generator = torch.Generator().manual_seed(seed)
    sets = {
        "uniform": torch.rand(count, channels, side, side, generator=generator) * 2 - 1,
        "interpolation": interpolations(data.test.cpu(), count, generator),
    }
    squares = load_squares(folder, sample)
    tiles = cut_tiles(squares if channels == 3 else grey(squares), side, count, generator)
    sets["tiles"] = scale(tiles)
    if channels == 1:
        sets["mnist"] = scale(load_mnist("test", folder=folder, allow_sample=sample).pixels[:count])
    else:
        clothes = load_fashion_mnist("test", folder=folder, allow_sample=sample).pixels[:count]
        sets["fashion_mnist"] = scale(coloured(clothes, side, generator))
    return {name: images.to(data.test.device) for name, images in sets.items()}


def interpolations(pixels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Means of pairs of different images, (count or fewer, C, H, W) in [-1, 1]; each image is in at most two pairs."""
    order = torch.randperm(len(pixels), generator=generator)
    return (scale(pixels[order]) + scale(pixels[order.roll(1)]))[:count] / 2


def coloured(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Grey images (N, 1, h, h) in one random colour each on black, with a border: uint8 (N, 3, side, side)."""
    before = (side - pixels.shape[-1]) // 2
    after = side - pixels.shape[-1] - before
    colour = torch.rand(len(pixels), 3, 1, 1, generator=generator)
    return (F.pad(pixels, (before, after, before, after)) * colour).round().to(torch.uint8)


def grey(pixels: Tensor) -> Tensor:
    """Luma of RGB images (N, 3, H, W), uint8 (N, 1, H, W): 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True).round().to(torch.uint8)


def load_squares(folder: Path = DATA, sample: bool = False) -> Tensor:
    """The 30 x 30 squares of the sheet of terrain tiles on black: uint8 (N, 3, 30, 30), after its checksums.

    Those that are less than a quarter opaque are left out. The names of the tiles are not needed, the grid is enough.

    Raises:
        UserError: the set is missing, damaged or an unwanted sample, or the picture cannot be read.
    """
    check("terrain_tiles", folder=folder, allow_sample=sample)
    path = folder / "terrain_tiles" / "tiles.png"
    try:
        with Image.open(path) as opened:
            sheet = np.asarray(opened.convert("RGBA"))
    except OSError as error:
        raise UserError(f"{path}: the tiles cannot be read ({error}); fetch them again") from None
    rows, columns = sheet.shape[0] // _TILE, sheet.shape[1] // _TILE
    grid = torch.from_numpy(sheet[: rows * _TILE, : columns * _TILE].copy()).view(rows, _TILE, columns, _TILE, 4)
    squares = grid.permute(0, 2, 4, 1, 3).reshape(-1, 4, _TILE, _TILE)
    opacity = squares[:, 3:].float() / 255
    laid = (squares[:, :3] * opacity).round().to(torch.uint8)
    return laid[opacity.mean((1, 2, 3)) >= _LEAST_OPAQUE]


def cut_tiles(squares: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """Art (count, C, side, side): random squares (N, C, h, h), half of them mirrored, cut or reflected to size.

    There are fewer squares than images, so these are not independent: intervals over images are too narrow.
    """
    room = squares.shape[-1] - side
    chosen = torch.randint(len(squares), (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    shift = torch.randint(min(room, 0), max(room, 0) + 1, (count, 2), generator=generator)
    return crop_and_mirror(squares, chosen, mirrored, shift, side)
