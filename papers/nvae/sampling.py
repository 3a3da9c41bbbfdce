"""Drawing from a trained model: temperature, batch-norm re-adjustment, part prior, interpolation (section 4.2)."""

import copy

import torch
from torch import Tensor

from papers.nvae.losses import reconstruction_nats
from papers.nvae.model import NVAE
from papers.nvae.settings import Settings
from shared.data.batches import seed_step
from shared.distributions import DiscretisedLogisticMixture
from shared.training.device import autocast


def device_of(model: NVAE) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


@torch.no_grad()
def readjusted(
    model: NVAE, settings: Settings, temperature: float, passes: int = 500, batch: int = 16, seed: int = 0
) -> NVAE:
    """A copy of the model whose batch-norm statistics were gathered on prior samples at `temperature`.

    The running statistics of training belong to posterior samples; at low temperature the prior's differ. Only buffers
    change, and only the decoder's: the encoder takes no part in sampling (paper: 500 passes).
    """
    model = copy.deepcopy(model).train()
    device = device_of(model)
    for k in range(passes):
        seed_step(seed, k)
        with autocast(device, settings.precision):
            model.sample(batch, temperature)
    return model.eval()


@torch.inference_mode()
def draw(
    model: NVAE, settings: Settings, count: int, temperature: float, seed: int, side: int, batch: int = 250
) -> Tensor:
    """`count` images (N, C, side, side) float32 on the CPU: Bernoulli probabilities in [0, 1], or RGB draws in [-1, 1].

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("samples need the model in evaluation mode")
    device, images = device_of(model), []
    for start in range(0, count, batch):
        seed_step(seed, start)
        with autocast(device, settings.precision):
            logits = model.sample(min(batch, count - start), temperature)
        images.append(shown(logits, settings, side).cpu())
    return torch.cat(images)


def shown(logits: Tensor, settings: Settings, side: int) -> Tensor:
    """What a person is shown of p(x | z): probabilities without the padding, or a draw from the mixture."""
    if logits.shape[1] == 1:
        margin = (logits.shape[-1] - side) // 2
        return torch.sigmoid(logits[:, :, margin : margin + side, margin : margin + side])
    return DiscretisedLogisticMixture.from_parameters(logits, settings.mixture_components, settings.image_bits).sample()


@torch.inference_mode()
def partly_from_prior(
    model: NVAE, x: Tensor, padded: Tensor, settings: Settings, groups: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Reconstruction with the coarsest `groups` groups drawn from the prior and the others from the posterior.

    Returns:
        logits, and `-log p(x | z)` of each image (B,) in nats.
    """
    seed_step(seed, 0)
    with autocast(device_of(model), settings.precision):
        inference = model.infer(model.encoder(padded), from_prior=groups)
    return inference.logits, reconstruction_nats(inference.logits, x, settings)


@torch.inference_mode()
def interpolate(model: NVAE, padded: Tensor, settings: Settings, steps: int, seed: int) -> Tensor:
    """Logits (steps * B/2, ...) along lines in latent space from the first half of a batch to the second."""
    seed_step(seed, 0)
    with autocast(device_of(model), settings.precision):
        latents = model.infer(model.encoder(padded)).latents
        rows = []
        for t in torch.linspace(0, 1, steps).tolist():
            mixed = [torch.lerp(*z.chunk(2), t) for z in latents]
            rows.append(model.decode(mixed))
    return torch.stack(rows, dim=1).flatten(0, 1)
