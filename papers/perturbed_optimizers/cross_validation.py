"""One repeated-cross-validation job: every arm on one table with one partition into folds.

In each fold the features are standardised by the training rows, what an arm tunes is chosen on fifths of the
training rows, the model is trained again on all of them, and the test rows are looked at once. All arms have the same
folds. Every training set of a table has the same length, so that the folds are trained together.
"""

import time
from pathlib import Path

import torch
from torch import Tensor

from papers.perturbed_optimizers import ranking_data
from papers.perturbed_optimizers.ranking_arms import ARMS, choose, train
from papers.perturbed_optimizers.ranking_data import Table, folds, kendall_tau, spearman_rho, standardised
from papers.perturbed_optimizers.ranking_models import STEPS, counted_ranks, linear_scores
from shared.provenance import code_sha256
from shared.training.checkpoint import StateFolder, digest
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import remembered

#: Arm -> "spearman" and "kendall", one number a fold, "chosen", penalty and strength of each fold, and "seconds".
Outcome = dict[str, dict[str, list[float]]]


def cross_validate(table: Table, seed: int, device: torch.device | str = "cpu", steps: int = STEPS) -> Outcome:
    """Mean Spearman's rho and Kendall's tau over the test rows of each fold, what was chosen there, and the time.

    Args:
        table: a table of at least 10 rows.
        seed: of the folds, of the first weights and of the noise.
        device: where the models are trained.
        steps: of each training.
    """
    parts = folds(len(table.ranks), seed)
    scaled = [standardised(table.features, rows) for rows, _ in parts]
    # Labels and features before instances: the layout of `ranking_models`.
    features = torch.stack([x[rows].T for x, (rows, _) in zip(scaled, parts)])[:, None].to(device)
    targets = torch.stack([table.ranks[rows].T for rows, _ in parts])[:, :, None].to(device)
    outcome: Outcome = {}
    chosen: dict[str, Tensor] = {}
    for name, arm in ARMS.items():
        start = time.perf_counter()
        follows = chosen.get(arm.follows or "")
        chosen[name] = choose(arm, features, targets, spearman_rho, seed, steps=steps) if follows is None else follows
        weights = train(arm, features, targets, chosen[name], seed, steps=steps).cpu()
        seconds = time.perf_counter() - start
        result = {"spearman": [], "kendall": [], "chosen": chosen[name].flatten().tolist(), "seconds": [seconds]}
        for i, (_, rows) in enumerate(parts):
            theta = linear_scores(scaled[i][rows].T[None, None], weights[i : i + 1])[0, :, 0].T
            ranks = counted_ranks(theta)
            result["spearman"].append(spearman_rho(ranks, table.ranks[rows]).mean().item())
            result["kendall"].append(kendall_tau(ranks, table.ranks[rows]).mean().item())
        outcome[name] = result
    return outcome


def state_of(preset: str, name: str, seed: int) -> StateFolder:
    """Where the job of one table and seed keeps its result; a change of code, device or preset gives another place."""
    key = digest(
        code=code_sha256(Path(__file__)), table=name, seed=seed, preset=preset, device=digest_of_device(pick_device())
    )
    return StateFolder(f"perturbed_optimizers-{preset}-rank-{name}-seed{seed}", key)


def job(preset: str, key: tuple[str, int]) -> Outcome:
    """The outcome for a key (table, seed), once only; at the preset smoke with 10 steps, and the sample will do."""
    name, seed = key
    smoke = preset == "smoke"
    table, steps = ranking_data.load(name, allow_sample=smoke), 10 if smoke else STEPS
    with state_of(preset, name, seed) as folder:
        outcome: Outcome = remembered(folder, lambda: cross_validate(table, seed, pick_device(), steps))
        return outcome
