"""The study of divergences: what a cell trains with, and that a run that diverges is told and not repaired."""

import math

import pytest
import torch

from papers.jem import stability
from papers.jem.settings import load
from papers.jem.sgld import chain_generator, largest_curvature
from tests.papers.jem import tiny


def test_a_cell_is_the_preset_but_for_its_choices() -> None:
    s = stability.settings_of("laptop", stability.Cell(4.0, 5, 0.0, 1))
    whole = load("laptop")
    assert s.learning_rate == pytest.approx(4 * whole.learning_rate)
    assert (s.chain_steps, s.data_noise, s.steps) == (5, 0.0, stability.steps_of(whole))
    assert (s.batch, s.buffer, s.network) == (whole.batch, whole.buffer, whole.network)


def test_the_plan_has_every_cell_and_remedy_for_every_seed_long_chains_first() -> None:
    cells = stability.plan([0, 1])
    grid = len(stability.RATES) * len(stability.CHAIN_STEPS) * len(stability.NOISES)
    names = {cell.arm for cell in cells}
    assert len(names) == grid + len(stability.REMEDIED) * len(stability.REMEDIES)
    assert len(cells) == len(set(cells)) == 2 * len(names)
    lengths = [cell.chain_steps for cell in cells]
    assert lengths == sorted(lengths, reverse=True)
    plain = {cell._replace(remedy="") for cell in cells if cell.remedy}
    assert plain <= set(cells)  # every remedy has its run without


def test_a_remedy_is_trained_with(monkeypatch, tmp_path) -> None:
    arms = []
    original = stability.Trainer

    def remember(arm, *rest):
        arms.append(arm)
        return original(arm, *rest)

    monkeypatch.setattr(stability, "load_data", lambda *_, **__: tiny.data())
    monkeypatch.setattr(stability, "StateFolder", _folders(tmp_path))
    monkeypatch.setattr(stability, "Trainer", remember)
    for remedy in ("energy_l2", ""):
        stability.one_run("smoke", stability.Cell(1.0, 1, 1.0, 0, remedy))
    assert [arm.energy_l2 for arm in arms] == [0.1, 0.0]


def test_the_curvature_is_that_of_the_last_samples_times_the_step() -> None:
    run = tiny.trainer()
    run.step(0)
    index = run.buffer.recent
    assert len(index) == run.settings.batch
    untouched = torch.ones(len(run.buffer), dtype=torch.bool)
    untouched[index] = False
    run.buffer.states[untouched] = 1e3  # where the last step was not does not count
    got = stability.curvature_times_step(run, 3)
    generator = chain_generator(run.seed, 2**29 + 3)
    states = run.buffer.states[index[: stability.SAMPLES]]
    expected = largest_curvature(run.model, states, iterations=stability.ITERATIONS, generator=generator)
    assert got == pytest.approx(run.langevin.step_size * expected.amax().item())


def test_rows_end_before_the_first_curvature_that_is_no_number() -> None:
    rows = [{"step_times_curvature": value} for value in (0.1, 1.9, math.nan, 3.0)]
    assert stability.finite(rows) == rows[:2]


def test_a_run_that_diverges_is_told_with_its_step(tmp_path, monkeypatch) -> None:
    """The second step's loss is spoilt; without recovery that is the end."""
    monkeypatch.setattr(stability, "load_data", lambda *_, **__: tiny.data())
    monkeypatch.setattr(stability, "StateFolder", _folders(tmp_path))
    own = stability.Trainer.step

    def spoilt(self: stability.Trainer, k: int) -> dict[str, torch.Tensor | float]:
        row = own(self, k)
        return {**row, "loss": float("inf")} if k == 1 else row

    cell = stability.Cell(1.0, 1, 1.0, 0)
    healthy = stability.one_run("smoke", cell)
    assert healthy["diverged_at"] is None
    assert len(healthy["curvatures"]) == stability.steps_of(load("smoke"))
    monkeypatch.setattr(stability.Trainer, "step", spoilt)
    assert stability.one_run("smoke", cell._replace(seed=1))["diverged_at"] == 1


def _folders(root):
    """State folders below `root`."""
    original = stability.StateFolder

    def folder(name: str, key: str):
        return original(name, key, root)

    return folder
