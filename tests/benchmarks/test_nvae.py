"""The baseline of the benchmark does the same mathematics as the code it is compared with."""

import torch

from benchmarks.nvae import LayerwisePenalty, PlainTrainer
from shared.data.batches import seed_step
from tests.papers.nvae import tiny

CHANGES = {"fold": 2, "pre_post": (1, 1), "weight_norm": False}


def test_losses_and_weights_of_both_trainers_agree_in_float32() -> None:
    chosen = tiny.settings(**CHANGES)
    ours = tiny.trainer(**CHANGES)
    plain = PlainTrainer(chosen, tiny.images(chosen), 0, chosen.steps, tiny.CPU)
    for k in range(3):
        rows = []
        for trainer in (ours, plain):
            seed_step(0, k)
            rows.append(trainer.step(k))
        for name, value in rows[0].items():
            torch.testing.assert_close(rows[1][name], value, rtol=1e-3, atol=1e-4, msg=f"{name} of step {k}")
    for p, q in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-4)


def test_layerwise_penalty_is_the_batched_one_from_call_to_call() -> None:
    trainer = tiny.trainer(**CHANGES)
    layerwise = LayerwisePenalty(trainer.spectral)
    for _ in range(3):
        torch.testing.assert_close(layerwise(), trainer.spectral(), rtol=1e-5, atol=1e-5)
