"""The choices that differ between presets, typed: images with few labels, and the 2-D toys."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from shared import settings
from shared.paths import paper
from shared.settings import Settings as Base

Positive = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]

PARAMS = paper("jem") / "params.yaml"


class Settings(Base):
    """Sizes and lengths."""

    images: Literal["fashion_mnist", "cifar10"]
    network: str  # `small`, or `wrn_<depth>_<width>`
    labels_per_class: Positive | None  # null: all
    batch: Positive  # of each stream: labelled, unlabelled, samples
    steps: Positive
    learning_rate: Rate  # of Adam, after the warm-up
    rate_schedule: Literal["linear", "stepped"]  # a fall to nothing, or the paper's two steps
    data_noise: NonNegative  # standard deviation of the noise on every image, on the scale [-1, 1]
    chain_steps: Positive  # eta, of a visit to the buffer
    buffer: Positive  # states of the replay buffer
    average_decay: Annotated[float, Meta(ge=0, lt=1)]  # of the moving average of the weights
    attacked_images: Positive  # test images under attack
    attack_steps: Positive
    sample_rounds: Positive  # visits of each slot when samples are drawn after training
    toy_steps: Positive

    def __post_init__(self) -> None:
        if self.network != "small" and not re.fullmatch(r"wrn_\d+_\d+", self.network):
            raise ValueError(f"`network` is `small` or `wrn_<depth>_<width>`, not {self.network!r}")


def load(preset: str, path: Path = PARAMS, **overrides: Any) -> Settings:
    """The settings of a preset, with single keys replaced; `UserError` for a bad key or value."""
    return settings.load(path, preset, Settings, overrides)
