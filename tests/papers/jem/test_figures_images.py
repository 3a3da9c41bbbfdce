"""Figures of image networks: all of them from full results, none from missing ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from papers.jem import figures_images, figures_samples
from papers.jem.figures_data import chosen, looks, read_pictures, read_tables
from shared.errors import UserError
from shared.results import Metrics, put, write_rows

ARMS = {"classifier": "classifier", "jem": "JEM", "never_measured": "never measured"}
FIGURES = {
    "reliability.png", "robust_accuracy.png", "refinement.png", "scores.png", "auroc.png",
    "samples.png", "gallery.png", "distal.png", "chains.png",
}  # fmt: skip
SHAPE = (1, 6, 6)


def results(folder: Path) -> Metrics:
    """What `evaluate` leaves, with two arms and two seeds."""
    metrics: Metrics = {}
    for arm in ("classifier", "jem"):
        for seed in ("seed0", "seed1"):
            numbers = {"ece20_percent": 3.0, "distal_steps_mean": 3.0, "distal_surer_steps_mean": 9.0}
            for score in figures_images.SCORES:
                numbers |= {f"auroc_{score}_uniform": 0.9, f"auroc_{score}_mnist": 0.1}
                bins = [{"low": 0.1 * i, "width": 0.1, "test": 1.0 * i, "mnist": 9.0 - i} for i in range(10)]
                write_rows(folder / "evaluate" / arm / seed / f"histogram_{score}.csv", bins)
            if arm == "jem":
                for name in figures_images.DEFENCES:
                    levels = ("clean", "linf_eps0_05", "linf_eps0_1")
                    numbers |= {f"{name}_{level}_percent": 50.0 - 9 * i for i, level in enumerate(levels)}
                    numbers |= {f"{name}_own_{level}_percent": 52.0 - 8 * i for i, level in enumerate(levels)}
            for metric, value in numbers.items():
                put(metrics, metric, arm, seed, value + (seed == "seed1"))
            tables: dict[str, list[dict[str, float]]] = {
                "reliability": [{"bin": b, "count": 5, "confidence_percent": 5 * b + 3, "accuracy_percent": 80}
                                for b in (10, 19)],
                "robust_linf": [{"eps": 0.1 * i, "jem0_percent": 80 - 20 * i} for i in range(3)],
                "robust_l2": [{"eps": 1.0 * i, "jem0_percent": 80 - 20 * i} for i in range(3)],
                "course": [{"step": i, "log_density_nats": i, "gradient_norm": 1, "test_log_density_nats": 2}
                           for i in range(4)],
                "autocorrelation": [{"lag": i, "correlation": 0.9**i} for i in range(4)],
            }  # fmt: skip
            for name, rows in tables.items():
                write_rows(folder / "evaluate" / arm / seed / f"{name}.csv", rows)
        images = np.random.default_rng(0).integers(0, 256, (30, *SHAPE), dtype=np.uint8)
        (folder / "pictures").mkdir(exist_ok=True)
        arrays: dict[str, Any] = dict.fromkeys(("samples", "conditional", "distal", "distal_surer"), images)
        np.savez_compressed(folder / "pictures" / f"{arm}.npz", **arrays)
    return metrics


def test_all_figures(tmp_path: Path) -> None:
    metrics = results(tmp_path)
    tables, pictures = read_tables(tmp_path / "evaluate"), read_pictures(tmp_path / "pictures")
    assert set(tables) == set(pictures) == {"classifier", "jem"}
    assert set(tables["jem"]) == {"seed0", "seed1"}
    figures_images.draw(tmp_path / "figures", metrics, tables, pictures, ARMS)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FIGURES


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    figures_images.draw(tmp_path / "figures", {}, read_tables(empty), read_pictures(empty), ARMS)
    assert not (tmp_path / "figures").exists()


def test_parts_of_the_results_give_parts_of_the_figures(tmp_path: Path) -> None:
    results(tmp_path)
    tables = {"jem": {"seed0": {"robust_linf": read_tables(tmp_path / "evaluate")["jem"]["seed0"]["robust_linf"]}}}
    pictures = {"jem": {"distal": np.zeros((10, 3, 4, 4))}}
    figures_images.draw(
        tmp_path / "figures", {"auroc_confidence_mnist": {"jem": {"seed0": 0.5}}}, tables, pictures, ARMS
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"robust_accuracy.png", "auroc.png"}


def test_pictures_are_scaled_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "jem.npz", samples=np.full((1, *SHAPE), 255, dtype=np.uint8))
    assert read_pictures(tmp_path)["jem"]["samples"].max() == 1
    (tmp_path / "jem.npz").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"cannot read .*jem\.npz"):
        read_pictures(tmp_path)


def test_arms_that_matter_are_kept_in_their_order() -> None:
    assert chosen(["a", "classifier", "b", "jem"], 2) == ["classifier", "jem"]
    assert chosen(["a", "classifier", "b", "jem"], 3) == ["a", "classifier", "jem"]
    assert chosen(["a", "b"], 5) == ["a", "b"]
    assert chosen([], 2) == []


def test_arms_do_not_look_alike() -> None:
    found = looks({f"arm{i}": str(i) for i in range(30)})
    assert len({(look.colour, look.marker) for look in found.values()}) == 30


def test_the_first_of_each_class() -> None:
    images = np.arange(30)[:, None, None, None]
    assert figures_samples.first_of_each(images, 2).ravel()[:4].tolist() == [0, 1, 3, 4]
    assert figures_samples.first_of_each(images, 9).shape == images.shape
    assert figures_samples.names_of(np.zeros((1, 3, 2, 2))) == figures_samples.OBJECTS
