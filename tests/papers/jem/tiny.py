"""Small trainings for the tests: the sample of Fashion-MNIST, a few images a step, few steps."""

import functools
from pathlib import Path

import msgspec
import torch

from papers.jem.data import Data, load_data
from papers.jem.settings import Settings, load
from papers.jem.training import Arm, Trainer
from shared.paths import ROOT

SAMPLES: Path = ROOT / "tests" / "data"


def settings(**changes: object) -> Settings:
    """The smoke preset with changes."""
    return msgspec.structs.replace(load("smoke"), **changes)


@functools.cache
def data(seed: int = 0) -> Data:
    """The sample, five labels a class."""
    return load_data("fashion_mnist", 5, seed, sample=True, folder=SAMPLES)


def trainer(seed: int = 0, arm: dict | None = None, **changes: object) -> Trainer:
    """A trainer on the sample."""
    return Trainer(msgspec.convert(arm or {}, Arm), settings(**changes), data(), seed, torch.device("cpu"))
