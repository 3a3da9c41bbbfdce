"""Projected gradient descent and robust accuracy on classifiers with closed forms."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.jem.attacks import Attack, margin, pgd, robust_accuracy, smallest_fooling_eps
from papers.jem.model import SmallConvNet
from tests.papers.jem.linear_model import SHAPE, linear, linear_logits, small_images

GRID = (0.01, 0.02, 0.05, 0.1, 0.2)


# --- projected gradient descent ---


def test_margin_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [-2.0, 2.0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_results_are_in_the_ball_and_in_the_box(norm: str, eps: float) -> None:
    network = SmallConvNet().eval()
    x = (torch.rand(4, 1, 28, 28) * 2 - 1) * 1.5
    x = x.clamp(-1, 1)  # a third of the pixels on the walls
    found = pgd(network, x, torch.arange(4), eps, Attack(norm, steps=5, restarts=2, relative_step=1.0))
    shift = ((found - x) / 2).flatten(1)
    length = shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)
    assert (length <= eps * (1 + 1e-5)).all()
    assert length.min() > 0.2 * eps
    assert found.abs().max() <= 1


def test_without_steps_and_random_start_nothing_moves() -> None:
    w, b = linear()
    x = small_images(5)
    attack = Attack(steps=0, random_start=False)
    assert torch.equal(pgd(partial(linear_logits, w=w, b=b), x, torch.zeros(5).long(), 0.1, attack), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_on_a_linear_model_of_two_classes_is_the_closed_form(norm: str) -> None:
    """x + eps sign(w_other - w_own), or eps along w_other - w_own in L2, whatever the image."""
    w, b = linear(2)
    x, labels, eps = small_images(6), torch.tensor([0, 1, 0, 1, 0, 1]), 0.05
    attack = Attack(norm, steps=1, relative_step=1.0, random_start=False)
    found = pgd(partial(linear_logits, w=w, b=b), x, labels, eps, attack)
    away = (w[1 - labels] - w[labels]).view_as(x)
    unit = away.sign() if norm == "linf" else F.normalize(away.flatten(1)).view_as(x)
    torch.testing.assert_close(found, x + 2 * eps * unit)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_many_steps_from_anywhere_reach_the_closed_form(norm: str, loss: str) -> None:
    w, b = linear(2)
    # In L2 a step of share s and the projection shrink what is across the best direction by 1 / (1 + s).
    attack = Attack(norm, steps=60, relative_step=0.2, restarts=2, loss=loss)
    x, labels, eps = small_images(6), torch.tensor([0, 1, 0, 1, 0, 1]), 0.05
    found = pgd(partial(linear_logits, w=w, b=b), x, labels, eps, attack)
    dual = (w[0] - w[1]).norm(p=1 if norm == "linf" else 2)
    gain = margin(linear_logits(found, w, b), labels) - margin(linear_logits(x, w, b), labels)
    torch.testing.assert_close(gain, torch.full((6,), float(2 * eps * dual)), rtol=1e-4, atol=0)


def test_the_loss_never_falls_with_steps_or_restarts() -> None:
    network = SmallConvNet().eval()
    x, labels = torch.rand(8, 1, 28, 28) * 2 - 1, torch.arange(8)
    reached = []
    for steps, restarts in ((0, 1), (2, 1), (10, 1), (10, 3)):
        torch.manual_seed(0)
        attack = Attack(steps=steps, restarts=restarts, relative_step=0.1)
        found = pgd(network, x, labels, 0.1, attack)
        reached.append(margin(network(found).detach(), labels))
    assert all((b >= a).all() for a, b in itertools.pairwise(reached))
    assert (reached[2] > reached[0]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: str) -> None:
    """L-inf: uniform in each coordinate. L2: the radius to the power of the dimension is uniform."""
    x = torch.zeros(4000, 1, 2, 2)
    torch.manual_seed(1)
    found = pgd(lambda z: z.flatten(1), x, torch.zeros(4000).long(), 0.25, Attack(norm, steps=0)).flatten(1) / 0.5
    uniform = (found[:, 0] + 1) / 2 if norm == "linf" else found.norm(dim=1) ** 4
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(torch.quantile(uniform, quantiles), quantiles, atol=0.03, rtol=0)
    assert found.mean(0).abs().max() < 0.05


def test_the_margin_loss_climbs_where_cross_entropy_has_no_gradient_left() -> None:
    """Logits of 1000 x: softmax is 1 in float32 and its gradient exactly 0."""
    w, b = linear(2)
    x, labels = small_images(20), torch.zeros(20).long()
    labels = linear_logits(x, w, b).argmax(1)
    sure = (margin(linear_logits(x, w, b), labels) < -0.5).nonzero()[:, 0]
    assert len(sure) > 5
    found = {}
    for loss in ("cross_entropy", "margin"):
        attack = Attack(steps=10, random_start=False, loss=loss)
        found[loss] = pgd(lambda z: 1000 * linear_logits(z, w, b), x[sure], labels[sure], 0.3, attack)
    assert torch.equal(found["cross_entropy"], x[sure])
    assert (linear_logits(found["margin"], w, b).argmax(1) != labels[sure]).all()


def test_averaging_over_draws_finds_the_direction_under_noise() -> None:
    """Logits whose slope is hidden by noise of three times its size: more draws climb further on the mean."""
    w, b = linear(2)

    def noisy(x: Tensor) -> Tensor:
        return torch.einsum("bi,bki->bk", x.flatten(1), w + 3 * torch.randn(len(x), 2, 16)) + b

    x, labels = small_images(200), torch.zeros(200).long()
    gains = []
    for draws in (1, 30):
        torch.manual_seed(0)
        found = pgd(noisy, x, labels, 0.05, Attack(steps=3, draws=draws, random_start=False))
        gains.append(
            float((margin(linear_logits(found, w, b), labels) - margin(linear_logits(x, w, b), labels)).mean())
        )
    most = float(0.1 * (w[0] - w[1]).abs().sum())
    assert gains[0] < 0.6 * most
    assert gains[1] > gains[0] + 0.1 * most


def test_wrong_input_is_refused_in_one_line() -> None:
    classify = partial(linear_logits, w=linear()[0], b=linear()[1])
    with pytest.raises(ValueError, match=r"images in \[-1, 1\], got 0.1 and 1.5"):
        pgd(classify, torch.full((1, *SHAPE), 1.5), torch.tensor([0]), 0.1, Attack())
    with pytest.raises(ValueError, match="above 0"):
        smallest_fooling_eps(classify, small_images(2), torch.zeros(2).long(), (0.0, 0.1), Attack())
    with pytest.raises(ValueError, match="no attack"):
        Attack(norm="l1")
    with pytest.raises(ValueError, match="no attack"):
        Attack(restarts=0)


# --- robust accuracy ---


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_smallest_radius_of_a_linear_model_is_its_distance_to_the_boundary(norm: str) -> None:
    """|margin| / |w_0 - w_1| in the dual norm, halved for the scale, rounded up to the grid."""
    w, b = linear(2)
    x = small_images(200)
    labels = torch.where(torch.rand(200) < 0.9, linear_logits(x, w, b).argmax(1), 0)
    gap = margin(linear_logits(x, w, b), labels).double()
    dual = (w[0] - w[1]).double().norm(p=1 if norm == "linf" else 2)
    distance = -gap / dual / 2
    grid = torch.tensor(GRID, dtype=torch.float64)
    grid = grid if norm == "linf" else 4 * grid
    clear = ((distance[:, None] / grid - 1).abs() > 0.01).all(1)  # not on the edge of a radius
    found = smallest_fooling_eps(
        partial(linear_logits, w=w, b=b), x, labels, grid.tolist(), Attack(norm, steps=40), batch_size=64
    )
    place = torch.bucketize(distance, grid)
    expected = torch.cat([grid, torch.tensor([math.inf])])[place]
    expected[gap > 0] = 0
    assert clear.sum() > 150
    assert len(expected[clear].unique()) >= 5
    assert torch.equal(found[clear], expected[clear])


def test_robust_accuracy_falls_with_the_radius_and_starts_at_the_accuracy() -> None:
    network = SmallConvNet().eval()
    x = torch.rand(60, 1, 28, 28) * 2 - 1
    labels = network(x).argmax(1)
    labels[:15] = (labels[:15] + 1) % 10
    smallest = smallest_fooling_eps(network, x, labels, GRID, Attack(steps=5), batch_size=25)
    curve = robust_accuracy(smallest, (0.0, *GRID))
    assert curve[0] == 0.75
    assert all(a >= b for a, b in itertools.pairwise(curve))
    assert curve[-1] < curve[0]
    again = smallest_fooling_eps(network, x, labels, GRID, Attack(steps=5), batch_size=25)
    assert torch.equal(again, smallest)


def test_each_radius_starts_from_the_result_of_the_one_before() -> None:
    """With a step of a fixed share and no steps enough for a whole radius, the path goes on where it stopped."""
    w, b = linear(2)
    x = torch.zeros(1, *SHAPE)
    seen = []

    def spy(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return linear_logits(z, w, b + torch.tensor([100.0, 0.0]))

    attack = Attack(steps=1, relative_step=0.5, random_start=False)
    smallest = smallest_fooling_eps(spy, x, torch.tensor([0]), (0.1, 0.2), attack)
    assert smallest.item() == math.inf
    lengths = [float(z.abs().max()) for z in seen]
    # judged; start and end at 0.1; judged; start and end at 0.2, half a radius further; judged
    assert lengths == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.3, 0.3])


def test_a_transfer_attack_follows_the_surrogate_and_is_weaker() -> None:
    (w, b), (other, c) = linear(2, 0), linear(2, 5)
    x = small_images(300)
    target, surrogate = partial(linear_logits, w=w, b=b), partial(linear_logits, w=w + other, b=b + c)
    labels = target(x).argmax(1)
    white = smallest_fooling_eps(target, x, labels, GRID, Attack(steps=10))
    transfer = smallest_fooling_eps(target, x, labels, GRID, Attack(steps=10), surrogate=surrogate)
    own = smallest_fooling_eps(target, x, labels, GRID, Attack(steps=10), surrogate=target)
    assert torch.equal(own, white)
    assert (transfer >= white).all()
    assert robust_accuracy(transfer, [0.05])[0] > robust_accuracy(white, [0.05])[0] + 0.05
    assert robust_accuracy(transfer, [0.2])[0] < 1
