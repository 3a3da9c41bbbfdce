"""The feature distance: its classifier learns, and it ranks pictures as a person would."""

import pytest
import torch

from papers.nvae.losses import binarise
from papers.nvae.score import FEATURES, FeatureScore, extract, feature_score, train_classifier
from shared.data.images import Images, load_mnist
from shared.metrics import feature_statistics
from shared.paths import ROOT


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    train, test = (load_mnist(s, folder=ROOT / "tests" / "data", allow_sample=True) for s in ("train", "test"))
    return train, test


@pytest.fixture(scope="module")
def score(digits: tuple[Images, Images]) -> FeatureScore:
    train, test = digits
    return feature_score(train_classifier(train.pixels, train.labels, steps=40), test.pixels, test.labels)


def test_classifier_learns(score: FeatureScore) -> None:
    assert score.accuracy > 0.6
    assert not score.classifier.training


def test_training_is_repeatable(digits: tuple[Images, Images]) -> None:
    train, _ = digits
    a, b = (train_classifier(train.pixels[:100], train.labels[:100], steps=2) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_reference_statistics(digits: tuple[Images, Images], score: FeatureScore) -> None:
    _, test = digits
    assert score.mean.shape == (FEATURES,)
    features = extract(score.classifier, binarise(test.pixels, torch.rand(test.pixels.shape)))
    mean, _ = feature_statistics(features)
    torch.testing.assert_close(mean, score.mean, rtol=0.1, atol=0.1)  # another draw of the same binary images


def test_distance_ranks_digits_before_mixtures_before_noise(digits: tuple[Images, Images], score: FeatureScore) -> None:
    train, test = digits
    real = train.pixels[: len(test.pixels)].float() / 255
    mixed = (real + real.flip(0)) / 2
    noise = torch.full_like(real, real.mean().item())
    distances = [score.distance(x, seed=0) for x in (test.pixels.float() / 255, real, mixed, noise)]
    assert distances == sorted(distances)
    assert 0 <= distances[0] < 0.2 * distances[2]
    assert score.distance(mixed, seed=0) == distances[2]
