"""Closed forms against tabled values, enumeration, other libraries, conjugacy and samples of the perturbed layer."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import gumbel_r, norm, rankdata
from torch import Tensor

from papers.perturbed_optimizers.closed_forms import (
    EULER_GAMMA,
    cube_maximiser,
    cube_maximum,
    logical_or,
    pair_fenchel_young,
    pair_jacobian,
    pair_maximiser,
    pair_maximum,
    pair_omega,
    ranking_fenchel_young,
    ranking_maximiser,
    ranking_maximum,
    ranking_omega,
    simplex_fenchel_young,
    simplex_jacobian,
    simplex_maximiser,
    simplex_maximum,
    simplex_omega,
)
from papers.perturbed_optimizers.perturbed import (
    Noise,
    Perturbation,
    draw_noise,
    perturbed_maximiser,
    perturbed_maximum,
)
from shared.solvers.simple import argmax, ranking, sign

NOISES: tuple[Noise, ...] = ("gaussian", "gumbel")
every_noise = pytest.mark.parametrize("noise", NOISES)
TABLED = torch.tensor([-0.6, 1.9, -0.2, 1.1, -1.0], dtype=torch.float64)
RANKED = torch.tensor([0.5, -0.2, 1.1, 0.0], dtype=torch.float64)
scores = st.lists(st.floats(-5, 5), min_size=2, max_size=7).map(lambda x: torch.tensor(x, dtype=torch.float64))
epsilons = st.floats(0.1, 10)


def close(actual: Tensor, expected: Any, atol: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


# name -> scores of the polytope (n), maximiser, F_eps, solver, noise
FORMS: dict[str, tuple[int, Callable[..., Tensor], Callable[..., Tensor], Callable[[Tensor], Tensor], Noise]] = {
    "simplex": (5, simplex_maximiser, simplex_maximum, argmax, "gumbel"),
    "pair": (2, pair_maximiser, pair_maximum, argmax, "gaussian"),
    **{
        f"ranking_{noise}": (
            5,
            lambda t, e, noise=noise: ranking_maximiser(t, e, noise),
            lambda t, e, noise=noise: ranking_maximum(t, e, noise),
            ranking,
            noise,
        )
        for noise in NOISES
    },
    **{
        f"cube_{noise}": (
            3,
            lambda t, e, noise=noise: cube_maximiser(t, e, noise),
            lambda t, e, noise=noise: cube_maximum(t, e, noise),
            sign,
            noise,
        )
        for noise in NOISES
    },
}
every_form = pytest.mark.parametrize("name", FORMS)


def test_simplex_has_the_tabled_values() -> None:
    theta = TABLED.clone().requires_grad_()
    y = simplex_maximiser(theta, 0.5)
    close(y, [0.005493, 0.815223, 0.012225, 0.164591, 0.002468], 5e-7)
    close(simplex_maximum(theta, 0.5), 2.290754, 5e-7)
    (gradient,) = torch.autograd.grad(y.square().sum(), theta)
    close(gradient, [-0.015081, 0.402259, -0.033234, -0.347138, -0.006806], 5e-7)


def test_simplex_loss_is_cross_entropy() -> None:
    close(simplex_fenchel_young(TABLED, torch.eye(5).double()[1], 0.5), 0.102147, 5e-7)
    close(simplex_fenchel_young(TABLED, torch.eye(5).double()[3], 0.5), 0.902147, 5e-7)
    theta, labels = torch.randn(50, 7).double() * 5, torch.randint(7, (50,))
    expected = 0.3 * torch.nn.functional.cross_entropy(theta / 0.3, labels, reduction="none")
    close(simplex_fenchel_young(theta, torch.eye(7).double()[labels], 0.3), expected, 1e-12)


@pytest.mark.parametrize(
    ("epsilon", "first", "slope"),
    [(0.1, 0.016947, 0.297326), (0.5, 0.335687, 0.515630), (1.0, 0.416002, 0.275819), (2.0, 0.457765, 0.140256)],
)
def test_pair_has_the_tabled_values(epsilon: float, first: float, slope: float) -> None:
    theta = torch.tensor([0.0, 0.3], dtype=torch.float64)
    close(pair_maximiser(theta, epsilon), [first, 1 - first], 5e-7)
    close(pair_jacobian(theta, epsilon), [[slope, -slope], [-slope, slope]], 5e-7)


def test_pair_at_zero_is_the_mean_of_the_larger_normal() -> None:
    close(pair_maximum(torch.zeros(2).double(), 1.0), 0.564190, 5e-7)
    with pytest.raises(ValueError, match="two scores"):
        pair_maximiser(torch.zeros(3), 1.0)


def test_ranking_has_the_tabled_values() -> None:
    """Tabled for ranks 0..n-1: one more in each rank adds the sum of the noisy scores."""
    soft = ranking_maximiser(RANKED, 0.5, "gaussian") - 1
    close(soft, [1.797222, 0.582744, 2.709035, 0.910999], 5e-7)
    close(ranking_maximum(RANKED, 0.5, "gaussian") - RANKED.sum(), 4.758531, 5e-7)
    soft = ranking_maximiser(RANKED, 0.5, "gumbel") - 1
    close(soft, [1.764718, 0.668267, 2.599636, 0.967380], 5e-7)
    close(ranking_maximum(RANKED, 0.5, "gumbel") - RANKED.sum() - 4 * 0.5 * EULER_GAMMA, 6.774999, 5e-7)


def test_signs_and_their_or_have_the_tabled_values() -> None:
    close(cube_maximiser(torch.tensor([0.4], dtype=torch.float64), 0.5, "gaussian"), [2 * norm.cdf(0.8) - 1], 1e-12)
    theta = torch.tensor([[-5.0, 0.1], [-5.0, 0.2]], dtype=torch.float64)
    close(logical_or(theta, 0.1, "gumbel"), [0.868024, 0.998764], 5e-7)


@every_noise
def test_or_is_one_less_twice_the_chance_that_all_are_false(noise: Noise) -> None:
    theta = torch.randn(6, 4).double()
    false = (1 - cube_maximiser(theta, 0.7, noise)) / 2
    close(logical_or(theta, 0.7, noise), 1 - 2 * false.prod(-1), 1e-12)


@every_noise
@pytest.mark.parametrize("a", [-60.0, -39.0, -3.0, -0.2, 0.0, 0.5, 4.0, 60.0])
def test_cube_maximum_is_the_mean_modulus(noise: Noise, a: float) -> None:
    law = norm if noise == "gaussian" else gumbel_r
    limits = (-40.0, min(max(-a, -40.0), 60.0), 60.0)
    parts = [
        quad(lambda z: abs(a + z) * law.pdf(z), low, high, limit=200)[0] for low, high in itertools.pairwise(limits)
    ]
    theta = torch.tensor([a * 2], dtype=torch.float64)
    assert cube_maximum(theta, 2.0, noise).item() == pytest.approx(2 * sum(parts), rel=1e-8)


@every_form
def test_the_gradient_of_the_maximum_is_the_maximiser(name: str) -> None:
    n, maximiser, maximum, _, _ = FORMS[name]
    theta = (torch.randn(4, 3, n).double() * 3).requires_grad_()
    (gradient,) = torch.autograd.grad(maximum(theta, 0.7).sum(), theta)
    close(gradient, maximiser(theta, 0.7), 1e-12)
    assert torch.autograd.gradcheck(lambda t: maximum(t, 0.7), theta)
    assert torch.autograd.gradgradcheck(lambda t: maximum(t, 0.7), theta)


@every_form
def test_the_jacobian_is_symmetric_and_positive_semidefinite(name: str) -> None:
    n, maximiser, _, _, _ = FORMS[name]
    jacobian = torch.autograd.functional.jacobian(lambda t: maximiser(t, 0.6), torch.randn(n).double())
    close(jacobian, jacobian.T, 1e-12)
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-12
    if not name.startswith("cube"):
        close(jacobian.sum(1), torch.zeros(n), 1e-12)


@every_form
@given(epsilon=epsilons)
def test_temperature_only_scales_the_scores(name: str, epsilon: float) -> None:
    n, maximiser, maximum, _, _ = FORMS[name]
    theta = torch.linspace(-2, 3, n, dtype=torch.float64)
    close(maximiser(theta, epsilon), maximiser(theta / epsilon, 1.0), 1e-12)
    close(maximum(theta, epsilon) / epsilon, maximum(theta / epsilon, 1.0), 1e-9)


@every_form
def test_the_layer_samples_the_closed_form(name: str) -> None:
    n, maximiser, maximum, solver, noise = FORMS[name]
    theta = torch.linspace(-0.5, 0.6, n, dtype=torch.float64).unsqueeze(0)
    p = Perturbation(epsilon=0.5, samples=100_000, noise=noise)
    z = draw_noise(theta, p, torch.Generator().manual_seed(0))
    solutions = solver((theta + 0.5 * z).flatten(0, 1))
    error = (perturbed_maximiser(theta, solver, p, z) - maximiser(theta, 0.5)).abs()
    assert (error <= 4.5 * solutions.std(0) / p.samples**0.5 + 1e-9).all()
    values = ((theta + 0.5 * z).flatten(0, 1) * solutions).sum(1)
    error = (perturbed_maximum(theta, solver, p, z) - maximum(theta, 0.5)).abs()
    assert error <= 4.5 * values.std() / p.samples**0.5


@every_form
def test_limits_of_the_temperature(name: str) -> None:
    n, maximiser, _, solver, noise = FORMS[name]
    theta = torch.randn(20, n).double()
    torch.testing.assert_close(maximiser(theta, 1e-6), solver(theta), rtol=0, atol=1e-9)
    centre = {"simplex": 1 / n, "pair": 0.5, "ranking_gaussian": (n + 1) / 2, "ranking_gumbel": (n + 1) / 2}
    # The signs of Gumbel noise itself are positive with probability 1 - 1/e.
    expected = centre.get(name, 0.0 if noise == "gaussian" else 1 - 2 / math.e)
    close(maximiser(theta, 1e9), torch.full((20, n), expected), 1e-7)


@every_form
@given(theta=st.lists(st.floats(-4, 4), min_size=5, max_size=5), epsilon=epsilons)
def test_the_maximum_lies_between_its_bounds(name: str, theta: list[float], epsilon: float) -> None:
    n, _, maximum, solver, noise = FORMS[name]
    x = torch.tensor(theta[:n], dtype=torch.float64)
    mean = EULER_GAMMA if noise == "gumbel" else 0.0
    # Jensen for the shifted scores; subadditivity for the upper bound.
    shifted = x + epsilon * mean
    lower, upper = (
        (shifted * solver(shifted)).sum(),
        (x * solver(x)).sum() + epsilon * maximum(torch.zeros_like(x), 1.0),
    )
    assert lower - 1e-9 <= maximum(x, epsilon) <= upper + 1e-9


@given(theta=scores, other=scores, epsilon=epsilons)
def test_simplex_loss_is_a_divergence(theta: Tensor, other: Tensor, epsilon: float) -> None:
    n = min(len(theta), len(other))
    theta, y = theta[:n], simplex_maximiser(other[:n], epsilon)
    loss = simplex_fenchel_young(theta, y, epsilon)
    assert loss > -1e-10
    p = simplex_maximiser(theta, epsilon)
    close(loss, epsilon * torch.nn.functional.kl_div(p.log(), y, reduction="sum"), 1e-9)
    close(simplex_fenchel_young(other[:n] + 1.5, y, epsilon), 0.0, 1e-10)


@given(theta=st.tuples(st.floats(-4, 4), st.floats(-4, 4)), other=st.floats(-4, 4), epsilon=st.floats(0.5, 10))
def test_pair_loss_vanishes_at_its_target_only(theta: tuple[float, float], other: float, epsilon: float) -> None:
    target = pair_maximiser(torch.tensor([other, 0.0], dtype=torch.float64), epsilon)
    loss = pair_fenchel_young(torch.tensor(theta, dtype=torch.float64), target, epsilon)
    assert loss > -1e-10
    close(pair_fenchel_young(torch.tensor([other + 3, 3.0], dtype=torch.float64), target, epsilon), 0.0, 1e-9)
    close(pair_omega(torch.eye(2).double(), epsilon), torch.zeros(2), 1e-12)


def test_omega_is_the_conjugate() -> None:
    """The largest <theta, y> - F_eps(theta), found by search over theta."""
    y = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.linspace(-3, 3, 121, dtype=torch.float64)] * 2)
    theta = torch.cat([grid, torch.zeros(len(grid), 1)], 1)
    close(simplex_omega(y, 0.8), (theta @ y - simplex_maximum(theta, 0.8)).max(), 1e-3)
    pair = torch.tensor([0.3, 0.7], dtype=torch.float64)
    theta = torch.stack([torch.linspace(-5, 5, 10_001), torch.zeros(10_001)], 1).double()
    close(pair_omega(pair, 0.8), (theta @ pair - pair_maximum(theta, 0.8)).max(), 1e-6)
    close(simplex_omega(torch.eye(3).double(), 0.8), [-0.8 * EULER_GAMMA] * 3, 1e-12)


@every_noise
@given(
    theta=st.lists(st.floats(-5, 5), min_size=6, max_size=6), labels=st.lists(st.integers(0, 3), min_size=6, max_size=6)
)
def test_ranking_loss_is_maximum_plus_omega_less_product(noise: Noise, theta: list[float], labels: list[int]) -> None:
    """With tied labels too."""
    x, ranks = torch.tensor(theta, dtype=torch.float64).requires_grad_(), torch.from_numpy(rankdata(labels))
    loss = ranking_fenchel_young(x, ranks, 0.7, noise)
    expected = ranking_maximum(x, 0.7, noise) + ranking_omega(ranks, 0.7, noise) - (x * ranks).sum()
    close(loss, expected, 1e-10)
    assert loss > -1e-12
    (gradient,) = torch.autograd.grad(loss, x)
    close(gradient, ranking_maximiser(x, 0.7, noise) - ranks, 1e-12)


@every_noise
def test_ranking_loss_has_the_infimum_zero(noise: Noise) -> None:
    ranks = torch.from_numpy(rankdata([[3, 1, 2, 2, 0], [0, 1, 2, 3, 4], [1, 1, 1, 1, 1]], axis=1))
    close(ranking_fenchel_young(ranks * 100, ranks, 1.0, noise), torch.zeros(3), 1e-12)
    assert (ranking_fenchel_young(torch.randn(100, 1, 5).double(), ranks[:2], 1.0, noise) > 0.1).all()


def test_ranking_loss_with_gumbel_noise_is_ranknet() -> None:
    theta, epsilon = torch.randn(5).double() * 3, 0.4
    ranks = ranking(torch.randn(5).double())
    pairs = [(i, j) for i in range(5) for j in range(5) if ranks[i] > ranks[j]]
    expected = sum(epsilon * np.logaddexp(0, -(theta[i] - theta[j]).item() / epsilon) for i, j in pairs)
    close(ranking_fenchel_young(theta, ranks, epsilon, "gumbel"), expected, 1e-12)


@every_noise
def test_ranking_loss_can_be_differentiated_twice_and_broadcasts(noise: Noise) -> None:
    theta = torch.randn(2, 3, 4).double().requires_grad_()
    ranks = torch.from_numpy(rankdata([[3, 1, 2, 2], [0, 1, 2, 3], [1, 1, 1, 1]], axis=1))
    assert torch.autograd.gradcheck(lambda t: ranking_fenchel_young(t, ranks, 0.8, noise), theta)
    assert torch.autograd.gradgradcheck(lambda t: ranking_fenchel_young(t, ranks, 0.8, noise), theta)
    loss = ranking_fenchel_young(theta, ranks, 0.8, noise)
    assert loss.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        close(loss[i, j], ranking_fenchel_young(theta[i, j], ranks[j], 0.8, noise), 1e-12)


@every_noise
def test_ranking_stays_finite_for_large_scores_in_float32(noise: Noise) -> None:
    theta = (torch.randn(3, 8) * 1e4).requires_grad_()
    loss = ranking_fenchel_young(theta, ranking(-theta.detach()), 0.01, noise)
    (gradient,) = torch.autograd.grad(loss.sum(), theta)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_soft_ranks_sum_to_those_of_a_permutation() -> None:
    soft = ranking_maximiser(torch.randn(7, 6).double(), 0.3, "gumbel")
    close(soft.sum(-1), torch.full((7,), 21.0), 1e-12)


def test_simplex_jacobian_is_the_derivative() -> None:
    theta = torch.randn(4).double()
    derivative = torch.autograd.functional.jacobian(lambda t: simplex_maximiser(t, 0.6), theta)
    close(simplex_jacobian(theta, 0.6), derivative, 1e-12)
    pair = torch.randn(2).double()
    close(pair_jacobian(pair, 0.6), torch.autograd.functional.jacobian(lambda t: pair_maximiser(t, 0.6), pair), 1e-12)


@every_form
def test_leading_dimensions_and_dtype_are_kept(name: str) -> None:
    n, maximiser, maximum, _, _ = FORMS[name]
    theta = torch.randn(2, 0, 3, n)
    assert maximiser(theta, 0.5).shape == theta.shape
    assert maximum(theta, 0.5).shape == (2, 0, 3)
    theta = torch.randn(2, 3, n)
    assert maximiser(theta, 0.5).dtype == maximum(theta, 0.5).dtype == torch.float32
    torch.testing.assert_close(maximiser(theta, 0.5)[1, 2], maximiser(theta[1, 2], 0.5))
