"""Test every trained terrain network: `python -m papers.perturbed_optimizers.evaluate --preset laptop`.

Numbers and learnt costs go into `runs/<preset>/evaluate/`; a few test maps with the learnt costs, for the figures, into
`pictures/<preset>/`. The picture of the maps as the networks see them holds tile art, so it stays out of git.
"""

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from papers.perturbed_optimizers.baselines import baselines
from papers.perturbed_optimizers.model import CostNetwork
from papers.perturbed_optimizers.settings import PARAMS
from papers.perturbed_optimizers.settings import load as load_settings
from papers.perturbed_optimizers.terrain import COSTS, Maps, cost_metrics, draw_maps, path_metrics
from papers.perturbed_optimizers.terrain_training import network, predicted_costs, read_arm
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_bytes
from shared.paths import paper, runs
from shared.results import Metrics, load_weights, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.device import pick_device

#: Test maps whose learnt costs are kept for the figures.
EXAMPLES = 6
#: Training maps that the baselines are fitted on.
BASELINE_MAPS = 1000


def load_network(preset: str, name: str, seed: int, maps: Maps) -> CostNetwork:
    """The trained network of an arm; `maps` only give it a shape, its scaling is among the weights.

    Raises:
        UserError: the arm was not trained.
    """
    model = network(read_arm(preset, name)[1], maps)
    load_weights(paper("perturbed_optimizers") / "weights" / preset / name / f"seed{seed}.pt", model)
    return model.to(pick_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def rank_correlation(learnt: Tensor, true: Tensor) -> float:
    """Spearman's rank correlation of all cells' costs, any shape; ties get their mean rank."""
    first, second = (rankdata(x.flatten().numpy()) for x in (learnt, true))
    return float(np.corrcoef(first, second)[0, 1])


def measure(costs: Tensor, maps: Maps, name: str, key: str, metrics: Metrics) -> None:
    """Quality of the cheapest paths for predicted costs (N, 12, 12), and of the costs themselves."""
    found = cost_metrics(costs, maps)
    put(metrics, "optimal_path_rate", name, key, found.optimal_path_rate)
    put(metrics, "cost_ratio", name, key, found.cost_ratio)
    put(metrics, "exact_match_rate", name, key, found.exact_match_rate)
    # Paths know costs up to a factor; rank correlation does not look at it.
    put(metrics, "cost_rank_correlation", name, key, rank_correlation(costs, maps.costs))


def measure_thresholded(costs: Tensor, maps: Maps, name: str, key: str, metrics: Metrics) -> None:
    """Directly predicted paths without a solver: the cells whose probability exp(-cost) is over one half."""
    found = path_metrics((torch.exp(-costs) > 0.5).float(), maps)
    put(metrics, "thresholded_valid_rate", name, key, found.valid.double().mean().item())
    put(metrics, "thresholded_optimal_path_rate", name, key, found.optimal_path_rate)


def learnt_by_kind(costs: Tensor, maps: Maps, seed: int) -> list[dict[str, float]]:
    """Mean and standard deviation of learnt costs for each kind of terrain, in units of their mean over all cells.

    The true costs are in units of theirs.
    """
    scale, true_scale = costs.mean().item(), maps.costs.mean().item()
    rows = []
    for kind, true in enumerate(COSTS):
        of_kind = costs[maps.kinds == kind] / scale
        if len(of_kind) > 1:
            spread = of_kind.std().item()
            rows.append(
                {"seed": seed, "true_cost": true / true_scale, "learnt_cost": of_kind.mean().item(), "spread": spread}
            )
    return rows


def write_pictures(path: Path, maps: Maps, learnt: Mapping[str, Tensor]) -> None:
    """The first test maps and what the first seed's networks make of them, as a compressed archive of arrays."""
    arrays = {name: value[:EXAMPLES].numpy() for name, value in learnt.items()}
    arrays |= {"true_costs": maps.costs[:EXAMPLES].numpy(), "paths": maps.paths[:EXAMPLES].numpy()}
    arrays["pixels"] = maps.pixels[:EXAMPLES].numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def main() -> None:
    """Measure all arms and seeds that params.yaml names, and the baselines; write."""
    parser = argparse.ArgumentParser(description="Test the trained terrain networks of a preset.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    preset = parser.parse_args().preset
    s, document = load_settings(preset), read_yaml(PARAMS)
    origin = provenance.begin("evaluate", preset, None, Path(__file__))
    sample = preset == "smoke"
    maps = draw_maps(s.test_maps, 0, "test", allow_sample=sample)
    metrics: Metrics = {}
    learnt: dict[str, Tensor] = {}
    folder = runs("perturbed_optimizers", preset) / "evaluate"
    for name in document["arms_to_run"]:
        rows: list[dict[str, float]] = []
        for seed in document["seeds"]:
            costs = predicted_costs(load_network(preset, name, seed, maps), maps.pixels)
            if not costs.isfinite().all():
                raise UserError(f"{name} seed {seed}: a learnt cost is not finite; train the arm again")
            measure(costs, maps, name, f"seed{seed}", metrics)
            if name == "direct":
                measure_thresholded(costs, maps, name, f"seed{seed}", metrics)
            rows += learnt_by_kind(costs, maps, seed)
            learnt.setdefault(name, costs)
        write_rows(folder / f"learnt-costs-{name}.csv", rows)
    fitted = draw_maps(min(s.maps, BASELINE_MAPS), 0, "train", allow_sample=sample)
    for name, found in baselines(fitted, maps).items():
        for metric, value in found.items():
            put(metrics, metric, name, "exact", value)
    write_metrics(folder / "metrics.json", metrics)
    write_pictures(paper("perturbed_optimizers") / "pictures" / preset / "terrain.npz", maps, learnt)
    origin.finish(runs("perturbed_optimizers", preset) / "provenance" / "evaluate.json")


if __name__ == "__main__":
    errors.run(main)
