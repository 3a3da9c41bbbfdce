"""One training step of JEM up to its loss: chains from the buffer, then one pass of everything (section 4 of
Grathwohl et al., 2020). No optimiser is in here; call `backward` on `total` and step.

The paper's code passes labelled images, unlabelled images and samples through the network one after the other. Here
they are one batch, which costs less and is the same, as long as the network is a function of each image by itself.
"""

import torch
from torch import Tensor, nn

from papers.jem.buffer import ReplayBuffer
from papers.jem.energy import Losses, joint_loss
from papers.jem.sgld import Langevin, run_chains
from shared.training.device import autocast


def jem_step(
    model: nn.Module,
    buffer: ReplayBuffer,
    labelled: tuple[Tensor, Tensor],
    data: Tensor | None,
    langevin: Langevin,
    *,
    generator: torch.Generator | None = None,
    precision: str = "float32",
    energy_l2: float = 0.0,
    generative_weight: float = 1.0,
) -> Losses:
    """-(log p(y|x) + log p(x)) of one step (equation 8), with a graph to the weights; the buffer has moved on.

    As many chains as images of the unlabelled stream start where `buffer.draw` says, move on LSE f, and are written
    back. Batch norm in training mode would see data and samples as one batch: not for this step.

    Args:
        model: images (B, C, H, W) -> logits (B, K).
        labelled: images (B, C, H, W) and their classes int64 (B,).
        data: images (M, C, H, W) of the unlabelled stream; None takes the labelled ones, which saves their pass.
        langevin: of the chains.
        generator: of slots, fresh starts and the noise of the chains, on the device of all this.
        precision: of the network in chains and losses, "float32" or "bfloat16"; states and losses are float32.
        energy_l2: see `contrastive_loss`.
        generative_weight: of -log p(x).
    """
    images, labels = labelled
    batches = [images] if data is None else [images, data]
    samples = moved_chains(model, buffer, len(batches[-1]), langevin, generator=generator, precision=precision)
    *logits, of_samples = joint_pass(model, [*batches, samples], precision)
    return joint_loss(
        logits[0], labels, logits[-1], of_samples, generative_weight=generative_weight, energy_l2=energy_l2
    )


def moved_chains(
    model: nn.Module,
    buffer: ReplayBuffer,
    count: int,
    langevin: Langevin,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: str = "float32",
) -> Tensor:
    """Draw `count` starts from the buffer, run their chains, write the final states back and return them (count, ...).

    They carry no graph: the gradient of equation 2 takes samples as they are.
    """
    index, start = buffer.draw(count, labels, generator)
    samples = run_chains(model, start, langevin, labels=labels, generator=generator, precision=precision)
    buffer.write(index, samples)
    return samples


def joint_pass(model: nn.Module, batches: list[Tensor], precision: str = "float32") -> tuple[Tensor, ...]:
    """Logits (B_i, K) of each batch (B_i, C, H, W), by one pass of all of them."""
    with autocast(batches[0].device, precision):
        logits: Tensor = model(torch.cat(batches))
    parts: tuple[Tensor, ...] = logits.split([len(batch) for batch in batches])
    return parts
