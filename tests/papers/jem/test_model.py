"""The networks: sizes, one energy an image, batch norm as the counterexample, precision, the state before training."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.jem.model import LogitHead, SmallConvNet, WideBlock, WideResNet
from shared.errors import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(28, 10, 36.47), (28, 2, 1.47), (16, 4, 2.75), (16, 2, 0.69), (10, 2, 0.30)],
)
def test_parameters_of_wide_nets(depth: int, width: int, millions: float) -> None:
    with torch.device("meta"):
        assert count(WideResNet(depth, width)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_parameters_of_the_small_net() -> None:
    with torch.device("meta"):
        assert count(SmallConvNet()) == 177_962


@pytest.mark.parametrize(("depth", "width", "million_products"), [(28, 10, 5951), (28, 2, 243), (16, 2, 129)])
def test_products_of_wide_nets(depth: int, width: int, million_products: float) -> None:
    """Multiplications of one image of 32 x 32; with the stride in the first convolution they would be fewer.

    Without the head, which has no part in it worth counting (and autocast does not know the meta device).
    """
    products = 0

    def add(module: nn.Module, _: object, y: torch.Tensor) -> None:
        nonlocal products
        each = module.weight[0].numel()
        products += each * y.numel()

    with torch.device("meta"):
        network = WideResNet(depth, width)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
        network.blocks(network.stem(torch.empty(1, 3, 32, 32)))
    assert products / 1e6 == pytest.approx(million_products, abs=0.5)


@pytest.mark.parametrize("side", [28, 32])
def test_shapes(side: int) -> None:
    x = torch.rand(3, 1, side, side) * 2 - 1
    for network in (SmallConvNet(classes=7), WideResNet(10, 1, classes=7, image_channels=1)):
        assert network(x).shape == (3, 7)


NETWORKS = {"small": lambda **more: SmallConvNet(**more), "wide": lambda **more: WideResNet(10, 1, 10, 1, **more)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("activation", ["leaky_relu", "swish"])
def test_without_norm_each_image_has_its_own_logits(name: str, activation: str) -> None:
    """And so its own energy; batch norm in training mode breaks exactly this."""
    x = torch.rand(6, 1, 28, 28) * 2 - 1
    plain = NETWORKS[name](activation=activation)
    alone = torch.cat([plain(image) for image in x.split(1)])
    torch.testing.assert_close(plain(x), alone, atol=1e-5, rtol=0)
    normed = NETWORKS[name](activation=activation, batch_norm=True)
    first = normed(x)[:3]
    x[3:] = 1.0
    assert (normed(x)[:3] - first).abs().max() > 1e-3
    normed.eval()
    torch.testing.assert_close(normed(x)[:3], normed(x[:3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_are_there_only_if_asked_for(name: str) -> None:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in NETWORKS[name]().modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in NETWORKS[name](batch_norm=True).modules()) in (4, 7)


def test_a_block_by_hand() -> None:
    """Activation first, the stride in the second convolution, the shortcut from the input before its activation."""
    block = WideBlock(4, 6, 2, "leaky_relu", False)
    x = torch.randn(2, 4, 8, 8)
    y = F.conv2d(F.leaky_relu(x, 0.2), block.first.weight, block.first.bias, padding=1)
    assert y.shape[-1] == 8
    y = F.conv2d(F.leaky_relu(y, 0.2), block.second.weight, block.second.bias, stride=2, padding=1)
    y = y + F.conv2d(x, block.shortcut.weight, block.shortcut.bias, stride=2)
    torch.testing.assert_close(block(x), y)


def test_a_block_with_zero_weights_passes_its_input_on() -> None:
    block = WideBlock(4, 4, 1, "swish", False)
    nn.init.zeros_(block.second.weight)
    nn.init.zeros_(block.second.bias)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_every_layer_has_a_bias() -> None:
    layers = [m for m in WideResNet(10, 2).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 11  # stem, six convolutions, three shortcuts, head
    assert all(layer.bias is not None for layer in layers)


def test_the_head_keeps_float32_under_autocast() -> None:
    """The logits are float32 and finer than bfloat16, and the gradient in x still agrees."""
    head = LogitHead(64, 10)
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), F.linear(x, head.weight, head.bias).float()) is False
        assert head(x.bfloat16()).dtype == torch.float32
        logits = head(x)
    assert torch.equal(logits, F.linear(x, head.weight, head.bias))

    network = SmallConvNet()
    image = (torch.rand(8, 1, 28, 28) * 2 - 1).requires_grad_()
    slopes = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(image)
        assert logits.dtype == torch.float32
        slopes.append(torch.autograd.grad(logits.logsumexp(1).sum(), image)[0].flatten(1))
    assert F.cosine_similarity(*slopes).min() > 0.999


def test_the_energy_is_flat_before_training() -> None:
    """About -log K everywhere, with a slope that moves no chain: the signal shrinks from layer to layer."""
    x = (torch.rand(16, 1, 28, 28) * 2 - 1).requires_grad_()
    log_density = SmallConvNet()(x).logsumexp(1)
    (slope,) = torch.autograd.grad(log_density.sum(), x)
    assert (log_density - math.log(10)).abs().max() < 0.1
    assert slope.flatten(1).norm(dim=1).max() < 0.1


def test_a_few_steps_lower_the_loss() -> None:
    x, labels = torch.rand(16, 1, 28, 28) * 2 - 1, torch.arange(16) % 10
    network = SmallConvNet()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_wrong_sizes_are_refused_in_one_line() -> None:
    for depth, width in ((27, 10), (4, 1), (16, 0)):
        with pytest.raises(UserError, match=r"depth is 10, 16, 22"):
            WideResNet(depth, width)
    with pytest.raises(UserError, match="choose leaky_relu or swish"):
        SmallConvNet(activation="relu")
