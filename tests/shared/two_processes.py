"""What the two processes of test_distributed.py run; every check ends the process with a traceback if it fails."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.bn_swish import BatchNorm, BatchNormSwish
from shared.data.batches import batch_indices
from shared.errors import UserError
from shared.training.distributed import (
    all_reduce_mean,
    average_gradients,
    local_slice,
    rank,
    standard_normal_like,
    start_processes,
    stop_processes,
    uniform_like,
    world_size,
)


def check_batch_norm(ours: BatchNorm, theirs: nn.Sequential, dtype: torch.dtype, tolerance: float) -> None:
    """Each process normalises its half; outputs, gradients and running statistics are those of the whole batch."""
    ours.to(dtype), theirs.to(dtype)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(4))
        ours.bias.copy_(torch.randn(4))
        theirs[0].weight.copy_(ours.weight)  # type: ignore[arg-type]
        theirs[0].bias.copy_(ours.bias)  # type: ignore[arg-type]
    x = 5 * torch.randn(6, 4, 5, 3, dtype=dtype) + 2
    x[3:] += 4  # the halves have other statistics than the whole
    target = torch.randn(6, 4, 5, 3, dtype=dtype)
    part = local_slice(6)
    mine, whole = x[part].clone().requires_grad_(True), x.clone().requires_grad_(True)
    y, expected = ours(mine), theirs(whole)
    (y * target[part]).mean().backward()
    (expected * target).mean().backward()
    average_gradients(ours.parameters())
    assert whole.grad is not None
    assert mine.grad is not None
    close(y, expected[part], tolerance)
    close(mine.grad / 2, whole.grad[part], tolerance)  # the mean over a half weighs twice the mean over the whole
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        close(a.grad, b.grad, tolerance)
    close(ours.running_mean, theirs[0].running_mean, tolerance)  # type: ignore[arg-type]
    close(ours.running_var, theirs[0].running_var, tolerance)  # type: ignore[arg-type]
    assert torch.equal(ours.running_var, all_reduce_mean(ours.running_var)), "the processes drift apart"
    close(ours.eval()(x), theirs.eval()(x), tolerance)


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check_reductions() -> None:
    mean = all_reduce_mean(torch.tensor([1.0, 10.0]) * (rank() + 1))
    assert mean.tolist() == [1.5, 15]
    layers = [
        nn.Parameter(torch.zeros(2, 3)),
        nn.Parameter(torch.zeros(4, dtype=torch.float64)),
        nn.Parameter(torch.zeros(1)),
    ]
    layers[0].grad = torch.full((2, 3), float(rank()))
    layers[1].grad = torch.arange(4.0, dtype=torch.float64) * (rank() + 1)
    average_gradients(layers)
    assert layers[0].grad.tolist() == [[0.5] * 3] * 2
    assert layers[1].grad.tolist() == [0, 1.5, 3, 4.5]
    assert layers[2].grad is None


def check_slices() -> None:
    assert local_slice(10) == slice(5 * rank(), 5 * rank() + 5)
    with pytest.raises(UserError, match="a global batch of 9 cannot be shared by 2 processes"):
        local_slice(9)
    parts = [torch.zeros(4, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(parts, batch_indices(20, 8, seed=1, step=3))
    assert len(set(torch.cat(parts).tolist())) == 8


def check_noise() -> None:
    for draw, plain in ((standard_normal_like, torch.randn), (uniform_like, torch.rand)):
        torch.manual_seed(4)
        ours = draw(torch.zeros(3, 2))
        after = torch.rand(1)
        torch.manual_seed(4)
        assert torch.equal(ours, plain(6, 2)[local_slice(6)])
        assert torch.equal(after, torch.rand(1)), "all processes stand at the same place of the sequence"


def check_second_derivative_is_refused() -> None:
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice over several processes"):
        torch.autograd.grad(BatchNormSwish(3)(x).sum(), x, create_graph=True)


def main() -> None:
    start_processes(torch.device("cpu"))
    assert world_size() == 2
    torch.manual_seed(0)  # the same on both, so that each knows the whole batch
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        check_batch_norm(BatchNormSwish(4), nn.Sequential(nn.BatchNorm2d(4, 1e-5, 0.05), nn.SiLU()), dtype, tolerance)
        check_batch_norm(BatchNorm(4), nn.Sequential(nn.BatchNorm2d(4, 1e-5, 0.05)), dtype, tolerance)
    check_reductions()
    check_slices()
    check_noise()
    check_second_derivative_is_refused()
    assert math.isclose(all_reduce_mean(torch.tensor(float(rank()))).item(), 0.5)
    stop_processes()
    assert world_size() == 1
    print("checked")


if __name__ == "__main__":
    main()
