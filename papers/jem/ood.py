"""Which images does a model find unfamiliar? Three scores and their AUROC (Grathwohl et al., 2020, section 5.3).

Every score is higher for images like the training data. A network is any callable from images (B, C, H, W) to logits
(B, K); put it into evaluation mode first, and let the callable hold autocast if it is wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from papers.jem.energy import Network, log_marginal

#: Share of all scores beyond each end of the histograms' range; they are counted in the end bins.
_TAIL = 0.005


@dataclass(frozen=True)
class Scores:
    """The three scores of N images, float32 (N,), on the CPU."""

    log_density: Tensor  # log p(x) + log Z, in nats, logsumexp of the logits (equation 6)
    confidence: Tensor  # max_y p(y | x)
    approximate_mass: Tensor  # -|d log p(x) / dx|, section 5.3

    def by_name(self) -> dict[str, Tensor]:
        """Name of the score -> its values."""
        return dict(vars(self))


def confidence_score(logits: Tensor) -> Tensor:
    """The largest class probability (B,), as classifiers are scored (Hendrycks & Gimpel, 2017)."""
    return logits.softmax(1).amax(1)


def score(network: Network, x: Tensor) -> Scores:
    """All three scores of a batch from one forward and one backward pass; parameters get no gradient.

    The approximate mass rests on typicality: in many dimensions the densest points carry little of the probability,
    and where the mass lies the density is flat. The norm is that of the gradient with respect to x as the
    network sees it, scaled to [-1, 1].
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = network(x).float()
        log_density = log_marginal(logits)
        (slope,) = torch.autograd.grad(log_density.sum(), x)
    mass = -slope.float().flatten(1).norm(dim=1)
    confidence = confidence_score(logits.detach())
    return Scores(log_density.detach().cpu(), confidence.cpu(), mass.cpu())


def score_all(network: Network, images: Tensor, *, noise: float = 0.0, seed: int = 0, batch_size: int = 500) -> Scores:
    """The scores of images (N, C, H, W) in [-1, 1], batch by batch, on the device where the images are.

    Args:
        noise: standard deviation of the Gaussian noise that is added, as in training (the paper's code: 0.03). Every
            set that is compared needs the same, or the noise itself tells them apart.
        seed: of the noise.

    Raises:
        ValueError: there are no images.
    """
    if not len(images):
        raise ValueError("there are no images to score")
    generator = torch.Generator(images.device).manual_seed(seed)
    parts = []
    for x in images.split(batch_size):
        shift = noise * torch.randn(x.shape, generator=generator, device=x.device) if noise else 0.0
        parts.append(score(network, x + shift).by_name())
    return Scores(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a familiar image (N,) scores higher than an unfamiliar one (M,); a tie counts 1/2.

    0.5 is chance; below it the score is inverted.

    Raises:
        ValueError: a set is empty, or a score is not finite.
    """
    scores = torch.cat([inside, outside]).double()
    if not len(inside) or not len(outside) or not scores.isfinite().all():
        raise ValueError(f"AUROC needs finite scores of both sets; got {len(inside)} and {len(outside)} images")
    labels = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    return float(roc_auc_score(labels.numpy(), scores.cpu().numpy()))


def auroc_table(inside: Scores, outside: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Score -> name of the unfamiliar set -> AUROC, as table 3 of the paper."""
    return {
        kind: {name: auroc(familiar, scores.by_name()[kind]) for name, scores in outside.items()}
        for kind, familiar in inside.by_name().items()
    }


@dataclass(frozen=True)
class Histograms:
    """Densities of several sets on common bins: `edges` (bins + 1,), and (bins,) a set, each with integral 1."""

    edges: Tensor
    density: dict[str, Tensor]


def histograms(sets: Mapping[str, Tensor], bins: int = 50) -> Histograms:
    """What is drawn of one score over several sets (N,): common bins from the 0.5 to the 99.5 % quantile of all.

    Scores beyond them are counted in the first and the last bin, so that a few far images do not flatten the rest.

    Raises:
        ValueError: a set is empty, or a score is not finite.
    """
    pooled = torch.cat([values.double().cpu() for values in sets.values()])
    if not all(map(len, sets.values())) or not pooled.isfinite().all():
        raise ValueError("a histogram needs finite scores of every set")
    ordered = pooled.sort().values  # torch.quantile refuses more than 16 million values
    last = len(ordered) - 1
    low, high = float(ordered[round(_TAIL * last)]), float(ordered[round((1 - _TAIL) * last)])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    density = {}
    for name, values in sets.items():
        place = torch.bucketize(values.double().cpu(), edges[1:-1])
        density[name] = torch.bincount(place, minlength=bins) / (len(values) * (edges[1] - edges[0]))
    return Histograms(edges, density)
