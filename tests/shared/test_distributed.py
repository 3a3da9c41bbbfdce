"""Without torchrun everything is the identity; with two processes it is what one process would compute."""

import pytest
import torch
from torch import nn

from shared.paths import ROOT
from shared.training import distributed
from tests import checkout


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3)
    assert distributed.world_size() == 1
    assert distributed.rank() == 0
    assert distributed.all_reduce_mean(x) is x
    assert distributed.local_slice(7) == slice(0, 7)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    distributed.average_gradients([parameter])
    assert parameter.grad.tolist() == [1, 1]


def test_noise_of_one_process_is_the_plain_draw() -> None:
    torch.manual_seed(1)
    expected = torch.randn(2, 3), torch.rand(2, 3)
    torch.manual_seed(1)
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    drawn = distributed.standard_normal_like(x), distributed.uniform_like(x)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


def test_without_torchrun_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start_processes(torch.device("cpu"))
    assert distributed.world_size() == 1
    distributed.stop_processes()


@pytest.mark.slow
def test_two_processes() -> None:
    done = checkout.run(
        ROOT, "python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "tests.shared.two_processes", timeout=240,
    )  # fmt: skip
    assert done.stdout.count("checked") == 2
