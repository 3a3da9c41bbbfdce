"""From the logits of a classifier to densities, energies and losses (Grathwohl et al., 2020, sections 3 to 5).

The logits f(x) in R^K of a softmax classifier define the joint density p(x, y) = exp(f(x)[y]) / Z (equation 5). The
softmax is its conditional p(y|x) (equation 4), and exp(LSE f(x)) / Z its marginal p(x) (equation 6), with
LSE f = log sum_y exp f[y]. The one number Z is not known: "unnormalised" below means up to the additive constant log Z,
the same for all inputs of a network and another one for every other network.

Images are (B, ...), logits (B, K), labels int64 (B,), log densities and energies (B,) in nats.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Inputs (B, ...) -> logits (B, K); a function of each input by itself, so no batch normalisation in training mode.
Network = Callable[[Tensor], Tensor]


def _precise(logits: Tensor) -> Tensor:
    # Three digits are too few for a log density: what autocast left in half precision is summed in float32.
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def log_conditional(logits: Tensor) -> Tensor:
    """log p(y|x) (B, K) for every class: the log-softmax, equation 4. Z cancels, it is exact."""
    return F.log_softmax(_precise(logits), dim=1)


def log_marginal(logits: Tensor) -> Tensor:
    """Unnormalised log p(x) (B,): LSE of the logits, equation 6."""
    return torch.logsumexp(_precise(logits), dim=1)


def log_joint(logits: Tensor, labels: Tensor) -> Tensor:
    """Unnormalised log p(x, y) (B,): the logit of the label, equation 5.

    It is also log p(x|y), up to the constant log Z_y of the class.
    """
    return _precise(logits).gather(1, labels[:, None]).squeeze(1)


def log_density(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """What a chain climbs (B,): `log_marginal`, or `log_joint` with labels."""
    return log_marginal(logits) if labels is None else log_joint(logits, labels)


def energy(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """E(x) = -LSE f(x) (B,), equation 7; with labels E(x, y) = -f(x)[y]."""
    return -log_density(logits, labels)


def log_density_and_score(network: Network, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`log_density` (B,) and its gradient in x (B, ...), both without a graph.

    The densities are summed over the batch before they are differentiated, so each input gets its own gradient. Only
    the path to x is computed; gradients of parameters are neither computed nor touched.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # A tensor made in inference mode cannot be differentiated; its copy can.
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        value = log_density(network(leaf), labels)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def score(network: Network, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """The score d log p(x)/dx (B, ...), or d log p(x|y)/dx with labels; Z does not matter to it."""
    return log_density_and_score(network, x, labels)[1]


def approximate_mass(network: Network, x: Tensor) -> Tensor:
    """-||d log p(x)/dx||_2 (B,), the out-of-distribution score of section 5.3: near 0 where the density is flat.

    Typical samples need not lie where the density is highest, but around them it changes little.
    """
    norm: Tensor = torch.linalg.vector_norm(score(network, x).flatten(1), dim=1)
    return -norm


def contrastive_loss(data: Tensor, samples: Tensor, energy_l2: float = 0.0) -> Tensor:
    """mean(samples) - mean(data), a scalar whose gradient in the weights estimates that of -log p(x) (equation 2).

    Its value is no likelihood: the constant log Z is missing, and it is near 0 for any network, good or bad, whose
    samples have the energy of the data.

    Args:
        data: unnormalised log densities (B,) of data, by `log_marginal`, or by `log_joint` for log p(x|y).
        samples: the same (M,) of samples of the network itself; gradients must not flow through the samples.
        energy_l2: weight of mean(data^2) + mean(samples^2), a penalty that keeps the energies near 0. It is not in the
            paper and biases the estimate; 0 is the paper.
    """
    loss = samples.mean() - data.mean()
    if energy_l2:
        loss = loss + energy_l2 * (data.square().mean() + samples.square().mean())
    return loss


class Losses(NamedTuple):
    """What is minimised, and its parts (scalars)."""

    total: Tensor
    cross_entropy_nats: Tensor  # -log p(y|x), exact
    contrast: Tensor  # the `contrastive_loss`, with its penalty: no likelihood
    log_density_data: Tensor  # mean unnormalised log density of the data, without graph
    log_density_samples: Tensor  # the same of the samples


def joint_loss(
    labelled: Tensor,
    labels: Tensor,
    data: Tensor,
    samples: Tensor,
    *,
    generative_weight: float = 1.0,
    energy_l2: float = 0.0,
) -> Losses:
    """-(log p(y|x) + log p(x)), the paper's factorisation of log p(x, y) (equation 8).

    The first term is exact and unbiased, only the second needs samples, and no labels.

    Args:
        labelled, labels: logits (B, K) of labelled images, and their labels.
        data: logits of images of the unlabelled stream; they may be those of `labelled`.
        samples: logits of the final states of chains.
        generative_weight: weight of -log p(x); 0 is the plain classifier.
        energy_l2: see `contrastive_loss`.
    """
    cross_entropy = F.cross_entropy(_precise(labelled), labels)
    return _losses(cross_entropy, 1.0, log_marginal(data), log_marginal(samples), generative_weight, energy_l2)


def class_conditional_loss(
    data: Tensor, labels: Tensor, samples: Tensor, sample_labels: Tensor, *, energy_l2: float = 0.0
) -> Losses:
    """-log p(x|y), with -log p(y) constant: the other factorisation of log p(x, y), which the paper advises against.

    Now the classifier, too, is learnt from biased samples only. The cross-entropy is reported and has no weight.

    Args:
        data, labels: logits (B, K) of labelled images, and their labels.
        samples, sample_labels: logits (M, K) of the final states of chains on f[y], and their classes y.
        energy_l2: see `contrastive_loss`.
    """
    cross_entropy = F.cross_entropy(_precise(data), labels).detach()
    return _losses(cross_entropy, 0.0, log_joint(data, labels), log_joint(samples, sample_labels), 1.0, energy_l2)


def _losses(
    cross_entropy: Tensor, weight: float, data: Tensor, samples: Tensor, generative_weight: float, energy_l2: float
) -> Losses:
    contrast = contrastive_loss(data, samples, energy_l2)
    total = weight * cross_entropy + generative_weight * contrast
    return Losses(total, cross_entropy, contrast, data.mean().detach(), samples.mean().detach())
