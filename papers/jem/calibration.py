"""Does a confidence of 0.8 mean being right 80 times in 100? (Grathwohl et al., 2020, section 5.2.)

The confidence of a prediction is the largest softmax probability. Logits are (N, K), labels int64 (N,); all is computed
in float64. Besides the error itself there are proper scores, which a calibration error is not, and the two cheap
rivals that an energy-based classifier has to beat: temperature scaling and label smoothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.statistics import Interval

#: Resamples that are drawn at a time, to bound the memory.
_CHUNK = 50
#: Where the inverse temperature is looked for.
_LEAST, _MOST = 1e-3, 1e3


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width on [0, 1], closed on the right: what is drawn as a reliability diagram.

    `count` int64 (M,), mean `confidence` and `accuracy` float64 (M,); both are NaN where a bin is empty.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    def error(self) -> float:
        """The expected calibration error, sum_m n_m/n |accuracy_m - confidence_m|; empty bins count nothing."""
        gap = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((gap * self.count).sum() / self.count.sum())


def confidence_and_correctness(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Largest softmax probability, float64 (N,), and whether its class is the label, bool (N,).

    Raises:
        ValueError: there are no images, or the shapes do not go together.
    """
    _check(logits, labels)
    confidence, predicted = logits.double().softmax(1).max(1)
    return confidence, predicted == labels


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} are no (N, K) and (N,)")


def _bin_of(confidence: Tensor, bins: int) -> Tensor:
    """Index of the bin ((m - 1)/M, m/M] of each confidence; 0 belongs to the first bin."""
    if bins < 1 or not len(confidence):
        raise ValueError(f"{len(confidence)} confidences cannot be put into {bins} bins")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    return torch.bucketize(confidence.double(), edges[1:-1])


def reliability(confidence: Tensor, correct: Tensor, bins: int) -> Reliability:
    """Accuracy against confidence (N,) in `bins` bins of equal width (Guo et al., 2017, section 2; the paper has 20).

    Raises:
        ValueError: there are no confidences or no bins.
    """
    index = _bin_of(confidence, bins)
    count = torch.bincount(index, minlength=bins)
    sums = [torch.bincount(index, weights=each.double(), minlength=bins) for each in (confidence, correct)]
    return Reliability(count, sums[0] / count, sums[1] / count)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int) -> float:
    """ECE = sum_m n_m/n |accuracy_m - confidence_m|, between 0 and 1; errors as `reliability`.

    It is biased upwards, by about sqrt(sum of the bins' variances): perfect calibration gives O(1/sqrt(n)), and more
    bins give more. Name the number of bins with every value.
    """
    return reliability(confidence, correct, bins).error()


def bootstrap_ece_interval(
    confidence: Tensor, correct: Tensor, bins: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the ECE over the choice of test images: `2 ECE - quantiles` of ECEs of resampled images, cut at 0.

    The basic bootstrap rather than the percentiles: a resample adds its noise to that of the sample, so its ECE lies
    above the ECE as that lies above the truth. Reflecting removes most of this bias, percentiles would double it. Near
    perfect calibration, where the ECE is a sum of absolute values of noise, the interval still covers too rarely.
    (Davison & Hinkley, 1997, Bootstrap Methods, section 5.2.)

    Args:
        confidence: (N,).
        correct: bool (N,).
        resamples: how many times N images are drawn with replacement.
        level: probability of the interval.

    Raises:
        ValueError: there are no confidences or no bins, or the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    index = _bin_of(confidence, bins).cpu()
    gap = (correct.double() - confidence.double()).cpu()
    generator = torch.Generator().manual_seed(seed)
    n, errors = len(gap), []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = torch.randint(n, (rows, n), generator=generator)
        place = index[drawn] + bins * torch.arange(rows)[:, None]
        sums = torch.bincount(place.flatten(), weights=gap[drawn].flatten(), minlength=rows * bins)
        errors.append(sums.view(rows, bins).abs().sum(1) / n)
    tails = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=torch.float64)
    high, low = torch.quantile(torch.cat(errors), tails).tolist()
    twice = 2 * expected_calibration_error(confidence, correct, bins)
    return Interval(max(twice - high, 0.0), max(twice - low, 0.0))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    return float(confidence_and_correctness(logits, labels)[1].double().mean())


def nll_nats(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(y | x), in nats an image."""
    _check(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean over images of sum_y (p(y | x) - [y is the label])^2, between 0 and 2 (Brier, 1950)."""
    _check(logits, labels)
    missing = logits.double().softmax(1) - F.one_hot(labels, logits.shape[1])
    return float(missing.square().sum(1).mean())


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy to the label with probability 1 - s + s/K and s/K for each other class, mean over (B,), in nats.

    Raises:
        ValueError: the smoothing is not in [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing lies in [0, 1), not at {smoothing}")
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 that minimises the NLL of softmax(logits / T) on validation images (Guo et al., 2017, section 4.2).

    In b = 1/T the NLL is convex: its slope is mean(E_p[z] - z_y), its curvature mean(Var_p[z]). The root of the slope
    is found by Newton steps; a step that leaves the bracket is replaced by halving it, so this ends whatever the
    logits. Where no T is best (all images right, or worse than chance) an end of [0.001, 1000] comes back.
    """
    _check(logits, labels)
    z = logits.double() - logits.double().mean(1, keepdim=True)
    own = z.gather(1, labels[:, None])[:, 0]
    low, high, b = _LEAST, _MOST, 1.0
    if _slope_and_curvature(z, own, high)[0] <= 0:
        return 1 / high
    if _slope_and_curvature(z, own, low)[0] >= 0:
        return 1 / low
    for _ in range(100):
        slope, curvature = _slope_and_curvature(z, own, b)
        low, high = (b, high) if slope < 0 else (low, b)
        newton = b - slope / curvature if curvature > 0 else high
        if abs(newton - b) <= 1e-12 * b:
            break
        b = newton if low < newton < high else (low * high) ** 0.5
    return 1 / b


def _slope_and_curvature(z: Tensor, own: Tensor, b: float) -> tuple[float, float]:
    """First and second derivative in b of the NLL of softmax(b z), z (N, K), with `own` (N,) the label's."""
    p = (b * z).softmax(1)
    mean = (p * z).sum(1)
    variance = (p * z.square()).sum(1) - mean.square()
    return float((mean - own).mean()), float(variance.mean())
