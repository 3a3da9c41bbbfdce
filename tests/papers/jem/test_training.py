"""The trainer on images: golden losses, resuming, recovery, arms, rates, averages, and the choice of weights."""

import itertools
from pathlib import Path

import pytest
import torch

from papers.jem import train as train_stage
from papers.jem.settings import PARAMS, load
from papers.jem.training import Average, Best, judged, learning_rate, network, read_arm
from shared.data.batches import seed_step
from shared.errors import UserError
from shared.files import read_json
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder
from shared.training.loop import fit
from tests.papers.jem import golden, tiny


@pytest.mark.parametrize("name", golden.ARMS)
def test_golden_losses(name: str) -> None:
    expected = read_json(golden.FILE)
    got = golden.losses(name)
    assert len(got) == 10
    tolerance = {"rel": expected["relative_tolerance"], "abs": expected["absolute_tolerance"]}
    assert got == pytest.approx(expected["losses"][name], **tolerance)


@pytest.mark.parametrize(
    "name", [name for name in golden.ARMS if name != "conditional"]
)  # -log p(x|y) does not ask for it
def test_some_steps_lower_the_cross_entropy_of_a_fixed_batch(name: str) -> None:
    run = tiny.trainer(arm=golden.ARMS[name], steps=1000, data_noise=0.0)
    found = []
    for k in range(120):
        seed_step(0, k)
        found.append(float(run.step(100)["cross_entropy_nats"]))
    assert sum(found[-10:]) < 0.9 * sum(found[:10])


def test_arms_of_a_seed_begin_alike_and_see_the_same_images() -> None:
    first, second = tiny.trainer(), tiny.trainer(arm={"generative_weight": 0.0})
    assert torch.equal(first.vector, second.vector)
    losses = []
    for run in (first, second):
        seed_step(0, 0)
        losses.append(run.losses(0).cross_entropy_nats.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # bfloat16, in batches of other sizes
    assert not torch.equal(first.vector, tiny.trainer(seed=1).vector)


@pytest.mark.parametrize("arm", [{}, {"generative_weight": 0.0}])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, arm: dict) -> None:
    """Four steps, with a stop after the second one and without: weights, average, buffer, best and record."""
    whole, stopped, again = (tiny.trainer(arm=arm, steps=4) for _ in range(3))
    with StateFolder("whole", "key", tmp_path) as folder:
        record = train_stage.train(whole, folder, "whole")
    watched = stopped.recovery.watching(stopped.step)

    def broken(k: int) -> dict[str, torch.Tensor | float]:
        if k == 2:
            raise KeyboardInterrupt
        return dict(watched(k))

    with StateFolder("stopped", "key", tmp_path) as folder:
        state, guard = stopped.state(), stopped.recovery.guard
        with pytest.raises(KeyboardInterrupt):
            fit(broken, steps=4, seed=0, state=state, folder=folder, guard=guard, record_every=1, save_seconds=-1.0)
        resumed = train_stage.train(again, folder, "again")
    assert resumed.interruptions == 1
    assert resumed.rows == record.rows
    assert torch.equal(again.vector, whole.vector)
    assert torch.equal(again.average.vector, whole.average.vector)
    assert torch.equal(again.buffer.states, whole.buffer.states)
    assert again.best.rows == whole.best.rows
    assert torch.equal(again.best.weights, whole.best.weights)


def test_a_divergence_is_undone_and_recorded(tmp_path: Path) -> None:
    """A spoilt loss in step 3: the run goes back, takes another sampler seed, and goes on."""
    run = tiny.trainer(steps=6)
    own = run.step

    def spoilt(k: int) -> dict[str, torch.Tensor | float]:
        row = own(k)
        return {**row, "loss": float("nan")} if k == 3 else row

    run.step = spoilt  # type: ignore[method-assign]
    with StateFolder("run", "key", tmp_path) as folder:
        record = train_stage.train(run, folder, "run")
    assert len(record.rows) == 6
    assert [event.step for event in run.recovery.events] == [3]
    assert run.recovery.sampler_seed != run.seed
    assert torch.isfinite(run.vector).all()


def test_the_average_of_equal_weights_is_these_weights_and_of_two_in_between() -> None:
    first, second = torch.zeros(3), torch.ones(3)
    average = Average(torch.full((3,), 9.0), 0.9)
    average.update(first)
    torch.testing.assert_close(average.vector, first)  # the first value has no weight of its own
    average.update(second)
    # weights 0.9 * 0.1 and 0.1 over their sum
    torch.testing.assert_close(average.vector, torch.full((3,), 0.1 / 0.19))
    without = Average(first, 0.0)
    without.update(second)
    torch.testing.assert_close(without.vector, second)


def test_the_best_weights_are_those_with_the_least_nll() -> None:
    best = Best()
    for step, value in ((1, 0.9), (2, 0.5), (3, 0.7)):
        best.offer(torch.full((2,), float(step)), {"step": step, "nll_nats": value})
    assert best.step == 2
    assert best.weights is not None
    assert best.weights.tolist() == [2.0, 2.0]
    assert len(best.rows) == 3


def test_judging_leaves_the_weights_alone() -> None:
    run = tiny.trainer()
    before = run.vector.detach().clone()
    other = judged(run.model, run.vector, torch.zeros_like(before), run.data)
    assert torch.equal(run.vector, before)
    assert other["nll_nats"] == pytest.approx(torch.log(torch.tensor(10.0)).item(), rel=1e-5)


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    s = tiny.settings(steps=1000, learning_rate=1.0)
    rates = [learning_rate(k, s) for k in range(1000)]
    assert rates[0] == pytest.approx(1 / 125)
    assert rates[124:401] == pytest.approx([1.0] * 277)
    assert all(a > b for a, b in itertools.pairwise(rates[400:]))
    assert learning_rate(1000, s) == 0


def test_the_rate_of_the_paper() -> None:
    """It starts at nothing, is whole after 1,000 steps, and falls to 0.3 of itself after each third."""
    s = tiny.settings(steps=117_000, learning_rate=1e-4, rate_schedule="stepped")
    rates = [learning_rate(k, s) / 1e-4 for k in (0, 500, 1000, 38_999, 39_000, 77_999, 78_000, 116_999)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.3, 0.3, 0.09, 0.09])


def test_every_arm_of_the_file_can_be_read_and_built() -> None:
    for name in read_yaml(PARAMS)["arms"]:
        arm, s = read_arm("laptop", name)
        assert sum(p.numel() for p in network(s, arm).parameters()) == 177_962
        tiny.trainer(arm={key: value for key, value in read_yaml(PARAMS)["arms"][name].items() if key != "short"})


def test_parameter_counts_of_the_paper_preset() -> None:
    """On the meta device: nothing is allocated."""
    arm, s = read_arm("paper", "jem")
    with torch.device("meta"):
        assert sum(p.numel() for p in network(s, arm).parameters()) == pytest.approx(36.47e6, rel=1e-3)


def test_unknown_and_bad_arms_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm named 'gan'; there are: jem"):
        read_arm("laptop", "gan")
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("network: small", "network: huge"))
    with pytest.raises(UserError, match="`network` is `small`"):
        load("laptop", path)
