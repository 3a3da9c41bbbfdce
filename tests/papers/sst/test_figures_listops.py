"""Figures of ListOps: all of them from full results, none from missing ones, and what the arcs say."""

from pathlib import Path
from typing import Any

from matplotlib.colors import to_hex

from papers.sst import figures_listops
from papers.sst.figures_listops import ARMS, LINES, draw, read_curves, read_shown
from papers.sst.listops_training import ARMS as TRAINED
from shared.files import write_json
from shared.report.style import new_figure
from shared.results import Metrics, put, write_rows

FIGURES = {"listops_accuracy_vs_precision.png", "listops_learning.png", "listops_edges.png"}
EXPRESSION: dict[str, Any] = {
    "tokens": ["[MAX", "2", "[MIN", "4", "7", "]", "]"],
    "value": 4,
    "predicted": 2,
    "directed": True,
    "gold": [[0, 1], [0, 2], [2, 3], [2, 4], [2, 5], [0, 6]],
    "edges": [[0, 1], [0, 2], [2, 3], [0, 4], [2, 5], [2, 6]],
}


def results(folder: Path) -> Metrics:
    """A stage's folder with every arm."""
    metrics: Metrics = {}
    for number, arm in enumerate(ARMS):
        for seed in range(2):
            put(metrics, "listops_accuracy", arm, f"seed{seed}", 80.0 + number + seed)
            row = {"validation_accuracy": 70.0 + number}
            if arm != "lstm":
                put(metrics, "listops_edge_precision", arm, f"seed{seed}", 30.0 + 5 * number + seed)
                row["validation_edge_precision"] = 30.0 + number
            write_rows(folder / f"curve-{arm}-seed{seed}.csv", [{"step": step, **row} for step in (100, 200)])
    shown = {"arborescence": [EXPRESSION, EXPRESSION], "spanning_tree": [{**EXPRESSION, "directed": False}]}
    write_json(folder / "examples.json", shown)
    return metrics


def test_every_arm_has_a_look_of_its_own() -> None:
    assert set(ARMS) == set(TRAINED)
    assert len({look.label for look in ARMS.values()}) == len({look.marker for look in ARMS.values()}) == len(ARMS)


def test_all_figures(tmp_path: Path) -> None:
    metrics = results(tmp_path / "parse")
    curves = read_curves(tmp_path / "parse")
    assert set(curves) == set(ARMS)
    assert set(curves["one_parent"]) == {"seed0", "seed1"}
    draw(tmp_path / "figures", metrics, curves, read_shown(tmp_path / "parse"))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FIGURES


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "figures", {}, read_curves(tmp_path), read_shown(tmp_path))
    assert not (tmp_path / "figures").exists()
    only = {"listops_accuracy": {"lstm": {"seed0": 80.0}}, "listops_edge_precision": {"gold": {"seed0": 100.0}}}
    draw(tmp_path / "figures", only, {"gold": {"seed0": []}}, {"spanning_tree": [EXPRESSION]})
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FIGURES - {"listops_learning.png"}


def test_right_and_wrong_arcs_differ_in_colour_and_in_style() -> None:
    _, (axes,) = new_figure(6, 3)
    figures_listops._expression(axes, EXPRESSION)
    kinds = {name: (to_hex(line["color"]), line["linestyle"]) for name, line in LINES.items()}
    drawn = [(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines if len(line.get_xdata()) > 1]
    assert {name: drawn.count(kind) for name, kind in kinds.items()} == {"true": 6, "right": 4, "wrong": 2}
    assert kinds["right"][0] != kinds["wrong"][0]
    assert kinds["right"][1] != kinds["wrong"][1]
    below = [line for line in axes.lines if (line.get_ydata() < 0).all()]
    assert len(below) == 2 * 6, "an arc and a dot for each inferred edge"
