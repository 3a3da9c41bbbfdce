"""What a trained network says of test images and of images it has not seen (Grathwohl et al., 2020, sections 5.2, 5.3).

Every function takes a network from images (B, C, H, W) in [-1, 1] to logits (B, K), any `nn.Module`, and returns
`Found`: numbers by name, tables of numbers, and pictures. Nothing here reads or writes a file. No noise is added to
the images: all arms are tested on the same ones, whatever noise they were trained with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from papers.jem.calibration import (
    accuracy,
    bootstrap_ece_interval,
    brier_score,
    confidence_and_correctness,
    expected_calibration_error,
    fit_temperature,
    nll_nats,
    reliability,
)
from papers.jem.data import Data, scale
from papers.jem.ood import Scores, auroc_table, histograms, score_all
from papers.jem.sgld import still

Rows = list[dict[str, float]]

#: Bins of the calibration error and of the reliability diagram, as in the paper's figure.
BINS = 20
_BATCH = 500


@dataclass(frozen=True)
class Found:
    """What one measurement gave.

    Attributes:
        numbers: metric -> finite value; the unit is in the name.
        tables: name -> rows of numbers, for a figure.
        pictures: name -> images, uint8 (N, C, H, W).
    """

    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


def together(*parts: Found) -> Found:
    """All of them in one.

    Raises:
        ValueError: two parts have a name in common.
    """
    whole = Found()
    for part in parts:
        for mine, more in zip(vars(whole).values(), vars(part).values(), strict=True):
            if mine.keys() & more.keys():
                raise ValueError(f"measured twice: {', '.join(sorted(mine.keys() & more.keys()))}")
            mine.update(more)
    return whole


def grey_levels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 grey levels, cut at both ends, on the CPU."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def logits_of(network: nn.Module, pixels: Tensor) -> Tensor:
    """Logits float32 (N, K), in evaluation mode, of pixels uint8 (N, C, H, W), or of images in [-1, 1]."""
    with still(network):
        images = (scale(x) if x.dtype == torch.uint8 else x for x in pixels.split(_BATCH))
        return torch.cat([network(x).float() for x in images])


def classification(network: nn.Module, data: Data, seed: int = 0) -> Found:
    """Accuracy, proper scores and calibration on the test images, as they are and after temperature scaling.

    The temperature is fitted on all validation images. These are more labels than a network with few labels was
    trained with, so temperature scaling is a strong rival here. `train_accuracy` is that on the labelled images: a
    calibration error follows it, so compare networks at equal train accuracy.

    Args:
        seed: of the bootstrap over the test images.

    Returns:
        Numbers, and the tables `reliability` and `reliability_scaled`: the bins that are not empty.
    """
    logits, labels = logits_of(network, data.test), data.test_labels
    known = data.labelled
    held_out = logits_of(network, data.validation)
    temperature = fit_temperature(held_out, data.validation_labels)
    trained = logits_of(network, data.train[known])
    numbers = {
        "accuracy_percent": 100 * accuracy(logits, labels),
        "train_accuracy_percent": 100 * accuracy(trained, data.train_labels[known]),
        "train_nll_nats": nll_nats(trained, data.train_labels[known]),
        "validation_nll_nats": nll_nats(held_out, data.validation_labels),
        "temperature": temperature,
    }
    tables: dict[str, Rows] = {}
    for suffix, z in (("", logits), ("_scaled", logits.double() / temperature)):
        confidence, correct = confidence_and_correctness(z, labels)
        ends = bootstrap_ece_interval(confidence, correct, BINS, resamples=500, seed=seed)
        numbers |= {
            f"nll{suffix}_nats": nll_nats(z, labels),
            f"brier{suffix}": brier_score(z, labels),
            f"confidence{suffix}_percent": 100 * float(confidence.mean()),
            f"ece20{suffix}_percent": 100 * expected_calibration_error(confidence, correct, BINS),
            f"ece20{suffix}_low_percent": 100 * ends.low,
            f"ece20{suffix}_high_percent": 100 * ends.high,
        }
        tables[f"reliability{suffix}"] = reliability_rows(confidence, correct)
    return Found(numbers, tables)


def reliability_rows(confidence: Tensor, correct: Tensor) -> Rows:
    """The bins with images: number `bin` from 0, `count`, mean `confidence_percent` and `accuracy_percent`."""
    bins = reliability(confidence, correct, BINS)
    return [
        {"bin": i, "count": n, "confidence_percent": 100 * c, "accuracy_percent": 100 * a}
        for i, (n, c, a) in enumerate(zip(bins.count.tolist(), bins.confidence.tolist(), bins.accuracy.tolist()))
        if n
    ]


def familiarity(network: nn.Module, data: Data, outside: Mapping[str, Tensor]) -> Found:
    """AUROC of the three scores of section 5.3 between test images and each unfamiliar set, and their histograms.

    Args:
        outside: name -> images (M, C, H, W) in [-1, 1], from `out_of_distribution_sets`.

    Returns:
        Numbers `auroc_<score>_<set>` (0.5 is chance, below it the score is inverted), their mean over the sets
        `auroc_<score>_mean`, and `<score>_mean_<set>`; and a table `histogram_<score>`: `low` end of each bin, its
        `width`, and a density for each set, `test` among them.
    """
    with still(network):
        inside = score_all(network, scale(data.test))
        scores: dict[str, Scores] = {name: score_all(network, images) for name, images in outside.items()}
    numbers: dict[str, float] = {}
    tables: dict[str, Rows] = {}
    for kind, row in auroc_table(inside, scores).items():
        numbers |= {f"auroc_{kind}_{name}": value for name, value in row.items()}
        numbers[f"auroc_{kind}_mean"] = sum(row.values()) / len(row)
        sets = {"test": inside.by_name()[kind]} | {name: each.by_name()[kind] for name, each in scores.items()}
        numbers |= {f"{kind}_mean_{name}": float(values.double().mean()) for name, values in sets.items()}
        drawn = histograms(sets)
        width = float(drawn.edges[1] - drawn.edges[0])
        tables[f"histogram_{kind}"] = [
            {"low": float(low), "width": width} | {name: float(each[i]) for name, each in drawn.density.items()}
            for i, low in enumerate(drawn.edges[:-1])
        ]
    return Found(numbers, tables)
