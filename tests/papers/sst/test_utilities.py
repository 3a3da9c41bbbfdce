"""Utilities: laws, densities and divergences against scipy and quadrature, exponential races, conditional samples."""

import itertools
from typing import get_args

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from papers.sst.utilities import (
    Law,
    conditional_gumbel,
    divergence,
    draw_noise,
    log_density,
    plackett_luce_log_prob,
    reparameterise,
    sample,
    total_divergence,
    total_log_density,
)
from shared.solvers.simple import argmax, top_k

every_law = pytest.mark.parametrize("law", get_args(Law))
ALPHA = 1e-3  # of each test of a law; the seeds are fixed


def second_opinion(law: Law, theta: float) -> stats.rv_continuous:
    """The law of -U for negative exponential utilities, of U for the others."""
    if law == "gumbel":
        return stats.gumbel_r(loc=theta)
    if law == "gaussian":
        return stats.norm(loc=theta)
    return stats.expon(scale=torch.tensor(-theta).exp().item())


def support(law: Law) -> tuple[float, float]:
    return (-60.0, 0.0) if law == "negative_exponential" else (-30.0, 60.0)


@every_law
def test_samples_and_densities_are_those_of_scipy(law: Law) -> None:
    theta = torch.tensor([-0.7, 0.4], dtype=torch.float64)
    u = sample(theta, law, 4000)
    sign = -1 if law == "negative_exponential" else 1
    for i in range(2):
        oracle = second_opinion(law, theta[i].item())
        assert stats.kstest((sign * u[:, i]).numpy(), oracle.cdf).pvalue > ALPHA
        expected = torch.from_numpy(oracle.logpdf((sign * u[:, i]).numpy()))
        torch.testing.assert_close(log_density(u[:, i], theta[i], law), expected)


@every_law
@pytest.mark.parametrize(("theta", "prior"), [(0.7, 0.0), (-0.8, 0.0), (0.3, 1.1), (0.0, 0.0)])
def test_divergence_is_the_integral(law: Law, theta: float, prior: float) -> None:
    def integrand(u: float) -> float:
        here = torch.tensor(u, dtype=torch.float64)
        p, q = (log_density(here, torch.tensor(t, dtype=torch.float64), law) for t in (theta, prior))
        return (p.exp() * (p - q)).item() if p > -600 else 0.0

    expected, _ = integrate.quad(integrand, *support(law), points=[-1.0, 0.0, 1.0, 5.0], limit=300)
    value = divergence(torch.tensor(theta, dtype=torch.float64), law, prior).item()
    assert value == pytest.approx(expected, abs=1e-7)
    assert value >= 0


def test_divergence_of_gumbel_at_the_reference_point_and_near_zero() -> None:
    assert divergence(torch.tensor(0.7), "gumbel").item() == pytest.approx(0.196585, abs=1e-6)
    # d^2 / 2 to leading order: rounding in float32 would leave nothing of it.
    assert divergence(torch.tensor(1e-2), "gumbel").item() == pytest.approx(5e-5, rel=5e-3)


@every_law
def test_the_doubled_count_is_that_of_both_directions(law: Law) -> None:
    """KL over all n (n - 1) directed logits, symmetric, is twice that over the undirected edges."""
    n = 5
    i, j = torch.triu_indices(n, n, 1)
    theta = torch.randn(3, len(i), dtype=torch.float64)
    directed = torch.zeros(3, n, n, dtype=torch.float64)
    directed[:, i, j] = directed[:, j, i] = theta
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    torch.testing.assert_close(
        total_divergence(theta, law, doubled=True), divergence(directed, law)[:, off_diagonal].sum(-1)
    )
    torch.testing.assert_close(total_divergence(theta, law), total_divergence(theta, law, doubled=True) / 2)
    u = sample(theta, law)
    torch.testing.assert_close(total_log_density(u, theta, law, doubled=True), 2 * log_density(u, theta, law).sum(-1))


def test_divergence_of_utilities_bounds_that_of_the_maximisers() -> None:
    theta = torch.randn(50, 4, dtype=torch.float64)
    p = theta.softmax(-1)
    of_maximisers = (p * (p * 4).log()).sum(-1)
    assert (total_divergence(theta, "gumbel") >= of_maximisers).all()


@every_law
def test_reparameterised_gradient_is_the_finite_difference(law: Law) -> None:
    theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    noise = draw_noise(theta, law, 3)
    assert noise.shape == (3, 4)
    assert torch.autograd.gradcheck(lambda theta: reparameterise(theta, noise, law), theta)
    u = sample(theta, law, 3).detach()
    assert torch.autograd.gradcheck(lambda theta: log_density(u, theta, law), theta)


@every_law
def test_the_score_has_mean_zero_and_the_variance_of_fisher(law: Law) -> None:
    """The Fisher information of a shift of a standard Gumbel or normal variable, or of a log-rate, is 1."""
    theta = torch.randn(20_000, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(log_density(sample(theta, law).detach(), theta, law).sum(), theta)
    assert abs(score.mean().item()) < 4 / 20_000**0.5
    assert score.square().mean().item() == pytest.approx(1, abs=0.1)


def test_negative_exponential_is_an_increasing_function_of_gumbel() -> None:
    theta = torch.randn(6)
    one, other = (
        sample(theta, law, 100, torch.Generator().manual_seed(1)) for law in ("gumbel", "negative_exponential")
    )
    torch.testing.assert_close(other, -torch.exp(-one))
    torch.testing.assert_close(top_k(one, 3), top_k(other, 3))


@every_law
def test_single_precision_stays_finite(law: Law) -> None:
    u = sample(torch.zeros(1_000_000), law)
    assert u.isfinite().all()
    assert u.abs().max() < 30


def test_impossible_utilities_have_no_density() -> None:
    assert log_density(torch.tensor(0.1), torch.tensor(0.0), "negative_exponential").item() == -torch.inf


def test_unknown_laws_are_refused() -> None:
    theta = torch.zeros(2)
    with pytest.raises(ValueError, match="'cauchy' is no law"):
        draw_noise(theta, "cauchy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cauchy' is no law"):
        divergence(theta, "cauchy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cauchy' is no law"):
        log_density(theta, theta, "cauchy")  # type: ignore[arg-type]


def test_exponential_races() -> None:
    """Who wins and when are independent: the winner has the shares of the rates, the time the sum of the rates."""
    rates = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    n = 40_000
    race = -sample(rates.log(), "negative_exponential", n)
    first, winner = race.min(-1)
    counts = torch.bincount(winner, minlength=4)
    assert stats.chisquare(counts.numpy(), (n * rates / rates.sum()).numpy()).pvalue > ALPHA
    assert stats.kstest(first.numpy(), stats.expon(scale=0.1).cdf).pvalue > ALPHA
    assert first.mean().item() == pytest.approx(0.1, abs=4 * 0.1 / n**0.5)
    assert abs(torch.corrcoef(torch.stack([first, (winner == 0).double()]))[0, 1].item()) < 4 / n**0.5
    for i in range(4):
        here = first[winner == i]
        assert here.mean().item() == pytest.approx(0.1, abs=4 * 0.1 / len(here) ** 0.5)


def test_gumbel_max_gives_softmax() -> None:
    theta = torch.tensor([-0.6, 1.9, -0.2, 1.1, -1.0], dtype=torch.float64) / 0.5
    expected = torch.tensor([0.005493, 0.815223, 0.012225, 0.164591, 0.002468], dtype=torch.float64)
    torch.testing.assert_close(theta.softmax(-1), expected, rtol=0, atol=1e-6)
    counts = argmax(sample(theta, "gumbel", 40_000)).sum(0)
    assert stats.chisquare(counts.numpy(), (40_000 * theta.softmax(-1)).numpy()).pvalue > ALPHA


def orders(n: int, k: int) -> Tensor:
    return torch.tensor(list(itertools.permutations(range(n), k)))


@pytest.mark.parametrize("law", ["gumbel", "negative_exponential"])
def test_the_order_of_the_best_is_plackett_luce(law: Law) -> None:
    theta = torch.tensor([0.5, -1, 0.3, 0.8], dtype=torch.float64)
    every = orders(4, 2)
    probabilities = plackett_luce_log_prob(every, theta.expand(len(every), 4)).exp()
    assert probabilities.sum().item() == pytest.approx(1)
    drawn = sample(theta, law, 30_000).topk(2).indices
    counts = (drawn[:, None] == every).all(-1).sum(0)
    assert stats.chisquare(counts.numpy(), (30_000 * probabilities).numpy()).pvalue > ALPHA


def test_inclusion_in_the_top_two_at_the_reference_point() -> None:
    theta = torch.tensor([0.5, -1, 0.3, 2, 0], dtype=torch.float64)
    every = orders(5, 2)
    probabilities = plackett_luce_log_prob(every, theta.expand(len(every), 5)).exp()
    inclusion = torch.zeros(5, dtype=torch.float64).scatter_add_(0, every.flatten(), probabilities.repeat_interleave(2))
    expected = torch.tensor([0.413352, 0.096325, 0.342260, 0.891384, 0.256679], dtype=torch.float64)
    torch.testing.assert_close(inclusion, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_conditional_utilities_have_the_order_and_together_the_law(k: int) -> None:
    """Drawn given the order of other utilities, they are Gumbel again, and have the same best in the same order."""
    theta = torch.tensor([0.5, -1, 0.3, 0.8], dtype=torch.float64)
    u = sample(theta, "gumbel", 8000)
    order = u.topk(k).indices
    again = conditional_gumbel(theta.expand_as(u), order, draw_noise(u, "gumbel"))
    assert (again.topk(k).indices == order).all()
    assert again.sub(u).abs().min() > 0
    for i in range(4):
        assert stats.kstest(again[:, i].numpy(), second_opinion("gumbel", theta[i].item()).cdf).pvalue > ALPHA
        # Given which item wins, too: the law of a coordinate among those with the same winner.
        same = order[:, 0] == 0
        assert stats.ks_2samp(again[same, i].numpy(), u[same, i].numpy()).pvalue > ALPHA


def test_conditional_utilities_are_differentiable() -> None:
    theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    order, noise = torch.tensor([2, 0]), draw_noise(theta, "gumbel")
    assert torch.autograd.gradcheck(lambda theta: conditional_gumbel(theta, order, noise), theta)
    nobody = torch.empty(0, dtype=torch.int64)
    torch.testing.assert_close(conditional_gumbel(theta, nobody, noise), theta + noise)
