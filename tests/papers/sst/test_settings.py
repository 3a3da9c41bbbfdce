"""Presets: the networks of the paper's one build with the published numbers of parameters."""

import torch

from papers.sst.layout_training import Networks, Trainer, read_arm
from tests.papers.sst import tiny


def test_parameter_counts_of_the_paper_preset() -> None:
    """On the meta device: nothing is allocated. The decoder's counts both types of edges."""
    arm, s = read_arm("paper", "tree")
    with torch.device("meta"):
        model = Networks(s, arm, 10)
    assert sum(p.numel() for p in model.encoder.parameters()) == 664_833
    assert sum(p.numel() for p in model.decoder.parameters()) == 266_754
    assert (s.layout_transitions, s.layout_steps, s.layout_batch) == ("rollout", (50_000, 50_000), 128)


def test_the_paper_preset_takes_a_step() -> None:
    """At the paper's width, with rollouts, on a batch of four."""
    arm, s = read_arm("paper", "tree")
    run = Trainer(arm, s, tiny.layouts(), 0, 10, torch.device("cpu"))
    row = run.loss(run.frames[:4])
    row["loss"].backward()
    assert row["loss"].isfinite()
