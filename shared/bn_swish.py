"""Batch normalisation and Swish as one autograd function that keeps only its input (NVAE, section 3.2).

Ordinary autograd keeps the input of the batch normalisation and the input of the Swish. Here the backward pass computes
the second from the first again, with the batch statistics of the forward pass, so one feature map a layer is saved.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.training.distributed import all_reduce_mean, world_size

aten = torch.ops.aten


class _BatchNorm(torch.autograd.Function):
    """y = weight * (x - mean) * invstd + bias, then y * sigmoid(y) with `swish`; saves x and four vectors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean_run: Tensor, var_run: Tensor,
        momentum: float, eps: float, swish: bool,
    ) -> Tensor:  # fmt: skip
        if world_size() > 1:
            mean, invstd = _joint_statistics(x, mean_run, var_run, momentum, eps)
            y = _normalise(x, weight, bias, mean, invstd)
        else:
            y, mean, invstd = aten.native_batch_norm(x, weight, bias, mean_run, var_run, True, momentum, eps)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.eps, ctx.swish = eps, swish
        return F.silu(y, inplace=True) if swish else y  # in place: y itself is not kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will differentiate this backward pass again (create_graph=True)
            grads = _differentiable_backward(grad, x, weight, bias, ctx.eps, ctx.swish)
        else:
            grads = _fast_backward(grad, x, weight, bias, mean, invstd, ctx.swish)
        return *grads, None, None, None, None, None


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    # The inference kernel normalises in one pass and takes bfloat16 x with float32 statistics without a copy of x.
    return F.batch_norm(x, mean, invstd.pow(-2), weight, bias, training=False, eps=0.0)


def _joint_statistics(
    x: Tensor, mean_run: Tensor, var_run: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and 1/std over the batches of all processes (equal in size); moves the running statistics once."""
    dims = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x.to(mean_run.dtype), dims, correction=0)
    # In float64 the square of the mean may be subtracted without losing the variance.
    moments = all_reduce_mean(torch.stack([mean.double(), var.double() + mean.double().square()]))
    mean, var = moments[0], moments[1] - moments[0].square()
    count = x.numel() // x.shape[1] * world_size()
    mean_run.lerp_(mean.to(mean_run.dtype), momentum)
    var_run.lerp_((var * (count / (count - 1))).to(var_run.dtype), momentum)
    return mean.to(mean_run.dtype), (var + eps).rsqrt().to(mean_run.dtype)


def _fast_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, swish: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The three gradients with the library's kernels; over several processes the two sums are shared first."""
    dy = aten.silu_backward(grad, _normalise(x, weight, bias, mean, invstd)) if swish else grad
    if world_size() == 1:
        arguments = (weight, None, None, mean, invstd, True, 0.0, [True, True, True])
        return aten.native_batch_norm_backward(dy, x, *arguments)  # type: ignore[no-any-return]
    dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
    dy = dy.to(weight.dtype)
    normalised = (x.to(weight.dtype) - mean.view(shape)) * invstd.view(shape)
    dbias, dweight = dy.sum(dims), (dy * normalised).sum(dims)
    shared = all_reduce_mean(torch.stack([dbias, dweight])) / (x.numel() // x.shape[1])
    dx = (weight * invstd).view(shape) * (dy - shared[0].view(shape) - normalised * shared[1].view(shape))
    return dx.to(x.dtype), dweight, dbias


def _differentiable_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, swish: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients written in differentiable operations, statistics included, for a second differentiation."""
    if world_size() > 1:
        raise RuntimeError(
            "batch_norm_swish cannot be differentiated twice over several processes: "
            "use one process, or BatchNorm2d followed by SiLU"
        )
    dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
    x = x.to(weight.dtype)
    centred = x - x.mean(dims, keepdim=True)
    invstd = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    normalised = centred * invstd
    dy = grad.to(weight.dtype)
    if swish:
        y = weight.view(shape) * normalised + bias.view(shape)
        gate = torch.sigmoid(y)
        dy = dy * (gate + y * gate * (1 - gate))
    dbias, dweight = dy.sum(dims), (dy * normalised).sum(dims)
    mean_dy = dy.mean(dims, keepdim=True)
    mean_dyn = (dy * normalised).mean(dims, keepdim=True)
    dx = weight.view(shape) * invstd * (dy - mean_dy - normalised * mean_dyn)
    return dx.to(grad.dtype), dweight, dbias


class BatchNorm(nn.Module):
    """Batch normalisation, `(B, C, ...) -> (B, C, ...)`; over several processes the statistics of all of them.

    As `nn.BatchNorm2d(channels, eps, momentum)` in one process and as `nn.SyncBatchNorm` in several, on the CPU too.

    Args:
        channels: number of feature maps C.
        eps: added to the variance.
        momentum: weight of the new statistics in the running ones (NVAE's code uses 0.05).
    """

    running_mean: Tensor
    running_var: Tensor
    swish = False

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.05) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var)
        # A compiler fuses the two by itself and decides anew what to keep, so it gets the plain operations.
        plain = not self.swish or torch.compiler.is_compiling()
        if not self.training or (world_size() == 1 and plain):
            y = F.batch_norm(x, *running, self.weight, self.bias, self.training, self.momentum, self.eps)
            return F.silu(y) if self.swish else y
        y = _BatchNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, *running, self.momentum, self.eps, self.swish
        )
        return y  # type: ignore[no-any-return]


class BatchNormSwish(BatchNorm):
    """Batch normalisation followed by Swish (SiLU) that saves one feature map for the backward pass.

    Equal to `nn.BatchNorm2d(channels, eps, momentum)` followed by `nn.SiLU()` in output, gradients and running
    statistics, in float32, float64 and under bfloat16 autocast. It can be differentiated twice in one process;
    over several processes a second differentiation raises `RuntimeError`.

    Reference: NVAE (Vahdat & Kautz, 2020), section 3.2 and its appendix on the memory-lean kernel.
    """

    swish = True
