"""The loop: equal bits after interruptions, exact means in the record, a guard that keeps the last good state."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.training import loop
from shared.training.checkpoint import StateFolder
from shared.training.loop import Divergence, Record, fit, gradient_step, parameters_average
from tests.shared.hardship import no_file_above

ALWAYS = -1.0  # seconds between saves: after every step


class Run:
    """A small regression on noise: dropout and random data, so that wrong seeds would show."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adamax(self.model.parameters(), 0.05)
        self.calls: list[int] = []

    def step(self, k: int) -> dict[str, Tensor | float]:
        self.calls.append(k)
        x = torch.randn(16, 4)
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        norm = gradient_step(loss, self.optimizer)["gradient_norm"]
        return {"loss": loss.detach(), "gradient_norm": norm, "k": float(k)}

    def fit(self, root: Path, steps: int, save_seconds: float = 1e9, key: str = "key", **options: Any) -> Record:
        with StateFolder("run", key, root) as folder:
            return fit(
                self.step, steps=steps, seed=self.seed, state={"model": self.model, "optimizer": self.optimizer},
                folder=folder, save_seconds=save_seconds, **options,
            )  # fmt: skip

    def weights(self) -> list[Tensor]:
        return [value.clone() for value in self.model.state_dict().values()]


class Stop(Exception):
    """Stands for a kill: raised inside a step, so the loop has no chance to tidy up."""


def stop_at(run: Run, k: int) -> None:
    step = run.step

    def stopping(j: int) -> dict[str, Tensor | float]:
        if j == k:
            raise Stop
        return step(j)

    run.step = stopping  # type: ignore[method-assign]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("record_every", [1, 3, 50])
def test_two_interruptions_end_in_the_same_bits(tmp_path: Path, record_every: int) -> None:
    whole = Run()
    options: dict[str, Any] = {"record_every": record_every, "largest": ("gradient_norm", "loss")}
    expected = whole.fit(tmp_path / "a", 10, **options)
    attempts = [Run(), Run(), Run()]
    for run, k in zip(attempts, (4, 8), strict=False):
        stop_at(run, k)
        with pytest.raises(Stop):
            run.fit(tmp_path / "b", 10, ALWAYS, **options)
    got = attempts[2].fit(tmp_path / "b", 10, ALWAYS, **options)
    assert [run.calls for run in attempts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert same(attempts[2].weights(), whole.weights())
    assert got.rows == expected.rows
    assert (got.interruptions, expected.interruptions) == (2, 0)
    assert got.seconds >= got.earlier_seconds > 0
    assert expected.earlier_seconds == 0


def test_another_seed_or_key_starts_anew(tmp_path: Path) -> None:
    first = Run()
    stop_at(first, 3)
    with pytest.raises(Stop):
        first.fit(tmp_path, 5, ALWAYS)
    fresh = Run()
    assert fresh.fit(tmp_path, 5, key="other").interruptions == 0
    assert fresh.calls == [0, 1, 2, 3, 4]
    assert not same(fresh.weights(), _finished(Run(1), tmp_path / "c"))


def _finished(run: Run, root: Path) -> list[Tensor]:
    run.fit(root, 5)
    return run.weights()


def test_saving_has_no_influence(tmp_path: Path) -> None:
    often, never = Run(), Run()
    assert often.fit(tmp_path / "a", 6, ALWAYS).rows == never.fit(tmp_path / "b", 6).rows
    assert same(often.weights(), never.weights())


def test_rows_are_means_and_the_last_may_be_short(tmp_path: Path) -> None:
    rows = Run().fit(tmp_path, 7, record_every=3).rows
    assert [(row["step"], row["k"]) for row in rows] == [(3, 1), (6, 4), (7, 6)]


def test_random_numbers_of_a_step_depend_on_seed_and_step(tmp_path: Path) -> None:
    drawn: list[float] = []

    def step(k: int) -> dict[str, float]:
        drawn.append(torch.rand(()).item())
        torch.rand(k + 1)  # other amounts in other steps
        return {"loss": 0.0}

    for steps in (2, 4):
        torch.rand(5)
        with StateFolder("run", str(steps), tmp_path) as folder:
            fit(step, steps=steps, seed=7, state={}, folder=folder)
    assert drawn[:2] == drawn[2:4]
    assert len(set(drawn)) == 4


def _poisoned(value: float, at: int) -> tuple[Run, Callable[[int], dict[str, Tensor | float]]]:
    run = Run()
    step = run.step

    def poisoned(k: int) -> dict[str, Tensor | float]:
        row = step(k)
        return {**row, "loss": torch.tensor(value)} if k == at else row

    run.step = poisoned  # type: ignore[method-assign]
    return run, step


@pytest.mark.parametrize(
    ("value", "cause"),
    [(math.nan, "nan is not finite"), (math.inf, "inf is not finite"), (2e6, r"2e\+06 \(bound 1e\+06\)")],
)
def test_divergence_names_step_and_cause_and_keeps_the_state(tmp_path: Path, value: float, cause: str) -> None:
    run, _ = _poisoned(value, at=4)
    with pytest.raises(Divergence, match=f"diverged at step 4: loss = {cause}") as caught:
        run.fit(tmp_path, 9, ALWAYS)
    assert caught.value.step == 4
    with StateFolder("run", "key", tmp_path) as folder:
        state = folder.load()
    assert state is not None
    assert state["step"] == 4, "the state from before the bad step"


def test_a_value_at_the_bound_passes(tmp_path: Path) -> None:
    run, _ = _poisoned(1e6, at=1)
    assert len(run.fit(tmp_path, 2).rows) == 1


def test_nothing_is_saved_unchecked(tmp_path: Path) -> None:
    """With a rare guard the save looks for itself."""
    run, _ = _poisoned(math.nan, at=2)
    with pytest.raises(Divergence, match="step 2"):
        run.fit(tmp_path, 9, ALWAYS, check_every=100)
    with StateFolder("run", "key", tmp_path) as folder:
        assert folder.load()["step"] == 2  # type: ignore[index]


def test_the_last_step_is_always_checked(tmp_path: Path) -> None:
    run, _ = _poisoned(math.nan, at=4)
    with pytest.raises(Divergence, match="step 4"):
        run.fit(tmp_path, 5, check_every=100)


def test_full_disk_stops_in_one_line_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run()
    whole.fit(tmp_path / "a", 6)
    run, save, saves = Run(), StateFolder.save, []

    def filling(folder: StateFolder, state: dict[str, Any]) -> None:
        saves.append(state["step"])
        with no_file_above(100 if len(saves) == 4 else 10**9):
            save(folder, state)

    monkeypatch.setattr(StateFolder, "save", filling)
    with pytest.raises(UserError, match=r"cannot write .*state.pt"):
        run.fit(tmp_path / "b", 6, ALWAYS)
    assert saves == [1, 2, 3, 4]
    again = Run()
    assert again.fit(tmp_path / "b", 6).interruptions == 1
    assert again.calls == [3, 4, 5]
    assert same(again.weights(), whole.weights())


# --- one gradient step ---


def parabola() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    return w, torch.optim.SGD([w], 0.1)


def test_gradient_step_reports_the_norm() -> None:
    w, optimizer = parabola()
    result = gradient_step(w.square().sum(), optimizer)
    assert {name: value.item() for name, value in result.items()} == {"gradient_norm": 10, "clipped": 0, "skipped": 0}
    torch.testing.assert_close(w.data, torch.tensor([2.4, 3.2]))


def test_clipping_scales_to_the_norm() -> None:
    w, optimizer = parabola()
    result = gradient_step(w.square().sum(), optimizer, clip_norm=5)
    assert (result["gradient_norm"].item(), result["clipped"].item()) == (10, 1)
    torch.testing.assert_close(w.data, torch.tensor([2.7, 3.6]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("factor", [1.0, math.nan])
def test_skipping_leaves_the_weights(factor: float) -> None:
    w, optimizer = parabola()
    result = gradient_step(factor * w.square().sum(), optimizer, skip_norm=9)
    assert result["skipped"].item() == 1
    assert w.data.tolist() == [3, 4]
    assert gradient_step(w.square().sum(), optimizer, skip_norm=11)["skipped"].item() == 0


def test_average_of_the_weights() -> None:
    model = nn.BatchNorm1d(2)
    average = parameters_average(model, 0.9)
    values = []
    for k in range(4):
        with torch.no_grad():
            model.weight.fill_(k)
            model.running_mean.fill_(-k)
        average.update_parameters(model)
        values.append((average.module.weight[0].item(), average.module.running_mean[0].item()))
    expected = [0.0, 0.1, 0.9 * 0.1 + 0.2, 0.9 * (0.9 * 0.1 + 0.2) + 0.3]  # the first update copies
    assert [v[0] for v in values] == pytest.approx(expected)
    assert [v[1] for v in values] == pytest.approx([-v for v in expected])


def test_time_of_earlier_attempts_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    run = Run()
    stop_at(run, 2)
    with pytest.raises(Stop):
        run.fit(tmp_path, 4, ALWAYS)
    record = Run().fit(tmp_path, 4, ALWAYS)
    assert 0 < record.earlier_seconds < record.seconds
