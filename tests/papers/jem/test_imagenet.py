"""EfficientNet-lite0: its padding and size, and, with the real weights, what it sees in two photographs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image
from torch import Tensor

from papers.jem.imagenet import Block, EfficientNetLite0, SameConv2d, levels, load_lite0, same_padding
from shared.errors import UserError


@pytest.fixture(scope="module")
def untrained() -> EfficientNetLite0:
    return load_lite0(untrained=True)


# --- parts ---


@given(st.integers(1, 60), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
def test_same_padding_gives_a_place_for_each_stride(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
    assert 0 <= after - before <= 1


def test_an_odd_zero_goes_to_the_end() -> None:
    """With stride 2 and an even size a kernel of 3 begins at the first pixel, one of 5 a pixel before it."""
    x = torch.arange(1.0, 65.0).view(1, 1, 8, 8)
    for kernel, shift in ((3, 0), (5, 1)):
        layer = SameConv2d(1, 1, kernel, 2)
        weight = torch.zeros(1, 1, kernel, kernel)
        weight[0, 0, shift, shift] = 1
        layer.load_state_dict({"weight": weight})
        assert torch.equal(layer(x), x[:, :, ::2, ::2])


def test_a_block_adds_its_input_where_the_shape_is_kept() -> None:
    x = torch.rand(2, 8, 6, 6)
    for channels, stride, kept in ((8, 1, True), (8, 2, False), (12, 1, False)):
        block = Block(8, channels, 3, stride, 6).eval()
        torch.nn.init.zeros_(block._bn2.weight)  # the branch is silent
        y = block(x)
        assert y.shape == (2, channels, 6 // stride, 6 // stride)
        assert torch.equal(y, x if kept else torch.zeros_like(y))


def test_parameter_count_is_the_published_one() -> None:
    """4.65 million: two numbers a channel for each norm, and the convolutions and the classifier of table 1."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    expected, channels = 27 * 32 + 2 * 32, 32
    rows = ["16 3 1", "24 3 6", "24 3 6", "40 5 6", "40 5 6", *["80 3 6"] * 3, *["112 5 6"] * 3, *["192 5 6"] * 4]
    for row in (*rows, "320 3 6"):
        out, kernel, widening = map(int, row.split())
        wide = channels * widening
        expected += (wide * (channels + 2) if widening > 1 else 0) + wide * (kernel**2 + 2) + out * (wide + 2)
        channels = out
    expected += 1280 * (320 + 2) + 1000 * (1280 + 1)
    assert sum(p.numel() for p in network.parameters()) == expected == 4_652_008


def test_levels_are_those_of_the_training() -> None:
    grey = torch.arange(256.0)
    assert torch.allclose(levels(grey / 127.5 - 1), (grey - 127) / 128, atol=1e-6)


# --- the network ---


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 47)])
def test_features_and_logits_of_any_size(untrained: EfficientNetLite0, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    features = untrained.features(x)
    assert features.shape == (2, 1280)
    assert 0 <= float(features.min()) <= float(features.max()) <= 6
    assert torch.allclose(untrained(x), F.linear(features, untrained._fc.weight, untrained._fc.bias))


def test_untrained_weights_are_fixed_and_leave_the_generator_alone(untrained: EfficientNetLite0) -> None:
    state = torch.get_rng_state()
    again = load_lite0(untrained=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), untrained.parameters(), strict=True))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make data ONLY=efficientnet_lite0"):
        load_lite0(folder=tmp_path)


def photograph(name: str) -> Tensor:
    """The middle square of a photograph that scikit-learn holds, (1, 3, 224, 224) in [-1, 1]."""
    x = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    side, edge = x.shape[2], (x.shape[3] - x.shape[2]) // 2
    return F.interpolate(x[..., edge : edge + side], size=(224, 224), mode="bilinear", antialias=True)


@pytest.mark.data
def test_the_real_weights_know_a_palace_and_a_flower() -> None:
    """The file fits the network name by name; 698 is `palace`, 985 `daisy`, of 1000 classes in ImageNet's order."""
    network = load_lite0()
    probability = {name: network(levels(photograph(name))).softmax(1)[0] for name in ("china.jpg", "flower.jpg")}
    assert int(probability["china.jpg"].argmax()) == 698
    assert int(probability["flower.jpg"].argmax()) == 985
    assert float(probability["flower.jpg"][698]) < 0.01 < 0.2 < float(probability["china.jpg"][698])
