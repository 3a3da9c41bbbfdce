"""Densities, energies and losses: identities, closed forms of Gaussian mixtures, and other libraries' answers."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import Tensor, nn

from papers.jem.energy import (
    approximate_mass,
    class_conditional_loss,
    contrastive_loss,
    energy,
    joint_loss,
    log_conditional,
    log_density,
    log_density_and_score,
    log_joint,
    log_marginal,
    score,
)

MEANS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
POINT = torch.tensor([[1.0, 0.5]], dtype=torch.float64)


def mixture(x: Tensor) -> Tensor:
    """Logits -||x - m_y||^2 / 2: p(x) is the mixture of unit Gaussians with equal weights."""
    return -0.5 * (x[:, None] - MEANS).square().sum(-1)


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 4)).double()


def test_the_joint_over_the_marginal_is_the_softmax():
    logits = 5 * torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    ratio = (log_joint(logits, labels) - log_marginal(logits)).exp()
    assert torch.allclose(ratio, logits.softmax(1)[torch.arange(6), labels], rtol=1e-12)
    assert torch.allclose(log_conditional(logits).exp(), (logits - log_marginal(logits)[:, None]).exp(), rtol=1e-12)
    joints = torch.stack([log_joint(logits, torch.full((6,), y)) for y in range(4)], 1)
    assert torch.allclose(joints.logsumexp(1), log_marginal(logits), rtol=1e-12)


def test_a_shift_of_all_logits_changes_the_density_and_not_the_classifier():
    logits, shift = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    assert torch.allclose(log_conditional(logits + shift), log_conditional(logits), atol=1e-12)
    assert torch.allclose(log_marginal(logits + shift), log_marginal(logits) + shift[:, 0], rtol=1e-12)


def test_energies_are_negative_log_densities():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(energy(logits), -log_marginal(logits))
    assert torch.equal(energy(logits, labels), -logits[torch.arange(5), labels])
    assert torch.equal(log_density(logits, labels), log_joint(logits, labels))
    assert torch.equal(log_density(logits), log_marginal(logits))


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.tensor([[100.0, 99.0, 98.0]], dtype=torch.bfloat16)
    assert log_marginal(logits).dtype == torch.float32
    assert log_marginal(logits).item() == pytest.approx(100 + math.log(1 + math.exp(-1) + math.exp(-2)), abs=1e-4)


def test_gaussian_mixture_in_closed_form():
    logits = mixture(POINT)
    log_z = math.log(3) + math.log(2 * math.pi)
    assert log_marginal(logits).item() == pytest.approx(-0.3836887, abs=1e-7)
    assert log_marginal(logits).item() - log_z == pytest.approx(-3.3201781, abs=1e-7)
    assert log_conditional(logits).exp()[0].tolist() == pytest.approx([0.785597, 0.175290, 0.039113], abs=1e-6)
    assert score(mixture, POINT)[0].tolist() == pytest.approx([-0.474129, -0.382663], abs=1e-6)
    assert approximate_mass(mixture, POINT).item() == pytest.approx(-0.609285, abs=1e-6)


def test_gaussian_mixture_with_class_weights_against_scipy():
    bias = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    x = 2 * torch.randn(7, 2, dtype=torch.float64)
    weights = bias.softmax(0).tolist()
    laws = [scipy.stats.multivariate_normal(mean) for mean in MEANS.tolist()]
    expected = np.log(sum(w * law.pdf(x.numpy()) for w, law in zip(weights, laws)))
    log_z = bias.logsumexp(0) + math.log(2 * math.pi)
    assert (log_marginal(mixture(x) + bias) - log_z).tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_the_score_is_the_mean_gradient_of_the_logits():
    network, x = small_network(), torch.randn(5, 3, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: network(v[None])[0], row) for row in x])
    expected = torch.einsum("bk,bkd->bd", network(x).softmax(1), jacobian)
    assert torch.allclose(score(network, x), expected, rtol=1e-10)
    labels = torch.tensor([0, 3, 1, 2, 2])
    assert torch.allclose(score(network, x, labels), jacobian[torch.arange(5), labels], rtol=1e-10)


def test_the_score_by_finite_differences():
    network, x, h = small_network(), torch.randn(1, 3, dtype=torch.float64), 1e-6
    steps = h * torch.eye(3, dtype=torch.float64)
    difference = (log_marginal(network(x + steps)) - log_marginal(network(x - steps))) / (2 * h)
    assert score(network, x)[0].tolist() == pytest.approx(difference.tolist(), rel=1e-6, abs=1e-9)


def test_the_score_leaves_graphs_and_parameters_alone():
    network, x = small_network(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    value, gradient = log_density_and_score(network, x)
    assert not value.requires_grad
    assert not gradient.requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in network.parameters())
    with torch.inference_mode():
        assert torch.equal(score(network, x.detach() + 0), gradient)


def test_the_contrastive_gradient_of_a_gaussian():
    """E = theta x^2 / 2 with exact samples N(0, 1/theta): d log p / d theta = 1 / (2 theta) - x^2 / 2."""
    theta = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    samples = torch.randn(200_000, dtype=torch.float64) / math.sqrt(1.7)
    loss = contrastive_loss(-theta * x.square() / 2, -theta * samples.square() / 2)
    (gradient,) = torch.autograd.grad(loss, theta)
    exact = -(1 / (2 * 1.7) - x.square().mean().item() / 2)
    standard_error = (samples.square() / 2).std().item() / math.sqrt(len(samples))
    assert abs(gradient.item() - exact) < 4 * standard_error
    assert standard_error < 2e-3


def test_the_contrastive_loss_is_zero_where_samples_are_the_data():
    network, x = small_network(), torch.randn(6, 3, dtype=torch.float64)
    loss = contrastive_loss(log_marginal(network(x)), log_marginal(network(x)))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() < 1e-15 for p in network.parameters())


def test_the_energy_penalty():
    data, samples = torch.tensor([1.0, 3.0]), torch.tensor([2.0])
    assert contrastive_loss(data, samples).item() == 0
    assert contrastive_loss(data, samples, 0.1).item() == pytest.approx(0.1 * (5 + 4))
    shifted = [contrastive_loss(data + c, samples + c, 0.1).item() for c in (-2.0, 0.0)]
    assert shifted[0] < shifted[1], "the penalty sees the additive constant that the loss does not"


def test_the_joint_loss_is_cross_entropy_and_contrast():
    labelled, data, samples = (torch.randn(n, 4, dtype=torch.float64) for n in (5, 6, 7))
    labels = torch.tensor([0, 1, 2, 3, 0])
    losses = joint_loss(labelled, labels, data, samples, generative_weight=0.5, energy_l2=0.01)
    expected = log_loss(labels.numpy(), labelled.softmax(1).numpy())
    assert losses.cross_entropy_nats.item() == pytest.approx(expected, rel=1e-9)
    assert losses.log_density_data.item() == pytest.approx(data.logsumexp(1).mean().item(), rel=1e-12)
    gap = (losses.log_density_samples - losses.log_density_data).item()
    penalty = 0.01 * (data.logsumexp(1).square().mean() + samples.logsumexp(1).square().mean()).item()
    assert losses.contrast.item() == pytest.approx(gap + penalty, rel=1e-9)
    assert losses.total.item() == pytest.approx(expected + 0.5 * (gap + penalty), rel=1e-9)
    plain = joint_loss(labelled, labels, data, samples, generative_weight=0.0)
    assert plain.total.item() == pytest.approx(expected, rel=1e-9)


def test_the_two_factorisations_agree_in_expectation_over_exact_samples():
    """With exact samples both gradients are that of log p(x, y), so they differ by that of log p(y) only.

    Here x has four values, so all sums are exact and -log p(x|y) can be written down.
    """
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x, y = torch.tensor([0, 1, 3, 3, 2]), torch.tensor([0, 2, 1, 1, 0])
    likelihood = -(logits[x, y] - logits.logsumexp(0)[y]).mean()
    (expected,) = torch.autograd.grad(likelihood, logits)
    # Samples of x given each label, weighted by their probability instead of drawn.
    probabilities = logits.softmax(0).T[y].detach()  # (5, 4)
    values = torch.stack([log_joint(logits, torch.full((4,), label)) for label in y.tolist()])
    weighted = (probabilities * values).sum(1)
    (gradient,) = torch.autograd.grad(contrastive_loss(log_joint(logits[x], y), weighted), logits)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_the_class_conditional_loss_has_no_cross_entropy_in_it():
    data, samples = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    y, z = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 3, 1, 0, 0])
    losses = class_conditional_loss(data, y, samples, z)
    losses.total.backward()
    assert torch.allclose(data.grad, -F.one_hot(y, 4) / 5)
    assert torch.allclose(samples.grad, F.one_hot(z, 4) / 5)
    assert losses.cross_entropy_nats.item() == pytest.approx(F.cross_entropy(data, y).item())
    assert losses.total.item() == pytest.approx(losses.contrast.item())
