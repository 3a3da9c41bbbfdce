"""The networks of the experiments: the small image classifier, and two that read costs off a terrain map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VanillaCNN(nn.Module):
    """CIFAR-10: four 3x3 convolutions in two stages and two dense layers, no batch norm (1,250,858 parameters).

    Images (B, 3, 32, 32) in [0, 1] to scores (B, 10). The first convolution of each stage is padded, the second is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.MaxPool2d(2), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 6 * 6, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class SmallTerrainCNN(nn.Module):
    """The convolutional network of the published configuration (5,825 parameters).

    Maps (B, 3, 96, 96) to one number >= 0 a cell (B, 12, 12). Even kernels are padded as TensorFlow pads them: one more
    row and column at the lower right. The softplus at the end is ours; the published output is linear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 4)
        self.second = nn.Conv2d(32, 32, 2)
        self.last = nn.Conv2d(32, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        # The maximum of a block commutes with ReLU and leaves it a sixteenth of the work.
        x = F.relu(F.max_pool2d(self.first(F.pad(x, (1, 2, 1, 2))), 4))
        x = F.avg_pool2d(F.relu(self.second(F.pad(x, (0, 1, 0, 1)))), 2)
        return F.softplus(self.last(F.pad(x, (0, 1, 0, 1)))[:, 0])


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 at constant width: x + BN conv ReLU BN conv x, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(y)))


class ResNetTerrain(nn.Module):
    """The first layers of a ResNet-18 (Vlastelica et al., 2020): maps (B, 3, 96, 96) to a number >= 0 a cell
    (B, 12, 12): 83,520 parameters, and no more behind the mean over the channels of the one block.
    """

    def __init__(self, channels: int = 64, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(*(BasicBlock(channels) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.norm(self.stem(x)), 3, 2, 1))
        return F.max_pool2d(self.blocks(x), 2).mean(1)


class CostNetwork(nn.Module):
    """Maps uint8 (B, 3, 96, 96) to costs (B, 12, 12), float32, none below `floor`.

    Args:
        network: one of the two above, with values >= 0.
        mean: of each colour over the training maps (3,), in grey levels.
        deviation: standard deviation of each colour (3,).
        floor: smallest cost; above 0, since a path through negative costs has no shortest length.
    """

    mean: Tensor
    deviation: Tensor
    floor: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, deviation: Tensor, floor: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("deviation", deviation.view(3, 1, 1))
        self.register_buffer("floor", torch.tensor(floor))

    def forward(self, pixels: Tensor) -> Tensor:
        x = ((pixels - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        return self.network(x).float() + self.floor  # type: ignore[no-any-return]
