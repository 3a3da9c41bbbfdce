"""The choices that differ between presets, typed: terrain maps, label ranking and CIFAR-10 in one block."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from shared import settings
from shared.paths import paper
from shared.settings import Settings as Base

Positive = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0)]

PARAMS = paper("perturbed_optimizers") / "params.yaml"


class Settings(Base):
    """Sizes and lengths of the three experiments."""

    maps: Positive  # training maps
    test_maps: Positive  # and half as many, at least 1, to choose on
    terrain_network: Literal["small", "resnet"]
    terrain_epochs: Positive
    terrain_batch: Positive  # maps a step
    terrain_learning_rate: Rate  # of Adam
    terrain_epsilon: Rate  # temperature, in the unit of the learnt costs
    terrain_samples: Positive  # M
    ranking_sets: tuple[str, ...] | Literal["all"]
    ranking_repeats: Positive  # cross-validations, each with folds of its own
    images: Positive  # CIFAR-10 images to train on
    image_epochs: Positive
    image_epsilons: tuple[Rate, ...]
    image_samples: tuple[Positive, ...]
    image_seeds: Positive

    def __post_init__(self) -> None:
        if not self.ranking_sets:
            raise ValueError("`ranking_sets` names at least one set, or is `all`")


def load(preset: str, path: Path = PARAMS, **overrides: Any) -> Settings:
    """The settings of a preset, with single keys replaced; `UserError` for a bad key or value."""
    return settings.load(path, preset, Settings, overrides)
