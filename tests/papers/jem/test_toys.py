"""The stage `toys`: what it writes, going on where it was stopped, and what it refuses."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from papers.jem import figures_toys, settings, toys
from papers.jem.toys import ARMS, Key
from shared.errors import UserError
from shared.files import read_json
from shared.report import style
from shared.results import read_rows
from shared.training.checkpoint import StateFolder

KEYS = [
    Key("arm", "moons", 0),
    Key("angles", "rings", 0),
    Key("divergence", "0.05", 0),
    Key("variances", "quadratic", 0),
]


def serial(job: Callable[[Any], Any], keys: Sequence[Any]) -> list[Any]:
    return [job(key) for key in keys]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage that writes into a folder of its own, measures little, and runs in this process."""
    monkeypatch.setattr(toys, "runs", lambda name, preset: tmp_path / name / preset)
    monkeypatch.setattr(toys, "StateFolder", partial(StateFolder, root=tmp_path / "states"))
    monkeypatch.setattr(toys, "parallel", serial)
    monkeypatch.setattr(toys, "plan", lambda seeds: KEYS)
    monkeypatch.setattr(toys, "PICTURE_SIDE", 10)
    monkeypatch.setattr(toys, "SIDE", 41)
    monkeypatch.setattr(toys, "CHAIN_LENGTHS", (1, 10))
    monkeypatch.setattr(toys, "SETTLING_STEPS", 60)
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, preset: str = "smoke") -> None:
    monkeypatch.setattr(sys, "argv", ["toys", "--preset", preset])
    toys.main()


def finite(tree: Any) -> bool:
    return all(map(finite, tree.values())) if isinstance(tree, dict) else math.isfinite(tree)


def test_it_writes_its_numbers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch)
    folder = here / "jem" / "smoke" / "toys"
    metrics = read_json(folder / "metrics.json")
    assert finite(metrics)
    assert set(metrics["toy_kl_nats"]) == {"moons", "moons_classifier"}
    assert set(metrics["toy_entropy_nats"]) == set(toys.LAWS)
    assert metrics["toy_shifted_predictions_changed_percent"]["moons"] == {"seed0": 0}
    assert set(metrics["angle_cosine_l10"]) == {
        "rings_exact_samples",
        *(f"rings_{sampler}" for sampler in figures_toys.SAMPLERS),
    }
    assert metrics["chain_variance_over_law"]["a2_2"]["seed0"] == pytest.approx(1, abs=0.5)
    assert metrics["chain_variance_growth_per_step"]["a2_2"]["seed0"] == pytest.approx(1.44, abs=1e-3)
    assert metrics["chain_stationary_variance_law"]["a1"]["exact"] == 1
    broken = {name: metrics[f"broken_{name}"]["alpha0_05"]["seed0"] for name in ("diverged", "last_kl_nats")}
    assert broken["diverged"] == 0 or "alpha0_05" in metrics["broken_steps_past_bound"]
    assert broken["last_kl_nats"] > 0
    densities = read_rows(folder / "densities.csv")
    assert len(densities) == 100
    assert set(densities[0]) == {"x1", "x2", *(f"{k}_moons" for k in ("true", "model", "classifier", "shifted"))}
    assert len(read_rows(folder / "samples.csv")) == toys.PICTURE_SAMPLES
    assert [row["arm"] for row in read_rows(folder / "training.csv")] == [1] * 3
    assert (here / "jem" / "smoke" / "provenance" / "toys.json").exists()
    assert not list((here / "states").glob("*"))
    figures_toys.draw(here / "figures", metrics, folder)
    drawn = {path.stem for path in (here / "figures").iterdir()}
    assert drawn == {"toy_densities", "toy_loss_nll", "toy_angles", "toy_variance", "toy_curvature"}


def test_a_stopped_stage_goes_on_to_the_same_bits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [Key("divergence", "0.05", 0), Key("variances", "quadratic", 0)]
    monkeypatch.setattr(toys, "plan", lambda seeds: keys)
    folder = here / "jem" / "smoke" / "toys"
    run(monkeypatch)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    real, calls = toys.break_training, []
    measure = toys.measure_variances

    def stopping(*_: Any) -> Any:
        raise KeyboardInterrupt

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(toys, "measure_variances", stopping)
    monkeypatch.setattr(toys, "break_training", counting)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch)
    monkeypatch.setattr(toys, "measure_variances", measure)
    run(monkeypatch)
    assert len(calls) == 1, "the first part was not measured again"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_the_plan_has_every_job_for_every_seed_once() -> None:
    keys = toys.plan([3, 4])
    assert len(set(keys)) == len(keys)
    assert {key.name for key in keys if key.kind == "arm" and key.seed == 4} == set(ARMS)
    assert {key.seed for key in keys} == {3, 4}
    assert [key.kind for key in keys] == sorted(
        (key.kind for key in keys), key=["arm", "angles", "divergence", "variances"].index
    )


def test_the_samplers_are_those_they_are_said_to_be() -> None:
    assert toys.MATCHED.temperature == pytest.approx(1)
    assert toys.COLD.temperature == pytest.approx(5e-5)
    assert tuple(ARMS) == tuple(figures_toys.ARMS), "training.csv numbers the arms in this order"


def test_numbers_that_are_not_finite_are_left_out() -> None:
    metrics: toys.Metrics = {}
    toys.put_all(metrics, Key("arm", "moons", 2), {"moons": {"kl_nats": math.inf, "accuracy_percent": 50.0}})
    assert metrics == {"toy_accuracy_percent": {"moons": {"seed2": 50.0}}}


def test_a_preset_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="huge"):
        run(monkeypatch, "huge")


def test_results_are_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings.load("smoke", toy_steps=3)
    first, again, other = (toys.break_training(s, "0.05", seed) for seed in (0, 0, 1))
    assert first == again
    assert first["divergence"] != other["divergence"]
