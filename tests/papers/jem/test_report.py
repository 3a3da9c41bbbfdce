"""Report and tables of JEM: what is gathered, the lines of tables, and the headline's names."""

from pathlib import Path

import pytest

from papers.jem import report, tables
from shared.errors import UserError
from shared.report.tables import read_csv
from shared.results import Metrics, put, write_metrics


def numbers() -> Metrics:
    """A few made-up measurements."""
    metrics: Metrics = {}
    for seed, accuracy in enumerate((80.0, 81.0, 82.0)):
        put(metrics, "accuracy_percent", "jem", f"seed{seed}", accuracy)
        put(metrics, "ece20_percent", "jem", f"seed{seed}", 2.0)
        put(metrics, "robust_linf_eps0_05_percent", "jem", f"seed{seed}", 65.0)
        put(metrics, "robust_linf_eps0_1_percent", "jem", f"seed{seed}", 42.0)
        put(metrics, "robust_l2_eps1_percent", "jem", f"seed{seed}", 61.0)
        put(metrics, "diverged", "rate4_eta1_noise0", f"seed{seed}", float(seed == 1))
        put(metrics, "steps_survived", "rate4_eta1_noise0", f"seed{seed}", 100.0 * (seed + 1))
    put(metrics, "auroc_confidence_mnist", "jem", "seed0", 0.8)
    put(metrics, "train_seconds", "jem", "seed0", 170.0)
    return metrics


def test_headlines_have_the_names_that_readers_ask_for() -> None:
    names = [row["name"] if isinstance(row, dict) else row.name for row in report.headlines(numbers(), "laptop")]
    assert names == ["accuracy", "ece", "robust_accuracy_linf_0.05", "robust_accuracy_linf_0.1"]
    with pytest.raises(UserError):
        report.headlines({}, "laptop")


def test_tables(tmp_path: Path) -> None:
    tables.write_tables(tmp_path, numbers())
    names = set(["classification", "unfamiliar", "attacks", "stability", "training"])
    assert {path.stem for path in tmp_path.iterdir()} == names
    header, lines = read_csv(tmp_path / "classification.csv")
    assert dict(zip(header, lines[0], strict=True))["accuracy, %"] == 81
    header, lines = read_csv(tmp_path / "attacks.csv")
    assert header == ["network", "accuracy, %", "linf 0.05", "linf 0.1", "l2 1"]  # radii rise within a norm
    assert lines[0] == ["JEM", 81, 65, 42, 61]
    header, lines = read_csv(tmp_path / "stability.csv")
    assert lines == [[4, 1, 0, "none", 3, 1, 200]]


def test_nothing_measured_gives_no_table(tmp_path: Path) -> None:
    tables.write_tables(tmp_path / "tables", {})
    assert not (tmp_path / "tables").exists()


def test_gathering_needs_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate"):
        report.gather(tmp_path, ["jem"])
    write_metrics(tmp_path / "evaluate" / "metrics.json", {"accuracy_percent": {"jem": {"seed0": 80.0}}})
    write_metrics(tmp_path / "train" / "jem" / "metrics.json", {"train_seconds": {"jem": {"seed0": 3.0}}})
    assert set(report.gather(tmp_path, ["jem", "classifier"])) == {"accuracy_percent", "train_seconds"}
