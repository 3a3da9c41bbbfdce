"""Batches as a pure function of (seed, step): resuming needs no loader state and processes need no coordination."""

from functools import lru_cache

import torch
from torch import Tensor

from shared.training.distributed import local_slice


@lru_cache(maxsize=2)
def _epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Indices (batch_size / processes,) of this process's part of batch number `step` of `n` items.

    Each epoch is a fresh permutation; the rest of an epoch that fills no batch is dropped.

    Raises:
        ValueError: the batch is larger than the data.
        UserError: the batch cannot be shared by the processes.
    """
    per_epoch = n // batch_size
    if per_epoch == 0:
        raise ValueError(f"a batch of {batch_size} is larger than the {n} items")
    position = step % per_epoch * batch_size
    order = _epoch_order(n, seed, step // per_epoch)[position : position + batch_size]
    return order[local_slice(batch_size)]


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one step: what is drawn in step k depends on (seed, k) and nothing before it."""
    torch.manual_seed((seed * 1_000_003 + step) * 2 + 1)
