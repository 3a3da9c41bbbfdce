"""A small network that was trained on ImageNet: EfficientNet-lite0 (Tan & Le, 2019), for features that JEM never saw.

The lite family is EfficientNet without squeeze-and-excitation, and with ReLU6 in place of Swish. A block widens its
input by a 1x1 convolution, filters every channel by itself (depthwise), and narrows the result by another 1x1
convolution without activation; where shape allows, the input is added (inverted residual, Sandler et al., 2018).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.data.verify import check
from shared.paths import DATA

DATA_SET = "efficientnet_lite0"
WEIGHTS = "efficientnet-lite0-57934424.pth"
FEATURES, CLASSES = 1280, 1000

_STEM = 32
#: Of each stage: blocks, kernel, stride of the first block, widening, channels out (Tan & Le, table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPSILON = 1e-3  # TensorFlow's, of batch norm
_UNTRAINED_SEED = 0


class SameConv2d(nn.Conv2d):
    """Convolution without bias, with the `same` padding of TensorFlow, where the weights were trained.

    An output has ceil(size / stride) places. The zeros that this needs are shared by both sides, and an odd one goes to
    the right or the bottom. With stride 2 and an even size that is (0, 1) for a kernel of 3, not PyTorch's (1, 1):
    symmetric padding would show every such layer its input half a place aside.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = same_padding(x.shape[2], kernel, stride)
        left, right = same_padding(x.shape[3], kernel, stride)
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, None, stride, (top, left), 1, self.groups)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, None, stride, 0, 1, self.groups)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a line of `size` places for ceil(size / stride) places of output."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; plus the input where the shape is kept."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = widening * channels_in
        # The names of the parts are those of the file of weights.
        if widening > 1:
            self._expand_conv = SameConv2d(channels_in, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, _EPSILON)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, _EPSILON)
        self._project_conv = SameConv2d(wide, channels_out, 1)
        self._bn2 = nn.BatchNorm2d(channels_out, _EPSILON)
        self.widens, self.residual = widening > 1, stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """From (B, channels_in, H, W) to (B, channels_out, ceil(H / stride), ceil(W / stride))."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        narrow: Tensor = self._bn2(self._project_conv(h))
        return x + narrow if self.residual else narrow


class EfficientNetLite0(nn.Module):
    """From RGB images (B, 3, H, W), grey levels (x - 127) / 128 with x in 0..255, to 1000 logits.

    Trained on images of 224 x 224; any size from 1 on will do, and a place of the last map stands for 32 x 32 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, _EPSILON)
        blocks, channels = [], _STEM
        for repeats, kernel, stride, widening, channels_out in _STAGES:
            for i in range(repeats):
                blocks.append(Block(channels, channels_out, kernel, 1 if i else stride, widening))
                channels = channels_out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv2d(channels, FEATURES, 1)
        self._bn1 = nn.BatchNorm2d(FEATURES, _EPSILON)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Means (B, 1280) of the last map over its places, before the classifier: from 0 to 6."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1000). Dropout, which the training had, is left out: the network is not trained here."""
        logits: Tensor = self._fc(self.features(x))
        return logits


def levels(x: Tensor) -> Tensor:
    """Images in [-1, 1] on the scale of the network: (x' - 127) / 128 with x' = 127.5 (x + 1)."""
    return (x * 127.5 + 0.5) / 128


def load_lite0(*, untrained: bool = False, folder: Path = DATA) -> EfficientNetLite0:
    """The trained network, in evaluation mode with constant weights, after its file's checksum.

    Args:
        untrained: fixed random weights instead, and no file is read: what comes out means nothing.
        folder: what stands for `data/`.

    Raises:
        UserError: the file is missing or damaged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNTRAINED_SEED)
        network = EfficientNetLite0()
        for module in network.modules():
            if untrained and isinstance(module, SameConv2d):
                # PyTorch's first weights shrink the signal of 50 layers to nothing.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if not untrained:
        check(DATA_SET, folder=folder)
        path = folder / DATA_SET / WEIGHTS
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
