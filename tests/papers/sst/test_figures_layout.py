"""Figures of the graph layouts: every one is drawn where there are numbers, and what is missing is left out."""

import itertools
from pathlib import Path

import torch

from papers.sst import figures_layout
from papers.sst.figures_layout import ARMS, HORIZONS
from papers.sst.model import directed_from_undirected
from shared.results import Metrics, put
from tests.papers.sst import tiny


def numbers(names: list[str]) -> Metrics:
    """Made-up measurements of some arms, three seeds each, and the reference rules."""
    metrics: Metrics = {}
    for horizon in HORIZONS:
        for (place, name), seed in itertools.product(enumerate(names), range(3)):
            put(metrics, f"t{horizon}_raw_precision", name, f"seed{seed}", 90.0 - 5 * place + seed)
            put(metrics, f"t{horizon}_edge_precision", name, f"seed{seed}", 90.0 - 5 * place + seed)
        put(metrics, f"t{horizon}_edge_precision", "nearest_tree", "exact", 81.0)
    return metrics


def curves(names: list[str]) -> dict:
    rows = [{"step": step, "elbo_nats": -3000.0 / step} for step in (1, 2, 3)]
    return {name: {horizon: {f"seed{seed}": rows for seed in range(3)} for horizon in HORIZONS} for name in names}


def starts(names: list[str]) -> dict:
    return {name: [{"horizon": h, "elbo_nats": -2e3, "raw_precision": 80.0} for h in HORIZONS] for name in names}


def examples(names: list[str]) -> dict:
    found = {}
    for horizon in HORIZONS:
        layouts = tiny.layouts(horizon, "validation")
        edges = directed_from_undirected(layouts.trees, 10)[:3].int().tolist()
        frames = [[float(x) for x in each.flatten()] for each in layouts.frames[:3]]
        found[f"t{horizon}"] = {"frames": frames, "true_edges": edges, **dict.fromkeys(names, edges)}
    return found


def drawn(folder: Path, names: list[str]) -> set[str]:
    figures_layout.draw(folder, numbers(names), curves(names), starts(names), examples(names))
    return {path.name for path in folder.glob("*.png")}


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    every = {"layout_arms.png", "layout_curves.png", "basins.png", "graphs_t10.png", "graphs_t20.png", "gallery.png"}
    assert drawn(tmp_path, list(ARMS)) == every


def test_one_arm_is_enough_and_none_draws_nothing(tmp_path: Path) -> None:
    assert "basins.png" not in drawn(tmp_path / "one", ["top_k_short"])
    figures_layout.draw(tmp_path / "none", {}, {}, {}, {})
    assert not (tmp_path / "none").exists()


def test_edges_of_a_picture_are_those_of_the_tree() -> None:
    trees = tiny.layouts(10, "validation").trees[:4]
    pairs = list(itertools.combinations(range(10), 2))
    for tree, directed in zip(trees, directed_from_undirected(trees, 10), strict=True):
        expected = {pair for pair, there in zip(pairs, tree.tolist(), strict=True) if there}
        assert figures_layout.edge_set(directed.int().tolist(), 10) == expected
        assert len(expected) == 9
    one_way = torch.zeros(90)
    one_way[0] = 1  # 1 -> 0
    assert figures_layout.edge_set(one_way.int().tolist(), 10) == {(0, 1)}


def test_independent_edges_are_shown_in_the_better_labelling_and_trees_as_they_are() -> None:
    true = directed_from_undirected(tiny.layouts(10, "validation").trees[:3], 10).int()
    opposite = (1 - true).tolist()
    shown = {"true_edges": true.tolist(), "independent_short": opposite, "tree": opposite}
    expected = [figures_layout.edge_set(each, 10) for each in true.tolist()]
    assert figures_layout.drawn_edges(shown, "independent_short", 10) == expected
    assert all(not (a & b) for a, b in zip(figures_layout.drawn_edges(shown, "tree", 10), expected, strict=True))
