"""Metrics that several papers report."""

import torch
from torch import Tensor


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64.

    Raises:
        ValueError: fewer than D + 1 items, whose covariance is singular.
    """
    n, d = features.shape
    if n <= d:
        raise ValueError(f"{n} items are too few for the covariance of {d} features; take at least {d + 1}")
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """`|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2))` between two Normals (Dowson & Landau, 1982).

    The trace of the root is the sum of the square roots of the eigenvalues of the symmetric `A^(1/2) B A^(1/2)`, so
    nothing complex appears. Name the features whenever the number is reported; it is FID only on Inception-v3's.
    """
    values, vectors = torch.linalg.eigh(cov_a.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ cov_b.double() @ root)
    trace = torch.trace(cov_a.double()) + torch.trace(cov_b.double()) - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return float((mean_a.double() - mean_b.double()).square().sum() + trace)


def mean_and_standard_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values (N,) and its standard error, `s / sqrt(N)`."""
    return values.double().mean().item(), (values.double().std() / len(values) ** 0.5).item()
