"""Volume-preserving inverse autoregressive flows in the posterior (section 3.4 of the paper; optional)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers import WeightNormConv2d


def causal_mask(degrees_out: Tensor, degrees_in: Tensor, kernel: int, strict: bool) -> Tensor:
    """Mask (C_out, C_in, k, k): every earlier pixel in raster order, and at the centre the channels of lower degree.

    `strict` excludes equal degrees at the centre; without it they are allowed.
    """
    mask = torch.zeros(len(degrees_out), len(degrees_in), kernel, kernel)
    centre = kernel // 2
    mask[:, :, :centre] = 1
    mask[:, :, centre, :centre] = 1
    allowed = degrees_in[None] < degrees_out[:, None] if strict else degrees_in[None] <= degrees_out[:, None]
    mask[:, :, centre, centre] = allowed.float()
    return mask


class MaskedConv2d(WeightNormConv2d):
    """A weight-normalised convolution whose weight is masked before it is normalised."""

    mask: Tensor

    def __init__(self, mask: Tensor, groups: int = 1, gain: float = 1.0) -> None:
        c_out, c_in, kernel, _ = mask.shape
        super().__init__(c_in * groups, c_out, kernel, padding=kernel // 2, groups=groups)
        self.register_buffer("mask", mask)
        with torch.no_grad():
            norms = torch.linalg.vector_norm(self.weight * mask, dim=(1, 2, 3), keepdim=True)
            self.log_gain.copy_(torch.log(norms + 0.01) + torch.tensor(gain).log())

    def effective_weight(self) -> Tensor:
        weight = self.weight * self.mask
        norms = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        return weight * (self.log_gain.exp() / (norms + 1e-5))


class AutoregressiveShift(nn.Module):
    """`z' = z - mu(z)` with mu strictly autoregressive in raster x channel order: log-determinant 0.

    Args:
        channels: latent channels C; hidden width is 6 C.
        mirrored: run in the reverse order of pixels and channels.
    """

    def __init__(self, channels: int, mirrored: bool) -> None:
        super().__init__()
        degrees = torch.arange(channels)
        hidden = degrees.repeat_interleave(6)
        self.mirrored = mirrored
        self.spread = MaskedConv2d(causal_mask(hidden, degrees, 3, strict=True))
        depthwise = causal_mask(torch.zeros(1), torch.zeros(1), 5, strict=False).expand(6 * channels, 1, 5, 5).clone()
        self.gather = MaskedConv2d(depthwise, groups=6 * channels)
        self.project = MaskedConv2d(causal_mask(degrees, hidden, 1, strict=False), gain=0.1)

    def shift(self, z: Tensor) -> Tensor:
        """mu(z), (B, C, H, W)."""
        if self.mirrored:
            z = z.flip((1, 2, 3))
        mu: Tensor = self.project(F.elu(self.gather(F.elu(self.spread(z)))))
        return mu.flip((1, 2, 3)) if self.mirrored else mu

    def forward(self, z: Tensor) -> Tensor:
        return z - self.shift(z).to(z.dtype)


def flow_stack(channels: int, pairs: int) -> nn.Sequential:
    """`pairs` times a shift in raster order followed by one in mirrored order; empty for 0."""
    return nn.Sequential(*(AutoregressiveShift(channels, mirrored) for _ in range(pairs) for mirrored in (False, True)))
