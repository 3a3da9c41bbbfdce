"""Distances between sets of features: no bias, closed forms, other libraries; and the features themselves."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from papers.jem.data import Data, load_data, scale
from papers.jem.feature_distance import (
    Features,
    frechet_distance,
    kernel_distance,
    load_features,
    reference_distances,
    reference_sets,
    sample_distances,
)
from papers.jem.imagenet import load_lite0
from shared import metrics
from tests.papers.jem.tiny_data import tiny_data


@pytest.fixture(scope="module")
def network() -> Features:
    """Small pictures: what is tested here does not depend on the size."""
    return Features(load_lite0(untrained=True), side=32).eval()


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the kernel distance ---


def test_kernel_distance_is_its_definition() -> None:
    """By loops over all pairs of different rows, and all pairs across."""
    a, b = normal(5, 3), normal(4, 3, 1) + 1

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    within = [sum(k(x, y) for x, y in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1)) for z in (a, b)]
    across = sum(k(x, y) for x in a for y in b) / 20
    assert kernel_distance(a, b) == pytest.approx(1000 * (sum(within) - 2 * across))


def test_kernel_distance_has_no_bias() -> None:
    """Between sets of one law it is 0 on average, so often below 0; the Fréchet distance is above 0 every time."""
    found = torch.tensor([kernel_distance(normal(12, 6, 2 * i), normal(20, 6, 2 * i + 1)) for i in range(400)])
    mean, error = metrics.mean_and_standard_error(found)
    assert abs(mean) < 4 * error
    assert 0.2 < (found < 0).double().mean() < 0.8
    assert min(frechet_distance(normal(12, 6, 2 * i), normal(20, 6, 2 * i + 1)) for i in range(50)) > 0.5


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    """Whose subsets are drawn at random: one subset of all rows."""
    a, b = normal(30, 8).float(), (normal(30, 8, 1) * 1.5 + 0.3).float()
    with pytest.warns(UserWarning, match="buffer"):
        theirs = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=30)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert kernel_distance(a, b) == pytest.approx(1000 * float(theirs.compute()[0]), rel=1e-4)


# --- the Fréchet distance ---


def uncorrelated(n: int, d: int) -> Tensor:
    """Rows (n, d) whose covariance is the identity, exactly, and whose mean is 0."""
    x = normal(n, d)
    columns: Tensor = torch.linalg.qr(x - x.mean(0))[0]
    return columns * math.sqrt(n - 1)


def test_frechet_distance_of_moved_and_stretched_sets() -> None:
    a, move = uncorrelated(40, 5), torch.tensor([3.0, 0, 0, -4, 0])
    s, t = torch.tensor([1.0, 2, 3, 1, 0.5]), torch.tensor([1.0, 1, 5, 0, 0.5])
    assert frechet_distance(a, a + move) == pytest.approx(25)
    assert frechet_distance(a * s, a * t) == pytest.approx(1 + 4 + 1)
    assert frechet_distance(a * s, a * t + move) == pytest.approx(25 + 6)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (5, 9), (5, 60)])
def test_frechet_distance_is_that_of_the_covariances(n: int, m: int) -> None:
    """Also where there are fewer rows than the 12 columns."""
    a, b = normal(n, 12) @ normal(12, 12, 7), normal(m, 12, 1) + 2
    expected = metrics.frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_distances_are_symmetric_and_ignore_the_order(distance: Callable[[Tensor, Tensor], float]) -> None:
    a, b = normal(9, 20), normal(14, 20, 1) * 2 + 1
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(a, b) == pytest.approx(distance(a.flip(0), b.roll(3, 0)))
    assert distance(a, b) > distance(a, a)
    assert distance(a, a) == pytest.approx(0, abs=1e-9) if distance is frechet_distance else distance(a, a) < 0


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4, 3), (1, 3)), ((4,), (4, 3))])
def test_other_shapes_are_refused(
    distance: Callable[[Tensor, Tensor], float], shapes: tuple[tuple[int, ...], ...]
) -> None:
    with pytest.raises(ValueError, match="two or more rows"):
        distance(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


# --- features ---


def test_features_of_grey_are_those_of_three_equal_channels(network: Features) -> None:
    x = torch.rand(23, 1, 7, 9) * 2 - 1
    features = network(x)
    assert features.shape == (23, 1280)
    assert features.dtype == torch.float32
    assert torch.equal(features, network(x.expand(-1, 3, -1, -1)))
    assert torch.allclose(features[21:], network(x[21:]), atol=1e-6)  # another batch
    assert features.std(0).max() > 1e-4


def test_features_are_of_pictures(network: Features) -> None:
    """Nothing is brighter than white, and a picture of the network's own size is taken as it is."""
    x = torch.randn(2, 3, 32, 32) * 2
    assert torch.equal(network(x), network(x.clamp(-1, 1)))
    direct = network.network.features((x.clamp(-1, 1) * 127.5 + 127.5 - 127) / 128)
    assert torch.allclose(network(x), direct, atol=1e-5)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 2, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)]
)
def test_other_images_are_refused(network: Features, images: Tensor) -> None:
    with pytest.raises(ValueError, match="not images"):
        network(images)


def test_features_of_pixels_are_computed_once(network: Features) -> None:
    pixels = torch.randint(256, (3, 1, 8, 8)).to(torch.uint8)
    first = network.remembered(pixels)
    assert torch.equal(first, network(scale(pixels)))
    assert network.remembered(pixels.clone()) is first
    assert network.remembered(255 - pixels) is not first


# --- of images ---


def test_samples_are_judged_as_pictures(network: Features) -> None:
    """Grey levels, the same as floats, and floats that round to them are one set; the test images are at distance 0."""
    data = tiny_data(images=30)
    found = sample_distances(data.test, data, network=network, count=30)
    assert set(found) == {"samples_kernel_distance", "samples_frechet_distance"}
    assert found["samples_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["samples_kernel_distance"] < 0
    x = scale(data.test)
    assert sample_distances(x + 0.003, data, network=network, count=30) == found
    darker = sample_distances(-x.abs(), data, network=network, count=30)
    assert all(darker[name] > value for name, value in found.items())
    # Only the first are compared.
    both = torch.cat([data.test[:20], data.train])
    assert sample_distances(both, data, network=network, count=20) == sample_distances(
        data.test[:20], data, network=network, count=20
    )


def test_too_few_samples_are_refused(network: Features) -> None:
    data = tiny_data(images=30)
    with pytest.raises(ValueError, match="30 samples where 31"):
        sample_distances(data.test, data, network=network, count=31)


def few_classes(images: int = 60) -> Data:
    data = tiny_data(images)
    return dataclasses.replace(data, train_labels=torch.arange(images) % 3)


def test_reference_sets_are_what_they_are_called() -> None:
    data = few_classes()
    sets = reference_sets(data, 12, 0.25, seed=4)
    assert all(x.shape == (12, 1, 4, 4) and x.dtype == torch.float32 for x in sets.values())
    known = scale(data.train).flatten(1)

    def places(x: Tensor) -> list[int]:
        found = (x.flatten(1)[:, None] == known).all(2).nonzero()
        return found[:, 1].tolist() if found[:, 0].equal(torch.arange(12)) else []

    assert len(set(places(sets["train"]))) == 12
    assert {int(data.train_labels[i]) for i in places(sets["one_class"])} == {4 % 3}
    assert float((sets["noisy"] - sets["train"]).std()) == pytest.approx(0.25, rel=0.2)
    inner = sets["train"][:, :, :3, :3].mean((2, 3))
    assert torch.allclose(sets["blurred"][:, :, 1, 1], inner, atol=1e-6)
    corner = sets["train"][:, :, :2, :2].mean((2, 3))
    assert torch.allclose(sets["blurred"][:, :, 0, 0], corner, atol=1e-6)
    means = (known[:, None] + known) / 2
    assert all(((means - x).abs().amax(2) < 1e-6).any() for x in sets["interpolation"].flatten(1))
    assert -1 <= float(sets["uniform"].min()) < -0.9 < 0.9 < float(sets["uniform"].max()) <= 1


def test_reference_sets_depend_on_the_seed_only() -> None:
    data = few_classes()
    first, again, other = (reference_sets(data, 12, 0.1, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_class_with_too_few_images_is_refused() -> None:
    with pytest.raises(ValueError, match="class 0 has 20 training images, not 21"):
        reference_sets(few_classes(60), 21, 0.1, seed=0)


def test_reference_distances_are_those_of_the_sets(network: Features) -> None:
    data = few_classes()
    found = reference_distances(data, network=network, count=12, data_noise=0.1, seed=0)
    sets = reference_sets(data, 12, 0.1, seed=0)
    assert set(found) == {f"reference_{name}_{kind}_distance" for name in sets for kind in ("kernel", "frechet")}
    blurred = sample_distances(sets["blurred"], data, network=network, count=12)
    assert found["reference_blurred_kernel_distance"] == blurred["samples_kernel_distance"]
    assert found["reference_blurred_frechet_distance"] == blurred["samples_frechet_distance"]


@pytest.mark.data
def test_the_order_of_the_real_sets() -> None:
    """Other photographs of clothes are nearest, and what is no photograph of clothes is farther, noise above all."""
    data = load_data("fashion_mnist", 100, 0)
    found = reference_distances(data, network=load_features(), count=200, data_noise=0.1, seed=0)
    for kind in ("kernel", "frechet"):
        value = {name: found[f"reference_{name}_{kind}_distance"] for name in reference_sets(data, 2, 0.1, 0)}
        assert value["train"] < min(value["blurred"], value["interpolation"]) / 1.5
        assert max(value["blurred"], value["interpolation"]) < value["one_class"] < value["uniform"]
    assert abs(found["reference_train_kernel_distance"]) < 30
