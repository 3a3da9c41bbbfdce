"""Gradients and weights of the real trainer, for test_two_processes.py; run by torchrun or imported by the test."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from papers.nvae.experiment import Trainer
from shared.data.batches import seed_step
from shared.training.distributed import all_reduce_mean, average_gradients, rank, start_processes, stop_processes
from tests.papers.nvae import tiny

ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "flows": {"flows": 1},
    "rgb, separable": {"data": "cifar10", "mixture_components": 2, "decoder_cell": "separable", "expansion": 2},
    "bn_elu": {"normalisation": "bn_elu"},
}
STEP = 1  # in the warm-up, where the KL terms are balanced


def one_gradient(run: Trainer) -> dict[str, Tensor]:
    """Everything that must not depend on the number of processes, from one forward and backward pass."""
    run.model.train()
    seed_step(0, STEP)
    terms = run.terms(STEP)
    terms.loss.backward()
    average_gradients(run.model.parameters())
    result = {f"gradient {name}": p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    result |= {f"buffer {name}": b.clone() for name, b in run.model.named_buffers() if "running" in name}
    means = {"loss": terms.loss, "bound": terms.bound_nats, "kl": terms.kl_nats}
    return result | {f"mean {name}": all_reduce_mean(value.detach()) for name, value in means.items()}


def results(name: str) -> dict[str, Tensor]:
    """One gradient, and the weights after two steps of the real loop body."""
    changes = {**ARMS[name], "batch_size": 16}
    found = one_gradient(tiny.trainer(**changes))
    run = tiny.trainer(**changes)
    for k in range(2):
        seed_step(0, k)
        run.step(k)
    return found | {f"weight {name}": value for name, value in run.model.state_dict().items()}


def all_results() -> dict[str, dict[str, Tensor]]:
    """Of every arm in float32, and of the first in float64, where roundings do not blur the comparison."""
    found = {name: results(name) for name in ARMS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            found["float64"] = results("base")
        finally:
            torch.set_default_dtype(torch.float32)
    assert found["float64"]["gradient start"].dtype == torch.float64
    return found


if __name__ == "__main__":
    start_processes(tiny.CPU)
    found = all_results()
    if rank() == 0:
        torch.save(found, sys.argv[1])
    stop_processes()
