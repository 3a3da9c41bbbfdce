"""Weight normalisation and squeeze-excitation."""

import torch
from torch import nn

from shared.layers import SqueezeExcite, WeightNormConv2d, effective_weight


def norms(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1).norm(dim=1)


def test_weight_norm_has_the_norm_of_its_gain() -> None:
    conv = WeightNormConv2d(6, 8, 3, padding=1)
    with torch.no_grad():
        conv.log_gain.normal_()
        conv.weight.mul_(torch.tensor([0.0, 1e-5, 1e-3, 1, 10, 1, 1, 1]).view(-1, 1, 1, 1))
    v = norms(conv.weight)
    expected = conv.log_gain.flatten().exp() * v / (v + 1e-5)
    torch.testing.assert_close(norms(conv.effective_weight()), expected)
    assert norms(conv.effective_weight())[0] == 0, "a channel without weights stays finite"


def test_weight_norm_applies_its_effective_weight() -> None:
    conv = WeightNormConv2d(4, 6, 3, stride=2, padding=1, groups=2)
    with torch.no_grad():
        conv.log_gain.normal_()
    x = torch.randn(2, 4, 8, 8)
    expected = nn.functional.conv2d(x, conv.effective_weight(), conv.bias, 2, 1, groups=2)
    torch.testing.assert_close(conv(x), expected)
    assert effective_weight(conv) is not conv.weight
    plain = nn.Conv2d(4, 6, 3)
    assert effective_weight(plain) is plain.weight


def test_weight_norm_does_not_depend_on_the_length_of_v() -> None:
    conv = WeightNormConv2d(4, 6, 3)
    before = conv.effective_weight().detach().clone()
    with torch.no_grad():
        conv.weight.mul_(7)
    torch.testing.assert_close(conv.effective_weight(), before, rtol=1e-4, atol=1e-6)


def test_first_weights_are_nearly_the_plain_ones() -> None:
    conv = WeightNormConv2d(16, 8, 3)
    v = norms(conv.weight)
    torch.testing.assert_close(norms(conv.effective_weight()), (v + 0.01) * v / (v + 1e-5))
    torch.testing.assert_close(conv.log_gain.flatten(), torch.log(v + 0.01))


def test_squeeze_excite_without_weights_halves_exactly() -> None:
    gate = SqueezeExcite(8)
    nn.init.zeros_(gate.excite.weight)
    nn.init.zeros_(gate.excite.bias)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(gate(x), x * 0.5)


def test_squeeze_excite_bottleneck() -> None:
    assert [SqueezeExcite(c).squeeze.out_features for c in (8, 64, 80, 256)] == [4, 4, 5, 16]


def test_squeeze_excite_scales_each_channel_by_its_gate() -> None:
    gate = SqueezeExcite(6)
    x = torch.randn(3, 6, 5, 5)
    ratio = gate(x) / x
    expected = torch.sigmoid(gate.excite(torch.relu(gate.squeeze(x.mean((2, 3))))))
    torch.testing.assert_close(ratio, expected[:, :, None, None].expand_as(x))
