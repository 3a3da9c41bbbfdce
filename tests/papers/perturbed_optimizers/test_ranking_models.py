"""Batched linear models and the gradients of the arms: against sklearn, scipy, closed forms and one model at a time."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from torch import Tensor

from papers.perturbed_optimizers import ranking_arms, ranking_models
from papers.perturbed_optimizers.closed_forms import ranking_fenchel_young, ranking_maximiser
from papers.perturbed_optimizers.ranking_arms import (
    ARMS,
    Arm,
    black_box_gradient,
    choose,
    fenchel_young_gradient,
    jacobian_product,
    ranknet_gradient,
    sampled_gradient,
    soft_ranks,
    squared_gradient,
    train,
)
from papers.perturbed_optimizers.ranking_data import spearman_rho
from papers.perturbed_optimizers.ranking_models import counted_ranks, fit, least_squares, linear_scores
from shared.solvers.simple import ranking

GENERATOR = torch.Generator()


def last(values: Tensor) -> Tensor:
    """Labels from dimension 1 to the last one."""
    return values.movedim(1, -1)


def problem(f: int = 2, k: int = 4, m: int = 3, r: int = 60, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (F, 1, m + 1, R), the last of them 1, and ranks (F, k, 1, R) of a noisy linear model."""
    x = torch.cat([torch.randn(f, 1, m, r), torch.ones(f, 1, 1, r)], 2)
    theta = linear_scores(x, torch.randn(f, k, 1, m + 1))
    return x, counted_ranks(theta + noise * torch.randn_like(theta), 1)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_counting_and_sorting_give_the_same_ranks(n):
    theta = torch.randn(40, n).round(decimals=0 if n > 2 else 3)
    assert torch.equal(counted_ranks(theta), ranking(theta))
    assert torch.equal(counted_ranks(theta.T.clone(), 0), ranking(theta).T)


def test_scores_of_labels_and_of_items_are_the_plain_products():
    x, w = torch.randn(2, 1, 3, 7), torch.randn(2, 5, 4, 3)
    torch.testing.assert_close(linear_scores(x, w), torch.einsum("fmr,fkcm->fkcr", x[:, 0], w))
    x, w = torch.randn(2, 5, 3, 7), torch.randn(2, 1, 4, 3)
    torch.testing.assert_close(linear_scores(x, w), torch.einsum("fkmr,fcm->fkcr", x, w[:, 0]))


@pytest.mark.parametrize("noise", ["gumbel", "gaussian"])
def test_soft_ranks_are_the_closed_form(noise):
    theta = 2 * torch.randn(2, 5, 3, 7)
    torch.testing.assert_close(last(soft_ranks(theta, noise)), ranking_maximiser(last(theta), 1.0, noise))


def test_jacobian_product_is_that_of_autograd():
    theta, v = torch.randn(2, 5, 3, 7).requires_grad_(), torch.randn(2, 5, 3, 7)
    (expected,) = torch.autograd.grad((ranking_maximiser(last(theta), 1.0, "gumbel") * last(v)).sum(), theta)
    torch.testing.assert_close(jacobian_product(theta.detach(), v), expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_their_losses():
    theta, targets = torch.randn(2, 5, 3, 7), counted_ranks(torch.randn(2, 5, 1, 7), 1)
    setting, leaf = torch.ones(1, 1, 3, 1), theta.clone().requires_grad_()
    expanded = last(targets.expand_as(theta))
    exact = ranking_fenchel_young(last(leaf), expanded, 1.0, "gumbel").sum()
    through = (ranking_maximiser(last(leaf), 1.0, "gumbel") - expanded).square().sum() / 2
    for gradient, loss in (
        (partial(fenchel_young_gradient, noise="gumbel"), exact),
        (ranknet_gradient, exact),
        (squared_gradient, through),
    ):
        (expected,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        torch.testing.assert_close(gradient(theta.clone(), targets, setting, GENERATOR), expected, atol=1e-5, rtol=1e-4)


def test_the_sampled_gradient_is_unbiased():
    theta, targets = torch.randn(1, 4, 1, 1), counted_ranks(torch.randn(1, 4, 1, 1), 1)
    many = theta.expand(-1, -1, -1, 20_000).clone()
    sampled = sampled_gradient(many, targets, torch.ones(1), GENERATOR.manual_seed(1), samples=1)
    exact = fenchel_young_gradient(theta, targets, torch.ones(1), GENERATOR, noise="gaussian")
    error = sampled.std(-1, keepdim=True) / 20_000**0.5
    assert ((sampled.mean(-1, keepdim=True) - exact).abs() < 4 * error + 1e-6).all()
    # A sample is a ranking.
    assert torch.equal((sampled + targets).sort(1).values[0, :, 0, 0], torch.arange(1.0, 5.0))


def test_the_black_box_gradient_takes_one_strength_a_configuration():
    theta, targets = torch.randn(2, 5, 3, 7), counted_ranks(torch.randn(2, 5, 1, 7), 1)
    strength = torch.tensor([0.1, 1.0, 10.0]).view(1, 1, -1, 1)
    ranks = counted_ranks(theta, 1)
    expected = (ranks - counted_ranks(theta - strength * (ranks - targets), 1)) / strength
    torch.testing.assert_close(black_box_gradient(theta.clone(), targets, strength, GENERATOR), expected)


def test_least_squares_is_ridge_regression():
    x, targets = problem()
    decays = torch.tensor([1e-3, 1.0]).view(1, 1, -1, 1)
    weights = least_squares(x, targets, decays)
    for f in range(2):
        for c, decay in enumerate((1e-3, 1.0)):
            ridge = Ridge(alpha=decay * 60).fit(x[f, 0, :-1].T.numpy(), targets[f, :, 0].T.numpy() - 2.5)
            np.testing.assert_allclose(weights[f, :, c, :-1].numpy(), ridge.coef_, atol=1e-4)
            np.testing.assert_allclose(weights[f, :, c, -1].numpy(), ridge.intercept_, atol=1e-4)


def test_least_squares_of_shared_weights():
    x, targets = torch.randn(2, 5, 3, 40), counted_ranks(torch.randn(2, 5, 1, 40), 1)
    weights = least_squares(x, targets, torch.full((1, 1, 1, 1), 0.1), intercept=False)
    for f in range(2):
        design = x[f].permute(0, 2, 1).reshape(-1, 3).numpy()
        ridge = Ridge(alpha=0.1 * 40, fit_intercept=False).fit(design, targets[f, :, 0].reshape(-1).numpy() - 3)
        np.testing.assert_allclose(weights[f, 0, 0].numpy(), ridge.coef_, atol=1e-4)


def test_the_constant_arm_ranks_by_mean_rank():
    x, targets = problem()
    weights = train(ARMS["constant"], x, targets, torch.tensor([1e9, 1.0]).view(1, 2, 1, 1), 0)
    theta = linear_scores(x, weights)
    torch.testing.assert_close(theta[..., 0], targets.mean(-1) - 2.5, atol=1e-4, rtol=1e-4)
    assert (theta - theta[..., :1]).abs().max() < 1e-4


def test_fit_reaches_the_minimum_that_scipy_finds():
    x, targets = problem(f=1)
    decay = torch.full((1, 1, 1, 1), 0.01)
    found = fit(x, targets, partial(fenchel_young_gradient, noise="gumbel"), decay, decay, 0)
    mask = np.array([1.0, 1, 1, 0])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.tensor(flat, requires_grad=True)
        theta = linear_scores(x.double(), w.view(1, 4, 1, 4))
        loss = ranking_fenchel_young(last(theta), last(targets.double()), 1.0, "gumbel").mean()
        loss = loss + 0.005 * (w.view(4, 4) * torch.from_numpy(mask)).square().sum()
        loss.backward()
        return loss.item(), w.grad.numpy()

    best = minimize(objective, np.zeros(16), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-14})
    reached, _ = objective(found.double().flatten().numpy())
    assert reached == pytest.approx(best.fun, rel=1e-4)
    assert reached >= best.fun - 1e-9


def test_models_trained_together_are_those_trained_alone():
    x, targets = problem(f=2)
    gradient = partial(fenchel_young_gradient, noise="gaussian")
    decays = torch.tensor([0.01, 0.3]).view(1, 1, -1, 1)
    together = fit(x, targets, gradient, decays, decays, 0)
    for c in range(2):
        alone = fit(x[:1], targets[:1], gradient, decays[:, :, c : c + 1], decays[:, :, c : c + 1], 0)
        torch.testing.assert_close(linear_scores(x[:1], together[:1, :, c : c + 1]), linear_scores(x[:1], alone),
                                   atol=1e-2, rtol=1e-2)  # fmt: skip


@pytest.mark.parametrize(("rows", "starts"), [(16, [0, 0, 0, 0]), (17, [0, 8, 0, 8]), (50, [0, 12, 24, 36])])
def test_long_training_sets_go_by_in_equal_slices(monkeypatch, rows, starts):
    """A set little longer than a slice must not lose half of itself."""
    monkeypatch.setattr(ranking_models, "ROWS", 16)
    seen = []

    def gradient(theta: Tensor, targets: Tensor, *_: object) -> Tensor:
        seen.append(targets[0, 0, 0].tolist())
        return theta - targets

    x, targets = torch.randn(1, 1, 2, rows), torch.arange(2.0 * rows).view(1, 2, 1, rows)
    setting = torch.zeros(1, 1, 1, 1)
    fit(x, targets, gradient, setting, setting, 0, steps=4)
    assert [part[0] for part in seen] == starts
    assert len({len(part) for part in seen}) == 1
    assert len({row for part in seen for row in part}) > rows - 4


def test_renormalised_weights_keep_their_size():
    x, targets = problem()
    setting = torch.tensor([0.1, 3.0]).view(1, 1, -1, 1)
    weights = fit(x, targets, black_box_gradient, setting, 0 * setting, 0, renormalised=True, steps=20)
    torch.testing.assert_close(weights.square().mean((1, 3)), torch.ones(2, 2))


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_learns_to_rank(name):
    x, targets = problem(r=200, noise=0.1)
    arm = ARMS[name]
    setting = torch.tensor([1e9 if name == "constant" else 1e-3, 1.0]).view(1, 2, 1, 1)
    weights = train(arm, x, targets, setting, 0)
    rho = spearman_rho(last(counted_ranks(linear_scores(x, weights), 1)), last(targets)).mean()
    assert rho < 0.7 if name == "constant" else rho > 0.85


def test_the_choice_is_the_best_on_the_last_fifth():
    """Held-out labels that contradict the others make the strongest penalty, which predicts the mean, the best."""
    x, targets = problem(f=1, r=400, noise=0.1)
    arm = Arm(None, ((1e-3, 1.0), (1e6, 2.0)))
    kept = choose(arm, x, targets, spearman_rho, 0)
    assert kept.shape == (1, 2, 1, 1)
    assert kept.flatten().tolist() == pytest.approx([1e-3, 1.0])
    flipped = torch.cat([targets[..., :320], 5 - targets[..., 320:]], -1)
    both = choose(arm, torch.cat([x, x]), torch.cat([flipped, targets]), spearman_rho, 0)
    assert both.flatten().tolist() == pytest.approx([1e6, 2.0, 1e-3, 1.0])
    assert choose(Arm(None, ((7.0, 1.0),)), x, targets, spearman_rho, 0).flatten().tolist() == [7.0, 1.0]


def test_few_instances_are_each_left_out_once(monkeypatch):
    """Every fifth is validated on once, with the rest to train on; all of it where there are enough instances."""
    seen = []

    def spy(arm, features, targets, setting, seed, **options):
        seen.append(features[0, 0, 0].tolist())
        return train(arm, features, targets, setting, seed, **options)

    monkeypatch.setattr(ranking_arms, "train", spy)
    for rows, turns in ((100, 5), (300, 1)):
        seen.clear()
        x, targets = problem(f=1, r=rows)
        x[0, 0, 0] = torch.arange(rows)
        choose(Arm(None, ((1e-3, 1.0), (1.0, 1.0))), x, targets, spearman_rho, 0)
        left_out = [set(range(rows)) - set(map(int, part)) for part in seen]
        assert [len(part) for part in left_out] == [rows // 5] * turns
        assert len(set().union(*left_out)) == rows // 5 * turns
