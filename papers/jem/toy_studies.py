"""What is measured on the toys, as plain functions: trained models, gradients, chains on quadratic energies, records.

Everything is a number that can be compared with an exact one (Grathwohl et al., 2020, sections 3 and 4).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.jem.energy import Network, contrastive_loss, log_conditional, log_marginal
from papers.jem.sgld import Langevin, chain_generator, run_chains
from papers.jem.toy import (
    Grid,
    Mixture,
    SwishMLP,
    Toy,
    exact_nll,
    flat_gradient,
    kl_data_model,
    square_grid,
)

HELD_OUT = 10_000
#: Cells along a side of the grid of final numbers: narrower than the narrowest Gaussian of a law, which is enough.
SIDE = 151
#: Rows of a record that are averaged where a single batch would be too noisy.
SMOOTHED = 5


# --- a trained model ---


def shifted(network: Network) -> Network:
    """The same logits plus 2 sin(2 x_1) in every class: another density, the same classifier (section 3)."""
    return lambda x: network(x) + 2 * (2 * x[:, :1]).sin()


@torch.no_grad()
def class_shares(network: Network, grid: Grid) -> Tensor:
    """log p(y) (K,) of the model: its joint density summed over the grid's square."""
    return network(grid.points).logsumexp(0).log_softmax(0)


def class_kl(log_shares: Tensor) -> float:
    """KL(uniform || shares) in nats from log shares (K,): the part of KL(data || model) that classes alone explain."""
    return float(-log_shares.double().mean() - math.log(len(log_shares)))


@torch.no_grad()
def sample_class_shares(network: Network, samples: Tensor) -> Tensor:
    """log share (K,) of each class among samples (N, 2), by the model's own labels; half a count is added to each."""
    logits = network(samples)
    counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1]) + 0.5
    return (counts / counts.sum()).log()


@torch.no_grad()
def measure_model(law: Mixture, model: SwishMLP, seed: int) -> dict[str, float]:
    """Likelihood on held-out points, KL, accuracy, and what the shift changes; nats and percent.

    `class_kl_nats` is the part of the KL that wrong proportions of the classes explain: where classes do not overlap,
    KL(data || model) cannot be less. Z is that of the grid's square. A joint model has no mass outside it; a classifier
    may, so its KL and likelihood are bounds: at least as bad as told.
    """
    grid = square_grid(SIDE)
    x, y = law.draw(HELD_OUT, chain_generator(seed, 10))
    other = shifted(model)
    labels, labels_shifted = model(x).argmax(1), other(x).argmax(1)
    change = log_conditional(model(x)).exp() - log_conditional(other(x)).exp()
    return {
        "heldout_nll_nats": exact_nll(model, x, grid).item(),
        "heldout_nll_of_law_nats": -law.log_density(x).mean().item(),
        "kl_nats": kl_data_model(law, model, grid),
        "class_kl_nats": class_kl(class_shares(model, grid)),
        "accuracy_percent": _percent(labels == y),
        "shifted_kl_nats": kl_data_model(law, other, grid),
        "shifted_accuracy_percent": _percent(labels_shifted == y),
        "shifted_predictions_changed_percent": _percent(labels != labels_shifted),
        "shifted_probability_change": float(change.abs().max()),
    }


def _percent(flags: Tensor) -> float:
    return 100 * float(flags.double().mean())


def train_classifier(law: Mixture, *, steps: int, batch: int, learning_rate: float, width: int, seed: int) -> SwishMLP:
    """Cross-entropy alone, from the first weights that `train_toy` has with the same seed."""
    torch.manual_seed(seed)
    model = SwishMLP(law.classes, width)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    generator = chain_generator(seed, 0)
    for _ in range(steps):
        x, y = law.draw(batch, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


# --- the estimated gradient ---


@torch.no_grad()
def exact_samples(network: Network, grid: Grid, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 2) of the model itself: cells of the grid by their mass, and anywhere in the cell."""
    mass = log_marginal(network(grid.points)).softmax(0)
    cell = torch.multinomial(mass, count, replacement=True, generator=generator)
    offset = torch.rand(count, 2, generator=generator) - 0.5
    return grid.points[cell] + math.exp(grid.log_area / 2) * offset


def cosine_and_error(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Cosine of two gradients (P,), and the relative error of the first."""
    return {
        "cosine": float(F.cosine_similarity(estimate, exact, dim=0)),
        "relative_error": float((estimate - exact).norm() / exact.norm()),
    }


def angle_rows(
    toy: Toy, law: Mixture, samplers: Mapping[str, Langevin], lengths: Sequence[int], *, chains: int, seed: int
) -> list[dict[str, float]]:
    """Rows of chain length, and of cosine and relative error for each sampler from both starts.

    Columns are `<what>_<sampler>_<start>`, with start `buffer`, where the training left its chains, or `noise`; and
    `<what>_exact_samples`, which no sampler of so many points can better. All see the same data, so the noise of the
    data is no error. Chains of length L are the beginning of the longer ones.
    """
    grid = square_grid(SIDE)
    data, _ = law.draw(chains, chain_generator(seed, 11))
    exact = flat_gradient(exact_nll(toy.model, data, grid), toy.model)

    def compared(samples: Tensor) -> dict[str, float]:
        loss = contrastive_loss(log_marginal(toy.model(data)), log_marginal(toy.model(samples)))
        return cosine_and_error(flat_gradient(loss, toy.model), exact)

    best = compared(exact_samples(toy.model, grid, chains, chain_generator(seed, 12)))
    rows: list[dict[str, float]] = [
        {"seed": seed, "length": length, **{f"{what}_exact_samples": value for what, value in best.items()}}
        for length in lengths
    ]
    _, stored = toy.buffer.draw(chains, generator=chain_generator(seed, 13))
    fresh = toy.buffer.start(torch.zeros(chains, dtype=torch.long), chain_generator(seed, 14))
    for name, langevin in samplers.items():
        for label, x in (("buffer", stored), ("noise", fresh)):
            generator = chain_generator(seed, 15)
            for row, before in zip(rows, (0, *lengths), strict=False):
                x = run_chains(toy.model, x, replace(langevin, steps=int(row["length"]) - before), generator=generator)
                row |= {f"{what}_{name}_{label}": value for what, value in compared(x).items()}
    return rows


# --- quadratic energies ---


def quadratic(curvatures: Tensor) -> Network:
    """The logit (B, 1) whose energy is sum_i curvature_i x_i^2 / 2."""
    return lambda x: -(curvatures * x.square()).sum(1, keepdim=True) / 2


def variance_law(langevin: Langevin, curvature: float, start: float, steps: int) -> float:
    """Variance after so many steps on the energy `curvature` x^2 / 2, from the variance `start`: exact for every a.

    v' = (1 - a)^2 v + sigma^2 with a = alpha * curvature, which settles at sigma^2 / (a (2 - a)) for 0 < a < 2.
    """
    factor = (1 - langevin.step_size * curvature) ** 2
    grown = factor**steps
    added = steps if factor == 1 else (1 - grown) / (1 - factor)
    return grown * start + langevin.sigma**2 * added


def chain_variances(
    langevin: Langevin, products: Sequence[float], *, chains: int, seed: int, every: int
) -> list[dict[str, float]]:
    """Rows of step and variance over many chains, one column for each a = alpha * curvature, named `a<value>`.

    In float64, with a coordinate for each curvature, from the variance sigma^2; variances are in units of sigma^2.
    """
    generator = chain_generator(seed, 16)
    curvatures = torch.tensor(products, dtype=torch.float64) / langevin.step_size
    x = langevin.sigma * torch.randn(chains, len(products), dtype=torch.float64, generator=generator)
    rows: list[dict[str, float]] = []
    for step in range(0, langevin.steps + 1, every):
        if step:
            x = run_chains(quadratic(curvatures), x, replace(langevin, steps=every), generator=generator)
        # The mean is 0 by symmetry; in units of sigma before squaring, as the largest are about 1e60.
        values = (x / langevin.sigma).square().mean(0).tolist()
        rows.append({"step": step, **{f"a{a:g}": value for a, value in zip(products, values, strict=True)}})
    return rows


# --- the record of a training ---


def finite_rows(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The rows before the first with a number that is not finite."""
    good = next((i for i, row in enumerate(rows) if not all(map(math.isfinite, row.values()))), len(rows))
    return [dict(row) for row in rows[:good]]


def loss_against_likelihood(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How the contrastive loss and the exact likelihood went along a training; means of a few rows at its end.

    The correlation is left out where one of the two did not vary.
    """
    loss, nll = (torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("contrast", "nll_nats"))
    found = {
        "contrast_first": loss[0].item(),
        "contrast_last": loss[-SMOOTHED:].mean().item(),
        "contrast_range": (loss.max() - loss.min()).item(),
        "nll_first_nats": nll[0].item(),
        "nll_last_nats": nll[-SMOOTHED:].mean().item(),
        "nll_lowest_nats": nll.min().item(),
        "nll_at_lowest_contrast_nats": nll[loss.argmin()].item(),
    }
    correlation = torch.corrcoef(torch.stack([loss, nll]))[0, 1].item() if len(rows) > 1 else math.nan
    return found | ({"contrast_nll_correlation": correlation} if math.isfinite(correlation) else {})


def smoothed(rows: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """Running mean over up to `SMOOTHED` rows that end at each row."""
    values = [row[name] for row in rows]
    windows = [values[max(0, i + 1 - SMOOTHED) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def divergence_summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """When chains lost hold, from rows with `kl_nats` and `step_times_curvature` (alpha lambda, bound 2).

    KL is smoothed. `diverged` is 1 where the model ends farther from the data than it began. A divergence is the first
    row, wherever the curvature is, from which on it is farther than at the beginning; `steps_past_bound` is how long
    after the first curvature beyond the bound that is, negative if before. What did not happen is left out.
    """
    kl = smoothed(rows, "kl_nats")
    sharp = [row["step_times_curvature"] for row in rows]
    best = min(range(len(rows)), key=kl.__getitem__)
    found = {
        "diverged": float(kl[-1] > kl[0]),
        "lowest_kl_nats": kl[best],
        "last_kl_nats": kl[-1],
        "step_times_curvature_at_lowest_kl": sharp[best],
        "largest_step_times_curvature": max(sharp),
    }
    past = next((i for i, value in enumerate(sharp) if value > 2), None)
    if past is not None:
        found |= {"kl_at_bound_nats": kl[past], "step_at_bound": rows[past]["step"]}
    if kl[-1] > kl[0]:
        worse = next(i for i in range(len(rows)) if min(kl[i:]) > kl[0])
        found |= {"step_of_divergence": rows[worse]["step"], "step_times_curvature_at_divergence": sharp[worse]}
        bound = rows[-1]["step"] if past is None else rows[past]["step"]
        found["steps_past_bound"] = rows[worse]["step"] - bound
    return found
