"""Toys in the plane: exact densities, exact integrals, and what chains make of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from papers.jem.energy import contrastive_loss, joint_loss, log_conditional, log_marginal
from papers.jem.sgld import Langevin, run_chains
from papers.jem.toy import (
    LAWS,
    Grid,
    Mixture,
    SwishMLP,
    angle_study,
    eight_gaussians,
    exact_nll,
    flat_gradient,
    gradient_angle,
    kl_data_model,
    log_partition,
    square_grid,
    train_toy,
)

MATCHED = Langevin(steps=20, step_size=0.02, noise=None)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    sizes = {"batch": 128, "buffer_size": 1000, "width": 64}
    return train_toy(eight_gaussians(), MATCHED, steps=600, learning_rate=2e-3, record_every=100, **sizes)


def drawn_from(model: SwishMLP, grid: Grid, count: int) -> Tensor:
    """Exact samples of a model, up to the size of a cell, over which they are spread."""
    with torch.no_grad():
        cell = torch.multinomial(log_marginal(model(grid.points)).softmax(0), count, replacement=True)
    width = math.exp(grid.log_area / 2)
    return grid.points[cell] + width * (torch.rand(count, 2) - 0.5)


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_normalised_and_have_their_classes(name: str):
    law, grid = LAWS[name](), square_grid()
    mass = (law.log_joint(grid.points).double() + grid.log_area).exp().sum(0)
    assert mass.tolist() == pytest.approx([1 / law.classes] * law.classes, abs=1e-5)
    x, y = law.draw(4000)
    assert x.abs().max() < 3.2
    assert scipy.stats.chisquare(torch.bincount(y).numpy()).pvalue > 1e-3
    agreement = (law.log_joint(x).argmax(1) == y).double().mean()
    assert agreement > 0.97, "labels and densities name the same classes"
    # The mean of -log p over draws is the entropy, which the grid gives, too.
    log_p = law.log_density(grid.points).double()
    entropy = -((log_p + grid.log_area).exp() * log_p).sum()
    values = -law.log_density(x).double()
    assert abs(values.mean() - entropy) < 4 * values.std() / math.sqrt(len(x))


def test_a_law_is_the_mixture_that_scipy_computes():
    law, x = eight_gaussians(), 2 * torch.randn(20, 2)
    parts = [scipy.stats.multivariate_normal(c, 0.25**2).pdf(x.numpy()) for c in law.centres.tolist()]
    assert law.log_density(x).tolist() == pytest.approx(np.log(np.mean(parts, 0)).tolist(), rel=1e-4)


def test_eight_gaussians_need_classes_that_divide_them():
    with pytest.raises(ValueError, match="shared by 3"):
        eight_gaussians(3)


def test_log_partition_of_gaussian_mixtures():
    means = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    bias = torch.tensor([0.2, -0.4, 1.0])

    def network(x: Tensor) -> Tensor:
        return bias - 2 * (x[:, None] - means).square().sum(-1)  # of variance 1/4

    expected = bias.logsumexp(0).item() + math.log(2 * math.pi / 4)
    assert log_partition(network, square_grid()).item() == pytest.approx(expected, abs=1e-5)
    assert log_partition(network, square_grid(60)).item() == pytest.approx(expected, abs=1e-4)


def test_log_partition_of_a_network_by_another_quadrature():
    model = SwishMLP(4, 16).double()
    node, weight = np.polynomial.legendre.leggauss(80)
    axis, weight = 6 * torch.tensor(node), 6 * torch.tensor(weight)
    with torch.no_grad():
        density = log_marginal(model(torch.cartesian_prod(axis, axis))).exp()
        expected = torch.einsum("ij,i,j->", density.view(80, 80), weight, weight).log().item()
        # The grid's error is what the midpoint rule leaves at the border, 2 deviations of the confinement away.
        grids = [square_grid(side) for side in (101, 401)]
        coarse, fine = (log_partition(model, Grid(g.points.double(), g.log_area)).item() for g in grids)
    assert fine == pytest.approx(expected, abs=1e-5)
    assert abs(fine - expected) < abs(coarse - expected) < 1e-3


def test_the_gradient_of_log_partition_is_the_model_mean():
    """d log Z / d theta for -theta ||x||^2 / 2 is -1/theta, and d mean NLL = ||x||^2 / 2 - 1/theta."""
    theta = torch.tensor(2.5, requires_grad=True)
    x = torch.tensor([[0.5, 0.2], [-1.0, 0.3]])

    def network(points: Tensor) -> Tensor:
        return -theta * points.square().sum(1, keepdim=True) / 2

    (gradient,) = torch.autograd.grad(log_partition(network, square_grid()), theta)
    assert gradient.item() == pytest.approx(-1 / 2.5, rel=1e-4)
    (gradient,) = torch.autograd.grad(exact_nll(network, x, square_grid()), theta)
    assert gradient.item() == pytest.approx(x.square().sum(1).mean().item() / 2 - 1 / 2.5, rel=1e-4)


def test_the_likelihood_is_that_of_scipy():
    x = torch.randn(10, 2)
    expected = -scipy.stats.multivariate_normal([0, 0], 0.49).logpdf(x.numpy()).mean()
    nll = exact_nll(lambda v: -v.square().sum(1, keepdim=True) / (2 * 0.49) + 17.0, x, square_grid())
    assert nll.item() == pytest.approx(expected, rel=1e-5)


def test_kl_between_gaussians():
    law = Mixture(torch.tensor([[0.4, -0.3]]), torch.tensor([0]), 0.6)
    expected = math.log(1 / 0.36) + (2 * 0.36 + 0.25) / 2 - 1
    assert kl_data_model(law, lambda x: -x.square().sum(1, keepdim=True) / 2, square_grid()) == pytest.approx(
        expected, abs=1e-4
    )
    for each in (law, eight_gaussians()):
        assert kl_data_model(each, lambda x, each=each: each.log_joint(x) + 3.0, square_grid()) == pytest.approx(
            0, abs=1e-5
        )


def test_the_confinement_leaves_the_classifier_alone_and_makes_z_finite():
    model = SwishMLP(4)
    free = SwishMLP(4, confinement=1e6)
    free.load_state_dict(model.state_dict())
    x = 3 * torch.randn(50, 2)
    assert torch.allclose(log_conditional(model(x)), log_conditional(free(x)), atol=1e-4)
    with torch.no_grad():
        tight, wide = (log_partition(model, square_grid(301, half)).item() for half in (12.0, 24.0))
        open_tight, open_wide = (log_partition(free, square_grid(301, half)).item() for half in (12.0, 24.0))
    assert wide - tight == pytest.approx(0, abs=1e-2)
    assert open_wide - open_tight > 1


def test_exact_samples_give_the_exact_gradient_and_wrong_ones_do_not(trained):
    grid, (data, _) = square_grid(), eight_gaussians().draw(1000)
    # Narrower data than the model was trained on, so that the gradient is not mere noise.
    data = 0.7 * data
    few, many = (gradient_angle(trained.model, data, drawn_from(trained.model, grid, n), grid) for n in (50, 20_000))
    wrong = gradient_angle(trained.model, data, 3 * torch.rand(1000, 2), grid)
    assert many.cosine > 0.98
    assert many.relative_error < 0.2
    assert wrong.cosine < 0.9
    assert many.relative_error < few.relative_error < wrong.relative_error


def test_comparing_gradients_leaves_the_model_alone(trained):
    trained.model.zero_grad()
    data, _ = eight_gaussians().draw(10)
    gradient_angle(trained.model, data, data, square_grid(21))
    assert all(p.grad is None for p in trained.model.parameters())
    same = contrastive_loss(log_marginal(trained.model(data)), log_marginal(trained.model(data)))
    assert flat_gradient(same, trained.model).abs().max() < 1e-5


def test_the_contrastive_loss_is_no_likelihood():
    """Of a flat model and of the true one it is 0, but their likelihoods differ by nats; a scale moves it at will."""
    law, grid = eight_gaussians(), square_grid()
    data, _ = law.draw(20_000)
    samples, _ = law.draw(20_000)  # exact samples of the true model

    def loss(network, points: Tensor) -> float:
        return contrastive_loss(log_marginal(network(data)), log_marginal(network(points))).item()

    def flat(x: Tensor) -> Tensor:
        return torch.zeros(len(x), 4)

    uniform = 12 * (torch.rand(20_000, 2) - 0.5)
    standard_error = math.sqrt(2 / 20_000) * law.log_density(data).std().item()
    assert loss(flat, uniform) == 0
    assert abs(loss(law.log_joint, samples)) < 4 * standard_error
    assert exact_nll(flat, data, grid).item() == pytest.approx(math.log(144), abs=1e-3)
    entropy = exact_nll(law.log_joint, data, grid).item()
    assert entropy < math.log(144) - 1.5
    # Away from its own samples, the loss falls without a bound as the logits grow; the likelihood gets worse.
    scaled = [lambda x, c=c: c * law.log_joint(x) for c in (1.0, 4.0)]
    assert loss(scaled[1], uniform) < loss(scaled[0], uniform) < -1
    assert exact_nll(scaled[1], data, grid) > entropy + 0.3


def test_training_brings_model_and_data_together(trained):
    law, rows = eight_gaussians(), trained.rows
    assert rows[-1]["kl_nats"] < 0.3 < 1.5 < rows[0]["kl_nats"]
    assert rows[-1]["nll_nats"] < rows[0]["nll_nats"] - 1
    x, y = law.draw(2000)
    assert (trained.model(x).argmax(1) == y).double().mean() > 0.95
    # The loss says nothing of it: it began and ended near zero.
    assert abs(rows[-1]["contrast"]) < 1.0
    assert trained.buffer.states.abs().max() < 5
    assert all(0 < row["step_times_curvature"] < 1 for row in rows)


def test_chains_break_where_the_energy_gets_too_sharp_for_their_step():
    """The same training with a longer step: healthy until step size times curvature passes 2, then it runs away."""
    sizes = {"batch": 128, "buffer_size": 1000, "width": 48}
    langevin = Langevin(steps=10, step_size=0.05, noise=None)
    rows = train_toy(eight_gaussians(), langevin, steps=401, learning_rate=3e-3, record_every=50, **sizes).rows
    sharp = [row["step_times_curvature"] for row in rows]
    first = next(i for i, value in enumerate(sharp) if value > 2)
    best = min(range(len(rows)), key=lambda i: rows[i]["kl_nats"])
    assert 2 <= best < first, "it had learnt before it broke"
    assert rows[best]["kl_nats"] < 0.7
    assert rows[-1]["kl_nats"] > 4
    assert sharp[-1] > 2


def test_the_training_is_reproducible():
    first, again, other = (
        train_toy(eight_gaussians(), MATCHED, steps=3, batch=16, buffer_size=64, width=8, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.rows == again.rows
    assert torch.equal(first.buffer.states, again.buffer.states)
    assert first.rows != other.rows


def test_angles_of_the_estimated_gradient(trained):
    """Long matched chains estimate the gradient better than short ones from noise, and than chains without noise."""
    samplers = {
        "short": replace(MATCHED, steps=3),
        "long": replace(MATCHED, steps=150),
        "cold": replace(MATCHED, steps=150, noise=0.01),
    }
    angles = angle_study(trained, eight_gaussians(), samplers, chains=800)
    errors = {(name, start): angle.relative_error for name, row in angles.items() for start, angle in row.items()}
    assert errors["long", "noise"] < errors["short", "noise"]
    assert errors["long", "noise"] < errors["cold", "noise"]
    assert errors["short", "buffer"] < errors["short", "noise"]
    assert all(-1 <= angle.cosine <= 1 for row in angles.values() for angle in row.values())
    assert angles["long"]["buffer"].exact_nll_nats == angles["cold"]["noise"].exact_nll_nats, "the same data"


def test_a_cold_chain_gathers_at_the_modes():
    """At temperature 5e-5 samples are far less spread than the density is."""
    law = eight_gaussians()
    start, _ = law.draw(500)
    warm = run_chains(law.log_joint, start, Langevin(200, 0.005, None))
    cold = run_chains(law.log_joint, start, Langevin(200, 0.005, 0.001))
    nearest = [torch.cdist(x, law.centres).amin(1).square().mean().item() for x in (warm, cold)]
    expected = 2 * Langevin(1, 0.005, None).stationary_variance(1 / 0.25**2)
    assert nearest[0] == pytest.approx(expected, rel=0.2)
    assert nearest[1] < nearest[0] / 100


def test_the_loss_of_a_plain_classifier_knows_no_density():
    """Cross-entropy alone is blind to a shift c(x); the joint loss is not."""
    law = eight_gaussians()
    x, y = law.draw(64)
    samples, _ = law.draw(64)
    shift = -x.square().sum(1, keepdim=True)
    logits, sampled = law.log_joint(x), law.log_joint(samples)
    a, b = joint_loss(logits, y, logits, sampled), joint_loss(logits + shift, y, logits + shift, sampled)
    assert a.cross_entropy_nats.item() == pytest.approx(b.cross_entropy_nats.item(), abs=1e-5)
    assert abs(a.total.item() - b.total.item()) > 1
