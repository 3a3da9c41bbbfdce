"""A convolution whose gradient in the image is quick, for the first layer under Langevin chains and attacks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, ...]


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of images with few channels: the same values, and the gradient in the image as a matrix product.

    Training a classifier never asks for that gradient, Langevin chains ask for nothing else. The library computes it
    badly on a CPU where there are few channels of input: for one of 32 channels, 4 x 4 and stride 2 it takes a quarter
    of a chain's time; a matrix product and `F.fold` take a fifth of that. Only the order of the sums differs.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu"):
            return super().forward(x)
        own = (self.weight, self.bias, self.stride, self.padding)
        return _ImageConvolution.apply(x, *own)  # type: ignore[no-any-return, no-untyped-call]


class _ImageConvolution(torch.autograd.Function):
    """Twice differentiable, as curvatures and full gradients of refinement need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Size, padding: Size) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        image = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            image = image_gradient(upstream, weight, x.shape, ctx.stride, ctx.padding).to(x.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            same = [t.to(upstream.dtype) for t in (x, weight)]  # as autocast does
            wanted = [False, ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
            _, of_weight, of_bias = torch.ops.aten.convolution_backward(
                upstream, *same, [len(weight)], ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, wanted
            )
            of_weight, of_bias = (None if g is None else g.to(weight.dtype) for g in (of_weight, of_bias))
        return image, of_weight, of_bias, None, None


def image_gradient(upstream: Tensor, weight: Tensor, shape: torch.Size, stride: Size, padding: Size) -> Tensor:
    """Gradient (B, I, H, W) = `shape`, float32 or better, of a convolution with `weight` (O, I, k, l).

    Each position of the output (B, O, P, Q) has a patch of I k l pixels; patches are added where they overlap.
    """
    batch, patch = shape[0], weight[0].numel()
    rows = upstream.permute(0, 2, 3, 1).reshape(-1, len(weight))
    patches = (weight.to(upstream.dtype).flatten(1).T @ rows.T).view(patch, batch, -1)
    columns = torch.empty(batch, patch, patches.shape[2], dtype=torch.promote_types(patches.dtype, torch.float32))
    columns = columns.copy_(patches.transpose(0, 1))
    # To `fold` all images are channels of one, which it takes in one go.
    folded = F.fold(columns.view(1, -1, columns.shape[2]), shape[2:], weight.shape[2:], padding=padding, stride=stride)
    return folded.view(shape)
