"""Figures of the toys: every one is drawn where there are numbers, and what is missing is left out."""

import math
from pathlib import Path

import pytest

from papers.jem import figures_toys, toy
from papers.jem.figures_toys import ARMS, LAWS, SAMPLERS
from shared.errors import UserError
from shared.report import style
from shared.results import Metrics, put, write_rows

POINTS = toy.square_grid(12, 3.0).points.tolist()


def tables(laws: list[str], arms: list[str], seeds: int) -> dict[str, list[dict[str, float]]]:
    """Made-up rows."""
    columns = [f"{kind}_{law}" for law in laws for kind in ("true", "model", "classifier", "shifted")]
    step_rows = [{"step": k, "contrast": 0.1 * k, "nll_nats": 4.0 - k, "kl_nats": 2.0 - k} for k in range(3)]
    names = [f"cosine_{name}" for name in (*SAMPLERS, "exact_samples")]
    return {
        "densities": [{"x1": x, "x2": y, **{name: math.exp(-x * x - y * y) for name in columns}} for x, y in POINTS],
        "samples": [{f"{each}_x{i}": 0.1 for law in laws for each in (law, f"true_{law}") for i in (1, 2)}] * 4,
        "training": [
            {"arm": list(ARMS).index(arm), "seed": seed, **row}
            for arm in arms for seed in range(seeds) for row in step_rows
        ],
        "divergence": [
            {"alpha": alpha, "seed": seed, "step_times_curvature": row["step"], **row}
            for alpha in (0.02, 0.05) for seed in range(seeds) for row in step_rows
        ],
        **{f"angles_{law}": [
            {"seed": seed, "length": length, **dict.fromkeys(names, 0.5)} for seed in range(seeds) for length in (1, 10)
        ] for law in laws},
        "variances": [{"seed": 0, "a": 1.0, "variance": 1.0, "matched_over_target": 2.0}],
        "variance_course": [{"step": k, "a1": 1.0, "a2": 1.0 + k} for k in range(3)],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures are drawn faster."""
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)


def drawn(folder: Path, found: dict[str, list[dict[str, float]]]) -> set[str]:
    metrics: Metrics = {}
    put(metrics, "toy_kl_nats", "eight_gaussians", "seed0", 0.1)
    figures_toys.draw_tables(folder, metrics, found)
    return {path.stem for path in folder.glob("*.png")}


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    every = {f"toy_{name}" for name in ("densities", "same_law", "loss_nll", "angles", "variance", "curvature")}
    assert drawn(tmp_path, tables(list(LAWS), list(ARMS), 3)) == every


def test_one_law_and_one_seed_are_enough_and_none_draws_nothing(tmp_path: Path) -> None:
    assert "toy_same_law" not in drawn(tmp_path / "one", tables(["rings"], ["rings"], 1))
    assert not drawn(tmp_path / "none", {name: [] for name in tables([], [], 1)})
    assert not drawn(tmp_path / "empty", {})
    figures_toys.draw(tmp_path / "absent", {}, tmp_path / "no_stage")
    assert not (tmp_path / "absent").exists()


def test_a_density_is_shown_the_right_way_round() -> None:
    _, (axes,) = figures_toys.new_figure(3, 3)
    rows = [{"x1": x, "x2": y, "p": 1.0 if x > 2 and y < -2 else 0.0} for x, y in POINTS]
    figures_toys.show_density(axes, rows, "p", 1.0)
    image = axes.images[0]
    array = image.get_array()
    assert image.get_extent() == pytest.approx([-3, 3, -3, 3])
    assert image.origin == "lower"
    assert array[:2, -2:].sum() == array.sum() == 4  # low x2, high x1


def test_points_that_are_no_square_are_refused() -> None:
    _, (axes,) = figures_toys.new_figure(3, 3)
    with pytest.raises(UserError, match="no square grid"):
        figures_toys.show_density(axes, [{"x1": 0.0, "x2": 0.0, "p": 1.0}] * 5, "p", 1.0)


def test_only_steps_that_all_seeds_have_are_drawn() -> None:
    rows = [{"seed": 0, "step": k, "v": 1.0 * k} for k in range(4)] + [{"seed": 1, "step": 0, "v": 5.0}]
    assert figures_toys.by_seed(rows, "step", "v") == ([0], {"seed0": [0.0], "seed1": [5.0]})


def test_tables_are_read_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "angles_rings.csv", [{"seed": 0, "length": 1}])
    assert figures_toys.read_tables(tmp_path) == {"angles_rings": [{"seed": 0, "length": 1}]}
    assert figures_toys.read_tables(tmp_path / "absent") == {}


def test_laws_are_those_of_the_toys() -> None:
    assert set(LAWS) == set(toy.LAWS)
