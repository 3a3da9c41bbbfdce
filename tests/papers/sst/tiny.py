"""Small graph-layout experiments for the tests: few graphs, narrow networks, few steps."""

import functools

import msgspec
import torch

from papers.sst.graph_layout import Layouts
from papers.sst.layout_restarts import Restarts
from papers.sst.layout_training import Arm, Trainer, draw_split
from papers.sst.settings import Settings, load

STEPS = 10


def settings(**changes: object) -> Settings:
    """The smoke preset with changes."""
    return msgspec.structs.replace(load("smoke"), **changes)


@functools.cache
def layouts(horizon: int = 10, split: str = "train") -> Layouts:
    """Graphs of a split of the smoke preset."""
    return draw_split(settings(), horizon, split)


def trainer(structure: str = "tree", seed: int = 0, arm: dict | None = None, **changes: object) -> Trainer:
    """A trainer on T = 10 with `STEPS` steps."""
    chosen = msgspec.convert({"structure": structure, **(arm or {})}, Arm)
    return Trainer(chosen, settings(**changes), layouts(), seed, STEPS, torch.device("cpu"))


def restarts(count: int = 2, arm: dict | None = None, length: int = 3) -> Restarts:
    """A run of `count` starts of `length` steps each."""
    run = Restarts(lambda start: trainer(seed=start, arm=arm), count, layouts(10, "validation"))
    run.length = length
    return run
