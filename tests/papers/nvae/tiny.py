"""A small model and the committed sample of MNIST, shared by the tests of NVAE."""

import functools
from typing import Any

import torch

from papers.nvae.experiment import Images, Trainer, load_images
from papers.nvae.model import NVAE
from papers.nvae.settings import Settings
from shared.paths import ROOT

CPU = torch.device("cpu")

BASE: dict[str, Any] = {
    "data": "mnist", "channels": 4, "groups": 2, "scales": 2, "pre_post": (2, 1), "cells_per_group": (1, 1),
    "latent_channels": 4, "decoder_cell": "regular", "flows": 0, "batch_size": 8, "steps": 10, "learning_rate": 1e-2,
    "spectral_weight": 1e-2, "importance_samples": 2, "beta2": 0.999, "precision": "float32", "weight_norm": True,
}  # fmt: skip

#: Single changes that together visit every branch of the model and the objective.
OPTIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "bn_elu": {"normalisation": "bn_elu"},
    "wn_elu": {"normalisation": "wn_elu"},
    "separable decoder": {"decoder_cell": "separable", "expansion": 2},
    "separable encoder": {"encoder_cell": "separable", "expansion": 2},
    "separable wn_elu": {"decoder_cell": "separable", "expansion": 2, "normalisation": "wn_elu"},
    "flows": {"flows": 1},
    "absolute posterior": {"residual_posterior": False},
    "no squeeze-excitation": {"squeeze_excite": False},
    "plain convolutions": {"weight_norm": False},
    "no penalty": {"spectral_weight": 0.0},
    "annealed penalty": {"spectral_weight_initial": 1.0},
    "no balancing": {"kl_balancing": False},
    "no warm-up": {"kl_warmup": 0.0},
    "separate": {"bn_swish": "separate"},
    "naive": {"bn_swish": "naive"},
    "checkpoint": {"checkpoint_cells": True},
    "bfloat16": {"precision": "bfloat16"},
    "averaging": {"averaging": 0.9},
    "one group": {"groups": 1, "scales": 1},
    "three scales": {"scales": 3, "pre_post": (1, 1)},
    "16 x 16": {"image_side": 16, "pre_post": (1, 1)},
    "folded": {"fold": 2, "pre_post": (1, 1)},
    "folded rgb": {"fold": 2, "pre_post": (1, 1), "data": "cifar10", "mixture_components": 2},
    "rgb": {"data": "cifar10", "mixture_components": 2},
    "rgb 5 bits": {"data": "cifar10", "mixture_components": 2, "image_bits": 5},
}


def settings(**changes: Any) -> Settings:
    """The tiny model's settings with single keys replaced."""
    return Settings(**{**BASE, **changes})


@functools.cache
def _mnist(image_side: int) -> Images:
    return load_images(settings(image_side=image_side), sample=True, folder=ROOT / "tests" / "data")


def images(chosen: Settings) -> Images:
    """The sample of MNIST; for RGB, smooth coloured noise in the form of CIFAR-10."""
    if chosen.data == "mnist":
        return _mnist(chosen.image_side)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 4, 4, generator=generator)
    pixels = (torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") * 255).to(torch.uint8)
    return Images(pixels[:24], pixels[24:32], pixels[32:], 32)


def trainer(seed: int = 0, **changes: Any) -> Trainer:
    """A trainer of the tiny model."""
    chosen = settings(**changes)
    return Trainer(chosen, images(chosen), seed, chosen.steps, CPU)


def model(**changes: Any) -> NVAE:
    """An untrained model in evaluation mode whose batch-norm statistics have seen one batch."""
    chosen = settings(**changes)
    data = images(chosen)
    torch.manual_seed(0)
    network = NVAE(chosen, data.channels, data.side)
    with torch.no_grad():
        network.train()(padded(8, data.channels, data.side))
    return network.eval()


def padded(count: int, channels: int = 1, side: int = 32, seed: int = 1) -> torch.Tensor:
    """Random inputs of the encoder, on [-1, 1]."""
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
