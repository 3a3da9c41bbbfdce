"""The report on made-up runs: what the stages' own functions write of numbers that no training has to give."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from papers.perturbed_optimizers import (
    classify,
    evaluate,
    figures_maps,
    figures_ranking,
    figures_terrain,
    noise_study,
    rank,
    report,
    tables,
    theory,
    train,
)
from papers.perturbed_optimizers.images_training import CROSS_ENTROPY, GUMBEL, SQUARED, grid
from papers.perturbed_optimizers.ranking_arms import ARMS as RANKING_ARMS
from papers.perturbed_optimizers.ranking_data import SIZES
from papers.perturbed_optimizers.settings import load as load_settings
from papers.perturbed_optimizers.terrain_training import read_arm
from shared.claims import check
from shared.errors import UserError
from shared.paths import ROOT, paper
from shared.report.tables import read_csv
from shared.results import Metrics, put, read_rows, write_metrics, write_rows
from shared.settings import read_yaml
from shared.solvers.shortest_path import shortest_path
from tests.papers.perturbed_optimizers import tiny

PARAMS = read_yaml(paper("perturbed_optimizers") / "params.yaml")
TERRAIN_ARMS = tuple(PARAMS["arms_to_run"])
SMOKE_ARMS = ("fenchel_young", "direct", "short")
SEEDS = range(4)
#: How wrong the made-up networks are: standard deviation of the logarithm of a cost.
WRONG = {"fenchel_young": 0.05, "black_box": 0.08, "squared": 0.6, "direct": 0.9}


@functools.cache
def theoretical() -> tuple[Metrics, dict[str, list[dict[str, float]]]]:
    """The theory stage with few samples: metrics, and the rows of its files."""
    metrics: Metrics = {}
    rows: dict[str, list[dict[str, float]]] = {"error_vs_samples": [], "variance": [], "edge_weight": []}
    theory.measure_exact(metrics)
    for seed in range(3):
        theory.measure_identities(seed, 1000, metrics)
        rows["error_vs_samples"] += theory.measure_convergence(seed, 100, metrics)
        rows["variance"] += theory.measure_variance(seed, 400, metrics)
        rows["edge_weight"] += theory.measure_ascent(seed, 5, metrics)
        theory.measure_estimation(seed, 40, 5, metrics)
    rows |= {"bias_vs_epsilon": theory.bias_rows(200), "segment": theory.segment_rows(50)}
    return metrics, rows


def ranked(run: Path, names: tuple[str, ...]) -> None:
    """The files of `rank` for tables on which all arms differ a little."""
    rng = np.random.default_rng(0)
    outcomes: dict[str, Any] = {}
    for name in names:
        level, folds = rng.uniform(0.3, 0.95), 10 if SIZES[name][0] < 1000 else 5
        better = dict(zip(RANKING_ARMS, rng.normal(0, 0.02, len(RANKING_ARMS)), strict=True))
        better["ranknet"] = better["fy"]
        outcomes[name] = []
        for _ in SEEDS:
            fold = rng.normal(0, 0.01, folds)
            found = {}
            for arm, shift in better.items():
                rho = (level + shift + fold + rng.normal(0, 0.005, folds)).tolist()
                found[arm] = {"spearman": rho, "kendall": [0.9 * value for value in rho], "seconds": [2.0]}
            outcomes[name].append(found)
    metrics: Metrics = {}
    for seed in SEEDS:
        rank.by_seed(outcomes, metrics, seed)
    rank.overall(outcomes, metrics)
    write_metrics(run / "rank" / "metrics.json", metrics)
    rank.write_csv(run / "rank" / "sets.csv", *rank.rows(outcomes))


def noisy(run: Path, lists: tuple[int, ...]) -> None:
    """The file of `noise_study`."""
    rng = np.random.default_rng(1)
    outcomes: dict[tuple[int, float], Any] = {}
    for count in lists:
        for sigma in noise_study.SIGMAS:
            level = 1 - 0.02 * sigma - 1 / count
            outcomes[count, sigma] = {
                measure: {
                    arm: (level**power - 0.01 * i + rng.normal(0, 0.003, noise_study.SEEDS)).tolist()
                    for i, arm in enumerate(noise_study.NAMES)
                }
                for measure, power in (("kendall", 1), ("perfect", 9), ("positions", 3))
            }
    write_metrics(run / "noise_study" / "metrics.json", noise_study.collect(outcomes))


def classified(run: Path, preset: str, diverged: bool) -> None:
    """The files of `classify`; where `diverged`, one run of the hottest arm ends early."""
    settings = load_settings(preset)
    candidates = grid(settings)
    arms = [CROSS_ENTROPY, GUMBEL, SQUARED, *candidates]
    keys = [(arm, seed) for seed in range(settings.image_seeds) for arm in arms]
    results = []
    for arm, seed in keys:
        epsilon = arm.perturbation.epsilon if arm.perturbation else 1.0
        accuracy = 0.6 - 0.05 * abs(np.log10(epsilon)) + 0.01 * seed
        names = ("test_accuracy", "validation_accuracy", "train_accuracy")
        results.append({"numbers": {**dict.fromkeys(names, accuracy), "wall_s": 20.0}})
        rows = [{"epoch": k + 1, "loss": 1.0, "validation_accuracy": accuracy * (k + 1) / 8} for k in range(8)]
        if diverged and arm is candidates[-1] and seed == 0:
            rows = rows[:2]
        write_rows(run / "classify" / f"curve-{arm.name}-seed{seed}.csv", rows)
    write_metrics(run / "classify" / "metrics.json", classify.summary(keys, results, candidates))


def trained(root: Path, preset: str, arms: tuple[str, ...], patch: pytest.MonkeyPatch) -> None:
    """The files of `train` and `evaluate`, for maps of the tests' tiles."""
    folder = root / "papers" / "perturbed_optimizers"
    for stage in (train, evaluate):
        patch.setattr(stage, "runs", lambda _, preset: folder / "runs" / preset)
        patch.setattr(stage, "paper", lambda _: folder)
    maps, metrics = tiny.maps(12, 1), {}
    learnt = {}
    (root / "state").mkdir()
    (root / "state" / "weights.pt").write_bytes(b"none")
    for number, arm in enumerate(arms):
        results = []
        calls = 0 if arm in ("direct", "cost_regression") else 1000 * (number + 1)
        rows: list[dict[str, float]] = []
        for seed in SEEDS:
            curve = [
                {"epoch": k + 1, "loss": 1.0, "gradient_norm": 1.0, "mean_cost": 1.0, "solver_calls": calls * (k + 1)}
                | {"optimal_path_rate": 1 - 0.8**k - 0.01 * seed, "cost_ratio": 1 - 0.1 / (k + 1) - 0.001 * seed}
                for k in range(1, 7)
            ]
            results.append({"rows": curve, "seconds": 60.0, "interruptions": 0, "folder": str(root / "state")})
            generator = torch.Generator().manual_seed(100 * number + seed)
            wrong = WRONG.get(arm, 0.2) * torch.randn(maps.costs.shape, generator=generator)
            costs = maps.costs * wrong.exp()
            evaluate.measure(costs, maps, arm, f"seed{seed}", metrics)
            rows += evaluate.learnt_by_kind(costs, maps, seed)
            learnt.setdefault(arm, costs)
        train.write(preset, arm, read_arm(preset, arm)[1], list(SEEDS), results)
        write_rows(folder / "runs" / preset / "evaluate" / f"learnt-costs-{arm}.csv", rows)
    for name, rate in {"constant": 0.0, "nearest_colour": 0.2, "random_forest": 0.998, "true_costs": 1.0}.items():
        put(metrics, "optimal_path_rate", name, "exact", rate)
        put(metrics, "cost_ratio", name, "exact", 0.6 + 0.4 * rate)
    write_metrics(folder / "runs" / preset / "evaluate" / "metrics.json", metrics)
    evaluate.write_pictures(folder / "pictures" / preset / "terrain.npz", maps, learnt)


def make(root: Path, patch: pytest.MonkeyPatch, preset: str = "laptop", arms: tuple[str, ...] = TERRAIN_ARMS) -> Path:
    """A checkout with one run of this paper in it; gives the run's folder."""
    folder = root / "papers" / "perturbed_optimizers"
    folder.mkdir(parents=True)
    for name in ("claims.yaml", "params.yaml"):
        shutil.copy(paper("perturbed_optimizers") / name, folder / name)
    if arms != TERRAIN_ARMS:
        text, named = (folder / "params.yaml").read_text(), ", ".join(arms)
        listed = "arms_to_run:" + text.split("arms_to_run:")[1].split("\n\n")[0]
        (folder / "params.yaml").write_text(text.replace(listed, f"arms_to_run: [{named}]"))
    run = folder / "runs" / preset
    metrics, files = theoretical()
    write_metrics(run / "theory" / "metrics.json", metrics)
    for name, rows in files.items():
        write_rows(run / "theory" / f"{name}.csv", rows)
    smoke = preset == "smoke"
    ranked(run, ("iris", "wine") if smoke else tuple(SIZES))
    noisy(run, noise_study.LISTS[:1] if smoke else noise_study.LISTS)
    classified(run, preset, diverged=not smoke)
    trained(root, preset, arms, patch)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a complete run at preset laptop and what the report wrote; to be read only."""
    root = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        make(root, patch)
        report.report("laptop", root)
    return root


def test_a_complete_run_attempts_every_claim(whole: Path) -> None:
    """The numbers come from the stages' own functions: a claim that misspells one would never be attempted."""
    rows = check("perturbed_optimizers", "laptop", whole)
    assert [row["why"] for row in rows if row["verdict"] == "not attempted"] == []


def test_a_complete_run_draws_every_figure_and_table(whole: Path) -> None:
    drawn = {path.stem for path in (whole / "reports/perturbed_optimizers/figures").glob("*.png")}
    assert drawn == {
        *("segment", "error_vs_samples", "bias_vs_temperature", "variance", "edge_weight", "ranking_sets"),
        *(
            "ranking_arms",
            "ranking_wins",
            "noise",
            "noise_lead",
            "accuracy_vs_temperature",
            "image_curves",
            "terrain_curves",
        ),
        *("solver_calls", "learnt_costs", "terrain_sweep", "example_maps", "gallery"),
    }
    written = {path.stem for path in (whole / "reports/perturbed_optimizers/tables").glob("*.csv")}
    assert written == {
        *("ranking", "ranking_summary", "terrain", "sweep", "classification", "theory", "variance"),
    }


def test_tile_art_stays_out_of_the_report(whole: Path) -> None:
    assert (whole / "build/perturbed_optimizers/maps.png").is_file()
    assert not (whole / "reports/perturbed_optimizers/figures/maps.png").exists()


def test_the_flat_figure_does_not_depend_on_the_tiles(whole: Path, tmp_path: Path) -> None:
    """With other pixels the committed figure has the same bytes, the one with tiles has not."""
    arrays = report.read_arrays(whole / "papers/perturbed_optimizers/pictures/laptop/terrain.npz")
    figures_maps.draw(tmp_path, tmp_path / "tiles", {**arrays, "pixels": 255 - arrays["pixels"]})
    old = whole / "reports/perturbed_optimizers/figures/example_maps.png"
    assert (tmp_path / "example_maps.png").read_bytes() == old.read_bytes()
    tiles = whole / "build/perturbed_optimizers/maps.png"
    assert (tmp_path / "tiles" / "maps.png").read_bytes() != tiles.read_bytes()


def test_headline(whole: Path) -> None:
    heads = json.loads((whole / "reports/perturbed_optimizers/headline.json").read_text())
    names = ["optimal_path_rate", "cost_ratio", "sets_better_than_least_squares", "sets_within_5_percent"]
    assert [head["name"] for head in heads] == names
    assert all("unverified" in head["paper"] for head in heads)
    assert [head["n"] for head in heads] == [4] * 4


def test_derived_numbers(whole: Path) -> None:
    """The fewest tables are the smallest count of a cross-validation; the lead is that of the most lists."""
    metrics = json.loads((whole / "papers/perturbed_optimizers/runs/laptop/metrics.json").read_text())
    counts = metrics["sets_better_than_least_squares"]["fy"]
    assert metrics["fewest_sets_better_than_least_squares"]["fy"] == {"exact": min(counts.values())}
    assert metrics["noise_lead_high"] == metrics["noise_lead_high_n500_over_least_squares"]
    assert metrics["noise_lead_low"] != metrics["noise_lead_high"]


def test_what_was_not_measured_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables, one size of the noise study, one temperature, three arms, and no tables of paper to compare with."""
    make(tmp_path, monkeypatch, "smoke", SMOKE_ARMS)
    report.report("smoke", tmp_path)
    heads = json.loads((tmp_path / "reports/perturbed_optimizers/headline.json").read_text())
    assert [head["paper"] for head in heads][2:] == [None, None]
    _, lines = read_csv(tmp_path / "reports/perturbed_optimizers/tables/terrain.csv")
    assert [line[0] for line in lines][:2] == ["Fenchel-Young", "cells predicted directly"]


def test_only_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset may have run the stages of the maps alone; old figures of another preset do not stay."""
    old = tmp_path / "reports" / "perturbed_optimizers" / "figures" / "segment.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    run = make(tmp_path, monkeypatch, "smoke", SMOKE_ARMS)
    for stage in ("theory", "rank", "noise_study", "classify", "train"):
        shutil.rmtree(run / stage)
    report.report("smoke", tmp_path)
    drawn = {path.stem for path in old.parent.glob("*.png")}
    assert drawn == {"learnt_costs", "terrain_sweep", "example_maps", "gallery"}


def test_a_missing_evaluation_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch, "smoke", SMOKE_ARMS)
    (tmp_path / "papers/perturbed_optimizers/pictures/smoke/terrain.npz").unlink()
    with pytest.raises(UserError, match="evaluate"):
        report.report("smoke", tmp_path)


def test_cells_of_a_path_in_order() -> None:
    """Any cheapest path is walked cell by cell, and its cells are those of the indicator."""
    costs = np.random.default_rng(0).uniform(0.1, 9, (50, 12, 12))
    for path in shortest_path(torch.from_numpy(costs)).path.numpy():
        cells = figures_maps.ordered(path)
        assert np.abs(np.diff(cells, axis=0)).max(1).tolist() == [1] * (len(cells) - 1)
        again = np.zeros((12, 12))
        again[tuple(cells.T)] = 1
        assert np.array_equal(again, path)


@pytest.mark.parametrize("wrong", [np.ones((3, 3)), np.diag([1.0, 1, 0]), np.zeros((3, 3))])
def test_an_indicator_that_is_no_path(wrong: Any) -> None:
    with pytest.raises(ValueError, match="indicator"):
        figures_maps.ordered(wrong)


def test_every_arm_has_a_name_and_a_look() -> None:
    """An arm that params.yaml names and no figure knows would be left out without a word."""
    short = {name for name, arm in PARAMS["arms"].items() if arm.get("short")}
    assert set(TERRAIN_ARMS) - short == set(figures_terrain.TERRAIN)
    assert set(figures_terrain.read_sweep(PARAMS, "laptop")) == short
    assert set(RANKING_ARMS) == set(figures_ranking.RANKING)


def test_the_sweep_takes_from_the_preset_what_an_arm_does_not_name() -> None:
    sweep = figures_terrain.read_sweep(PARAMS, "laptop")
    assert sweep["short"][:2] == (PARAMS["laptop"]["terrain_epsilon"], PARAMS["laptop"]["terrain_samples"])
    assert sweep["short_m10"].samples == 10
    assert sweep["short_hot"].epsilon == 1.0
    assert sweep["short_multiplicative"].kind == "Gaussian noise, multiplied"
    assert sweep["short_unnormalised"].kind == "Gaussian noise, costs as they are"
    assert len({sweep[name] for name in sweep}) == len(sweep), "two arms are the same"


def test_levels_of_noise_are_read_from_the_names() -> None:
    metrics: Metrics = {f"noise_kendall_n{n}_sigma{s}": {} for n in (500, 30) for s in ("10", "0_1", "0", "3")}
    metrics["noise_kendall_lost_n30"] = {}
    assert figures_ranking.noise_levels(metrics) == {30: ["0", "0_1", "3", "10"], 500: ["0", "0_1", "3", "10"]}


def test_differences_of_accuracy_are_paired_by_seed() -> None:
    accuracies = {"cross_entropy": {"seed0": 0.5, "seed1": 0.7}, "fy_eps0.1_m10": {"seed0": 0.51, "seed1": 0.71}}
    header, lines = tables.classification({"test_accuracy": accuracies})
    line = dict(zip(header[:4] + header[6:7], lines[1][:4] + lines[1][6:7], strict=True))
    assert (line["loss"], line["temperature"], line["samples"]) == ("Fenchel-Young", 0.1, 10)
    assert line["minus cross-entropy"] == pytest.approx(0.01)
    # The seeds differ by 0.2, the pairs do not: the interval is a point.
    assert lines[1][7:9] == pytest.approx([0.01, 0.01])


def test_theory_table_finds_all_its_metrics(whole: Path) -> None:
    _, lines = read_csv(whole / "reports/perturbed_optimizers/tables/theory.csv")
    assert len(lines) == len(tables.IDENTITIES)


def test_table_of_variances(whole: Path) -> None:
    """Means over the repeats, and the share of the variance that is left."""
    rows = read_rows(whole / "papers/perturbed_optimizers/runs/laptop/theory/variance.csv")
    header, lines = tables.variances(rows)
    plain = np.mean([row["argmax_plain"] for row in rows if row["epsilon"] == 0.05])
    left = np.mean([row["argmax_leave_one_out"] for row in rows if row["epsilon"] == 0.05])
    assert lines[0][:3] == ["argmax", 0.05, pytest.approx(plain)]
    assert lines[0][-1] == pytest.approx((left / plain) ** 2)
    assert len(header) == len(lines[0])


def test_nothing_is_written_outside_the_checkout(whole: Path) -> None:
    assert whole != ROOT
    assert {path.name for path in whole.iterdir()} == {"build", "papers", "reports", "state"}
