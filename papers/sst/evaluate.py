"""Test every trained graph-layout model, once: `python -m papers.sst.evaluate --preset laptop`.

Numbers, and a few test graphs with what the models drew for them, go into `runs/<preset>/evaluate/`. Beside them stand
geometric rules that know nothing of the motion, and the true rule of motion applied to guessed graphs.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from papers.sst.graph_layout import Layouts
from papers.sst.layout_metrics import exact_decoder_nll_nats, heuristics, nearest_tree, precision_and_recall
from papers.sst.layout_restarts import edge_numbers
from papers.sst.layout_training import HORIZONS, Networks, draw_split, measure, read_arm
from papers.sst.model import directed_from_undirected, undirected_from_directed
from papers.sst.settings import PARAMS
from papers.sst.settings import load as load_settings
from shared import errors, provenance
from shared.files import write_json
from shared.paths import paper, runs
from shared.results import Metrics, load_weights, put, write_metrics
from shared.settings import read_yaml
from shared.training.device import pick_device
from shared.training.jobs import parallel

#: Test graphs that are kept for the figures.
EXAMPLES = 3
#: Test graphs for which the true rule of motion is computed with guessed graphs.
EXACT_GRAPHS = 2_000

Key = tuple[str, int, int]


def load_networks(preset: str, name: str, horizon: int, seed: int) -> Networks:
    """The trained networks of an arm.

    Raises:
        UserError: the arm was not trained.
    """
    arm, s = read_arm(preset, name)
    model = Networks(s, arm, horizon)
    load_weights(paper("sst") / "weights" / preset / name / f"t{horizon}-seed{seed}.pt", model)
    return model.to(pick_device()).eval()


def test_one(preset: str, key: Key) -> dict[str, Any]:
    """`numbers` of one trained model on all test graphs, and the directed `edges` of the first few."""
    name, horizon, seed = key
    arm, s = read_arm(preset, name)
    layouts = draw_split(s, horizon, "test")
    found = measure(load_networks(preset, name, horizon, seed), arm, layouts, pick_device())
    true = directed_from_undirected(layouts.trees, layouts.frames.shape[1])
    recovered = (precision_and_recall(found.edges, true)[0] == 1) & (found.edges.sum(1) == true.sum(1))
    numbers = {**msgspec.to_builtins(found.elbo), **edge_numbers(found, layouts)}
    if arm.structure == "independent":
        del numbers["elbo_double_kl_nats"]  # every utility has a direction: nothing is counted twice
    numbers["recovered_graphs"] = 100 * recovered.double().mean().item()
    if arm.structure != "independent":
        drawn = undirected_from_directed(found.edges, layouts.frames.shape[1])
        numbers["exact_decoder_nll_nats"] = exact_nll(layouts, drawn)
    return {"numbers": numbers, "edges": found.edges[:EXAMPLES].int().tolist()}


def exact_nll(layouts: Layouts, edges: Tensor) -> float:
    """Mean `exact_decoder_nll_nats` of the first graphs when the edges (N, n(n-1)/2) are taken for the tree."""
    count = min(EXACT_GRAPHS, len(layouts.frames))
    return exact_decoder_nll_nats(layouts.frames[:count], edges[:count]).mean().item()


def references(layouts: Layouts, horizon: int, metrics: Metrics) -> None:
    """Geometric rules, and the true rule of motion with the true tree, the nearest one and none."""
    for name, value in heuristics(layouts).items():
        rule, percent = name.removesuffix("_precision"), name.endswith("_precision")
        if percent:
            put(metrics, f"t{horizon}_edge_precision", rule, "exact", 100 * value)
        else:
            put(metrics, f"t{horizon}_nll_nats", "persistence", "exact", value)
    guesses = {"true_tree": layouts.trees, "nearest_tree": nearest_tree(layouts.frames)}
    guesses["no_edges"] = torch.zeros_like(layouts.trees)
    for name, edges in guesses.items():
        put(metrics, f"t{horizon}_exact_decoder_nll_nats", name, "exact", exact_nll(layouts, edges))


def main() -> None:
    """Measure all arms, horizons and seeds that params.yaml names, and the references; write."""
    parser = argparse.ArgumentParser(description="Test the trained graph-layout models of a preset.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    preset = parser.parse_args().preset
    s, document = load_settings(preset), read_yaml(PARAMS)
    origin = provenance.begin("evaluate", preset, None, Path(__file__))
    keys = list(itertools.product(document["arms_to_run"], sorted(HORIZONS, reverse=True), document["seeds"]))
    metrics: Metrics = {}
    examples: dict[str, Any] = {}
    for (name, horizon, seed), result in zip(keys, parallel(partial(test_one, preset), keys), strict=True):
        for metric, value in result["numbers"].items():
            put(metrics, f"t{horizon}_{metric}", name, f"seed{seed}", value)
        if seed == document["seeds"][0]:
            examples.setdefault(f"t{horizon}", {})[name] = result["edges"]
    for horizon in HORIZONS:
        layouts = draw_split(s, horizon, "test")
        references(layouts, horizon, metrics)
        some = examples[f"t{horizon}"]
        some["frames"] = [[round(float(x), 4) for x in each.flatten()] for each in layouts.frames[:EXAMPLES]]
        true = directed_from_undirected(layouts.trees[:EXAMPLES], layouts.frames.shape[1])
        some["true_edges"] = true.int().tolist()
    folder = runs("sst", preset) / "evaluate"
    write_json(folder / "examples.json", examples)
    write_metrics(folder / "metrics.json", metrics)
    origin.finish(runs("sst", preset) / "provenance" / "evaluate.json")


if __name__ == "__main__":
    errors.run(main)
