"""Every choice that NVAE leaves open, typed; `params.yaml` names the fifteen that differ between presets."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from shared import settings
from shared.paths import paper
from shared.settings import Settings as Base

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Rate = Annotated[float, Meta(gt=0)]
Weight = Annotated[float, Meta(ge=0)]
Cell = Literal["regular", "separable"]

PARAMS = paper("nvae") / "params.yaml"


class Settings(Base):
    """One model and its training. Defaults are the paper's (dataset-independent) choices."""

    # The fifteen keys of a preset.
    data: Literal["mnist", "cifar10"]
    channels: Positive  # feature maps after the stem; doubled at each halving of the resolution
    groups: Positive  # latent groups of the finest scale
    scales: Positive  # latent scales
    pre_post: tuple[Positive, Positive]  # blocks of pre- and post-processing, and cells in each
    cells_per_group: tuple[Positive, Positive]  # residual cells for each group: encoder, decoder
    decoder_cell: Cell
    weight_norm: bool  # normalise the convolutions that no batch norm follows (paper: yes)
    flows: Count  # pairs of autoregressive flows (raster and mirrored order) after each posterior
    batch_size: Positive  # images a step, over all processes
    steps: Positive  # optimiser steps of the main model
    learning_rate: Rate
    beta2: Decay = 0.999  # decay of Adamax's running maximum of the gradient
    fold: Literal[1, 2] = 1  # 2: the networks see each 2 x 2 block of pixels as channels of one (paper: 1)

    # Architecture (section 3 of the paper).
    adaptive_groups: bool = True  # halve the number of groups at each coarser scale
    min_groups: Positive = 1
    encoder_cell: Cell = "regular"
    expansion: Positive = 6  # of the separable cells; half of it in post-processing
    normalisation: Literal["bn_swish", "bn_elu", "wn_elu"] = "bn_swish"
    latent_channels: Positive = 20  # feature maps of each latent group
    residual_scale: Rate = 0.1  # of the branch of every residual cell
    squeeze_excite: bool = True
    residual_posterior: bool = True
    mixture_components: Positive = 10
    image_bits: Annotated[int, Meta(ge=1, le=8)] = 8
    image_side: Literal[0, 16] = 0  # 16: average-pool MNIST to 16 x 16 before binarising (ablations); 0: as it is

    # Objective and optimisation.
    kl_warmup: Fraction = 0.3  # share of the steps over which the KL coefficient rises to 1
    kl_balancing: bool = True
    spectral_weight: Weight = 1e-2  # lambda of the spectral and BN-gamma penalties
    spectral_weight_initial: Weight | None = None  # anneal lambda from here to `spectral_weight` during warm-up
    learning_rate_final: Weight = 1e-4
    learning_rate_warmup: Fraction = 0.0125  # share of the steps (paper: 5 of 400 epochs)
    weight_decay: Weight = 3e-4
    adamax_epsilon: Rate = 1e-3
    averaging: Decay = 0.0  # decay of an exponential average of the weights used for evaluation; 0: none (paper)

    # Evaluation.
    importance_samples: Positive = 200  # samples an image for the test likelihood (paper: 1000)

    # How it is computed; none of these changes the mathematics.
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    bn_swish: Literal["fused", "separate", "naive"] = "fused"
    checkpoint_cells: bool = False

    def __post_init__(self) -> None:
        if self.channels % 2:
            raise ValueError("`channels` must be even: a halving of the resolution takes a quarter from each offset")
        if self.image_side and self.data != "mnist":
            raise ValueError("`image_side` pools MNIST only; leave it 0 for other data")

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Latent groups of each scale, finest first, e.g. (10, 5) for `groups: 10, scales: 2`."""
        return groups_per_scale(self.groups, self.scales, self.adaptive_groups, self.min_groups)


def groups_per_scale(groups: int, scales: int, adaptive: bool, minimum: int = 1) -> tuple[int, ...]:
    """Groups of each latent scale, finest first; adaptive halves them scale by scale, never below `minimum`."""
    return tuple(max(groups >> i, minimum) if adaptive else groups for i in range(scales))


def load(preset: str, path: Path = PARAMS, **overrides: Any) -> Settings:
    """The settings of a preset, with single keys replaced; `UserError` for a bad key or value."""
    return settings.load(path, preset, Settings, overrides)
