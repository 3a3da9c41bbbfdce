"""Figures of the theory: every one is drawn where there are numbers, and what is missing is left out."""

from pathlib import Path

import pytest

from papers.sst import figures_theory, gradient_curves, gradient_study, precision, theory
from papers.sst.gradients import PROBLEMS
from papers.sst.structures import structures
from shared.results import Metrics, put

EVERY = {"limit", "example_tree", "laws", "precision", "bias_and_variance", "trade_off", "gradient_training"}


def curves() -> dict[str, list[dict[str, float]]]:
    """Made-up rows of every table, two seeds where there are seeds."""
    names = [structure.name for structure in structures()]
    arms = list(gradient_curves.training_arms())
    return {
        "limit": [
            {"seed": seed, "temperature": t, **dict.fromkeys(names, t / 20)}
            for seed in range(2)
            for t in theory.TEMPERATURES
        ],
        "example": [{"temperature": t, **{f"edge{i}": 0.5 for i in range(6)}} for t in (2.0, 1.0, 0.0)],
        "precision": [
            {"seed": seed, "range": r, **dict.fromkeys(precision.ARMS, float(r))}
            for seed in range(2)
            for r in theory.RANGES
        ],
        "race": [{"tenth": j, **{f"clock{i}": 10.0 * (i + 1) for i in range(4)}} for j in range(1, 11)],
        "training": [
            {"seed": seed, "evaluations": e, **dict.fromkeys(arms, 100.0 / (1 + e))}
            for seed in range(2)
            for e in (0, 12, 24)
        ],
    }


def metrics(problems: tuple[str, ...] = PROBLEMS) -> Metrics:
    found: Metrics = {}
    for problem in problems:
        put(found, f"{problem}_gradient_norm", "exact", "exact", 0.5)
        for place, arm in enumerate([*gradient_study.ARMS, "relax"], 1):
            for seed in range(2):
                put(found, f"{problem}_bias", arm, f"seed{seed}", 0.1 * place)
                put(found, f"{problem}_cost_variance", arm, f"seed{seed}", 1 / place)
    for edge in ("01", "02", "12"):
        put(found, f"inclusion_percent_{edge}", "sampled", "seed0", 80.0)
        put(found, f"inclusion_percent_{edge}", "enumerated", "exact", 80.0)
        put(found, f"inclusion_percent_{edge}", "gibbs", "exact", 75.0)
    return found


def drawn(folder: Path, found: Metrics, rows: dict[str, list[dict[str, float]]]) -> set[str]:
    figures_theory.draw(folder, found, rows)
    return {path.stem for path in folder.glob("*.png")}


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path, metrics(), curves()) == EVERY


def test_no_numbers_no_figures(tmp_path: Path) -> None:
    assert drawn(tmp_path, {}, {}) == set()


@pytest.mark.parametrize("missing", ["limit", "example", "precision", "race", "training"])
def test_a_missing_table_costs_one_figure(tmp_path: Path, missing: str) -> None:
    figure = {"example": "example_tree", "race": "laws", "training": "gradient_training"}.get(missing, missing)
    rows = {name: table for name, table in curves().items() if name == missing}
    assert drawn(tmp_path, {} if missing != "race" else metrics(()), rows) == {figure}


def test_one_problem_and_a_few_arms_are_enough(tmp_path: Path) -> None:
    found = metrics(("categorical",))
    for name in ("categorical_bias", "categorical_cost_variance"):
        found[name] = {arm: values for arm, values in found[name].items() if arm.startswith("relaxed")}
    del found["categorical_gradient_norm"]
    assert drawn(tmp_path, found, {}) == {"bias_and_variance", "trade_off"}
    rows = [{name: row[name] for name in ("seed", "evaluations", "exact")} for row in curves()["training"]]
    assert "gradient_training" in drawn(tmp_path, {}, {"training": rows})


def test_names_of_the_arms_are_those_of_the_stages() -> None:
    assert set(figures_theory.METHODS) == set(precision.ARMS)
    assert {*figures_theory.STRUCTURES, *figures_theory.SUBSETS} <= {structure.name for structure in structures()}
    assert set(figures_theory.SCORES) <= {*gradient_study.ARMS, "relax"}
    assert set(figures_theory.TRAINED) <= set(gradient_curves.training_arms())
    assert set(figures_theory.PROBLEMS) == set(PROBLEMS)
