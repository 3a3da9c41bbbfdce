"""The choices that differ between presets, typed: graph layouts, ListOps, learning to explain, gradient study."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from shared import settings
from shared.paths import paper
from shared.settings import Settings as Base

Positive = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0)]

PARAMS = paper("sst") / "params.yaml"


class Settings(Base):
    """Sizes and lengths of the experiments."""

    layout_graphs: Positive  # to train on
    layout_test_graphs: Positive  # and a tenth as many, at least 1, to choose on
    layout_hidden: Positive  # width of encoder and decoder
    layout_batch: Positive  # graphs a step
    layout_learning_rate: Rate  # of Adam
    layout_steps: tuple[Positive, Positive]  # for T = 10 and T = 20
    layout_short_steps: Positive  # of the arms that are compared with each other
    layout_starts: Positive  # of which the best goes on
    layout_transitions: (
        Positive | Literal["rollout"]
    )  # random transitions of a graph a step, or rollouts of the authors
    listops_examples: Positive  # to train on
    listops_longest: Positive  # tokens
    listops_steps: Positive
    explain_steps: tuple[Positive, Positive, Positive]  # planted spans, graded sentences, movie reviews
    gradient_samples: Positive  # estimates of each gradient

    def __post_init__(self) -> None:
        if self.listops_longest < 6:
            raise ValueError("`listops_longest` is 6 at least: shorter expressions have no structure to find")


def load(preset: str, path: Path = PARAMS, **overrides: Any) -> Settings:
    """The settings of a preset, with single keys replaced; `UserError` for a bad key or value."""
    return settings.load(path, preset, Settings, overrides)
