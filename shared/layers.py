"""Layers that several papers build on; tensors are (B, C, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormConv2d(nn.Conv2d):
    """Convolution with `w_c = exp(g_c) * v_c / (|v_c| + 1e-5)` for each output channel c, as NVAE normalises.

    `g` starts at `log(|v_c| + 0.01)`, so that the first weights are nearly those of the plain layer (needs no data).

    Reference: Salimans & Kingma, Weight Normalization (2016); the exponential gain is NVAE's.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride, padding, groups=groups)
        self.log_gain = nn.Parameter(torch.log(self._norms() + 0.01))

    def _norms(self) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        return norms

    def effective_weight(self) -> Tensor:
        """The normalised weight (C_out, C_in / groups, k, k) that the convolution applies."""
        weight: Tensor = self.weight * (self.log_gain.exp() / (self._norms() + 1e-5))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(x, self.effective_weight(), self.bias)
        return result


def effective_weight(conv: nn.Conv2d) -> Tensor:
    """The weight that a convolution applies: normalised where it normalises, its parameter otherwise."""
    return conv.effective_weight() if isinstance(conv, WeightNormConv2d) else conv.weight


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means: Linear, ReLU, Linear, sigmoid.

    The bottleneck has `max(channels // 16, 4)` units.

    Reference: Hu et al., Squeeze-and-Excitation Networks (2018), section 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def gate(self, x: Tensor) -> Tensor:
        """The scales (B, C, 1, 1) between 0 and 1, in the dtype of `x`.

        The small network runs in float32: casting its weights to bfloat16 would cost more than it saves.
        """
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.relu(self.squeeze(x.mean((2, 3), dtype=self.squeeze.weight.dtype)))
            return torch.sigmoid(self.excite(hidden)).to(x.dtype)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)
