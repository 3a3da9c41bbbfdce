"""Settings of NVAE: tables of groups, and mistakes told in one line."""

from pathlib import Path

import pytest

from papers.nvae import settings as nvae_settings
from papers.nvae.settings import groups_per_scale
from shared.errors import UserError
from tests.papers.nvae import tiny


@pytest.mark.parametrize(
    ("groups", "scales", "adaptive", "minimum", "expected"),
    [
        (10, 2, True, 1, (10, 5)),  # MNIST
        (30, 1, False, 1, (30,)),  # CIFAR-10
        (20, 3, True, 1, (20, 10, 5)),  # CelebA-64
        (28, 1, False, 1, (28,)),  # ImageNet-32
        (16, 5, True, 4, (16, 8, 4, 4, 4)),  # CelebA-HQ, FFHQ
        (6, 2, False, 1, (6, 6)),
        (1, 3, True, 1, (1, 1, 1)),
    ],
)
def test_groups_per_scale(groups: int, scales: int, adaptive: bool, minimum: int, expected: tuple[int, ...]) -> None:
    assert groups_per_scale(groups, scales, adaptive, minimum) == expected
    chosen = tiny.settings(groups=groups, scales=scales, adaptive_groups=adaptive, min_groups=minimum)
    assert chosen.groups_per_scale == expected


def write(path: Path, extra: str = "") -> Path:
    block = {**tiny.BASE, "pre_post": [2, 1], "cells_per_group": [1, 1]}
    path.write_text("tiny:\n" + "".join(f"  {key}: {value}\n" for key, value in block.items()) + extra)
    return path


def test_load_and_override(tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml")
    assert nvae_settings.load("tiny", path) == tiny.settings()
    assert nvae_settings.load("tiny", path, flows=2).flows == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chanels", 8), ("channels", 0), ("learning_rate", 0.0), ("kl_warmup", 1.5), ("normalisation", "layer_norm"),
        ("decoder_cell", "dense"), ("data", "imagenet"), ("flows", -1), ("image_bits", 9), ("pre_post", [1]),
        ("averaging", "yes"), ("image_side", 20),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_key(tmp_path: Path, key: str, value: object) -> None:
    path = write(tmp_path / "params.yaml")
    with pytest.raises(UserError) as caught:
        nvae_settings.load("tiny", path, **{key: value})
    assert str(caught.value).startswith(f"{path}: tiny: ")
    assert f"`{key}" in str(caught.value)
    assert "\n" not in str(caught.value)
