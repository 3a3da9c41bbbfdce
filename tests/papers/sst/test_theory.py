"""The stages `theory` and `gradients`: what they write, going on where they were stopped, and what they refuse."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from papers.sst import gradients, theory
from shared.errors import UserError
from shared.files import read_json
from shared.report.tables import read_csv
from shared.results import read_rows
from shared.training.checkpoint import StateFolder

PARTS = {name: (theory.PARTS[name][0], range(1)) for name in ("law_categorical", "precision", "identities", "example")}


def serial(job: Callable[[Any], Any], keys: Sequence[Any]) -> list[Any]:
    return [job(key) for key in keys]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stages that write into a folder of their own, measure little, and run in this process."""
    for stage in (theory, gradients):
        monkeypatch.setattr(stage, "runs", lambda name, preset: tmp_path / name / preset)
        monkeypatch.setattr(stage, "StateFolder", partial(StateFolder, root=tmp_path / "states"))
        monkeypatch.setattr(stage, "parallel", serial)
    monkeypatch.setattr(theory, "PARTS", PARTS)
    monkeypatch.setattr(gradients, "SEEDS", range(1))
    monkeypatch.setattr(gradients, "PROBLEMS", ("spanning_trees", "categorical"))
    monkeypatch.setattr(gradients, "TRAININGS", 2)
    return tmp_path


def run(stage: ModuleType, monkeypatch: pytest.MonkeyPatch, preset: str = "smoke") -> None:
    monkeypatch.setattr(sys, "argv", [stage.__name__, "--preset", preset])
    stage.main()


def written(place: Path, stage: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "sst" / "smoke" / stage).iterdir()}


def finite(tree: Any) -> bool:
    return all(map(finite, tree.values())) if isinstance(tree, dict) else math.isfinite(tree)


def test_theory_writes_its_numbers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(theory, monkeypatch)
    folder = here / "sst" / "smoke" / "theory"
    metrics = read_json(folder / "metrics.json")
    assert finite(metrics)
    assert set(metrics["limit_distance_t0_1"]) == set(read_rows(folder / "limit.csv")[0]) - {"seed", "temperature"}
    assert metrics["example_distance_t0_1"]["spanning_trees"]["exact"] == pytest.approx(0.053498, abs=1e-6)
    assert metrics["exactness_error"]["spanning_trees"]["seed0"] < 1e-6
    assert metrics["gumbel_law_p"]["categorical"]["exact"] > 0.001
    assert [row["temperature"] for row in read_rows(folder / "example.csv")] == [2, 1, 0.5, 0.25, 0.1, 0]
    assert [row["range"] for row in read_rows(folder / "precision.csv")] == list(theory.RANGES)
    assert (here / "sst" / "smoke" / "provenance" / "theory.json").exists()
    assert not list((here / "states").glob("*"))


def test_other_parts_of_theory(here: Path) -> None:
    metrics: theory.Metrics = {}
    race = theory.measure_race(0, 10_000, metrics)["race"]
    theory.measure_trees(0, 20_000, metrics)
    theory.measure_law("matchings", 0, 40_000, metrics)
    assert all(sum(row[f"clock{i}"] for i in range(4)) == pytest.approx(100) for row in race)
    assert metrics["star_percent"]["enumerated"]["exact"] == pytest.approx(400 / 15)
    assert metrics["star_percent"]["sampled"]["seed0"] == pytest.approx(400 / 15, abs=1.5)
    assert metrics["inclusion_percent_01"]["enumerated"]["exact"] == pytest.approx(87.7659, abs=1e-3)
    assert metrics["inclusion_percent_01"]["gibbs"]["exact"] == pytest.approx(85.0815, abs=1e-3)
    assert metrics["same_law_p"]["matchings"]["exact"] < 1e-6
    assert "gumbel_law_p" not in metrics  # no order of nine utilities is enumerated
    assert min(metrics["race_p"][name]["exact"] for name in ("minimum", "argmin", "independence", "order")) > 0.001


def test_gradients_writes_its_numbers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(gradients, monkeypatch)
    folder = here / "sst" / "smoke" / "gradients"
    metrics = read_json(folder / "metrics.json")
    assert finite(metrics)
    arms = {*gradients.ARMS, "relax"}
    for measured in gradients.MEASURES:
        assert set(metrics[f"spanning_trees_{measured}"]) == arms
    header, rows = read_csv(folder / "gradients.csv")
    assert len(rows) == 2 * len(arms)
    assert header[:3] == ["problem", "estimator", "evaluations"]
    training = read_rows(folder / "training.csv")
    assert {row["seed"] for row in training} == {0, 1}
    assert all(row["exact"] == pytest.approx(100) for row in training if row["evaluations"] == 0)
    assert max(row["evaluations"] for row in training) == 120
    assert metrics["training_gap_percent"]["exact"]["seed0"] < 100


@pytest.mark.parametrize(("stage", "stop_at"), [(theory, "precision"), (gradients, "training")])
def test_a_stopped_stage_goes_on_to_the_same_bits(
    here: Path, monkeypatch: pytest.MonkeyPatch, stage: ModuleType, stop_at: str
) -> None:
    monkeypatch.setattr(theory, "PARTS", {name: PARTS[name] for name in ("law_categorical", "precision")})
    monkeypatch.setattr(gradients, "PROBLEMS", ("categorical",))
    arms = {name: gradients.training_arms()[name] for name in ("exact", "relaxed_t1")}
    monkeypatch.setattr(gradients, "training_arms", lambda: arms)
    name = stage.__name__.rpartition(".")[2]
    run(stage, monkeypatch)
    whole = written(here, name)
    real, done = stage.job, []

    def stopping(preset: str, key: tuple[str, Any]) -> Any:
        if key[0] == stop_at:
            raise KeyboardInterrupt
        return real(preset, key)

    def counting(preset: str, key: tuple[str, Any]) -> Any:
        done.append((key, len(list((here / "states").glob(f"*-{key[0]}-*/result.json")))))
        return real(preset, key)

    monkeypatch.setattr(stage, "job", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(stage, monkeypatch)
    monkeypatch.setattr(stage, "job", counting)
    run(stage, monkeypatch)
    assert [remembered for _, remembered in done[:2]] == [1, 0]  # the first part was not measured again
    assert written(here, name) == whole


@pytest.mark.parametrize("stage", [theory, gradients])
def test_a_preset_that_does_not_exist_is_refused(stage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="huge"):
        run(stage, monkeypatch, "huge")


def test_repeats_have_random_numbers_of_their_own() -> None:
    draws = [torch.rand(3, generator=theory.seeded(seed, stream)) for seed in range(3) for stream in range(3)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 9
