"""The rows that the loop records: peaks of single steps, and the curve of a run that diverged."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.training.checkpoint import StateFolder
from shared.training.loop import Divergence, Record, fit

ALWAYS = -1.0  # seconds between saves: after every step


class Stop(Exception):
    """Stands for a kill: raised inside a step, so the loop has no chance to tidy up."""


class Given:
    """Steps whose scalars are given."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def fit(self, root: Path, stop: int | None = None, **options: Any) -> Record:
        def step(k: int) -> dict[str, Tensor | float]:
            if k == stop:
                raise Stop
            return {"loss": torch.tensor(self.losses[k]), "minus": -self.losses[k]}

        with StateFolder("run", "key", root) as folder:
            return fit(step, steps=len(self.losses), seed=0, state={}, folder=folder, **options)


def test_the_largest_value_of_a_row_is_that_of_its_worst_step(tmp_path: Path) -> None:
    run = Given([1.0, 7.0, 1.0, -2.0, -3.0, -4.0, 0.1])
    rows = run.fit(tmp_path, record_every=3, largest=("loss", "minus")).rows
    assert [row["loss"] for row in rows] == pytest.approx([3.0, -3.0, 0.1])
    assert [row["largest_loss"] for row in rows] == pytest.approx([7.0, -2.0, 0.1])
    assert [row["largest_minus"] for row in rows] == [-1.0, 4.0, -0.1]


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_peak_before_an_interruption_is_kept(tmp_path: Path, stop: int) -> None:
    """The peak lies in step 1 of the first row: a loop that forgot it would show another."""
    run = Given([1.0, 7.0, 1.0, 2.0, 1.0, 2.0])
    whole = run.fit(tmp_path / "a", record_every=4, largest=("loss",))
    with pytest.raises(Stop):
        run.fit(tmp_path / "b", stop, record_every=4, largest=("loss",), save_seconds=ALWAYS)
    resumed = run.fit(tmp_path / "b", record_every=4, largest=("loss",), save_seconds=ALWAYS)
    assert resumed.rows == whole.rows
    assert [row["largest_loss"] for row in whole.rows] == [7.0, 2.0]
    assert resumed.interruptions == 1


def test_rows_have_no_peaks_that_nobody_asked_for(tmp_path: Path) -> None:
    assert set(Given([1.0]).fit(tmp_path).rows[0]) == {"step", "loss", "minus"}


@pytest.mark.parametrize(("bad", "steps"), [(0, []), (1, [1]), (3, [3]), (5, [3, 5]), (6, [3, 6])])
def test_a_diverged_run_keeps_its_curve(tmp_path: Path, bad: int, steps: list[int]) -> None:
    """Closed rows, and a last one of the steps since; the refused step is in none of them."""
    losses = [1.0, 5.0, 3.0, 2.0, 4.0, 9.0, 1.0, 1.0]
    losses[bad] = math.nan
    with pytest.raises(Divergence) as caught:
        Given(losses).fit(tmp_path, record_every=3, largest=("loss",))
    rows = caught.value.record.rows
    assert [row["step"] for row in rows] == steps
    if bad == 5:
        assert (rows[-1]["loss"], rows[-1]["largest_loss"]) == (3.0, 4.0)
    assert caught.value.record.seconds > 0


def test_the_curve_of_a_resumed_run_that_diverges_is_whole(tmp_path: Path) -> None:
    run = Given([1.0, 5.0, 3.0, 2.0, math.inf])
    with pytest.raises(Stop):
        run.fit(tmp_path, 3, record_every=2, largest=("loss",), save_seconds=ALWAYS)
    with pytest.raises(Divergence) as caught:
        run.fit(tmp_path, record_every=2, largest=("loss",))
    assert [row["largest_loss"] for row in caught.value.record.rows] == [5.0, 3.0]
    assert caught.value.record.interruptions == 1


def test_steps_that_were_not_looked_at_spoil_no_curve(tmp_path: Path) -> None:
    """With a rare guard the bad step may lie before the look that finds it."""
    with pytest.raises(Divergence, match="step 5") as caught:
        Given([1.0, 2.0, 1.0, 1.0, math.nan, math.nan]).fit(tmp_path, record_every=4, check_every=6)
    assert [row["step"] for row in caught.value.record.rows] == [4]
