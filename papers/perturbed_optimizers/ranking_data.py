"""The 21 label-ranking tables, their folds, and how two rankings are compared.

A table says in which position each of k labels stands for each instance, 1 being the first. Everywhere else in this
paper a higher score is better and ranks ascend, so that the target of a score is its rank k + 1 - position.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.data.verify import Profile, check
from shared.errors import UserError
from shared.paths import DATA

#: Table -> instances, features, labels (Cheng, Huehn, Huellermeier, 2009; the last five are the yeast expressions).
SIZES = {
    "authorship": (841, 70, 4),
    "bodyfat": (252, 7, 7),
    "calhousing": (20640, 4, 4),
    "cpu": (8192, 6, 5),
    "elevators": (16599, 9, 9),
    "fried": (40768, 9, 5),
    "glass": (214, 9, 6),
    "housing": (506, 6, 6),
    "iris": (150, 4, 3),
    "pendigits": (10992, 16, 10),
    "segment": (2310, 18, 7),
    "stock": (950, 5, 5),
    "vehicle": (846, 18, 4),
    "vowel": (528, 10, 11),
    "wine": (178, 13, 3),
    "wisconsin": (194, 16, 16),
    "cold": (2465, 24, 4),
    "diau": (2465, 24, 7),
    "dtt": (2465, 24, 4),
    "heat": (2465, 24, 6),
    "spo": (2465, 24, 11),
}


@dataclass(frozen=True)
class Table:
    """One table: `features` float32 (n, m); `ranks` float32 (n, k), permutations of 1..k with k for the best label."""

    name: str
    features: Tensor
    ranks: Tensor
    profile: Profile


def names(wanted: str | list[str] | tuple[str, ...]) -> list[str]:
    """The tables that "all" or a list of names stands for.

    Raises:
        UserError: an unknown name, or none at all.
    """
    chosen = list(SIZES) if wanted == "all" else [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in chosen if name not in SIZES]
    if unknown or not chosen:
        raise UserError(
            f"ranking_sets: no table {', '.join(unknown) or 'named'}; there are: {', '.join(SIZES)}, or all"
        )
    return chosen


def load(name: str, *, folder: Path = DATA, allow_sample: bool = False) -> Table:
    """One verified table; those that are copied in the tests' sample are iris and wine, a third as long.

    Args:
        name: a key of `SIZES`.
        folder: what stands for `data/`.
        allow_sample: accept the sample.

    Raises:
        UserError: the file is missing, damaged, swapped or an unwanted sample, or is not what its heading says.
    """
    profile = check("label_ranking", [f"{name}.csv"], folder=folder, allow_sample=allow_sample)
    path = folder / "label_ranking" / f"{name}.csv"
    with open(path, newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
        values = np.loadtxt(file, delimiter=",", ndmin=2)
    labels = sum(column.startswith("L") for column in header)
    features, positions = values[:, :-labels], values[:, -labels:]
    if not np.array_equal(np.sort(positions, axis=1), np.broadcast_to(np.arange(1, labels + 1), positions.shape)):
        raise UserError(f"{path}: the columns L1..L{labels} of some line are no permutation of 1..{labels}")
    return Table(name, torch.tensor(features).float(), torch.tensor(labels + 1 - positions).float(), profile)


def folds(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Rows for training and for testing in each fold of one shuffled partition: 10 folds below 1000 rows, else 5.

    All training sets have the same length, so that they can be stacked: where the folds are not equally large, the
    smaller ones leave out one training row. The order of the training rows is random.
    """
    count = min(10 if n < 1000 else 5, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = list(order.tensor_split(count))
    length = n - len(parts[0])
    return [(torch.cat(parts[:i] + parts[i + 1 :])[:length], part) for i, part in enumerate(parts)]


def standardised(features: Tensor, rows: Tensor) -> Tensor:
    """Features (n, m) -> (n, m + 1): mean 0 and standard deviation 1 over `rows`, and a last column of ones.

    A feature that is constant over `rows` becomes 0 there instead of a division by zero.
    """
    mean, deviation = features[rows].mean(0), features[rows].std(0, correction=0)
    scaled = (features - mean) / torch.where(deviation > 0, deviation, 1.0)
    return torch.cat([scaled, torch.ones(len(features), 1)], dim=1)


def kendall_tau(first: Tensor, second: Tensor) -> Tensor:
    """Kendall's tau of rankings without ties: pairs in agreement less pairs in conflict, as a share of all pairs.

    Args:
        first: (..., n), n >= 2.
        second: (..., n), broadcast against the other.
    """
    n = first.shape[-1]
    agreement = sum(
        (first[..., i] - first[..., j]).sign() * (second[..., i] - second[..., j]).sign()
        for i in range(n)
        for j in range(i)
    )
    return torch.as_tensor(agreement) / (n * (n - 1) / 2)


def spearman_rho(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rho of two permutations of 1..n: 1 - 6 sum_i (a_i - b_i)^2 / (n (n^2 - 1)); (..., n)."""
    n = first.shape[-1]
    return 1 - 6 * (first - second).square().sum(-1) / (n * (n * n - 1))
