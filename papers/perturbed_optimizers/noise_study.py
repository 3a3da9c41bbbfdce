"""Rankings with noisy labels: `python -m papers.perturbed_optimizers.noise_study --preset laptop`.

Lists of 10 items with 9 features each; one weight vector w_0 scores all items. Training labels are the ranks of
X w_0 + sigma Z, test labels those of X w_0, and a linear model of the same form is trained by each loss (the synthetic
experiment of section 4.2 of Berthet et al., 2020, whose sizes are not known to us). The arms share lists and labels,
and the levels of noise share Z.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from papers.perturbed_optimizers import settings as paper_settings
from papers.perturbed_optimizers.ranking_arms import ARMS, choose, train
from papers.perturbed_optimizers.ranking_data import kendall_tau, spearman_rho
from papers.perturbed_optimizers.ranking_models import STEPS, counted_ranks, linear_scores
from shared import errors, provenance
from shared.paths import runs
from shared.results import Metrics, put, write_metrics
from shared.training.device import pick_device
from shared.training.jobs import parallel

ITEMS, FEATURES = 10, 9
SEEDS = 5
LISTS = (30, 500)
TEST_LISTS = 1000
#: Standard deviations of the label noise; that of the scores X w_0 is about 3.
SIGMAS = (0.0, 0.1, 0.3, 1.0, 3.0)
NAMES = ("least_squares", "fy", "fy_m1", "squared_perturbed", "black_box")
#: Where the lead of the Fenchel-Young loss is called that at low and at high noise.
LOW, HIGH = 0.1, 3.0

#: Measure -> arm -> one number a seed.
Outcome = dict[str, dict[str, list[float]]]


def lists(count: int, sigma: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features (k, m, `count`) and ranks (k, `count`), test features (k, m, 1000) and clean ranks (k, 1000).

    A shorter training set is the beginning of a longer one with the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(FEATURES, generator=generator)
    test = torch.randn(TEST_LISTS, ITEMS, FEATURES, generator=generator)
    # Drawn for the most lists that anybody asks for, so that shorter training sets are parts of longer ones.
    x = torch.randn(max(LISTS), ITEMS, FEATURES, generator=generator)[:count]
    z = torch.randn(max(LISTS), ITEMS, generator=generator)[:count]
    ranks, clean = counted_ranks(x @ w + sigma * z), counted_ranks(test @ w)
    return x.permute(1, 2, 0), ranks.T, test.permute(1, 2, 0), clean.T


def one_level(steps: int, key: tuple[int, float]) -> Outcome:
    """Every arm on every seed for a key (training lists, sigma): means over the test lists against the clean ranks.

    `kendall`, the share of lists that are `perfect`, and the share of `positions` that are right.
    """
    count, sigma = key
    device = pick_device()
    drawn = [lists(count, sigma, seed) for seed in range(SEEDS)]
    features, ranks, test, clean = (torch.stack(part).contiguous().to(device) for part in zip(*drawn))
    targets, truth = ranks[:, :, None], clean.movedim(1, -1)
    outcome: Outcome = {"kendall": {}, "perfect": {}, "positions": {}}
    for name in NAMES:
        arm = ARMS[name]
        best = choose(arm, features, targets, spearman_rho, 0, intercept=False, steps=steps)
        weights = train(arm, features, targets, best, 0, intercept=False, steps=steps)
        predicted = counted_ranks(linear_scores(test, weights), 1)[:, :, 0].movedim(1, -1)
        right = predicted == truth
        outcome["kendall"][name] = kendall_tau(predicted, truth).mean(1).tolist()
        outcome["perfect"][name] = right.all(-1).double().mean(1).tolist()
        outcome["positions"][name] = right.double().mean((1, 2)).tolist()
    return outcome


def collect(outcomes: dict[tuple[int, float], Outcome]) -> Metrics:
    """`noise_<measure>_n<lists>_sigma<sigma>`, what noise costs each arm, and the leads of `fy`, for each seed."""
    metrics: Metrics = {}
    for (count, sigma), outcome in outcomes.items():
        for measure, arms in outcome.items():
            for name, values in arms.items():
                for seed, value in enumerate(values):
                    label = f"{sigma:g}".replace(".", "_")
                    put(metrics, f"noise_{measure}_n{count}_sigma{label}", name, f"seed{seed}", value)
    for count in dict.fromkeys(count for count, _ in outcomes):
        for seed in range(SEEDS):
            tau = {
                sigma: {name: values[seed] for name, values in outcomes[count, sigma]["kendall"].items()}
                for sigma in SIGMAS
            }
            for name in NAMES:
                cost = tau[0.0][name] - tau[HIGH][name]
                put(metrics, f"noise_kendall_lost_n{count}", name, f"seed{seed}", cost)
            for rival in NAMES:
                for level, sigma in (("low", LOW), ("high", HIGH)):
                    lead = tau[sigma]["fy"] - tau[sigma][rival]
                    if rival != "fy":
                        put(metrics, f"noise_lead_{level}_n{count}_over_{rival}", "fy", f"seed{seed}", lead)
    return metrics


def main() -> None:
    """Parse, run all levels of noise, write."""
    parser = argparse.ArgumentParser(description="Rankings with noisy labels.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    preset = parser.parse_args().preset
    paper_settings.load(preset)
    origin = provenance.begin("noise_study", preset, None, Path(__file__))
    smoke = preset == "smoke"
    # The longest first, so that no core is idle at the end.
    keys = [(count, sigma) for count in (LISTS[:1] if smoke else LISTS[::-1]) for sigma in SIGMAS]
    outcomes = parallel(partial(one_level, 3 if smoke else STEPS), keys)
    place = runs("perturbed_optimizers", preset)
    write_metrics(place / "noise_study" / "metrics.json", collect(dict(zip(keys, outcomes))))
    origin.finish(place / "provenance" / "noise_study.json")


if __name__ == "__main__":
    errors.run(main)
