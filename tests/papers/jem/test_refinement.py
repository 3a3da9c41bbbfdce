"""Refinement before classification with its two gradients, and distal adversaries, on functions with closed forms."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.jem.attacks import Attack, margin, refine_with_graph, refined_logits, smallest_fooling_eps
from papers.jem.distal import distal_adversaries
from papers.jem.model import SmallConvNet
from papers.jem.sgld import Langevin, run_chains
from tests.papers.jem.linear_model import SHAPE, linear, linear_logits, small_images


def mixture(x: Tensor) -> Tensor:
    """Logits -|x - m_y|^2 / 2 of three Gaussians at 0, 3 e_0 and 3 e_1."""
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], dtype=x.dtype)
    return -(x[:, None] - means).square().sum(2) / 2


# --- refinement ---


def test_no_refinement_is_the_plain_classifier() -> None:
    network = SmallConvNet().eval()
    x = torch.rand(5, 1, 28, 28) * 2 - 1
    assert torch.equal(refined_logits(network, x), network(x))
    none = partial(run_chains, network, langevin=Langevin(steps=0))
    assert torch.equal(refined_logits(network, x, none), network(x))
    torch.testing.assert_close(refined_logits(network, x, none, chains=3), network(x))


def test_refined_logits_are_those_at_the_refined_images() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    langevin = Langevin(steps=3, step_size=0.3, noise=0.0)
    expected = mixture(run_chains(mixture, x, langevin))
    for refine in (
        partial(run_chains, mixture, langevin=langevin),
        partial(refine_with_graph, mixture, langevin=langevin),
    ):
        for gradient in ("straight_through", "full"):
            found = refined_logits(mixture, x, refine, gradient=gradient)
            torch.testing.assert_close(found, expected.float())


def test_straight_through_and_full_gradients_are_the_closed_forms() -> None:
    """g(x') for the one, (I + alpha H)^T g(x') for the other, H the Hessian of log p at the image, g that of a loss."""
    x = torch.tensor([[1.0, 0.5]])
    langevin = Langevin(steps=1, step_size=0.7, noise=0.0)
    refined = run_chains(mixture, x, langevin).requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(mixture(refined), torch.tensor([1])), refined)
    hessian = torch.autograd.functional.hessian(lambda z: mixture(z[None]).logsumexp(1)[0], x[0])
    slopes = {}
    for gradient, refine in (("straight_through", run_chains), ("full", refine_with_graph)):
        leaf = x.clone().requires_grad_()
        logits = refined_logits(mixture, leaf, partial(refine, mixture, langevin=langevin), gradient=gradient)
        (slopes[gradient],) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1])), leaf)
    torch.testing.assert_close(slopes["straight_through"], g)
    torch.testing.assert_close(slopes["full"], g + 0.7 * g @ hessian)
    assert (slopes["full"] - slopes["straight_through"]).norm() > 0.1 * g.norm()


def test_refinement_keeps_the_clamps_and_makes_no_graph_where_none_is_asked_for() -> None:
    x = torch.tensor([[5.0, 5.0], [-9.0, 2.0]])
    langevin = Langevin(steps=4, step_size=0.5, noise=0.0, gradient_clamp=0.4, sample_clamp=4.5)
    expected = run_chains(mixture, x, langevin)
    with torch.no_grad():
        found = refine_with_graph(mixture, x, langevin)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert not torch.equal(expected, run_chains(mixture, x, Langevin(steps=4, step_size=0.5, noise=0.0)))


def test_chains_are_averaged_and_have_noise_of_their_own() -> None:
    """With logits linear in x, the mean of n noisy copies has n times less variance."""
    w, b = linear(3)
    network = partial(linear_logits, w=w, b=b)
    x = small_images(1).expand(4000, *SHAPE)
    variances = [refined_logits(network, x, chains=n, input_noise=0.5).var(0) for n in (1, 5)]
    torch.testing.assert_close(variances[0], 0.25 * w.square().sum(1), rtol=0.1, atol=0)
    torch.testing.assert_close(variances[0] / variances[1], torch.full((3,), 5.0), rtol=0.15, atol=0)


def test_a_refined_classifier_can_be_attacked_both_ways() -> None:
    network = SmallConvNet().eval()
    x = torch.rand(6, 1, 28, 28) * 2 - 1
    labels = network(x).argmax(1)
    langevin = Langevin(steps=1)
    for gradient, refine in (("straight_through", run_chains), ("full", refine_with_graph)):
        classify = partial(
            refined_logits, network, refine=partial(refine, network, langevin=langevin), chains=2, input_noise=0.03,
            gradient=gradient,
        )  # fmt: skip
        smallest = smallest_fooling_eps(classify, x, labels, (0.2, 0.5), Attack(steps=5, draws=2))
        assert smallest.isfinite().float().mean() >= 0.5
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


# --- distal adversaries ---


def test_distal_adversaries_stop_when_the_classifier_is_sure() -> None:
    """On a linear model each step raises the margin by a known amount, so the number of steps is known too."""
    w, b = linear(2)
    classify = partial(linear_logits, w=w, b=b)
    start, targets = small_images(30, 0.1), torch.arange(30) % 2
    found = distal_adversaries(classify, start, targets, confidence=0.9, steps=100, step_length=0.02)
    logit = classify(start)
    gap = -margin(logit, targets)
    needed = ((math.log(9) - gap) / (0.02 * (w[0] - w[1]).norm())).ceil().clamp(min=0).long()
    assert torch.equal(found.steps, needed)
    assert needed.max() > 3
    assert (found.confidence > 0.9).all()
    sure = needed == 0
    assert torch.equal(found.images[sure], start[sure])
    torch.testing.assert_close((found.images - start).flatten(1).norm(dim=1), 0.02 * needed.float(), atol=1e-5, rtol=0)


def test_distal_adversaries_stay_in_the_box_and_may_fail() -> None:
    w, b = linear(2)
    start = torch.rand(10, *SHAPE) * 2 - 1
    found = distal_adversaries(
        lambda z: 1e-3 * linear_logits(z, w, b), start, torch.zeros(10).long(), steps=50, step_length=0.5
    )
    assert found.images.abs().max() <= 1
    assert (found.steps == 50).all()
    assert (found.confidence < 0.9).all()
    with pytest.raises(ValueError, match="stay below 1"):
        distal_adversaries(partial(linear_logits, w=w, b=b), start, torch.zeros(10).long(), confidence=1.0)
