"""The residual cells of NVAE (section 3.1, figure 3) and the resampling skips; tensors are (B, C, H, W)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from papers.nvae.settings import Settings
from shared.bn_swish import BatchNorm, BatchNormSwish
from shared.layers import SqueezeExcite, WeightNormConv2d
from shared.upsampling import Bilinear, Nearest

Resample = Literal["same", "down", "up"]


class NaiveSwish(nn.Module):
    """`x * sigmoid(x)` written out: autograd keeps x and the sigmoid (a row of the memory table)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def activation(channels: int, settings: Settings) -> nn.Module:
    """Normalisation and non-linearity before a convolution: BN+Swish, BN+ELU, or ELU alone (weight norm only)."""
    if settings.normalisation == "wn_elu":
        return nn.ELU()
    if settings.normalisation == "bn_elu":
        return nn.Sequential(BatchNorm(channels), nn.ELU())
    if settings.bn_swish == "fused":
        return BatchNormSwish(channels)
    return nn.Sequential(BatchNorm(channels), nn.SiLU() if settings.bn_swish == "separate" else NaiveSwish())


def norm(channels: int, settings: Settings) -> nn.Module:
    """Batch normalisation without a non-linearity; nothing where weight normalisation is used alone."""
    return nn.Identity() if settings.normalisation == "wn_elu" else BatchNorm(channels)


def conv_before_norm(
    c_in: int, c_out: int, kernel: int, settings: Settings, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that a batch norm follows: no bias, no weight norm, except where weight norm is all there is."""
    if settings.normalisation == "wn_elu":
        return WeightNormConv2d(c_in, c_out, kernel, stride, kernel // 2, groups)
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def conv(c_in: int, c_out: int, kernel: int, settings: Settings) -> nn.Conv2d:
    """A convolution whose output is not batch-normalised: weight-normalised unless the settings say otherwise."""
    kind = WeightNormConv2d if settings.weight_norm or settings.normalisation == "wn_elu" else nn.Conv2d
    return kind(c_in, c_out, kernel, padding=kernel // 2)


class FactorisedReduce(nn.Module):
    """Halve the resolution: Swish, then a quarter of the output channels from each of the four pixel offsets."""

    def __init__(self, c_in: int, c_out: int, settings: Settings) -> None:
        super().__init__()
        self.quarters = nn.ModuleList(conv(c_in, c_out // 4, 1, settings) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        offsets = ((0, 0), (1, 1), (0, 1), (1, 0))
        return torch.cat([q(x[:, :, i::2, j::2]) for q, (i, j) in zip(self.quarters, offsets, strict=True)], dim=1)


def upsample(c_in: int, c_out: int, side: int, settings: Settings) -> nn.Sequential:
    """Mix channels by a 1x1 convolution and double the resolution of maps of `side` bilinearly.

    The paper interpolates first. The two commute, and this way the convolution sees a quarter of the pixels.
    """
    return nn.Sequential(conv(c_in, c_out, 1, settings), Bilinear(side))


def skip_path(c_in: int, c_out: int, resample: Resample, side: int, settings: Settings) -> nn.Module:
    """What is added to a cell's branch: the input itself, halved or doubled in resolution."""
    if resample == "down":
        return FactorisedReduce(c_in, c_out, settings)
    return upsample(c_in, c_out, side, settings) if resample == "up" else nn.Identity()


def regular_branch(c_in: int, c_out: int, resample: Resample, settings: Settings) -> nn.Sequential:
    """[BN, Swish, 3x3 convolution] twice; the first convolution strides (figure 3b)."""
    stride = 2 if resample == "down" else 1
    return nn.Sequential(
        activation(c_in, settings),
        Nearest() if resample == "up" else nn.Identity(),
        conv_before_norm(c_in, c_out, 3, settings, stride),
        activation(c_out, settings),
        conv(c_out, c_out, 3, settings),
    )


def separable_branch(c_in: int, c_out: int, resample: Resample, expansion: int, settings: Settings) -> nn.Sequential:
    """BN, 1x1 to `expansion` times the channels, 5x5 depthwise, 1x1 back, BN (figure 3a)."""
    wide = expansion * c_in
    return nn.Sequential(
        Nearest() if resample == "up" else nn.Identity(),
        norm(c_in, settings),
        conv_before_norm(c_in, wide, 1, settings),
        activation(wide, settings),
        conv_before_norm(wide, wide, 5, settings, 2 if resample == "down" else 1, groups=wide),
        activation(wide, settings),
        conv_before_norm(wide, c_out, 1, settings),
        norm(c_out, settings),
    )


class Cell(nn.Module):
    """`skip(x) + scale * squeeze_excite(branch(x))`; `kind` and `expansion` choose the branch, `resample` the size.

    A cell that doubles the resolution must know the `side` of its input.
    """

    def __init__(
        self, c_in: int, c_out: int, resample: Resample, kind: str, expansion: int, settings: Settings, side: int = 0
    ) -> None:
        super().__init__()
        self.skip = skip_path(c_in, c_out, resample, side, settings)
        if kind == "regular":
            self.branch = regular_branch(c_in, c_out, resample, settings)
        else:
            self.branch = separable_branch(c_in, c_out, resample, expansion, settings)
        self.squeeze_excite = SqueezeExcite(c_out) if settings.squeeze_excite else None
        self.scale = settings.residual_scale
        self.recompute = settings.checkpoint_cells

    def _residual(self, x: Tensor) -> Tensor:
        skip, branch = self.skip(x), self.branch(x)
        if self.squeeze_excite is None:
            return torch.add(skip, branch, alpha=self.scale)
        gate = self.squeeze_excite.gate(branch)
        return torch.addcmul(skip, branch, gate, value=self.scale)  # gate, scale and add in one pass

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            # Recomputing a whole cell runs its batch norms twice, so the running statistics move twice a step.
            return checkpoint(self._residual, x, use_reentrant=False)  # type: ignore[no-any-return]
        return self._residual(x)


def encoder_cell(c_in: int, c_out: int, resample: Resample, settings: Settings) -> Cell:
    """A cell of the bottom-up network."""
    return Cell(c_in, c_out, resample, settings.encoder_cell, settings.expansion, settings)


def decoder_cell(c_in: int, c_out: int, resample: Resample, settings: Settings, side: int = 0) -> Cell:
    """A cell of the top-down network; `side` is that of its input, for `up`."""
    return Cell(c_in, c_out, resample, settings.decoder_cell, settings.expansion, settings, side)


def post_cell(c_in: int, c_out: int, resample: Resample, settings: Settings, side: int = 0) -> Cell:
    """A cell after the last latent group: as the decoder's, at half its expansion."""
    return Cell(c_in, c_out, resample, settings.decoder_cell, max(settings.expansion // 2, 1), settings, side)
