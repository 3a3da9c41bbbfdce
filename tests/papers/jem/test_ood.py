"""Scores on a Gaussian mixture whose density is known, and AUROC by counting pairs and by scipy."""

import math

import pytest
import torch
from scipy.stats import mannwhitneyu, multivariate_normal
from torch import nn

from papers.jem.model import SmallConvNet
from papers.jem.ood import Scores, auroc, auroc_table, confidence_score, histograms, score, score_all

MEANS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])


def mixture(x: torch.Tensor) -> torch.Tensor:
    """Logits -|x - m_y|^2 / 2, so that p(x) is the mixture of three unit Gaussians with equal weights."""
    return -(x[:, None] - MEANS.to(x.dtype)).square().sum(2) / 2


def test_scores_of_a_mixture_by_hand() -> None:
    scores = score(mixture, torch.tensor([[1.0, 0.5]]))
    assert scores.log_density.item() == pytest.approx(-0.3836887, abs=1e-6)
    assert scores.log_density.item() - math.log(3) - math.log(2 * math.pi) == pytest.approx(-3.3201781, abs=1e-6)
    assert scores.confidence.item() == pytest.approx(0.785597, abs=1e-6)
    assert scores.approximate_mass.item() == pytest.approx(-0.609285, abs=1e-6)


def test_log_density_against_scipy() -> None:
    x = 2 * torch.randn(50, 2, dtype=torch.float64)
    density = sum(multivariate_normal(mean=m.numpy()).pdf(x.numpy()) for m in MEANS) / 3
    expected = torch.from_numpy(density).log() + math.log(3) + math.log(2 * math.pi)
    torch.testing.assert_close(score(mixture, x).log_density.double(), expected, atol=1e-5, rtol=0)


def test_the_mass_is_the_length_of_the_score_by_finite_differences() -> None:
    x = torch.randn(10, 2, dtype=torch.float64)
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    rise = [mixture(x + h).logsumexp(1) - mixture(x - h).logsumexp(1) for h in steps]
    slope = torch.stack(rise) / 2e-5
    torch.testing.assert_close(score(mixture, x).approximate_mass.double(), -slope.norm(dim=0), atol=1e-5, rtol=0)


def test_a_shift_of_all_logits_moves_the_density_alone() -> None:
    """c(x) = x_0 for every class: confidence stays, log density moves by c, the gradient by that of c."""
    x = torch.randn(20, 2)
    before, after = score(mixture, x), score(lambda z: mixture(z) + z[:, :1], x)
    torch.testing.assert_close(after.confidence, before.confidence)
    torch.testing.assert_close(after.log_density - before.log_density, x[:, 0])
    assert (after.approximate_mass - before.approximate_mass).abs().min() > 0


def test_scoring_leaves_the_network_alone_and_does_not_depend_on_batches() -> None:
    network = SmallConvNet().eval()
    x = torch.rand(7, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        whole = score_all(network, x, batch_size=7)
        parts = score_all(network, x, batch_size=3)
    for name, values in whole.by_name().items():
        assert values.shape == (7,)
        assert not values.requires_grad
        torch.testing.assert_close(parts.by_name()[name], values, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in network.parameters())
    torch.testing.assert_close(whole.confidence, confidence_score(network(x).detach()))


def test_noise_is_a_function_of_the_seed() -> None:
    x = torch.zeros(200, 2)
    clean, noisy = score_all(mixture, x), score_all(mixture, x, noise=0.1, seed=1)
    assert torch.equal(score_all(mixture, x, noise=0.1, seed=1).log_density, noisy.log_density)
    assert not torch.equal(score_all(mixture, x, noise=0.1, seed=2).log_density, noisy.log_density)
    assert clean.log_density.std() == 0
    # Around the origin the log density falls by about |noise|^2 / 2 in both coordinates.
    assert (clean.log_density - noisy.log_density).mean().item() == pytest.approx(0.01, abs=0.003)


# --- AUROC ---


def test_auroc_by_hand_with_a_tie() -> None:
    inside, outside = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0, 0.0])
    assert auroc(inside, outside) == pytest.approx(7.5 / 9)
    assert auroc(outside, inside) == pytest.approx(1 - 7.5 / 9)


def test_auroc_against_pairs_and_scipy() -> None:
    inside = torch.randint(0, 12, (80,)).float()
    outside = torch.randint(-3, 9, (50,)).float()
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    assert auroc(inside, outside) == pytest.approx(above.mean().item())
    u = mannwhitneyu(inside.numpy(), outside.numpy()).statistic
    assert auroc(inside, outside) == pytest.approx(u / (80 * 50))


def test_auroc_of_two_normals() -> None:
    """P(a > b) for a ~ N(1, 1), b ~ N(0, 1) is Phi(1 / sqrt 2) = 0.7602; a rising map changes nothing."""
    inside, outside = torch.randn(20_000) + 1, torch.randn(20_000)
    assert auroc(inside, outside) == pytest.approx(0.7602, abs=0.01)
    assert auroc(inside.double().exp(), outside.double().exp()) == auroc(inside, outside)


def test_a_mixture_finds_what_is_far_away() -> None:
    """By density and by slope; confidence is fooled by points that are far off in the direction of a class."""
    inside = MEANS[torch.arange(300) % 3] + torch.randn(300, 2)
    far = torch.tensor([20.0, 0.0]) + torch.randn(300, 2)
    table = auroc_table(score(mixture, inside), {"far": score(mixture, far)})
    assert set(table) == {"log_density", "confidence", "approximate_mass"}
    assert table["log_density"]["far"] == 1
    assert table["approximate_mass"]["far"] == 1
    assert table["confidence"]["far"] < 0.1


# --- histograms ---


def test_histograms_are_densities_on_common_bins() -> None:
    sets = {"a": torch.randn(3000), "b": torch.cat([torch.randn(2000) + 2, torch.tensor([1e6])])}
    bars = histograms(sets, 40)
    width = float(bars.edges[1] - bars.edges[0])
    for density in bars.density.values():
        assert density.shape == (40,)
        assert float(density.sum()) * width == pytest.approx(1)
    assert float(bars.edges[-1]) < 10  # one far value does not stretch the range
    centres = (bars.edges[1:] + bars.edges[:-1]) / 2
    assert float((centres * bars.density["a"]).sum()) * width == pytest.approx(0, abs=0.1)
    assert bars.density["b"][-1] > 0


def test_equal_scores_have_a_histogram() -> None:
    bars = histograms({"a": torch.ones(5)}, 4)
    assert float(bars.density["a"].sum() * (bars.edges[1] - bars.edges[0])) == pytest.approx(1)


def test_wrong_input_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="finite scores of both sets; got 1 and 0"):
        auroc(torch.ones(1), torch.ones(0))
    with pytest.raises(ValueError, match="finite"):
        auroc(torch.tensor([math.nan]), torch.ones(1))
    with pytest.raises(ValueError, match="finite"):
        histograms({"a": torch.ones(3), "b": torch.tensor([math.inf])})
    with pytest.raises(ValueError, match="no images"):
        score_all(nn.Identity(), torch.ones(0, 2))


def test_scores_have_names() -> None:
    scores = Scores(torch.ones(1), torch.zeros(1), -torch.ones(1))
    assert list(scores.by_name()) == ["log_density", "confidence", "approximate_mass"]
