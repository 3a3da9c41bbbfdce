"""Doubling the resolution of maps (B, C, H, W) by copies and products, without gathers.

Same numbers as `F.interpolate`. Its kernels are slow on small maps with channels last, and a compiler turns them into
gathers whose backward pass adds element by element, in no fixed order.
"""

import torch
from torch import Tensor, nn


class Nearest(nn.Module):
    """Each pixel becomes a block of 2 x 2: `F.interpolate(x, scale_factor=2)`."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c)
        return blocks.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Bilinear(nn.Module):
    """`F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)` of square maps of one size.

    Args:
        side: height and width of the input; the linear map (4 side^2, side^2) is kept as a matrix.
    """

    matrix: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        target, source = torch.linspace(0, side - 1, 2 * side, dtype=torch.float64), torch.arange(side)
        axis = (1 - (target[:, None] - source).abs()).clamp(min=0)
        self.register_buffer("matrix", torch.kron(axis, axis).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        pixels = torch.matmul(self.matrix.to(x.dtype), x.permute(0, 2, 3, 1).reshape(b, h * w, c))
        return pixels.view(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
