"""Distal adversaries: noise that is moved until a classifier is sure of it (Grathwohl et al., 2020, section 5.4).

A plain classifier is sure of noise that looks like nothing; the paper finds that what convinces JEM looks like the
class. Images are (B, C, H, W) in [-1, 1].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.jem.energy import Network


@dataclass(frozen=True)
class Distal:
    """Images (B, C, H, W), their confidence in the target (B,), and the steps they took (B,); all steps if in vain."""

    images: Tensor
    confidence: Tensor
    steps: Tensor


def distal_adversaries(
    classify: Network,
    start: Tensor,
    targets: Tensor,
    *,
    confidence: float = 0.9,
    steps: int = 200,
    step_length: float = 0.5,
) -> Distal:
    """Climb log p(target | x) from `start` in the box, each image until p(target | x) is above `confidence`.

    Args:
        start: (B, C, H, W) in [-1, 1], such as uniform noise; far from all data, hence the name.
        targets: classes int64 (B,).
        step_length: Euclidean length of a step on the scale [-1, 1]; only the gradient's direction is followed.

    Raises:
        ValueError: the confidence is not below 1, or a start lies outside [-1, 1].
    """
    if not 0 < confidence < 1 or start.abs().max() > 1:
        raise ValueError(f"cannot climb to {confidence:g} from {start.abs().max():g}: stay below 1 and in [-1, 1]")
    x = start.clone()
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(steps):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_p = F.log_softmax(classify(leaf).float(), 1).gather(1, targets[:, None])[:, 0]
            (slope,) = torch.autograd.grad(log_p.sum(), leaf)
        unsure = log_p.detach().exp() <= confidence
        if not unsure.any():
            break
        length = slope.flatten(1).norm(dim=1).clamp(min=1e-30)
        shift = (step_length * unsure / length).view(-1, *[1] * (x.ndim - 1)) * slope
        x = (x + shift).clamp(-1, 1)
        taken += unsure
    with torch.no_grad():
        reached = classify(x).float().softmax(1).gather(1, targets[:, None])[:, 0]
    return Distal(x, reached, taken)
