"""What only a CUDA device can show: a training step of the real trainer, and BN+Swish against the library's layers."""

import math

import pytest
import torch
from torch import nn

from papers.nvae.experiment import Trainer
from shared.bn_swish import BatchNormSwish
from tests.papers.nvae import tiny

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_are_finite_and_lower_the_loss(precision: str) -> None:
    chosen = tiny.settings(precision=precision)
    trainer = Trainer(chosen, tiny.images(chosen), 0, 60, CUDA)
    losses = [float(trainer.step(k)["loss"]) for k in range(60)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < sum(losses[:10])


def test_batch_norm_swish_equals_the_library_on_cuda() -> None:
    ours, theirs = BatchNormSwish(8).to(CUDA), nn.Sequential(nn.BatchNorm2d(8, momentum=0.05), nn.SiLU()).to(CUDA)
    x = torch.randn(4, 8, 6, 6, device=CUDA, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    torch.testing.assert_close(ours(x), theirs(y), rtol=1e-5, atol=1e-6)
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
