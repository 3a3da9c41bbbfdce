"""A linear classifier of tiny images, for which attacks have closed forms."""

import torch
from torch import Tensor

SHAPE = (1, 4, 4)


def linear(classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, 16, generator=generator), 0.1 * torch.randn(classes, generator=generator)


def linear_logits(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x.flatten(1) @ w.T + b


def small_images(n: int, size: float = 0.3) -> Tensor:
    """Images far from the walls of the box."""
    return size * (2 * torch.rand(n, *SHAPE) - 1)
