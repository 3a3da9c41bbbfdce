"""The penalty on singular values against the singular value decomposition."""

import copy

import pytest
import torch
from torch import Tensor, nn

from shared.layers import WeightNormConv2d
from shared.spectral import SpectralPenalty


def largest(conv: nn.Conv2d) -> float:
    weight = conv.effective_weight() if isinstance(conv, WeightNormConv2d) else conv.weight
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item()


def gaussian_convs(n: int) -> list[nn.Conv2d]:
    """Kernels that reshape to Gaussian 64 x 576 matrices: a hard case, as the largest singular values are close."""
    convs = [nn.Conv2d(64, 64, 3) for _ in range(n)]
    for conv in convs:
        nn.init.normal_(conv.weight)
    return convs


def ratio(convs: list[nn.Conv2d], iterations: int) -> Tensor:
    """Estimate over truth for each layer after so many iterations from the start."""
    penalties = [SpectralPenalty([conv], first_iterations=iterations) for conv in convs]
    return torch.tensor([penalty().item() / largest(conv) for penalty, conv in zip(penalties, convs, strict=True)])


# Means over eight random matrices; one matrix scatters by about 0.03 after few iterations.
@pytest.mark.parametrize(
    ("iterations", "expected", "tolerance"),
    [(1, 0.79, 0.03), (4, 0.92, 0.02), (10, 0.966, 0.012), (40, 0.999, 0.008), (200, 1, 1e-4)],
)
def test_ratio_to_the_true_value(iterations: int, expected: float, tolerance: float) -> None:
    ratios = ratio(gaussian_convs(8), iterations)
    assert ratios.max() <= 1 + 1e-5, "the estimate is never above the truth"
    assert ratios.mean().item() == pytest.approx(expected, abs=tolerance)


def test_first_call_iterates_more_than_the_others() -> None:
    convs = gaussian_convs(1)
    few = ratio(copy.deepcopy(convs), 4)
    penalty = SpectralPenalty(convs)
    first = penalty().item() / largest(convs[0])
    assert first > few.item()
    assert first == pytest.approx(ratio(convs, 40).item(), rel=1e-6)
    assert penalty().item() / largest(convs[0]) == pytest.approx(ratio(convs, 44).item(), rel=1e-6)


def test_sum_over_layers_of_several_shapes() -> None:
    convs = [
        nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 5, groups=8),
        WeightNormConv2d(8, 4, 1), WeightNormConv2d(4, 6, 3, stride=2),
    ]  # fmt: skip
    with torch.no_grad():
        convs[4].log_gain.normal_()  # type: ignore[operator,union-attr]
    total = SpectralPenalty(convs, first_iterations=500)()
    assert total.item() == pytest.approx(sum(map(largest, convs)), rel=1e-4)


def test_warm_start_tracks_moving_weights() -> None:
    conv = nn.Conv2d(16, 16, 3)
    penalty = SpectralPenalty([conv])
    for _ in range(60):
        with torch.no_grad():
            conv.weight.add_(0.002 * torch.randn_like(conv.weight))
        estimate = penalty().item()
        assert 0.97 * largest(conv) <= estimate <= largest(conv) * (1 + 1e-5)


def test_gradient_is_the_outer_product_of_the_vectors() -> None:
    conv = nn.Conv2d(4, 6, 3)
    penalty = SpectralPenalty([conv], first_iterations=2000)
    penalty().backward()
    u, s, v = torch.linalg.svd(conv.weight.detach().flatten(1).double())
    assert s[0] > 1.02 * s[1], "the singular vectors are well defined"
    assert conv.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad.flatten(1).double(), torch.outer(u[:, 0], v[0]), rtol=1e-4, atol=1e-4)


def test_gradient_belongs_to_the_vectors_of_its_own_call() -> None:
    conv = nn.Conv2d(4, 6, 3)
    penalty = SpectralPenalty([conv], first_iterations=1)
    w, start = conv.weight.detach().flatten(1), penalty.u0[0].clone()
    first = penalty()
    v = w.T @ start / (w.T @ start).norm()
    u = w @ v / (w @ v).norm()
    penalty()
    first.backward()
    assert conv.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad.flatten(1), u @ v.T)


def test_gradient_lowers_the_norm_of_a_weight_normalised_layer() -> None:
    conv = WeightNormConv2d(4, 6, 3)
    penalty = SpectralPenalty([conv])
    optimizer = torch.optim.SGD(conv.parameters(), 0.05)
    before = largest(conv)
    for _ in range(5):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert largest(conv) < 0.95 * before


def test_vanishing_layer_stays_finite() -> None:
    conv = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(conv.weight)
    penalty = SpectralPenalty([conv])
    for _ in range(3):
        total = penalty()
        total.backward()
    assert total.item() == 0
    assert conv.weight.grad is not None
    assert torch.isfinite(conv.weight.grad).all()


def test_state_goes_on_where_it_stopped() -> None:
    convs = gaussian_convs(2)
    penalty = SpectralPenalty(convs)
    penalty()
    other = SpectralPenalty(convs)
    other.load_state_dict(penalty.state_dict())
    assert penalty().item() == other().item()
    assert not list(penalty.parameters()), "the layers belong to the model, not to the penalty"


def test_no_layers() -> None:
    assert SpectralPenalty([])().item() == 0


@pytest.mark.parametrize("size", [0.2, 0.01, 0.003])
def test_small_layers_are_estimated_like_large_ones(size: float) -> None:
    """The guard against division by zero (1e-3 for |W v|) does not switch off layers whose norm is merely small."""
    conv = nn.Conv2d(8, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(size / largest(conv))
    penalty = SpectralPenalty([conv])
    penalty()
    assert penalty().item() == pytest.approx(size, rel=0.02)
