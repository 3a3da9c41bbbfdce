"""The objective of NVAE as small functions in the order of the paper; every term is in nats an image.

`loss = mean(reconstruction + beta * sum_l gamma_l KL_l) + lambda * (sum_i sigma_max(W_i) + sum_j max |BN gamma_j|)`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nvae.settings import Settings
from shared.bn_swish import BatchNorm
from shared.distributions import DiscretisedLogisticMixture, bernoulli_log_prob
from shared.training.distributed import all_reduce_mean


def reconstruction_nats(logits: Tensor, x: Tensor, settings: Settings) -> Tensor:
    """`-log p(x | z)` of each image (B,), the first term of equation 1.

    Binary images: Bernoulli, on the centre that has the size of `x` (the padding of 28 to 32 is not scored). RGB images
    on [-1, 1]: mixture of discretised logistics.
    """
    if x.shape[1] == 1:
        margin = (logits.shape[-1] - x.shape[-1]) // 2
        if margin:
            logits = logits[:, :, margin:-margin, margin:-margin]
        return -bernoulli_log_prob(logits, x).sum((1, 2, 3))
    mixture = DiscretisedLogisticMixture.from_parameters(logits, settings.mixture_components, settings.image_bits)
    return -mixture.log_prob(x).sum((1, 2))


def kl_coefficient(step: int, steps: int, warmup: float) -> float:
    """Beta: rises linearly to 1 over the first `warmup` share of the steps, never below 1e-4; 1 without."""
    if warmup == 0:
        return 1.0
    return max(min((step - 1e-4 * steps) / (warmup * steps), 1.0), 1e-4)


def group_weights(groups_per_scale: Sequence[int]) -> list[float]:
    """Alpha of each group, coarsest first: `4**i / n_i` for scale i from the coarsest, divided by the smallest.

    Grows with the number of variables of a group, so that the balance compares KL by variable (official: "square").
    """
    alpha = [4.0**i / n for i, n in enumerate(reversed(groups_per_scale)) for _ in range(n)]
    return [a / min(alpha) for a in alpha]


def kl_balance(kl_nats: Sequence[Tensor], alpha: Sequence[float]) -> Tensor:
    """gamma (L,) of each group during warm-up: `k_l / mean(k)`, `k_l = (mean |KL_l| + 0.01) / alpha_l`; no gradient.

    Groups with much KL for their size are pressed harder, idle ones are freed. The mean of gamma is 1. The mean over
    the batch is taken over all processes.
    """
    means = all_reduce_mean(torch.stack([kl.detach().abs().mean() for kl in kl_nats]))
    k = (means + 0.01) / torch.tensor(alpha, device=means.device)
    return k / k.mean()


def regularisation_weight(beta: float, final: float, initial: float | None) -> float:
    """lambda: constant, or log-linear in the KL coefficient from `initial` to `final`."""
    if initial is None or initial == 0 or final == 0:
        return final
    return math.exp((1 - beta) * math.log(initial) + beta * math.log(final))


def batch_norm_penalty(layers: Sequence[BatchNorm]) -> Tensor:
    """`sum_j max |gamma_j|` over the batch-norm layers; layers of equal width in one operation."""
    by_width: dict[int, list[Tensor]] = {}
    for layer in layers:
        by_width.setdefault(layer.weight.numel(), []).append(layer.weight)
    device = layers[0].weight.device if layers else None
    return sum((torch.stack(w).abs().amax(1).sum() for w in by_width.values()), torch.zeros((), device=device))


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Every batch-norm layer of a model."""
    return [m for m in model.modules() if isinstance(m, BatchNorm)]


@dataclass(frozen=True)
class Terms:
    """The terms of one batch, means over the images, in nats."""

    loss: Tensor  # what is minimised, penalties included
    bound_nats: Tensor  # reconstruction + KL, without coefficients: the negative evidence lower bound
    reconstruction_nats: Tensor
    kl_nats: Tensor  # (L,), each group, coarsest first


def objective(
    reconstruction: Tensor,
    kl_nats: Sequence[Tensor],
    beta: float,
    alpha: Sequence[float],
    balancing: bool,
    penalty: Tensor | None,
) -> Terms:
    """Put the terms together (sections 3.1 and 3.2); `penalty` is lambda times the two regularisers, or None."""
    kl = torch.stack([k.mean() for k in kl_nats])
    gamma = kl_balance(kl_nats, alpha) if balancing and beta < 1 else torch.ones_like(kl)
    loss = reconstruction.mean() + beta * (gamma * kl).sum()
    if penalty is not None:
        loss = loss + penalty
    detached = reconstruction.detach().mean()
    return Terms(loss, detached + kl.detach().sum(), detached, kl.detach())


def importance_weighted_nll_nats(log_weights: Tensor) -> Tensor:
    """`-log (1/K) sum_k w_k` of each image from `log w` (K, B): the bound of Burda et al. (2016), equation 8."""
    return math.log(log_weights.shape[0]) - torch.logsumexp(log_weights, dim=0)


def binarise(pixels: Tensor, uniform: Tensor) -> Tensor:
    """Dynamic binarisation: 1 where `uniform` < intensity; pixels uint8 or float in [0, 1]; float32 zeros and ones."""
    intensity = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return (uniform < intensity).float()


def pad_centred(x: Tensor, side: int) -> Tensor:
    """Images (B, C, h, w) with zeros around them up to `side`."""
    margin = (side - x.shape[-1]) // 2
    return F.pad(x, (margin, margin, margin, margin)) if margin else x
