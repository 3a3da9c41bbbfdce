"""Going on after a divergence: what is put back, what is new, and that an interrupted run has the same bits."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from papers.jem.buffer import ReplayBuffer, uniform_start
from papers.jem.divergence import Recovery
from papers.jem.energy import joint_loss
from papers.jem.sgld import Langevin, chain_generator, run_chains
from shared.training.checkpoint import StateFolder
from shared.training.loop import Divergence, Record, fit

STEPS = 24


class Killed(Exception):
    """Stands for a signal."""


class Run:
    """JEM on points, with Adam and a buffer; the loss of the steps in `bad` is what that dictionary says."""

    def __init__(self, bad: dict[int, float] | None = None, **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2, betas=(0.9, 0.999))
        self.buffer = ReplayBuffer(16, uniform_start((2,)))
        self.bad = bad or {}
        self.parts = {"model": self.model, "optimizer": self.optimizer, "buffer": self.buffer}
        self.recovery = Recovery(self.parts, seed=3, **{"every": 4, **options})
        self.seeds: list[int] = []
        self.before: dict[int, dict] = {}  # state before each step

    def state(self) -> dict:
        return copy.deepcopy({name: part.state_dict() for name, part in self.parts.items()})

    def step(self, k: int) -> dict[str, Tensor | float]:
        self.before[k] = self.state()
        self.seeds.append(self.recovery.sampler_seed)
        generator = chain_generator(self.recovery.sampler_seed, k)
        x, y = torch.randn(4, 2), torch.randint(2, (4,))
        index, start = self.buffer.draw(4, generator=generator)
        samples = run_chains(self.model, start, Langevin(2), generator=generator)
        self.buffer.write(index, samples)
        logits = self.model(torch.cat([x, samples]))
        losses = joint_loss(logits[:4], y, logits[:4], logits[4:])
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        if k in self.bad:
            with torch.no_grad():
                self.model[0].weight.fill_(math.nan)
        loss = losses.total.detach() if k not in self.bad else torch.tensor(self.bad[k])
        return {"loss": loss, "gap": losses.contrast.detach()}

    def fit(self, place: Path, step: Callable[[int], dict] | None = None) -> Record:
        with StateFolder("jem", "test", place) as folder:
            return fit(
                self.recovery.watching(step or self.step),
                steps=STEPS,
                seed=3,
                state=self.parts | {"recovery": self.recovery},
                folder=folder,
                guard=self.recovery.guard,
                record_every=6,
                save_seconds=-1.0,
            )


def equal(a: object, b: object) -> bool:
    """The same bits, through dictionaries and lists."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_healthy_run_is_not_touched(tmp_path: Path):
    run = Run()
    record = run.fit(tmp_path)
    plain = Run()
    with StateFolder("jem", "plain", tmp_path) as folder:
        expected = fit(plain.step, steps=STEPS, seed=3, state={}, folder=folder, record_every=6)
    assert equal(run.state(), plain.state())
    assert run.recovery.events == []
    assert run.recovery.rate_factor == 1
    assert set(run.seeds) == {3}
    losses = [[row["loss"] for row in each.rows] for each in (record, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # summed in float64 and in float32
    assert all(row["undone"] == 0 for row in record.rows)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e9, -1e9])
def test_a_wrong_loss_brings_every_bit_of_the_trusted_state_back(value: float, tmp_path: Path):
    """Copies before the steps 0, 4 and 8; at step 9 the one of step 8 is not trusted yet."""
    run = Run({9: value})
    run.fit(tmp_path)
    assert equal(run.before[10], run.before[4])
    assert not equal(run.before[9], run.before[4])
    (event,) = run.recovery.events
    assert (event.step, event.back_to) == (9, 4)
    assert event.seed_before == 3
    assert event.seed_after != 3
    assert run.seeds == [3] * 10 + [event.seed_after] * (STEPS - 10)
    assert "loss" in event.cause
    assert all(p.isfinite().all() for p in run.model.parameters())


def test_any_scalar_that_is_not_finite_counts(tmp_path: Path):
    run = Run()
    run.fit(tmp_path, lambda k: run.step(k) | ({"gap": math.nan} if k == 5 else {}))
    assert run.recovery.events[0].cause == "gap is not finite"


def test_the_same_copy_serves_twice(tmp_path: Path):
    """An optimiser that was given the copy itself would have changed it."""
    run = Run({9: math.nan, 11: 1e9})
    run.fit(tmp_path)
    assert [event.back_to for event in run.recovery.events] == [4, 4]
    assert equal(run.before[12], run.before[4])
    assert len({event.seed_after for event in run.recovery.events} | {3}) == 3
    assert run.recovery.events[0].seed_after == run.recovery.events[1].seed_before


def test_before_any_further_copy_is_trusted_it_goes_back_to_the_beginning(tmp_path: Path):
    run = Run({5: math.nan})
    run.fit(tmp_path)
    assert run.recovery.events[0].back_to == 0
    assert equal(run.before[6], run.before[0])


def test_the_learning_rate_can_fall_with_every_return(tmp_path: Path):
    run = Run({9: math.nan, 20: math.nan}, factor=0.5)
    run.fit(tmp_path)
    assert run.recovery.rate_factor == 0.25


def test_the_record_stays_finite_and_counts(tmp_path: Path):
    record = Run({9: math.nan, 20: 1e9}).fit(tmp_path)
    assert [row["undone"] * 6 for row in record.rows] == pytest.approx([0, 1, 0, 1])
    assert all(math.isfinite(value) for row in record.rows for value in row.values())
    assert max(abs(row["loss"]) for row in record.rows) < 100


def test_a_run_is_given_up_in_the_end(tmp_path: Path):
    run = Run(dict.fromkeys(range(8, STEPS), -1e9), most=3)
    with pytest.raises(Divergence, match=r"diverged at step 11: absolute_loss = 1e\+09") as caught:
        run.fit(tmp_path)
    assert len(run.recovery.events) == 3
    assert caught.value.record.rows[0]["step"] == 6


def test_a_run_that_begins_wrong_is_given_up_at_once(tmp_path: Path):
    run = Run({0: math.nan})
    with pytest.raises(Divergence, match="step 0"):
        run.fit(tmp_path)
    assert run.recovery.events == []


@pytest.mark.parametrize("killed_at", [3, 9, 10, 12, 21])
def test_a_resumed_run_returns_to_the_same_bits(killed_at: int, tmp_path: Path):
    """Killed before, at and after a return: copies, seed and events come back from the disk."""
    bad = {9: math.nan, 11: 1e9, 20: math.inf}
    whole = Run(bad)
    expected = whole.fit(tmp_path / "whole")

    def until_killed(k: int) -> dict[str, Tensor | float]:
        if k == killed_at:
            raise Killed
        return first.step(k)

    first = Run(bad)
    with pytest.raises(Killed):
        first.fit(tmp_path / "killed", until_killed)
    second = Run(bad)
    record = second.fit(tmp_path / "killed")
    assert record.interruptions == 1
    assert second.seeds == whole.seeds[killed_at:]
    assert equal(second.state(), whole.state())
    assert second.recovery.events == whole.recovery.events
    assert len(whole.recovery.events) == 3
    assert record.rows == expected.rows


@pytest.mark.parametrize("option", ["bound", "every", "factor"])
def test_wrong_settings_are_refused(option: str):
    with pytest.raises(ValueError, match="positive"):
        Recovery({}, seed=0, **{option: 0})
