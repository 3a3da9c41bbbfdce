"""Estimators on the enumerable problem of the gradient study: unbiased where they should be, biased as known elsewhere.

z is one-hot with probabilities softmax(theta), and f(z) = c.z + z' A z, so that relaxed points see A's other entries.
"""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from papers.sst import chains, estimators, subsets, utilities
from papers.sst.matchings import sinkhorn
from shared.solvers.assignment import assignment
from shared.solvers.chains import correlated_top_k
from shared.solvers.simple import argmax, top_k

THETA = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64)
C = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
A = torch.tensor([[1, 0.5, -0.3], [0.5, -1, 0.8], [-0.3, 0.8, 2]], dtype=torch.float64)
TRUE = torch.tensor([0.322513, 0.176999, -0.499512], dtype=torch.float64)
DRAWS = 40_000


def loss(z: Tensor) -> Tensor:
    return z @ C + ((z @ A) * z).sum(-1)


def per_draw(surrogate: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (DRAWS,)) -> Tensor:
    """The estimate (DRAWS, 3) of each draw: every draw has its own copy of the parameters."""
    theta = THETA.expand(*shape, 3).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate(theta).sum(), theta)
    return gradient


def log_prob(theta: Tensor, z: Tensor) -> Tensor:
    return (theta.log_softmax(-1) * z).sum(-1)


def assert_mean(estimates: Tensor, expected: Tensor, errors: float = 4.0) -> None:
    deviation = (estimates.mean(0) - expected).abs() / (estimates.std(0) / len(estimates) ** 0.5)
    assert deviation.max() < errors, f"{deviation.tolist()} standard errors from the expected gradient"


def total_variance(estimates: Tensor) -> float:
    return estimates.var(0).sum().item()


def hard(theta: Tensor) -> Tensor:
    return argmax(utilities.sample(theta.detach(), "gumbel"))


def test_the_true_gradient_is_the_enumerated_one() -> None:
    theta = THETA.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(theta.softmax(-1) @ loss(torch.eye(3, dtype=torch.float64)), theta)
    torch.testing.assert_close(gradient, TRUE, rtol=0, atol=1e-6)


def reinforce(theta: Tensor, baseline: Callable[[Tensor], Tensor | float]) -> Tensor:
    z = hard(theta)
    return estimators.reinforce(loss(z), log_prob(theta, z), baseline(loss(z)))


def enumerated(samples: int, baseline: Callable[[Tensor], Tensor | float]) -> tuple[Tensor, float]:
    """Mean and total variance of the mean of REINFORCE over `samples`, exactly: over all 3^samples outcomes."""
    outcomes = torch.tensor(list(itertools.product(range(3), repeat=samples))).T
    z = torch.eye(3, dtype=torch.float64)[outcomes]
    theta = THETA.expand(*outcomes.shape, 3).clone().requires_grad_()
    surrogate = estimators.reinforce(loss(z), log_prob(theta, z), baseline(loss(z)))
    estimates = torch.autograd.grad(surrogate.sum(), theta)[0].mean(0)
    p = log_prob(THETA, z).sum(0).exp()
    mean = p @ estimates
    return mean, (p @ (estimates - mean).square().sum(-1)).item()


def test_reinforce_is_unbiased_with_the_variance_of_the_enumeration() -> None:
    estimates = per_draw(partial(reinforce, baseline=lambda f: 0.0))
    assert_mean(estimates, TRUE)
    mean, variance = enumerated(1, lambda f: 0.0)
    torch.testing.assert_close(mean, TRUE, rtol=0, atol=1e-6)
    assert variance == pytest.approx(1.299, rel=5e-3)
    assert total_variance(estimates) == pytest.approx(variance, rel=0.03)


def test_a_moving_average_is_no_bias_and_less_variance() -> None:
    average = None
    for _ in range(5):
        average = estimators.moving_average(average, loss(hard(THETA.expand(20, 3))), decay=0.9)
    assert average is not None
    constant = average
    estimates = per_draw(partial(reinforce, baseline=lambda f: constant))
    assert_mean(estimates, TRUE)
    assert total_variance(estimates) < 0.8
    assert estimators.moving_average(2.0, torch.tensor([4.0, 6.0]), decay=0.75) == 2.75
    assert estimators.moving_average(None, torch.tensor([4.0, 6.0])) == 5


def test_leave_one_out_is_the_multi_sample_identity() -> None:
    """sum_s (f_s - mean of all) score_s / (S - 1) is mean_s (f_s - mean of the others) score_s."""
    f, scores = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    one = ((f - f.mean(0)) * scores).sum(0) / 4
    torch.testing.assert_close(estimators.reinforce(f, scores, estimators.mean_of_others(f)).mean(0), one)
    by_hand = torch.stack([f[[i for i in range(5) if i != s]].mean(0) for s in range(5)])
    torch.testing.assert_close(estimators.mean_of_others(f), by_hand)
    torch.testing.assert_close(estimators.mean_of_others(f.T, 1), by_hand.T)
    with pytest.raises(ValueError, match="at least 2"):
        estimators.mean_of_others(f[:1])


def test_leave_one_out_is_unbiased_and_better_than_the_mean_of_as_many() -> None:
    shape = (4, DRAWS)
    plain = per_draw(partial(reinforce, baseline=lambda f: 0.0), shape).mean(0)
    estimates = per_draw(partial(reinforce, baseline=estimators.mean_of_others), shape).mean(0)
    assert_mean(estimates, TRUE)
    mean, variance = enumerated(4, lambda f: 0.0)
    torch.testing.assert_close(mean, TRUE, rtol=0, atol=1e-6)
    assert variance == pytest.approx(0.325, rel=5e-3)
    assert total_variance(plain) == pytest.approx(variance, rel=0.03)
    mean, variance = enumerated(4, estimators.mean_of_others)
    torch.testing.assert_close(mean, TRUE, rtol=0, atol=1e-6)
    assert variance == pytest.approx(0.142, rel=1e-2)
    assert total_variance(estimates) == pytest.approx(variance, rel=0.03)


def test_the_batch_mean_shrinks_by_one_of_its_size() -> None:
    estimates = per_draw(partial(reinforce, baseline=estimators.batch_mean), (4, DRAWS)).mean(0)
    assert_mean(estimates, TRUE * 3 / 4)
    torch.testing.assert_close(enumerated(4, estimators.batch_mean)[0], TRUE * 3 / 4, rtol=0, atol=1e-6)


def test_nvil_is_unbiased_and_its_baseline_learns_the_mean_loss() -> None:
    baseline = estimators.LearnedBaseline(3, 8).double()
    features = THETA.expand(64, 1, 3)
    optimiser = torch.optim.Adam(baseline.parameters(), lr=5e-2)
    average = 0.3
    for _ in range(60):
        z = hard(THETA.expand(64, 3))
        surrogate, error = estimators.nvil(loss(z), log_prob(THETA, z), baseline(features), average)
        assert surrogate.requires_grad is False
        optimiser.zero_grad()
        error.mean().backward()
        optimiser.step()
    with torch.no_grad():
        predicted = baseline(features[:1])
    mean = (THETA.softmax(-1) @ loss(torch.eye(3, dtype=torch.float64))).item()
    assert predicted.item() + average == pytest.approx(mean, abs=0.25)

    def nvil(theta: Tensor) -> Tensor:
        z = hard(theta)
        return estimators.nvil(loss(z), log_prob(theta, z), predicted, average)[0]

    estimates = per_draw(nvil)
    assert_mean(estimates, TRUE)
    assert total_variance(estimates) < 0.8


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_relax_is_unbiased_for_any_control(scale: float) -> None:
    def relax(theta: Tensor) -> Tensor:
        u = utilities.sample(theta, "gumbel")
        z = argmax(u.detach())
        order = z.argmax(-1, keepdim=True)
        again = utilities.conditional_gumbel(theta, order, utilities.draw_noise(theta, "gumbel"))
        controls = [scale * loss(subsets.categorical(utility, 0.5)) for utility in (u, again)]
        return estimators.relax(loss(z), log_prob(theta, z), *controls)

    estimates = per_draw(relax)
    assert_mean(estimates, TRUE)
    if scale == 1:  # against 1.299 without a control
        assert total_variance(estimates) < 0.8


@pytest.mark.parametrize("law", ["gumbel", "negative_exponential"])
def test_the_score_of_the_utilities_is_unbiased_and_noisier_than_that_of_z(law: utilities.Law) -> None:
    def on_utilities(theta: Tensor) -> Tensor:
        u = utilities.sample(theta.detach(), law)
        return estimators.reinforce(loss(argmax(u)), utilities.total_log_density(u, theta, law))

    estimates = per_draw(on_utilities)
    assert_mean(estimates, TRUE)
    assert total_variance(estimates) > 1.299
    doubled = per_draw(
        lambda theta: estimators.reinforce(
            loss(argmax(u := utilities.sample(theta.detach(), law))), utilities.total_log_density(u, theta, law, True)
        )
    )
    assert_mean(doubled, 2 * TRUE)


def test_the_score_of_the_trace_is_unbiased_for_subsets() -> None:
    """Top-2 of 3, with the law of the order: against the gradient of the enumerated mean."""
    orders = torch.tensor(list(itertools.permutations(range(3), 2)))

    def subset_loss(order: Tensor) -> Tensor:
        return loss(torch.zeros(*order.shape[:-1], 3, dtype=torch.float64).scatter(-1, order, 1))

    theta = THETA.clone().requires_grad_()
    p = utilities.plackett_luce_log_prob(orders, theta.expand(6, 3)).exp()
    (exact,) = torch.autograd.grad(p @ subset_loss(orders), theta)

    def trace(theta: Tensor) -> Tensor:
        order = utilities.sample(theta.detach(), "gumbel").topk(2).indices
        return estimators.reinforce(subset_loss(order), utilities.plackett_luce_log_prob(order, theta))

    assert_mean(per_draw(trace), exact)


def softmax_trick(theta: Tensor, temperature: float, mode: estimators.Mode) -> Tensor:
    u = utilities.sample(theta, "gumbel")
    return loss(estimators.forward(u, argmax, partial(subsets.categorical, temperature=temperature), mode))


@pytest.mark.parametrize(
    ("temperature", "mode", "bias", "variance"),
    [
        (0.3, "relaxed", 0.104, 1.13),
        (0.5, "relaxed", 0.162, 0.508),
        (1.0, "relaxed", 0.255, 0.117),
        (2.0, "relaxed", 0.358, 0.0135),
        (1.0, "straight_through", 0.295, 0.487),
    ],
)
def test_bias_and_variance_of_the_softmax_trick(
    temperature: float, mode: estimators.Mode, bias: float, variance: float
) -> None:
    estimates = per_draw(partial(softmax_trick, temperature=temperature, mode=mode))
    error = (total_variance(estimates) / DRAWS) ** 0.5
    # The reference values are rounded to three digits and estimates themselves.
    assert (estimates.mean(0) - TRUE).norm().item() == pytest.approx(bias, abs=4 * error + 2e-3)
    assert total_variance(estimates) == pytest.approx(variance, rel=0.12)


@pytest.mark.parametrize("central", [False, True])
def test_implicit_mle_is_a_finite_difference_of_the_mean(central: bool) -> None:
    """For a loss linear in z its mean is a difference of softmax along c, whatever the step is."""
    step = 0.5
    p = [torch.softmax(THETA + shift * C, -1) for shift in (-step, 0.0, step)]
    expected = (p[2] - p[0]) / (2 * step) if central else (p[1] - p[0]) / step

    def implicit(theta: Tensor) -> Tensor:
        u = utilities.sample(theta, "gumbel")
        return estimators.implicit_mle(u, argmax, step, central) @ C

    assert_mean(per_draw(implicit), expected)


def test_implicit_mle_goes_forward_as_the_solver_and_refuses_a_step_of_nothing() -> None:
    u = torch.randn(5, 4, requires_grad=True)
    x = estimators.implicit_mle(u, argmax, 1.0)
    torch.testing.assert_close(x, argmax(u.detach()), rtol=0, atol=0)
    assert x.requires_grad
    with pytest.raises(ValueError, match="step"):
        estimators.implicit_mle(u, argmax, 0.0)


PAIRS: dict[str, tuple[estimators.Solver, estimators.Relaxation, tuple[int, ...]]] = {
    "categorical": (argmax, partial(subsets.categorical, temperature=0.5), (4, 6)),
    "categorical_euclidean": (argmax, partial(subsets.categorical_euclidean, temperature=0.5), (4, 6)),
    "binary": (subsets.binary_vector, partial(subsets.binary, temperature=0.5), (4, 6)),
    "k_subset": (partial(top_k, k=2), partial(chains.k_subset_marginals, k=2, temperature=0.5), (4, 6)),
    "correlated": (partial(correlated_top_k, k=2), partial(chains.correlated_marginals, k=2, temperature=0.5), (4, 7)),
    "matching": (assignment, partial(sinkhorn, temperature=0.5), (4, 3, 3)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_three_modes_of_every_pair(pair: str) -> None:
    solver, relaxation, shape = PAIRS[pair]
    u = torch.randn(shape, requires_grad=True)
    vertex, point, through = (
        estimators.forward(u, solver, relaxation, mode) for mode in ("hard", "relaxed", "straight_through")
    )
    assert not vertex.requires_grad
    torch.testing.assert_close(through, vertex, rtol=0, atol=0)
    torch.testing.assert_close(vertex, solver(u.detach()), rtol=0, atol=0)
    v = torch.randn(shape)
    (of_point,), (of_through,) = (torch.autograd.grad(x, u, v) for x in (point, through))
    torch.testing.assert_close(of_point, of_through, rtol=0, atol=0)
    assert of_point.abs().max() > 0
    with pytest.raises(ValueError, match="'soft' is no mode"):
        estimators.forward(u, solver, relaxation, "soft")  # type: ignore[arg-type]
