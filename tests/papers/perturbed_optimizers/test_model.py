"""The networks: parameter counts of the paper, shapes, positive costs, and pooling before ReLU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.perturbed_optimizers.model import BasicBlock, CostNetwork, ResNetTerrain, SmallTerrainCNN, VanillaCNN


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("kind", "expected"), [(VanillaCNN, 1_250_858), (SmallTerrainCNN, 5_825), (ResNetTerrain, 83_520)]
)
def test_parameter_counts_of_the_paper(kind, expected: int) -> None:
    """On the meta device: nothing is allocated."""
    with torch.device("meta"):
        assert count(kind()) == expected


def test_shapes() -> None:
    assert VanillaCNN()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    for network in (SmallTerrainCNN(), ResNetTerrain(channels=8)):
        values = network(torch.randn(2, 3, 96, 96))
        assert values.shape == (2, 12, 12)
        assert (values >= 0).all()


def test_pooling_before_relu_is_the_same_function() -> None:
    """The published order is convolution, ReLU, max-pooling."""
    network = SmallTerrainCNN()
    x = torch.randn(2, 3, 96, 96)
    hidden = F.max_pool2d(F.relu(network.first(F.pad(x, (1, 2, 1, 2)))), 4)
    hidden = F.avg_pool2d(F.relu(network.second(F.pad(hidden, (0, 1, 0, 1)))), 2)
    assert torch.equal(F.softplus(network.last(F.pad(hidden, (0, 1, 0, 1)))[:, 0]), network(x))


def test_a_block_with_zero_weights_is_relu() -> None:
    block = BasicBlock(4)
    nn.init.zeros_(block.second.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), F.relu(x))


def test_a_cell_of_the_terrain_is_seen_by_its_own_cost() -> None:
    """The cost of a cell depends on its pixels, and the lower right one not on those of the upper left."""
    network = ResNetTerrain(channels=8).eval()
    x = torch.randn(1, 3, 96, 96, requires_grad=True)
    network(x)[0, 11, 11].backward()
    assert x.grad is not None
    assert x.grad[0, :, 88:, 88:].abs().max() > 0
    assert x.grad[0, :, :48, :48].abs().max() == 0


def test_costs_are_scaled_and_floored() -> None:
    mean, deviation = torch.tensor([100.0, 120.0, 80.0]), torch.tensor([30.0, 40.0, 50.0])
    seen = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.zeros(len(x), 12, 12, dtype=torch.bfloat16)

    model = CostNetwork(Spy(), mean, deviation, 0.1)
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    costs = model(pixels)
    assert costs.dtype == torch.float32
    assert torch.equal(costs, torch.full((2, 12, 12), 0.1))
    expected = (pixels.float() - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)
