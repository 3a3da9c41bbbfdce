"""The Fréchet distance against scipy and torchmetrics, and the statistics it is made from."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import shared.torchvision_operators  # noqa: F401 - before torchmetrics' image metrics
from shared.metrics import feature_statistics, frechet_distance, mean_and_standard_error


def features(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mixing + torch.randn(d, generator=generator)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_frechet_distance_is_scipys(d: int, seed: int) -> None:
    (mean_a, a), (mean_b, b) = (feature_statistics(features(40, d, 2 * seed + i)) for i in range(2))
    root = np.atleast_2d(scipy.linalg.sqrtm(a.numpy().reshape(d, d) @ b.numpy().reshape(d, d)))
    a, b = a.reshape(d, d), b.reshape(d, d)
    expected = (
        (mean_a - mean_b).square().sum().item() + (torch.trace(a) + torch.trace(b)).item() - 2 * root.real.trace()
    )
    ours = frechet_distance(mean_a, a, mean_b, b)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert ours == pytest.approx(frechet_distance(mean_b, b, mean_a, a), rel=1e-6, abs=1e-6)
    assert frechet_distance(mean_a, a, mean_a, a) == pytest.approx(0, abs=1e-6 * torch.trace(a).item())


def test_frechet_distance_of_known_normals() -> None:
    """Commuting covariances: the distance is |shift|^2 + sum (sqrt a - sqrt b)^2."""
    zero, one = torch.zeros(2), torch.tensor([3.0, 4.0])
    a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.diag(torch.tensor([1.0, 16.0]))
    assert frechet_distance(zero, a, one, b) == pytest.approx(25 + 1 + 1)
    assert frechet_distance(zero, torch.zeros(2, 2), zero, b) == pytest.approx(17)


class Pooled(nn.Module):
    """A fixed feature net of 12 numbers an image, on uint8 images (N, 3, H, W)."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x.float() / 255)).mean((2, 3))


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    net = Pooled().eval().requires_grad_(False)
    real = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    fake = (real.flip(0) // 2 + torch.randint(0, 100, (60, 3, 16, 16))).to(torch.uint8)
    metric = FrechetInceptionDistance(feature=net)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = frechet_distance(*feature_statistics(net(real)), *feature_statistics(net(fake)))
    assert ours > 1e-4
    assert ours == pytest.approx(metric.compute().item(), rel=1e-3)


def test_feature_statistics() -> None:
    x = features(50, 6, 0)
    mean, covariance = feature_statistics(x)
    assert mean.dtype == covariance.dtype == torch.float64
    np.testing.assert_allclose(mean.numpy(), x.double().numpy().mean(0))
    np.testing.assert_allclose(covariance.numpy(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)


def test_too_few_items_for_a_covariance() -> None:
    with pytest.raises(ValueError, match="take at least 7"):
        feature_statistics(torch.randn(6, 6))
    feature_statistics(torch.randn(7, 6))


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_standard_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3
    assert error == pytest.approx(((4 + 1 + 0 + 9) / 3) ** 0.5 / 2)
