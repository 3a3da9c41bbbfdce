"""Small terrain experiments for the tests: maps from the stand-in tiles, few steps."""

import functools
import tempfile
from pathlib import Path

import msgspec
import torch

from papers.perturbed_optimizers.settings import Settings
from papers.perturbed_optimizers.settings import load as load_settings
from papers.perturbed_optimizers.terrain import Maps, draw_maps
from papers.perturbed_optimizers.terrain_training import Arm, Trainer
from shared.data.samples import cut_terrain_tiles


@functools.cache
def maps(count: int = 40, seed: int = 0) -> Maps:
    """Training maps drawn with tiles cut from scikit-learn's photographs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "terrain_tiles"
        folder.mkdir()
        for file, content in cut_terrain_tiles().items():
            (folder / file).write_bytes(content)
        return draw_maps(count, seed, "train", folder=Path(name), allow_sample=True)


def settings(**changes: object) -> Settings:
    """The smoke preset with changes."""
    return msgspec.structs.replace(load_settings("smoke"), **changes)


def trainer(loss: str = "fenchel_young", seed: int = 0, arm: dict | None = None, **changes: object) -> Trainer:
    """A trainer on the tiny maps."""
    chosen = msgspec.convert({"loss": loss, **(arm or {})}, Arm)
    return Trainer(chosen, settings(**changes), maps(), seed, torch.device("cpu"))
