"""How far a set of samples is from test images, in the features of a network that was trained on ImageNet.

The paper rates its samples by FID (Grathwohl et al., 2020, section 5.1), a Fréchet distance in features of Inception-v3
with 50,000 samples. Here the features are EfficientNet-lite0's, on small pictures, and there are a few hundred samples:
the numbers may be compared with each other and with `reference_distances`, never with FIDs.

The kernel distance is unbiased, so that a perfect sampler scores 0 on average with any number of samples; it is the one
to read. The Fréchet distance between few samples is biased upwards: compare only sets of one size.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.jem.data import Data, interpolations, scale
from papers.jem.evaluation import grey_levels
from papers.jem.imagenet import EfficientNetLite0, levels, load_lite0

#: Test images that samples are compared with: the first ones.
TEST_IMAGES = 2_000
#: Pixels along the side to which images are enlarged. Below, features are several times larger, and the cubic kernel
#: puts single classes of clothes as far away as noise; above, the work grows for the same separation.
SIDE = 96
_BATCH = 20  # the quickest on a CPU: larger ones leave its caches


class Features(nn.Module):
    """From images (B, C, H, W) in [-1, 1], grey or RGB, to features (B, 1280) float32, in batches.

    Grey is repeated in three channels, values outside [-1, 1] are cut, and images are resized bilinearly.
    """

    def __init__(self, network: EfficientNetLite0, side: int = SIDE) -> None:
        super().__init__()
        # Three times quicker on a CPU than one plane after the other.
        self.network: EfficientNetLite0 = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.side = side
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 1280), without gradient.

        Raises:
            ValueError: the shape is not that of grey or RGB images, or values are integers.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(f"not images (B, 1 or 3, H, W) in [-1, 1]: {images.dtype} {tuple(images.shape)}")
        return torch.cat([self._of_batch(batch) for batch in images.split(_BATCH)])

    def _of_batch(self, images: Tensor) -> Tensor:
        rgb = levels(images.float().clamp(-1, 1)).expand(-1, 3, -1, -1)
        enlarged = F.interpolate(rgb, size=(self.side, self.side), mode="bilinear")
        return self.network.features(enlarged.contiguous(memory_format=torch.channels_last))

    def remembered(self, pixels: Tensor) -> Tensor:
        """Features (N, 1280) of uint8 images (N, C, H, W), computed once in the life of this object."""
        name = hashlib.sha256(pixels.cpu().contiguous().numpy().tobytes()).hexdigest() + str(pixels.device)
        if name not in self._known:
            self._known[name] = self(scale(pixels))
        return self._known[name]


def load_features(device: torch.device | str = "cpu", *, untrained: bool = False) -> Features:
    """The features of this project on a device; see `load_lite0` for the argument and for errors."""
    return Features(load_lite0(untrained=untrained)).to(device).eval()


# --- distances ---


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """1000 times the squared maximum mean discrepancy of features (N, D) and (M, D), unbiased: 0 on average if equal.

    The kernel is (x . y / D + 1)^3, as in the kernel inception distance (Binkowski et al., 2018, equation 4), which
    averages over random subsets; here the sets are small enough to be taken whole. Values may be negative.

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    a, b = _checked(a, b)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x: Tensor) -> Tensor:
        # Without the pairs of a row with itself: they are what biases the plain mean.
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return 1000 * float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the means and covariances of features (N, D) and (M, D).

    As `shared.metrics.frechet_distance`, which takes covariances, but for fewer rows than columns: the covariances are
    then singular, and need not be formed. With centred rows X, A = X^T X / (N - 1), and Y of b, the trace of the root
    is the sum of the singular values of X Y^T / sqrt((N - 1)(M - 1)). Fewer rows give larger values, also between sets
    of one law.

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    a, b = _checked(a, b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    traces = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return float((mean_a - mean_b).square().sum() + traces)


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features of {tuple(a.shape)} and {tuple(b.shape)}: two or more rows of one width are needed")
    return a.double(), b.double()


# --- of images ---


def sample_distances(samples: Tensor, data: Data, *, network: Features, count: int) -> dict[str, float]:
    """`samples_kernel_distance` and `samples_frechet_distance` of the first `count` samples to the test images.

    Args:
        samples: (N, C, H, W), grey levels uint8, or floats in [-1, 1] or near it, which are rounded to grey levels: a
            sample is judged as a picture, and test images have no values in between.
        count: the same wherever Fréchet distances are compared.

    Raises:
        ValueError: fewer than `count` samples.
    """
    if len(samples) < count:
        raise ValueError(f"{len(samples)} samples where {count} are compared everywhere")
    pixels = samples if samples.dtype == torch.uint8 else grey_levels(samples)
    features = network(scale(pixels[:count].to(data.test.device)))
    test = network.remembered(data.test[:TEST_IMAGES])
    return {
        "samples_kernel_distance": kernel_distance(features, test),
        "samples_frechet_distance": frechet_distance(features, test),
    }


def reference_distances(data: Data, *, network: Features, count: int, data_noise: float, seed: int) -> dict[str, float]:
    """What the distances of `sample_distances` are for sets that are understood, of as many images.

    Returns:
        `reference_<set>_kernel_distance` and `reference_<set>_frechet_distance`, of the sets of `reference_sets`.
    """
    found: dict[str, float] = {}
    for name, images in reference_sets(data, count, data_noise, seed).items():
        distances = sample_distances(images, data, network=network, count=count)
        found |= {metric.replace("samples", f"reference_{name}"): value for metric, value in distances.items()}
    return found


def reference_sets(data: Data, count: int, data_noise: float, seed: int) -> dict[str, Tensor]:
    """Name -> images float32 (count, C, H, W), all but the last made of training images.

    `train`: as they are, the least that a sampler can reach. `noisy`: with the noise of training, which is what a
    perfect sampler would draw. `blurred`: means of 3 x 3 pixels. `interpolation`: means of two. `one_class`: of one
    class only, another for each seed. `uniform`: noise, where chains start.

    Raises:
        ValueError: there are too few images.
    """
    # Apart from the generator that chose the labelled images, which would all come first.
    generator = torch.Generator().manual_seed(2**31 + seed)
    order = torch.randperm(len(data.train), generator=generator).to(data.train.device)
    classes = int(data.train_labels.max()) + 1
    one_class = order[data.train_labels[order] == seed % classes]
    if len(one_class) < count:
        raise ValueError(f"class {seed % classes} has {len(one_class)} training images, not {count}")
    train = scale(data.train[order[:count]])
    mixed = interpolations(data.train[order[: 2 * count]].cpu(), count, generator).to(train.device)
    return {
        "train": train,
        "noisy": train + data_noise * torch.randn(train.shape, generator=generator).to(train.device),
        "blurred": F.avg_pool2d(train, 3, 1, 1, count_include_pad=False),
        "interpolation": mixed,
        "one_class": scale(data.train[one_class[:count]]),
        "uniform": 2 * torch.rand(train.shape, generator=generator).to(train.device) - 1,
    }
