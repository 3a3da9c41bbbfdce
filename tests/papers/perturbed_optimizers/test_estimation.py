"""The estimators of section 3.1 against closed forms; fits of scores against each other and their asymptotic law."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from papers.perturbed_optimizers.closed_forms import (
    pair_maximiser,
    ranking_maximiser,
    simplex_jacobian,
    simplex_maximiser,
)
from papers.perturbed_optimizers.estimation import (
    asymptotic_covariance,
    centred,
    fit_newton,
    fit_stochastic,
    gradient_from_values,
    jacobian_from_solutions,
    jacobian_from_values,
    potential_curvature,
)
from papers.perturbed_optimizers.perturbed import Control, Noise, Perturbation, draw_noise, perturbed_maximiser, score
from shared.solvers.simple import argmax, ranking

TABLED = torch.tensor([-0.6, 1.9, -0.2, 1.1, -1.0], dtype=torch.float64)
PAIR = torch.tensor([0.0, 0.3], dtype=torch.float64)
HIDDEN = torch.tensor([0.3, -0.2, -0.1], dtype=torch.float64)
CONTROLS: tuple[Control, ...] = ("none", "solution")
CASES = {
    "simplex": (TABLED, argmax, "gumbel", simplex_maximiser),
    "pair": (PAIR, argmax, "gaussian", pair_maximiser),
    "ranks": (TABLED, ranking, "gumbel", lambda t, e: ranking_maximiser(t, e, "gumbel")),
}
every_case = pytest.mark.parametrize("name", CASES)
every_control = pytest.mark.parametrize("control", CONTROLS)


def agree(terms: Tensor, expected: Tensor) -> None:
    """The mean of independent terms is within 4.5 standard errors of what is expected."""
    error = (terms.mean(0) - expected).abs()
    assert (error <= 4.5 * terms.std(0) / len(terms) ** 0.5 + 1e-12).all(), error


@every_case
@every_control
def test_all_three_estimators_are_unbiased(name: str, control: Control) -> None:
    theta, solver, noise, maximiser = CASES[name]
    p = Perturbation(0.5, 50_000, noise, control)  # type: ignore[arg-type]
    z = draw_noise(theta, p, torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(lambda t: maximiser(t, 0.5), theta)
    agree(gradient_from_values(theta, solver, p, z), maximiser(theta, 0.5))
    agree(jacobian_from_solutions(theta, solver, p, z), jacobian)
    agree(jacobian_from_values(theta, solver, p, z), jacobian)


@pytest.mark.parametrize(
    ("epsilon", "plain", "controlled"),
    [(1.0, 0.684, 0.618), (0.5, 1.442, 1.176), (0.1, 9.703, 2.449), (0.01, 100.0, 0.0)],
)
def test_the_control_variate_lowers_the_spread_as_tabled(epsilon: float, plain: float, controlled: float) -> None:
    for control, expected in zip(CONTROLS, (plain, controlled)):
        p = Perturbation(epsilon, 200_000, "gaussian", control)
        terms = jacobian_from_solutions(PAIR, argmax, p, draw_noise(PAIR, p))
        assert terms[:, 1, 1].std().item() == pytest.approx(expected, rel=0.03)


@every_control
def test_the_layers_backward_pass_is_the_mean_of_the_terms(control: Control) -> None:
    p = Perturbation(0.5, 30, "gumbel", control)
    theta = TABLED.unsqueeze(0).requires_grad_()
    z = draw_noise(theta.detach(), p)
    upstream = torch.randn(1, 5).double()
    (gradient,) = torch.autograd.grad(perturbed_maximiser(theta, argmax, p, z), theta, upstream)
    expected = upstream[0] @ jacobian_from_solutions(TABLED, argmax, p, z[:, 0]).mean(0)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", ["gaussian", "gumbel"])
def test_score_and_curvature_are_derivatives_of_the_density(noise: Noise) -> None:
    z = torch.randn(7).double().requires_grad_()
    nu = (z.square() / 2).sum() if noise == "gaussian" else (z + (-z).exp()).sum()
    (slope,) = torch.autograd.grad(nu, z, create_graph=True)
    torch.testing.assert_close(slope, score(z, noise))
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), z)[0], potential_curvature(z, noise))


def test_perturbations_that_the_estimators_are_not_of_are_refused() -> None:
    z = torch.zeros(4, 2).double()
    for p in (Perturbation(0.5, 4, multiplicative=True), Perturbation(0.5, 4, control="leave_one_out")):
        with pytest.raises(ValueError, match="additive noise"):
            gradient_from_values(PAIR, argmax, p, z)
    with pytest.raises(ValueError, match="noise"):
        jacobian_from_values(PAIR, argmax, Perturbation(), z[:, :1])


FITS: dict[str, Callable[[Tensor], Tensor]] = {
    "simplex": lambda t: simplex_maximiser(t, 0.5),
    "ranks_gaussian": lambda t: ranking_maximiser(t, 0.5, "gaussian"),
    "ranks_gumbel": lambda t: ranking_maximiser(t, 0.5, "gumbel"),
}


@pytest.mark.parametrize("name", FITS)
def test_newton_finds_the_scores_again(name: str) -> None:
    """Scores several temperatures apart, so that solutions are near the boundary."""
    theta = centred(torch.randn(100, 5).double())
    found = fit_newton(FITS[name](theta), FITS[name])
    torch.testing.assert_close(found, theta, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.zeros(100).double(), rtol=0, atol=1e-9)


def test_newton_refuses_a_vertex() -> None:
    with pytest.raises(ValueError, match="boundary"):
        fit_newton(torch.tensor([[1.0, 0.0]]), FITS["simplex"], tolerance=0.0)


def test_newton_agrees_with_the_logarithm_of_frequencies() -> None:
    means = torch.rand(10, 4).double() + 0.05
    means /= means.sum(-1, keepdim=True)
    torch.testing.assert_close(fit_newton(means, FITS["simplex"]), centred(0.5 * means.log()), rtol=0, atol=1e-6)


def test_the_exact_fit_has_its_asymptotic_covariance() -> None:
    n = 2000
    p = simplex_maximiser(HIDDEN, 1.0)
    sigma = p.diag() - torch.outer(p, p)
    theory = asymptotic_covariance(simplex_jacobian(HIDDEN, 1.0), sigma)
    expected = torch.tensor([1.806, 2.299, 2.180], dtype=torch.float64)
    torch.testing.assert_close(theory.diagonal(), expected, rtol=0, atol=5e-4)
    # The Hessian is the covariance over eps: the fit is efficient.
    torch.testing.assert_close(theory, torch.linalg.pinv(sigma), rtol=0, atol=1e-9)
    counts = torch.distributions.Multinomial(n, p).sample((4000,))
    fitted = fit_newton(counts / n, lambda t: simplex_maximiser(t, 1.0))
    # The spread of a variance from 4,000 replications is 2.2 %, and n is finite.
    torch.testing.assert_close(n * torch.cov(fitted.T), theory, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("samples", [1, 10])
def test_the_doubly_stochastic_fit_comes_near_the_exact_one(samples: int) -> None:
    generator = torch.Generator().manual_seed(2)
    noise = draw_noise(HIDDEN.expand(4, 2000, 3), Perturbation(noise="gumbel"), generator)[0]
    solutions = argmax(HIDDEN + noise)
    exact = fit_newton(solutions.mean(1), lambda t: simplex_maximiser(t, 1.0))
    p = Perturbation(1.0, samples, "gumbel")
    fitted = fit_stochastic(solutions, argmax, p, 500, 32, 0.05, generator)
    torch.testing.assert_close(fitted, exact, rtol=0, atol=0.4 if samples == 1 else 0.2)
    torch.testing.assert_close(fitted.sum(-1), torch.zeros(4).double(), rtol=0, atol=1e-9)


def test_the_doubly_stochastic_fit_of_ranks() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.tensor([1.0, 0.2, -0.4, -0.8], dtype=torch.float64)
    solutions = ranking(truth + torch.randn(2, 3000, 4, generator=generator, dtype=torch.float64))
    fitted = fit_stochastic(solutions, ranking, Perturbation(1.0, 10), 500, 32, 0.05, generator)
    torch.testing.assert_close(fitted, truth.expand(2, 4), rtol=0, atol=0.15)
