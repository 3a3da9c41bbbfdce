"""Small images without files, and networks with closed forms that are modules."""

import torch
from torch import Tensor, nn

from papers.jem.data import Data

SHAPE = (1, 4, 4)


def tiny_data(images: int = 120, classes: int = 10, seed: int = 0) -> Data:
    """Grey noise with random labels, as many training as test images."""
    generator = torch.Generator().manual_seed(seed)

    def pixels() -> Tensor:
        return torch.randint(0, 256, (images, *SHAPE), generator=generator).to(torch.uint8)

    def labels() -> Tensor:
        return torch.randint(classes, (images,), generator=generator)

    known = torch.arange(images // 2)
    return Data(pixels(), labels(), known, pixels(), labels(), pixels(), labels(), augmented=False)


class Linear(nn.Module):
    """Logits w x + b of images (B, *SHAPE)."""

    def __init__(self, w: Tensor, b: Tensor | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())
        self.b = nn.Parameter(torch.zeros(len(w)) if b is None else b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T + self.b


class Gaussian(nn.Module):
    """Two logits whose logsumexp is log 2 - |x|^2 / (2 s^2): log p(x) is that of a Gaussian with variance s^2."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, x: Tensor) -> Tensor:
        return (-x.flatten(1).square().sum(1) / (2 * self.variance))[:, None].expand(-1, 2)
