"""Several processes, each with a slice of the global batch: start, average, and draw as one process would.

No wrapper around the model: after the backward pass the gradients are averaged (`average_gradients`), which serves
losses that call a network several times or differentiate twice. Launch with `torchrun`; without it everything here is
the identity.
"""

import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import UserError


def start_processes(device: torch.device) -> None:
    """Join the process group that `torchrun` describes in the environment; nothing to do without `torchrun`.

    Uses NCCL on CUDA devices and gloo on the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop_processes() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that share the global batch (1 without `torchrun`)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0; the process with rank 0 writes the files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_slice(n: int) -> slice:
    """The part of a global batch of `n` items that belongs to this process.

    Raises:
        UserError: `n` is not divisible by the number of processes.
    """
    size = world_size()
    if n % size:
        raise UserError(f"a global batch of {n} cannot be shared by {size} processes: choose a multiple of {size}")
    return slice(rank() * n // size, (rank() + 1) * n // size)


def all_reduce_mean(value: Tensor) -> Tensor:
    """Mean of `value` over the processes, a new tensor without gradient; the tensor itself with one process."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, through one flat buffer for each dtype.

    Call it after the backward pass and before the optimiser's step; every process must have gradients for the same
    parameters. With losses that are means over equal local batches the result is the gradient of the global batch.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for grads in by_dtype.values():
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def standard_normal_like(x: Tensor) -> Tensor:
    """Standard normal noise in float32, in the shape (batch first) and memory format of `x`.

    Over several processes the noise of the *global* batch is drawn and this process takes its slice, so that seeded
    runs see the same noise whatever the number of processes.
    """
    return _for_global_batch(x, torch.randn)


def uniform_like(x: Tensor) -> Tensor:
    """Uniform noise on [0, 1) in float32, shaped as `x`, drawn for the global batch as in `standard_normal_like`."""
    return _for_global_batch(x, torch.rand)


def _for_global_batch(x: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    n = x.shape[0] * world_size()
    if x.dim() == 4:  # drawn with channels last: elementwise work on mixed layouts would take the slow path
        noise = draw((n, *x.shape[2:], x.shape[1]), device=x.device).permute(0, 3, 1, 2)
    else:
        noise = draw((n, *x.shape[1:]), device=x.device)
    return noise[local_slice(n)]
