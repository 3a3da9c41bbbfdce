"""Networks from images to logits (Grathwohl et al., 2020, section 5): wide residual nets, and a small net for a CPU.

The energy has to be one function of one image: E(x) = -logsumexp_y f(x)[y] (equation 7). Batch norm breaks that, since
a value then depends on the other images of the batch, and on whether they are data or samples; it is off by default.
All weights start as PyTorch's layers do, uniform on +-1/sqrt(fan-in). Their variance is a third of 1/fan-in, so without
norm the signal shrinks from layer to layer: at first the logits vary little with x, logsumexp is about log K
everywhere, and Langevin chains are random walks. Training has to build the slope; nothing here rescales it.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.jem.convolution import ImageConv2d
from shared.errors import UserError

Activation = Literal["leaky_relu", "swish"]

_SLOPE = 0.2
_SMALL_CHANNELS = (32, 64, 64, 128)
_SMALL_KERNELS = (4, 4, 4, 3)


def activation_function(name: Activation) -> Callable[[Tensor], Tensor]:
    """LeakyReLU with slope 0.2, the paper's, or Swish, x sigmoid(x), whose second derivative exists everywhere.

    Raises:
        UserError: the name is neither.
    """
    if name == "swish":
        return F.silu
    if name == "leaky_relu":
        return lambda x: F.leaky_relu(x, _SLOPE)
    raise UserError(f"unknown activation {name!r}: choose leaky_relu or swish")


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


class LogitHead(nn.Linear):
    """Linear layer in float32 whatever autocast says: with 8 bits of mantissa a logit of 16 has steps of 0.125."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class WideBlock(nn.Module):
    """Pre-activation block: act, conv 3x3, act, conv 3x3, plus the input, through a 1x1 convolution if shapes differ.

    As in the paper's code the stride is in the second convolution, and every convolution has a bias. (Zagoruyko &
    Komodakis, 2016, put the stride first, which takes less work.)
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, activation: Activation, batch_norm: bool
    ) -> None:
        super().__init__()
        self.first_norm = _norm(channels_in, batch_norm)
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.second_norm = _norm(channels_out, batch_norm)
        self.second = nn.Conv2d(channels_out, channels_out, 3, stride, padding=1)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride)
        self.act = activation_function(activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.act(self.first_norm(x)))
        y = self.second(self.act(self.second_norm(y)))
        return y + self.shortcut(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-width without normalisation: images (B, C, H, W) in [-1, 1] to logits (B, classes), float32.

    Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels, strides 1, 2 and 2, then the mean
    over all positions. The paper's net is WRN-28-10: 36.5 million parameters for ten classes.

    Args:
        depth: number of layers, 6n + 4.
        width: factor of the numbers of channels.
        batch_norm: before every activation, for the control arm; it makes images of a batch depend on each other.

    Raises:
        UserError: the depth is not 6n + 4, or the width is below 1.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        classes: int = 10,
        image_channels: int = 3,
        activation: Activation = "leaky_relu",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise UserError(f"no wide residual net has depth {depth} and width {width}: depth is 10, 16, 22, 28, ...")
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(image_channels, 16, 3, padding=1)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for index in range((depth - 4) // 6):
                channels_in, stride = (sizes[stage], min(stage + 1, 2)) if index == 0 else (sizes[stage + 1], 1)
                blocks.append(WideBlock(channels_in, sizes[stage + 1], stride, activation, batch_norm))
        self.blocks = nn.Sequential(*blocks)
        self.last_norm = _norm(sizes[3], batch_norm)
        self.act = activation_function(activation)
        self.head = LogitHead(sizes[3], classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.head(self.act(self.last_norm(x)).mean((2, 3)))  # type: ignore[no-any-return]


class SmallConvNet(nn.Module):
    """Four convolutions of stride 2 and a linear head: images (B, C, 28, 28) or 32 x 32 to logits (B, classes).

    177,962 parameters for one colour and ten classes. Channels 32, 64, 64, 128, kernels 4, 4, 4, 3. Every layer
    strides, the first one too, because at full resolution it would cost more than all others together. Swish rather
    than LeakyReLU keeps the gradient of the energy continuous, which the chains follow.

    Args:
        batch_norm: before every activation, for the control arm.
    """

    def __init__(
        self,
        classes: int = 10,
        image_channels: int = 1,
        activation: Activation = "swish",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        before = (image_channels, *_SMALL_CHANNELS)
        sizes = list(zip(before, _SMALL_CHANNELS, _SMALL_KERNELS))
        layers = [ImageConv2d(*sizes[0], stride=2, padding=1)]
        self.convolutions = nn.ModuleList([*layers, *(nn.Conv2d(*size, stride=2, padding=1) for size in sizes[1:])])
        self.norms = nn.ModuleList(_norm(channels, batch_norm) for channels in _SMALL_CHANNELS)
        self.act = activation_function(activation)
        self.head = LogitHead(_SMALL_CHANNELS[-1] * 4, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.norms[0](self.convolutions[0](x))
        for convolution, norm in zip(self.convolutions[1:], self.norms[1:]):
            x = norm(convolution(self.act(x)))
        # Swish's gradient is slow where its input is laid out in another way than what comes from the head.
        return self.head(self.act(x.flatten(1)))  # type: ignore[no-any-return]
