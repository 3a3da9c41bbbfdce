"""A compiled training run against a plain one, and resumed against undisturbed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from papers.nvae.experiment import Trainer, likelihood, train
from shared.data.batches import seed_step
from shared.training.checkpoint import StateFolder
from shared.training.compiled import can_compile
from tests.papers.nvae import tiny
from tests.papers.nvae.test_experiment import ALWAYS, Stop, stop_at

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_compile(tiny.CPU), reason="no C++ compiler, or no Python headers"),
    pytest.mark.filterwarnings("default"),  # the compiler's own
]

#: Every operation of the laptop preset: fold, both resamplings, the fused layer, residual posterior, penalties.
CHANGES: dict[str, Any] = {"fold": 2, "pre_post": (1, 1), "groups": 1, "weight_norm": False, "steps": 6}


def trainer(fast: bool) -> Trainer:
    chosen = tiny.settings(**CHANGES)
    return Trainer(chosen, tiny.images(chosen), 0, chosen.steps, tiny.CPU, fast)


def test_compiled_and_plain_steps_agree_and_resuming_changes_no_bit(tmp_path: Path) -> None:
    plain, whole, resumed = trainer(fast=False), trainer(fast=True), trainer(fast=True)
    with StateFolder("parts", "key", tmp_path) as folder, pytest.raises(Stop):
        train(stop_at(whole, 3), folder, "first half", save_seconds=ALWAYS)
    with StateFolder("parts", "key", tmp_path) as folder:
        train(resumed, folder, "second half")
    for k in range(plain.steps):
        seed_step(0, k)
        plain.step(k)
    with StateFolder("whole", "key", tmp_path) as folder:
        whole = trainer(fast=True)
        train(whole, folder, "whole")
    other = whole.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in resumed.model.state_dict().items())
    for p, q in zip(plain.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_compiled_likelihood_is_the_plain_one() -> None:
    model, chosen = tiny.model(**CHANGES), tiny.settings(**CHANGES)
    data = tiny.images(chosen)
    plain, fast = (likelihood(model, data.test[:16], chosen, data.side, 3, batch=8, fast=x) for x in (False, True))
    torch.testing.assert_close(fast.nll_nats, plain.nll_nats, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(fast.kl_nats, plain.kl_nats, rtol=1e-4, atol=1e-3)
