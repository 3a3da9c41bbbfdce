"""The literal step of the benchmark does the same mathematics as the step of training, and the records are complete."""

import msgspec
import pytest
import torch

from benchmarks import jem
from benchmarks.jem import FastStep, LiteralStep, assert_equal_mathematics, batches, cost_entries, step_entries
from papers.jem import settings as presets
from papers.jem.model import SmallConvNet
from papers.jem.sgld import Langevin, count_passes

TINY = msgspec.structs.replace(presets.load("smoke"), batch=4, buffer=12, chain_steps=1)


def test_both_steps_have_the_same_loss_gradient_and_samples() -> None:
    torch.manual_seed(0)
    assert_equal_mathematics(TINY)


def test_other_mathematics_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = LiteralStep.chains

    def half_as_far(self: LiteralStep, x: torch.Tensor, langevin: Langevin) -> torch.Tensor:
        return chains(self, x, Langevin(langevin.steps, 0.5))

    monkeypatch.setattr(LiteralStep, "chains", half_as_far)
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        assert_equal_mathematics(TINY)


def test_updates_of_both_steps_lead_to_the_same_weights() -> None:
    torch.manual_seed(0)
    ours = FastStep(SmallConvNet(), 12, precision="float32", reinit=1.0)
    literal = LiteralStep(ours.model, 12, reinit=1.0)
    before = ours.vector.detach().clone()
    for _ in range(3):
        images = batches(4)
        for step in (ours, literal):
            step.update(step.loss(images, Langevin(2)))
    assert not torch.equal(ours.vector, before)
    for p, q in zip(ours.model.parameters(), literal.model.parameters(), strict=True):
        torch.testing.assert_close(q.data, p.data, rtol=0, atol=2e-5)


def test_passes_of_a_step_and_of_a_classifier() -> None:
    ours, images = FastStep(SmallConvNet(), 12), batches(4)
    with count_passes(ours.model) as passes:
        ours.loss(images, Langevin(5))
    assert passes.calls == 5 + 1
    assert passes.examples == 4 * (5 + 3)
    with count_passes(ours.model) as passes:
        ours.update(ours.cross_entropy(images))
    assert passes.examples == 4
    literal = LiteralStep(ours.model, 12)
    with count_passes(literal.model) as passes:
        literal.loss(images, Langevin(5))
    assert passes.calls == 5 + 3
    assert passes.examples == 4 * (5 + 3)


def test_entries_are_complete_and_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jem, "MORE_STEPS", 2)
    monkeypatch.setattr(jem, "STEPS", (1, 3))
    monkeypatch.setattr("benchmarks.timing.TURN_S", 0.0)
    entries = [each.entry for each in (*step_entries(TINY, 1), *cost_entries(TINY, 1))]
    assert [row["name"] for row in entries] == [
        "train_iterations_per_s",
        "train_iterations_per_s_eta2",
        "train_iterations_per_s_wide_residual",
        "chain_step_ms",
        "cost_ratio_eta1",
        "cost_ratio_eta3",
    ]
    for row in entries:
        ours, baseline, ratio = (float(row[key]) for key in ("ours", "baseline", "ratio"))  # type: ignore[arg-type]
        assert ours > 0
        assert baseline > 0
        baseline_over_ours = row["name"] == "chain_step_ms"
        assert ratio == pytest.approx(baseline / ours if baseline_over_ours else ours / baseline, rel=1e-3)
    assert "counting passes gives 5.0" in str(entries[-1]["conditions"])


def test_groups_of_turns_are_medians_of_all_turns_in_their_order() -> None:
    turns = [1.0, 2.0, 30.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    found = jem.Timed({}, turns).by_group()
    assert found == [1.5, 17.0, 5.5, 7.5, 10.0]
    assert jem.Timed({}, turns[:3]).by_group() == turns[:3]
