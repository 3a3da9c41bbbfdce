"""The quick gradient in an image is the library's, to any order, and nothing else is another."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.jem.convolution import ImageConv2d, image_gradient
from papers.jem.model import SmallConvNet

SHAPES = [  # images, channels out, kernel, stride, padding
    ((3, 1, 28, 28), 32, (4, 4), (2, 2), (1, 1)),
    ((2, 3, 9, 7), 5, (3, 2), (2, 1), (0, 1)),
    ((1, 2, 5, 5), 4, (3, 3), (1, 1), (1, 1)),
]


@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "padding"), SHAPES)
def test_the_gradient_in_the_image_is_the_transposed_convolution(shape, out, kernel, stride, padding):
    weight = torch.randn(out, shape[1], *kernel, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    values = F.conv2d(x, weight, None, stride, padding)
    upstream = torch.randn_like(values)
    (expected,) = torch.autograd.grad(values, x, upstream)
    torch.testing.assert_close(image_gradient(upstream, weight, x.shape, stride, padding), expected)


def pair(bias: bool = True) -> tuple[ImageConv2d, nn.Conv2d]:
    ours, plain = (kind(2, 5, 3, stride=2, padding=1, bias=bias).double() for kind in (ImageConv2d, nn.Conv2d))
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("bias", [True, False])
def test_all_gradients_are_those_of_the_library(bias: bool):
    ours, plain = pair(bias)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    sums = [layer(x).square().sum() for layer in (ours, plain)]
    gradients = [
        torch.autograd.grad(total, [x, *layer.parameters()], create_graph=True)
        for total, layer in zip(sums, (ours, plain), strict=True)
    ]
    seconds = [
        torch.autograd.grad(sum(g.pow(3).sum() for g in first), [x, *layer.parameters()])
        for first, layer in zip(gradients, (ours, plain), strict=True)
    ]
    for both in (gradients, seconds):
        for g, h in zip(*both, strict=True):
            torch.testing.assert_close(g, h)


def test_gradients_agree_with_finite_differences():
    ours, _ = pair()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)

    def function(images: Tensor, *_: Tensor) -> Tensor:
        return ours(images)

    inputs = (x, *ours.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_values_and_gradients_of_the_weights_have_the_same_bits(precision: str):
    torch.manual_seed(0)
    net = SmallConvNet(10)
    first = net.convolutions[0]
    plain = nn.Conv2d(1, 32, 4, stride=2, padding=1).to(memory_format=torch.channels_last)
    plain.load_state_dict(first.state_dict())
    for wanted in (False, True):  # does anybody want the gradient in the image?
        x = torch.rand(4, 1, 28, 28, requires_grad=wanted)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            values = [layer(x) for layer in (first, plain)]
        assert torch.equal(*values)
        gradients = [
            torch.autograd.grad(value.float().square().sum(), list(layer.parameters()), retain_graph=True)
            for value, layer in zip(values, (first, plain), strict=True)
        ]
        for g, h in zip(*gradients, strict=True):
            assert torch.equal(g, h)
    slopes = [torch.autograd.grad(value.float().square().sum(), x)[0] for value in values]
    assert slopes[0].dtype == torch.float32
    assert (slopes[0] - slopes[1]).norm() < (1e-6 if precision == "float32" else 1e-2) * slopes[1].norm()


def test_without_a_graph_it_is_the_library():
    ours, plain = pair()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
    assert "_ImageConvolution" in type(ours(x).grad_fn).__name__
    assert "_ImageConvolution" not in type(ours(x.detach()).grad_fn).__name__
