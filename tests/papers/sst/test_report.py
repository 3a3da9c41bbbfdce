"""Report and tables: what is gathered and derived, the lines of tables, what is told about missing or damaged files."""

import gzip
from pathlib import Path

import pytest

from papers.sst import report, tables
from shared.errors import UserError
from shared.report.tables import read_csv
from shared.results import Metrics, put, write_metrics, write_rows


def start(horizon: int, seed: int, failed: bool, precision: float, bound: float) -> dict[str, float]:
    """A row of `starts.csv`."""
    return {"horizon": horizon, "seed": seed, "failed": int(failed), "raw_precision": precision, "elbo_nats": bound}


STARTS = {
    "tree": [
        start(10, 0, False, 84.0, -1500.0),
        start(10, 0, True, 9.0, -2500.0),
        start(10, 1, True, 41.0, -2400.0),
        start(10, 1, True, 11.0, -2450.0),
        start(20, 0, False, 94.0, -2600.0),
    ]
}


def numbers() -> Metrics:
    """A few made-up measurements of two arms."""
    metrics: Metrics = {}
    for seed, bound in enumerate((-600.0, -650.0, -700.0)):
        for horizon in (10, 20):
            put(metrics, f"t{horizon}_elbo_nats", "tree", f"seed{seed}", bound)
            put(metrics, f"t{horizon}_edge_precision", "tree", f"seed{seed}", 95.0 + seed)
    put(metrics, "t10_edge_precision", "nearest_tree", "exact", 81.0)
    put(metrics, "listops_accuracy", "arborescence", "seed0", 90.0)
    put(metrics, "planted_k10_mse_x100", "simple_marginals", "seed0", 5.0)
    put(metrics, "planted_k10_precision", "mean_rating", "exact", 20.0)
    return metrics


def test_derived_numbers() -> None:
    metrics = numbers()
    report.derive(metrics, STARTS)
    assert metrics["t10_elbo_deviation_nats"]["tree"] == {"seed0": 50.0, "seed1": 0.0, "seed2": 50.0}
    assert metrics["t10_starts_found"]["tree"] == {"seed0": 50.0, "seed1": 0.0}
    assert metrics["t10_starts_complement"]["tree"] == {"seed0": 50.0, "seed1": 50.0}
    assert metrics["t20_starts_found"]["tree"] == {"seed0": 100.0}


def test_headlines_are_the_four_of_the_long_tree() -> None:
    found = report.headlines(numbers(), "laptop")
    by_name = {row["name"] if isinstance(row, dict) else row.name: row for row in found}
    assert list(by_name) == ["t10_edge_precision", "t10_elbo_nats", "t20_edge_precision", "t20_elbo_nats"]
    value = by_name["t10_edge_precision"]
    assert (value["value"] if isinstance(value, dict) else value.value) == pytest.approx(96.0)
    with pytest.raises(UserError):
        report.headlines({}, "laptop")


def test_tables(tmp_path: Path) -> None:
    tables.write_tables(tmp_path, numbers(), STARTS)
    assert {path.stem for path in tmp_path.iterdir()} == set(
        ["graphs_t10", "graphs_t20", "references", "starts", "listops", "explain"]
    )
    header, lines = read_csv(tmp_path / "graphs_t10.csv")
    row = dict(zip(header, lines[0], strict=True))
    assert (row["ELBO"], row["n"]) == (-650, 3)
    assert row["paper (unverified)"] == "-1080 / 91 / 91"
    nearest = next(line for line in lines if line[0] == "shortest tree of the last frame")
    assert [cell for name, cell in zip(header, nearest, strict=True) if "precision, %" in name] == [81, 81]
    header, lines = read_csv(tmp_path / "starts.csv")
    row = dict(zip(header, lines[0], strict=True))
    assert (row["starts"], row["most edges found"], row["complement learnt"], row["neither yet"]) == (4, 1, 2, 1)
    assert (row["worst ELBO with most edges"], row["best ELBO of a complement"]) == (-1500, -2450)
    header, lines = read_csv(tmp_path / "references.csv")
    assert dict(zip(header, lines[0], strict=True))["precision = recall, %"] == 81


def test_nothing_measured_gives_no_table(tmp_path: Path) -> None:
    tables.write_tables(tmp_path / "tables", {}, {})
    assert not (tmp_path / "tables").exists()


def test_gathering_needs_the_evaluation_and_takes_what_else_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate"):
        report.gather(tmp_path, ["tree"])
    write_metrics(tmp_path / "evaluate" / "metrics.json", {"t10_elbo_nats": {"tree": {"seed0": -1.0}}})
    write_metrics(tmp_path / "train" / "tree" / "metrics.json", {"t10_train_seconds": {"tree": {"seed0": 3.0}}})
    assert set(report.gather(tmp_path, ["tree", "top_k_short"])) == {"t10_elbo_nats", "t10_train_seconds"}


def test_curves_are_read_by_arm_horizon_and_seed(tmp_path: Path) -> None:
    for horizon, seed in ((10, 0), (10, 1), (20, 0)):
        write_rows(tmp_path / "tree" / f"curve-t{horizon}-seed{seed}.csv", [{"step": 1, "elbo_nats": -seed}])
    curves = report.read_curves(tmp_path, ["tree", "nvil_short"])
    assert set(curves) == {"tree"}
    assert set(curves["tree"]) == {10, 20}
    assert curves["tree"][10]["seed1"] == [{"step": 1, "elbo_nats": -1}]


def test_a_damaged_file_of_movies_is_told(tmp_path: Path) -> None:
    path = tmp_path / "movies.json.gz"
    assert report.read_movies(path) == {}
    path.write_bytes(gzip.compress(b'{"k": 10}', mtime=0))
    assert report.read_movies(path) == {"k": 10}
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(UserError, match="run the explain stage"):
        report.read_movies(path)
