"""The trainer of the terrain networks: arms, golden losses, resuming, snapshots, and the stages around it."""

from pathlib import Path

import pytest
import torch

from papers.perturbed_optimizers import evaluate
from papers.perturbed_optimizers.settings import PARAMS
from papers.perturbed_optimizers.terrain_training import predicted_costs, read_arm, train
from papers.perturbed_optimizers.train import curve
from shared.data.batches import seed_step
from shared.errors import UserError
from shared.files import read_json
from shared.results import Metrics
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder
from shared.training.loop import fit
from tests.papers.perturbed_optimizers import golden, tiny

ALL = ("fenchel_young", "black_box", "squared", "squared_two_batches", "direct", "cost_regression")


@pytest.mark.parametrize("name", ALL)
def test_some_steps_lower_the_loss_of_a_fixed_batch(name: str) -> None:
    """Sixty steps on one batch, each with noise of its own: the mean of the last ten against that of the first ten."""
    run = tiny.trainer(name, terrain_samples=32, terrain_epsilon=0.5, terrain_learning_rate=3e-3)
    run.steps = 10**6  # a constant learning rate after the warm-up
    found = []
    for k in range(60):
        seed_step(0, k)
        found.append(float(run.step(40)["loss"]))
    assert sum(found[-10:]) < sum(found[:10])


@pytest.mark.parametrize("name", golden.LOSSES)
def test_golden_losses(name: str) -> None:
    expected = read_json(golden.FILE)
    got = golden.losses(name)
    assert len(got) == 10
    assert got == pytest.approx(expected["losses"][name], rel=expected["relative_tolerance"])


def test_arms_of_a_seed_begin_alike_and_see_the_same_maps() -> None:
    first, second = tiny.trainer("fenchel_young"), tiny.trainer("black_box")
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.step(0)["mean_cost"] == second.step(0)["mean_cost"]
    other = tiny.trainer("fenchel_young", seed=1)
    assert not torch.equal(next(first.model.parameters()), next(other.model.parameters()))


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Two epochs, with a stop after three of the four steps, and without."""
    whole, stopped = tiny.trainer(terrain_epochs=2), tiny.trainer(terrain_epochs=2)
    with StateFolder("whole", "key", tmp_path) as folder:
        record = train(whole, folder, "whole")
    parts = {"model": stopped.model, "optimizer": stopped.optimizer, "snapshots": stopped.snapshots}

    def broken(k: int) -> dict[str, torch.Tensor | float]:
        if k == 3:
            raise KeyboardInterrupt
        return stopped.step(k)

    with StateFolder("stopped", "key", tmp_path) as folder:
        with pytest.raises(KeyboardInterrupt):
            fit(broken, steps=4, seed=0, state=parts, folder=folder, record_every=2, save_seconds=-1.0)
        again = tiny.trainer(terrain_epochs=2)
        resumed = train(again, folder, "again")
    assert resumed.interruptions == 1
    assert resumed.rows == record.rows
    assert len(again.snapshots.weights) == 2
    for a, b in zip(whole.snapshots.weights, again.snapshots.weights, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_snapshots_are_the_weights_after_each_epoch(tmp_path: Path) -> None:
    run = tiny.trainer(terrain_epochs=3)
    with StateFolder("run", "key", tmp_path) as folder:
        record = train(run, folder, "run")
    assert len(run.snapshots.weights) == 3
    last = run.snapshots.weights[-1]
    assert all(torch.equal(last[name], value) for name, value in run.model.state_dict().items())
    rows = curve(run, record.rows, tiny.maps(10, seed=1))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    # M = 2 samples of 40 maps an epoch
    assert [row["solver_calls"] for row in rows] == [80, 160, 240]
    assert all(0 <= row["optimal_path_rate"] <= 1 and 0 < row["cost_ratio"] <= 1 for row in rows)


def test_predicted_costs_do_not_depend_on_the_batch() -> None:
    run = tiny.trainer(terrain_network="resnet")
    pixels = tiny.maps().pixels[:6]
    whole = predicted_costs(run.model, pixels)
    parts = torch.cat([predicted_costs(run.model, part) for part in pixels.split(2)])
    torch.testing.assert_close(whole, parts, rtol=0.02, atol=0.02)  # bfloat16
    assert (whole >= 0.1 - 1e-6).all()


# --- arms ---


def test_every_arm_of_the_file_can_be_read() -> None:
    document = read_yaml(PARAMS)
    assert set(document["arms_to_run"]) == set(document["arms"])
    for name in document["arms"]:
        arm, s = read_arm("laptop", name)
        whole = read_arm("laptop", "fenchel_young")[1]
        assert (s.maps < whole.maps) == arm.short
        tiny.trainer(arm.loss, terrain_epsilon=s.terrain_epsilon, terrain_samples=s.terrain_samples)


def test_an_arm_takes_what_it_does_not_name_from_the_preset() -> None:
    _, s = read_arm("laptop", "squared")
    _, ours = read_arm("laptop", "fenchel_young")
    assert s.terrain_samples != ours.terrain_samples
    assert (s.maps, s.terrain_epochs) == (ours.maps, ours.terrain_epochs)
    assert read_arm("smoke", "short")[1].maps == read_arm("smoke", "fenchel_young")[1].maps


def test_an_unknown_arm_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm named 'perceptron'; there are: fenchel_young"):
        read_arm("laptop", "perceptron")
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("strength: 10.0", "strength: -1.0"))
    with pytest.raises(UserError, match="arms: black_box"):
        read_arm("laptop", "black_box", path)


# --- evaluation ---


def test_true_costs_score_perfectly() -> None:
    maps, metrics = tiny.maps(), Metrics()
    evaluate.measure(maps.costs * 3, maps, "oracle", "seed0", metrics)
    assert metrics["optimal_path_rate"]["oracle"]["seed0"] == 1
    assert metrics["cost_ratio"]["oracle"]["seed0"] == 1
    assert metrics["cost_rank_correlation"]["oracle"]["seed0"] == pytest.approx(1)


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    learnt, true = torch.rand(5, 12, 12), tiny.maps().costs[:5]
    expected = spearmanr(learnt.flatten(), true.flatten()).statistic
    assert evaluate.rank_correlation(learnt, true) == pytest.approx(expected)


def test_learnt_costs_by_kind_are_in_units_of_their_mean() -> None:
    maps = tiny.maps()
    for row in evaluate.learnt_by_kind(maps.costs * 7, maps, 0):
        assert row["learnt_cost"] == pytest.approx(row["true_cost"], rel=1e-5)
        assert row["spread"] == pytest.approx(0, abs=1e-5)


def test_thresholded_paths_need_not_be_paths() -> None:
    maps, metrics = tiny.maps(), Metrics()
    certain = torch.where(maps.paths == 1, 0.1, 5.0)
    evaluate.measure_thresholded(certain, maps, "certain", "seed0", metrics)
    evaluate.measure_thresholded(torch.full_like(certain, 5.0), maps, "never", "seed0", metrics)
    assert metrics["thresholded_optimal_path_rate"] == {"certain": {"seed0": 1.0}, "never": {"seed0": 0.0}}
    assert metrics["thresholded_valid_rate"]["never"]["seed0"] == 0
