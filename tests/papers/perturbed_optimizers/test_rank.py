"""The ranking stage: no leak from test rows, shared folds, verdicts, what is written, and finished jobs kept."""

import json
import math
import statistics

import pytest
import torch

from papers.perturbed_optimizers import cross_validation, rank, ranking_data
from papers.perturbed_optimizers.cross_validation import cross_validate
from papers.perturbed_optimizers.ranking_arms import ARMS
from papers.perturbed_optimizers.ranking_data import Table, folds
from shared.paths import ROOT
from shared.report.tables import read_csv

SAMPLES = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def iris() -> Table:
    return ranking_data.load("iris", folder=SAMPLES, allow_sample=True)


@pytest.fixture(scope="module")
def outcome(iris):
    return cross_validate(iris, 0, steps=20)


def test_every_arm_has_a_number_for_every_fold(outcome):
    assert set(outcome) == set(ARMS)
    for result in outcome.values():
        assert len(result["spearman"]) == len(result["kendall"]) == 10
        assert len(result["chosen"]) == 20
        assert all(-1 <= value <= 1 for value in result["spearman"] + result["kendall"])


def test_learning_beats_the_constant_ranking(outcome):
    assert statistics.mean(outcome["fy"]["spearman"]) > statistics.mean(outcome["constant"]["spearman"]) + 0.3


def test_ranknet_is_fenchel_young(outcome):
    assert outcome["ranknet"]["spearman"] == pytest.approx(outcome["fy"]["spearman"])
    assert outcome["ranknet"]["chosen"] == outcome["fy"]["chosen"]


def test_labels_of_test_rows_are_not_looked_at(iris, monkeypatch):
    """With other labels in the first fold's test rows, what is chosen and trained for that fold stays the same."""
    monkeypatch.setattr(cross_validation, "ARMS", {"least_squares": ARMS["least_squares"], "fy": ARMS["fy"]})
    trained = []
    train = cross_validation.train

    def recorded(*arguments, **options):
        trained.append(train(*arguments, **options))
        return trained[-1]

    monkeypatch.setattr(cross_validation, "train", recorded)
    _, rows = folds(50, 0)[0]
    features, ranks = iris.features.clone(), iris.ranks.clone()
    features[rows], ranks[rows] = 1e3, 4 - ranks[rows]
    cross_validate(iris, 0, steps=5)
    cross_validate(Table("iris", features, ranks, "sample"), 0, steps=5)
    for before, after in zip(trained[:2], trained[2:]):
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])


def test_the_corrected_error_is_larger_than_that_of_independent_folds():
    values = [0.1, 0.3, 0.2, 0.4]
    plain = statistics.stdev(values) / 2
    assert rank.corrected_standard_error(values, 5) == pytest.approx(plain * math.sqrt(1 + 4 / 4))


def test_verdicts():
    assert rank.verdict([0.1, 0.11, 0.09, 0.1], 5) == "win"
    assert rank.verdict([-0.1, -0.11, -0.09, -0.1], 5) == "loss"
    assert rank.verdict([0.1, -0.1, 0.2, -0.15], 5) == "tie"
    assert rank.verdict([0.0, 0.0], 5) == "tie"


def fabricated(values: dict[str, float]) -> cross_validation.Outcome:
    """An outcome of two folds with the given mean rho of some arms, and 0.5 of the others; tau is rho less 0.1."""
    return {
        arm: {
            "spearman": [values.get(arm, 0.5)] * 2,
            "kendall": [values.get(arm, 0.5) - 0.1] * 2,
            "chosen": [1.0] * 2,
            "seconds": [2.0],
        }
        for arm in ARMS
    }


def test_counts_of_tables():
    outcomes = {
        "iris": [fabricated({"fy": 0.6, "ranknet": 0.6})],
        "wine": [fabricated({"fy": 0.48})],
        "glass": [fabricated({"fy": 0.4})],
    }
    metrics: rank.Metrics = {}
    rank.by_seed(outcomes, metrics, 0)
    assert metrics["sets_better_than_least_squares"]["fy"]["seed100"] == 1
    assert metrics["sets_within_5_percent"]["fy"]["seed100"] == 2
    assert metrics["spearman"]["fy"]["seed100"] == pytest.approx((0.6 + 0.48 + 0.4) / 3)
    assert metrics["kendall"]["least_squares"]["seed100"] == pytest.approx(0.4)
    assert metrics["ranknet_spearman_gap"]["fy"]["seed100"] == pytest.approx(0.1)
    assert metrics["seconds"]["fy"]["seed100"] == 6
    rank.overall(outcomes, metrics)
    assert [metrics[f"{what}_least_squares"]["fy"]["exact"] for what in ("wins", "ties", "losses")] == [1, 0, 2]


def test_the_stage_writes_its_numbers_and_forgets_its_states(tmp_path, monkeypatch):
    monkeypatch.setattr(
        cross_validation.ranking_data.load, "__kwdefaults__", {"folder": SAMPLES, "allow_sample": False}
    )
    monkeypatch.setattr(cross_validation.StateFolder.__init__, "__defaults__", (tmp_path / "states", True))
    monkeypatch.setattr(rank, "runs", lambda *_: tmp_path / "runs")
    monkeypatch.setattr(rank, "parallel", lambda job, keys: [job(key) for key in keys])
    monkeypatch.setattr("sys.argv", ["rank", "--preset", "smoke"])
    done = []
    validate = cross_validation.cross_validate

    def counted(table, *arguments):
        done.append(table.name)
        return validate(table, *arguments)

    monkeypatch.setattr(cross_validation, "cross_validate", counted)
    first = cross_validation.job("smoke", ("iris", rank.FIRST_SEED))
    assert cross_validation.job("smoke", ("iris", rank.FIRST_SEED)) == first
    rank.main()
    assert sorted(done) == ["iris", "iris", "wine", "wine"]
    assert not any((tmp_path / "states").iterdir())
    metrics = json.loads((tmp_path / "runs" / "rank" / "metrics.json").read_text())
    assert set(metrics["spearman"]) == set(ARMS)
    assert set(metrics["spearman_iris"]["fy"]) == {"seed100", "seed101"}
    header, lines = read_csv(tmp_path / "runs" / "rank" / "sets.csv")
    assert [line[0] for line in lines] == ["iris", "wine"]
    assert {line[header.index("verdict_constant")] for line in lines} <= {"win", "tie", "loss"}
    assert (tmp_path / "runs" / "provenance" / "rank.json").exists()
