"""MNIST, Fashion-MNIST and CIFAR-10 as tensors, read from verified files in their official binary formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shared.data.verify import Profile, check
from shared.errors import UserError
from shared.paths import DATA

Split = Literal["train", "test"]

_IDX_NAMES = {"train": "train", "test": "t10k"}
#: One record of the binary CIFAR-10 files: the label, then the red, green and blue planes, row by row.
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_NAMES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


@dataclass(frozen=True)
class Images:
    """A labelled image set: `pixels` uint8 (N, C, H, W), `labels` int64 (N,), and which profile was read."""

    pixels: torch.Tensor
    labels: torch.Tensor
    profile: Profile


def load_mnist(split: Split, *, folder: Path = DATA, allow_sample: bool = False) -> Images:
    """MNIST: pixels (60000 or 10000, 1, 28, 28), ten digits (LeCun, Cortes and Burges).

    Args:
        split: "train" or "test".
        folder: what stands for `data/`.
        allow_sample: accept the tests' small sample, which has fewer images.

    Raises:
        UserError: the split is unknown, or a file is missing, damaged, swapped or an unwanted sample.
    """
    return _load_idx("mnist", split, folder, allow_sample)


def load_fashion_mnist(split: Split, *, folder: Path = DATA, allow_sample: bool = False) -> Images:
    """Fashion-MNIST: shapes as MNIST, ten kinds of clothing (Xiao et al. 2017); arguments as `load_mnist`."""
    return _load_idx("fashion_mnist", split, folder, allow_sample)


def load_cifar10(split: Split, *, folder: Path = DATA, allow_sample: bool = False) -> Images:
    """CIFAR-10: pixels (50000 or 10000, 3, 32, 32), ten classes (Krizhevsky 2009); arguments as `load_mnist`."""
    names = _CIFAR_NAMES[_known(split)]
    profile = check("cifar10", names, folder=folder, allow_sample=allow_sample)
    records = np.concatenate([np.fromfile(folder / "cifar10" / name, dtype=np.uint8) for name in names])
    if records.size % _CIFAR_RECORD:
        raise UserError(
            f"{folder / 'cifar10'}: {records.size} bytes are no whole number of {_CIFAR_RECORD}-byte records"
        )
    table = torch.from_numpy(records).view(-1, _CIFAR_RECORD)
    return Images(table[:, 1:].reshape(-1, 3, 32, 32).contiguous(), table[:, 0].long(), profile)


def _load_idx(name: str, split: Split, folder: Path, allow_sample: bool) -> Images:
    stem = _IDX_NAMES[_known(split)]
    names = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    profile = check(name, names, folder=folder, allow_sample=allow_sample)
    pixels, labels = (read_idx(folder / name / each) for each in names)
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise UserError(f"{folder / name}: {tuple(pixels.shape)} images do not go with {tuple(labels.shape)} labels")
    return Images(pixels.unsqueeze(1), labels.long(), profile)


def read_idx(path: Path) -> torch.Tensor:
    """An array of bytes in the idx format: 0, 0, 8, rank, the sizes as big-endian uint32, then the values.

    Returns:
        uint8 tensor with the shape that the header gives.

    Raises:
        UserError: the header is none of this format, or the length disagrees with it.
    """
    content = np.fromfile(path, dtype=np.uint8)
    rank = int(content[3]) if content.size >= 4 else 0
    start = 4 + 4 * rank
    if content.size < start or content[:3].tolist() != [0, 0, 8]:
        raise UserError(f"{path} is no idx file of unsigned bytes")
    shape = tuple(int(size) for size in content[4:start].view(">u4"))
    if content.size - start != int(np.prod(shape)):
        raise UserError(f"{path}: the header promises {shape}, the file holds {content.size - start} values")
    return torch.from_numpy(content[start:].copy()).view(shape)


def _known(split: Split) -> Split:
    if split not in ("train", "test"):
        raise UserError(f"unknown split {split!r}: choose train or test")
    return split
