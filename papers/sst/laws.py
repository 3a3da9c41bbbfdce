"""Laws of stochastic argmax tricks, by counting (Paulus et al., 2020, sections 3 and 5; Gumbel-max; exponential races).

A law is tested by repeated chi-square tests: where it holds their p-values are uniform, and one p-value of Kolmogorov
and Smirnov tells whether they are.
"""

import itertools
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from papers.sst.structures import Structure, vertex_index
from papers.sst.utilities import Law, draw_noise, plackett_luce_log_prob, reparameterise

__all__ = [
    "Race",
    "all_orders",
    "chi_square_p",
    "counts_of",
    "exact_law",
    "exponential_race",
    "law_p",
    "same_law_p",
    "same_vertex",
    "uniform_p",
]


def uniform_p(p_values: list[float]) -> float:
    """Kolmogorov and Smirnov's p-value of the hypothesis that p-values are uniform on [0, 1]."""
    return float(stats.kstest(p_values, "uniform").pvalue)


def chi_square_p(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of Pearson's test of counts (S,) against positive probabilities (S,)."""
    expected = counts.sum() * probabilities.double()
    statistic = ((counts - expected).square() / expected).sum().item()
    return float(stats.chi2.sf(statistic, len(counts) - 1))


def homogeneity_p(first: Tensor, second: Tensor) -> float:
    """p-value of Pearson's test that two lists of counts (S,) have one law; what neither has met is left out."""
    table = torch.stack([first, second]).double()
    table = table[:, table.sum(0) > 0]
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    statistic = ((table - expected).square() / expected).sum().item()
    return float(stats.chi2.sf(statistic, max(table.shape[1] - 1, 1)))


def all_orders(n: int) -> Tensor:
    """The n! orders of n items, (n!, n)."""
    return torch.tensor(list(itertools.permutations(range(n))))


def exact_law(structure: Structure, theta: Tensor) -> Tensor:
    """Probabilities (S,) of the vertices under Gumbel utilities, differentiable in theta (n).

    For structures whose maximiser looks at the order of the utilities alone (matroids): each of the n! orders has its
    Plackett-Luce probability and one maximiser. n is 7 at most.
    """
    orders = all_orders(len(theta))
    scores = -orders.argsort(-1).to(theta.dtype)  # the place in the order, best first
    index = vertex_index(structure.solver(scores), structure.vertices)
    probabilities = plackett_luce_log_prob(orders, theta.expand(len(orders), -1)).exp()
    return theta.new_zeros(len(structure.vertices)).index_add(0, index, probabilities)


def counts_of(structure: Structure, theta: Tensor, law: Law, samples: int, generator: torch.Generator) -> Tensor:
    """How often each vertex (S,) is the maximiser of `samples` random utilities with parameters theta (n)."""
    u = reparameterise(theta, draw_noise(theta, law, samples, generator), law)
    index = vertex_index(structure.solver(u), structure.vertices)
    return index.bincount(minlength=len(structure.vertices))


def law_p(
    structure: Structure, theta: Tensor, law: Law, exact: Tensor, samples: int, generator: torch.Generator
) -> float:
    """Whether the frequencies of vertices are the probabilities `exact` (S,): uniformity of 20 chi-square p-values."""
    return uniform_p([chi_square_p(counts_of(structure, theta, law, samples, generator), exact) for _ in range(20)])


def same_law_p(structure: Structure, theta: Tensor, samples: int, generator: torch.Generator) -> tuple[float, float]:
    """Gumbel against negative exponential utilities, drawn independently: 20 chi-square tests of two samples.

    Returns:
        The p-value of their uniformity, and the total variation distance between all counts of the two kinds.
    """
    p_values, totals = [], torch.zeros(2, len(structure.vertices), dtype=torch.float64)
    for _ in range(20):
        pair = [
            counts_of(structure, theta, law, samples, generator).double() for law in ("gumbel", "negative_exponential")
        ]
        p_values.append(homogeneity_p(*pair))
        totals += torch.stack(pair)
    shares = totals / totals.sum(1, keepdim=True)
    return uniform_p(p_values), (shares[0] - shares[1]).abs().sum().item() / 2


def same_vertex(structure: Structure, theta: Tensor, samples: int, generator: torch.Generator) -> float:
    """Percentage of draws in which both kinds of utilities, from the same waiting times, have the same maximiser."""
    state = generator.get_state()
    found = []
    for law in ("gumbel", "negative_exponential"):
        generator.set_state(state)
        u = reparameterise(theta, draw_noise(theta, law, samples, generator), law)
        found.append(structure.solver(u))
    return 100 * (found[0] == found[1]).all(-1).double().mean().item()


class Race(NamedTuple):
    """One sample of exponential clocks against what is proved of them; see `exponential_race`."""

    p_values: dict[str, float]
    correlation: float
    means: Tensor
    table: Tensor


def exponential_race(rates: Tensor, samples: int, generator: torch.Generator) -> Race:
    """`samples` draws of n independent exponential clocks with the given rates (n,).

    Returns:
        p_values: `minimum`: the first time is exponential with the sum of the rates (Kolmogorov and Smirnov);
            `argmin`: clock i is first with probability rate_i / sum (chi-square); `independence`: who is first does not
            depend on when, tenths of the first time by clocks (chi-square); `order`: the first two are a Plackett-Luce
            order (chi-square).
        correlation: the largest one in modulus between the first time and the indicator of a clock.
        means: mean first time where clock i was first, (n,), in the unit of time.
        table: how often clock i was first in each tenth of the first times, (10, n).
    """
    n = len(rates)
    times = torch.empty(samples, n, dtype=torch.float64).exponential_(generator=generator) / rates
    first, who = times.min(-1)
    tenth = (first.argsort().argsort() * 10) // samples
    table = (tenth * n + who).bincount(minlength=10 * n).view(10, n).double()
    pairs = torch.tensor(list(itertools.permutations(range(n), 2)))
    best = times.topk(2, -1, largest=False).indices
    met = (best[:, 0] * n + best[:, 1]).bincount(minlength=n * n)[pairs[:, 0] * n + pairs[:, 1]]
    order_law = plackett_luce_log_prob(pairs, rates.log().expand(len(pairs), -1)).exp()
    p_values = {
        "minimum": float(stats.kstest(first.numpy(), "expon", args=(0, 1 / rates.sum().item())).pvalue),
        "argmin": chi_square_p(who.bincount(minlength=n), rates / rates.sum()),
        "independence": float(stats.chi2_contingency(table.numpy()).pvalue),
        "order": chi_square_p(met, order_law),
    }
    joint = torch.corrcoef(torch.cat([first.unsqueeze(0), torch.nn.functional.one_hot(who, n).double().T]))
    means = torch.stack([first[who == i].mean() for i in range(n)])
    return Race(p_values, joint[0, 1:].abs().max().item(), means, table)
