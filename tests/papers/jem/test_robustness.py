"""Attacks on a linear classifier with two classes, where what an attack can do is known."""

import math

import pytest
import torch
from torch import Tensor

from papers.jem.model import SmallConvNet
from papers.jem.robustness import RADII, STUDIED, curves, defences, distal, jem, masking_checks, named, refinement
from papers.jem.sgld import still
from tests.papers.jem.tiny_data import SHAPE, Gaussian, Linear


def problem(n: int = 200) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier, and images far from the walls of the box with its own labels, some of them wrong."""
    generator = torch.Generator().manual_seed(0)
    network = Linear(torch.randn(2, 16, generator=generator))
    x = 0.3 * (2 * torch.rand(n, *SHAPE, generator=generator) - 1)
    labels = network(x).argmax(1)
    labels[:10] = 1 - labels[:10]
    return network, x, labels


def safe_share(network: Linear, x: Tensor, labels: Tensor, eps: float, dual: float) -> float:
    """Percent of images that no shift of the length 2 eps can move over the border."""
    logits, w = network(x).detach(), network.w.detach()
    own = logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])
    return 100 * float((own[:, 0] > 2 * eps * (w[0] - w[1]).norm(p=dual)).double().mean())


def test_curves_of_a_linear_classifier_are_known() -> None:
    network, x, labels = problem()
    found = curves(network, x, labels, steps=5)
    for eps in RADII["linf"]:
        expected = safe_share(network, x, labels, eps, 1)
        assert found.numbers[f"robust_linf_{named(eps)}_percent"] == pytest.approx(expected)
    assert found.numbers["robust_l2_eps0_25_percent"] == pytest.approx(safe_share(network, x, labels, 0.25, 2), abs=0.6)
    for norm, radii in RADII.items():
        rows = found.tables[f"robust_{norm}"]
        shares = [row["jem0_percent"] for row in rows]
        assert [row["eps"] for row in rows] == [0.0, *radii]
        assert shares[0] == 95
        assert shares == sorted(shares, reverse=True)


def test_jem_0_is_the_network_and_refinement_moves_uphill() -> None:
    network, x, _ = problem()
    with still(network), torch.no_grad():
        assert torch.equal(jem(network, 0)(x), network(x))
    # On log p(x) = -|x|^2 / (2 s^2) a step multiplies x by 1 - 1/s^2, up to noise of 0.01.
    bowl = Gaussian(4.0)
    for gradient in ("straight_through", "full"):
        before, after = bowl(x)[:, 0], jem(bowl, 3, gradient=gradient)(x)[:, 0]
        torch.testing.assert_close(after, before * 0.75**6, atol=0.03, rtol=0.2)


def test_refinement_does_not_help_where_the_density_does_not_know_the_classes() -> None:
    """Both logits +-z: log p(x) = log cosh z grows away from the border, so refining never turns a label."""
    network, x, labels = problem(60)
    w = network.w.detach()
    symmetric = Linear(0.2 * torch.stack([w[0] - w[1], w[1] - w[0]]))
    found = refinement(symmetric, x, labels, steps=3)
    assert {row["eps"] for row in found.tables["refinement_linf"]} == {0.0, *STUDIED["linf"]}
    for name in defences(symmetric):
        shares = [row[f"{name}_percent"] for row in found.tables["refinement_linf"]]
        assert shares == sorted(shares, reverse=True)
        assert found.numbers[f"{name}_clean_percent"] == shares[0]
    assert found.numbers["jem0_linf_eps0_05_percent"] == pytest.approx(safe_share(symmetric, x, labels, 0.05, 1))
    assert found.numbers["jem1_clean_percent"] == pytest.approx(found.numbers["jem0_clean_percent"], abs=4)
    only = refinement(symmetric, x, labels, steps=1, names=("jem0",))
    assert set(only.tables["refinement_linf"][0]) == {"eps", "jem0_percent"}


def test_the_worst_attack_is_no_kinder_than_any() -> None:
    network, x, labels = problem(60)
    numbers = refinement(network, x, labels, steps=2).numbers
    for k in (1, 10):
        for eps in ("eps0_05", "eps0_1"):
            worst, *others = (numbers[f"jem{k}{which}_linf_{eps}_percent"] for which in ("_worst", "", "_full"))
            assert worst <= min(others)
    assert not any("worst" in name for name in refinement(network, x, labels, 1, names=("jem0", "jem1")).numbers)


def test_refinement_in_the_other_norm() -> None:
    network, x, labels = problem(60)
    found = refinement(network, x, labels, 10, names=("jem0", "jem1"), norm="l2")
    for eps in STUDIED["l2"]:
        known = safe_share(network, x, labels, eps, 2)
        assert found.numbers[f"jem0_l2_{named(eps)}_percent"] == pytest.approx(known, abs=2)
    assert {row["eps"] for row in found.tables["refinement_l2"]} == {0.0, *STUDIED["l2"]}
    assert not any("clean" in name for name in found.numbers)


def test_refinement_that_hides_gradients_is_found_out() -> None:
    """A long step saturates the softmax: the own gradient is 0, that of JEM-0 is not."""
    network, x, labels = problem()
    w = network.w.detach()
    # Along the step to either side the logits grow, and no label changes.
    steep = Linear(3 * torch.stack([w[0] - w[1], w[1] - w[0]]))
    numbers = refinement(steep, x, labels, steps=5, names=("jem0", "jem1")).numbers
    expected = safe_share(steep, x, labels, 0.1, 1)
    assert numbers["jem1_own_linf_eps0_1_percent"] > expected + 5
    assert numbers["jem1_linf_eps0_1_percent"] == pytest.approx(expected, abs=1)
    assert "jem0_own_linf_eps0_1_percent" not in numbers


def test_honest_gradients_pass_the_checks() -> None:
    network, x, labels = problem()
    numbers = masking_checks(network, x, labels, 5, surrogate=network).numbers
    expected = safe_share(network, x, labels, 0.1, 1)
    for name in ("pgd", "more_steps", "margin", "transfer"):
        assert numbers[f"check_{name}_linf_eps0_1_percent"] == pytest.approx(expected)
    assert numbers["check_noise_linf_eps0_1_percent"] > expected
    assert numbers["check_grey_linf_eps0_5_percent"] == 0
    assert not any("transfer" in name for name in masking_checks(network, x, labels, 1).numbers)


def test_masked_gradients_are_found_out() -> None:
    """Logits times 1e4 in steps of 1e4: the slope is 0 or lost, so PGD is no better than its random start."""
    network, x, labels = problem()

    class Stairs(Linear):
        def forward(self, z: Tensor) -> Tensor:
            logits = super().forward(z)
            return logits.detach() + 0 * logits

    masked = Stairs(network.w.detach())
    numbers = masking_checks(masked, x, labels, 5, surrogate=network).numbers
    assert numbers["check_transfer_linf_eps0_1_percent"] < numbers["check_pgd_linf_eps0_1_percent"]
    assert numbers["check_noise_linf_eps0_1_percent"] <= numbers["check_pgd_linf_eps0_1_percent"]
    assert numbers["check_grey_linf_eps0_5_percent"] > 0


def test_distal_adversaries_of_a_linear_classifier() -> None:
    network, x, _ = problem()
    wide = Linear(4 * network.w.detach())
    found = distal(wide, 6, SHAPE, classes=2, judge=wide, train=x)
    for level, bound in (("distal", 90), ("distal_surer", 99.9)):
        rows = found.tables[level]
        assert [row["target"] for row in rows] == 6 * [0] + 6 * [1]
        assert all(row["confidence_percent"] > bound for row in rows)
        assert found.numbers[f"{level}_reached_percent"] == found.numbers[f"{level}_judged_percent"] == 100
        assert found.pictures[level].shape == (12, *SHAPE)
        assert found.pictures[level].dtype == torch.uint8
        assert found.numbers[f"{level}_nearest_train"] > 0
    assert found.numbers["distal_surer_steps_mean"] > found.numbers["distal_steps_mean"]


def test_distal_adversaries_of_a_deaf_network_are_in_vain() -> None:
    found = distal(Linear(torch.zeros(2, 16)), 2, SHAPE, classes=2, steps=3)
    assert found.numbers["distal_reached_percent"] == 0
    assert found.numbers["distal_steps_mean"] == 3
    assert not any("judged" in name or "nearest" in name for name in found.numbers)


def test_the_same_seed_gives_the_same_numbers_and_the_network_is_left_alone() -> None:
    torch.manual_seed(0)
    network = SmallConvNet().train()
    x = 2 * torch.rand(6, 1, 28, 28) - 1
    labels = torch.arange(6)
    first, again = (refinement(network, x, labels, 2, seed=3).numbers for _ in range(2))
    assert first == again
    assert all(math.isfinite(value) for value in first.values())
    assert network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
