"""Perturbed maximisers against closed forms, finite differences and the identities of their estimators."""

import math

import pytest
import torch
from torch import Tensor

from papers.perturbed_optimizers.perturbed import (
    Perturbation,
    draw_noise,
    perturb,
    perturbed_maximiser,
    perturbed_maximum,
    score,
)
from shared.solvers.shortest_path import best_path
from shared.solvers.simple import argmax, ranking

THETA = torch.tensor([[-0.6, 1.9, -0.2, 1.1, -1.0]], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jacobian_samples(theta: Tensor, p: Perturbation, z: Tensor, v: Tensor, solver=argmax) -> Tensor:
    """One vector-Jacobian product for each group of p.samples draws: theta is repeated along the batch."""
    rows = theta.expand(z.shape[1], -1).clone().requires_grad_()
    perturbed_maximiser(rows, solver, p, z).backward(v.expand_as(rows))
    return rows.grad


def within(samples: Tensor, expected: Tensor, errors: float = 4.0) -> None:
    """The mean over the first dimension lies within so many standard errors of the expectation."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= errors * error + 1e-12).all(), (samples.mean(0), expected, error)


def softmax_vjp(theta: Tensor, epsilon: float, v: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    (torch.softmax(theta / epsilon, -1) * v).sum().backward()
    return theta.grad


# --- the forward pass ---


@pytest.mark.parametrize("antithetic", [False, True])
def test_gumbel_noise_on_the_simplex_gives_softmax(antithetic: bool) -> None:
    p = Perturbation(0.5, 2, "gumbel", antithetic=antithetic)
    rows = THETA.expand(20_000, -1)
    solutions = perturbed_maximiser(rows, argmax, p, draw_noise(rows, p, generator()))
    expected = torch.tensor([0.005493, 0.815223, 0.012225, 0.164591, 0.002468], dtype=torch.float64)
    assert torch.allclose(torch.softmax(THETA / 0.5, -1)[0], expected, atol=1e-6)
    within(solutions, expected)


def test_gumbel_maximum_is_log_sum_exp() -> None:
    p = Perturbation(0.5, 1, "gumbel")
    rows = THETA.expand(100_000, -1)
    values = perturbed_maximum(rows, argmax, p, draw_noise(rows, p, generator()))
    expected = 0.5 * torch.logsumexp(THETA[0] / 0.5, 0) + 0.5 * 0.5772156649015329
    assert expected.item() == pytest.approx(2.290754, abs=1e-6)
    within(values[:, None], expected[None])


def test_noise_has_the_moments_of_its_law() -> None:
    rows = torch.zeros(50_000, 2, dtype=torch.float64)
    for noise, mean, variance in (("gaussian", 0.0, 1.0), ("gumbel", 0.5772156649, math.pi**2 / 6)):
        for antithetic in (False, True):
            z = draw_noise(rows, Perturbation(samples=2, noise=noise, antithetic=antithetic), generator())
            assert z.isfinite().all()
            within(z.mean(0), torch.full((2,), mean, dtype=torch.float64))
            assert z.var().item() == pytest.approx(variance, rel=0.03)
            within(score(z, noise).mean(0), torch.zeros(2, dtype=torch.float64))
            assert score(z, noise).var().item() == pytest.approx(1, rel=0.03)  # M_mu^2 = d for both laws


def test_antithetic_pairs_are_mirrored() -> None:
    rows = torch.zeros(1000, 3, dtype=torch.float64)
    z = draw_noise(rows, Perturbation(samples=4, antithetic=True), generator())
    assert torch.equal(z[:2], -z[2:])
    z = draw_noise(rows, Perturbation(samples=4, noise="gumbel", antithetic=True), generator())
    u = torch.exp(-torch.exp(-z))
    assert torch.allclose(u[:2] + u[2:], torch.ones(2, 1000, 3, dtype=torch.float64))


def test_extreme_float32_gumbel_draws_stay_finite() -> None:
    rows = torch.zeros(500_000, 2)
    assert draw_noise(rows, Perturbation(samples=2, noise="gumbel", antithetic=True), generator()).isfinite().all()


def test_multiplicative_noise_keeps_signs_and_means() -> None:
    p = Perturbation(0.5, 2, multiplicative=True)
    rows = torch.tensor([[-2.0, 0.5, 3.0]], dtype=torch.float64).expand(50_000, -1)
    perturbed = perturb(rows, draw_noise(rows, p, generator()), p)
    assert torch.equal(perturbed.sign(), rows.sign().expand_as(perturbed))
    within(perturbed.mean(0), rows[0])


# --- the backward pass ---


@pytest.mark.parametrize("control", ["none", "solution", "leave_one_out"])
@pytest.mark.parametrize("noise", ["gumbel", "gaussian"])
def test_backward_is_unbiased(noise: str, control: str) -> None:
    """Gumbel: the Jacobian of softmax; Gaussian, two scores: the normal density."""
    p = Perturbation(0.5, 2, noise, control)
    if noise == "gumbel":
        theta, v = THETA, torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
        expected = softmax_vjp(theta, 0.5, v)[0]
    else:
        theta, v = torch.tensor([[0.0, 0.3]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
        density = 0.515630
        expected = torch.tensor([-density, density], dtype=torch.float64)
    rows = theta.expand(60_000, -1)
    within(jacobian_samples(theta, p, draw_noise(rows, p, generator(1)), v), expected)


def test_antithetic_backward_is_unbiased() -> None:
    v = torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    p = Perturbation(0.5, 2, "gumbel", antithetic=True)
    z = draw_noise(THETA.expand(60_000, -1), p, generator(2))
    within(jacobian_samples(THETA, p, z, v), softmax_vjp(THETA, 0.5, v)[0])


def test_gradient_of_a_squared_norm() -> None:
    """The tabled value: gradient of ||y*_eps||^2 under Gumbel noise, by the chain rule with the exact mean."""
    mean = torch.softmax(THETA[0] / 0.5, 0)
    expected = torch.tensor([-0.015081, 0.402259, -0.033234, -0.347138, -0.006806], dtype=torch.float64)
    assert torch.allclose(softmax_vjp(THETA, 0.5, 2 * mean)[0], expected, atol=1e-6)
    p = Perturbation(0.5, 4, "gumbel", "leave_one_out")
    within(jacobian_samples(THETA, p, draw_noise(THETA.expand(40_000, -1), p, generator(3)), 2 * mean), expected)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 7.0])
def test_the_identity_has_a_unit_jacobian(sigma: float) -> None:
    """For every temperature: catches a factor 1/sigma too many or too few."""
    theta, v = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    p = Perturbation(sigma)
    z = draw_noise(theta.expand(40_000, -1), p, generator(4))
    within(jacobian_samples(theta, p, z, v, solver=lambda x: x), v)


def test_leave_one_out_identity() -> None:
    """sum_m (a_m - mean) s_m / (M-1) = (1/M) sum_m (a_m - mean of the others) s_m, and is what backward returns."""
    p = Perturbation(0.5, 5, "gaussian", "leave_one_out")
    theta = THETA.clone().requires_grad_()
    z = draw_noise(theta, p, generator(5))
    v = torch.tensor([[1.0, -2.0, 0.5, 1.0, 3.0]], dtype=torch.float64)
    perturbed_maximiser(theta, argmax, p, z).backward(v)
    a = (argmax(perturb(THETA, z, p)) * v).sum(-1)[:, 0]
    others = [(a.sum() - a[m]) / 4 for m in range(5)]
    expected = sum((a[m] - others[m]) * z[m] for m in range(5)) / (5 * 0.5)
    assert torch.allclose(theta.grad, expected, rtol=1e-12)


def test_solution_control_vanishes_where_no_sample_changes_the_solution() -> None:
    p = Perturbation(1e-3, 10, control="solution")
    theta = THETA.clone().requires_grad_()
    perturbed_maximiser(theta, argmax, p, draw_noise(theta, p, generator(6))).square().sum().backward()
    assert torch.equal(theta.grad, torch.zeros_like(THETA))


def test_variance_of_the_control_variate() -> None:
    """Per-sample standard deviation of the J_11 estimator, Gaussian pair (0, 0.3): plain and with the solution."""
    theta, v = torch.tensor([[0.0, 0.3]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for epsilon, plain, controlled in ((1.0, 0.684, 0.618), (0.5, 1.442, 1.176), (0.1, 9.703, 2.449)):
        for control, expected in (("none", plain), ("solution", controlled)):
            p = Perturbation(epsilon, control=control)
            samples = jacobian_samples(theta, p, draw_noise(theta.expand(200_000, -1), p, generator(7)), v)
            assert samples[:, 1].std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("control", ["none", "solution"])
def test_multiplicative_backward_is_unbiased(control: str) -> None:
    """Against the closed form of two positive scores: P(theta_1 w_1 > theta_0 w_0) = Phi(log(r) / (eps sqrt 2))."""
    epsilon, theta = 0.7, torch.tensor([[1.0, 1.5]], dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    probability = torch.special.ndtr((leaf[0, 1].log() - leaf[0, 0].log()) / (epsilon * math.sqrt(2)))
    (expected,) = torch.autograd.grad(probability, leaf)
    p = Perturbation(epsilon, control=control, multiplicative=True)
    rows = theta.expand(60_000, -1)
    z = draw_noise(rows, p, generator(8))
    v = torch.tensor([0.0, 1.0], dtype=torch.float64)
    within(perturbed_maximiser(rows, argmax, p, z)[:, 1:], probability.detach()[None])
    within(jacobian_samples(theta, p, z, v), expected[0])


# --- value and gradient of the maximum ---

GRID = -torch.tensor([[[1.0, 9, 1], [1, 9, 1], [9, 1, 1]]], dtype=torch.float64)


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize(("solver", "theta"), [(argmax, THETA), (ranking, THETA), (best_path, GRID)])
def test_the_gradient_belongs_to_the_value(solver, theta: Tensor, multiplicative: bool) -> None:
    """Finite differences of the Monte-Carlo value itself, with common noise, equal its gradient."""
    p = Perturbation(0.1, 3, multiplicative=multiplicative)
    z = draw_noise(theta, p, generator(9))
    assert torch.autograd.gradcheck(lambda t: perturbed_maximum(t, solver, p, z), theta.clone().requires_grad_())


@pytest.mark.parametrize("multiplicative", [False, True])
def test_second_derivative(multiplicative: bool) -> None:
    """The Hessian-vector product of F_eps: softmax's, or finite differences of a large common-noise mean."""
    v = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    theta = torch.tensor([[1.0, 1.5]], dtype=torch.float64)
    p = Perturbation(0.7, 1, multiplicative=True) if multiplicative else Perturbation(0.7, 1, "gumbel")
    rows = theta.expand(200_000, -1).clone().requires_grad_()
    z = draw_noise(rows, p, generator(10))
    (gradient,) = torch.autograd.grad(perturbed_maximum(rows, argmax, p, z).sum(), rows, create_graph=True)
    (products,) = torch.autograd.grad(gradient, rows, v.expand_as(rows))
    if multiplicative:  # E max(theta w): Margrabe's formula, differentiated twice by autograd
        leaf = theta[0].clone().requires_grad_()
        spread = p.epsilon * math.sqrt(2)
        d = (leaf[1] / leaf[0]).log() / spread
        value = leaf[1] * torch.special.ndtr(d + spread / 2) + leaf[0] * torch.special.ndtr(spread / 2 - d)
    else:
        leaf = theta[0].clone().requires_grad_()
        value = p.epsilon * torch.logsumexp(leaf / p.epsilon, 0)
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    (expected,) = torch.autograd.grad(first, leaf, v[0])
    within(gradient.detach(), first.detach())
    within(products, expected)


def test_third_derivatives_are_refused() -> None:
    theta = THETA.clone().requires_grad_()
    value = perturbed_maximum(theta, argmax, Perturbation(1.0, 3)).sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        value = gradient.square().sum()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(value, theta)


# --- common noise, batches, refusals ---


def test_scaling() -> None:
    """y*_eps(theta) = y*_1(theta / eps) and F_eps(theta) = eps F_1(theta / eps) with common noise."""
    p, one = Perturbation(0.25, 7), Perturbation(1.0, 7)
    z = draw_noise(THETA, p, generator(11))
    assert torch.equal(perturbed_maximiser(THETA, argmax, p, z), perturbed_maximiser(THETA / 0.25, argmax, one, z))
    assert torch.allclose(
        perturbed_maximum(THETA, argmax, p, z), 0.25 * perturbed_maximum(THETA / 0.25, argmax, one, z)
    )


def test_instances_do_not_know_of_each_other() -> None:
    """A batch gives the values and gradients of its instances, one solver call for all of them."""
    calls = []

    def counted(theta: Tensor) -> Tensor:
        calls.append(len(theta))
        return best_path(theta)

    theta = -torch.rand(4, 3, 5, dtype=torch.float64, generator=generator(12)) - 0.1
    p = Perturbation(0.1, 3, multiplicative=True)
    z = draw_noise(theta, p, generator(13))
    leaf = theta.clone().requires_grad_()
    whole = perturbed_maximiser(leaf, counted, p, z)
    assert calls == [12]
    whole.pow(2).sum().backward()
    for i in range(4):
        single = theta[i : i + 1].clone().requires_grad_()
        part = perturbed_maximiser(single, best_path, p, z[:, i : i + 1])
        part.pow(2).sum().backward()
        assert torch.equal(part, whole[i : i + 1])
        assert torch.allclose(single.grad, leaf.grad[i : i + 1])


def test_perturbed_paths_lie_in_the_hull() -> None:
    p = Perturbation(0.5, 8, multiplicative=True)
    mean = perturbed_maximiser(GRID, best_path, p, draw_noise(GRID, p, generator(14)))
    assert ((mean >= 0) & (mean <= 1)).all()
    assert mean[0, 0, 0] == 1
    assert mean[0, 2, 2] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"samples": 0},
        {"samples": 3, "antithetic": True},
        {"control": "leave_one_out"},
        {"samples": 4, "control": "leave_one_out", "antithetic": True},
        {"noise": "gumbel", "multiplicative": True},
    ],
)
def test_impossible_perturbations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Perturbation(**wrong)


def test_shapes_that_do_not_fit_are_refused() -> None:
    p = Perturbation(1.0, 2)
    with pytest.raises(ValueError, match="shape"):
        perturbed_maximiser(torch.zeros(3), argmax, p)
    with pytest.raises(ValueError, match="noise has the shape"):
        perturbed_maximiser(THETA, argmax, p, torch.zeros(1, 1, 5))
    with pytest.raises(ValueError, match="the solver turned"):
        perturbed_maximiser(THETA, lambda theta: theta.argmax(-1), p)
    with pytest.raises(ValueError, match="score is 0"):
        perturbed_maximiser(torch.zeros(1, 2), argmax, Perturbation(multiplicative=True))
