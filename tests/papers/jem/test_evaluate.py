"""The stage that tests trained networks: which views there are, what is measured of each, and what is kept."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from papers.jem import evaluate
from papers.jem.data import Data
from papers.jem.evaluation import Found
from papers.jem.feature_distance import load_features
from papers.jem.model import SmallConvNet
from papers.jem.settings import PARAMS, Settings, load
from papers.jem.training import Arm
from shared.measurements import read_metrics
from shared.results import read_rows
from shared.settings import read_yaml

SEEN = {"jem": ("jem", "best"), "classifier": ("classifier", "last")}


def small_data(images: int = 40) -> Data:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, images, 1, 28, 28), generator=generator).to(torch.uint8)
    labels = torch.arange(images) % 10
    known = torch.arange(20)
    return Data(pixels[0], labels, known, pixels[1], labels, pixels[2], labels, augmented=False)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return SmallConvNet().eval()


def settings() -> Settings:
    return load("smoke", chain_steps=1, sample_rounds=1, attack_steps=1)


def test_views() -> None:
    arms = ["jem", "classifier", "classifier_smoothed", "jem_short"]
    found = evaluate.views(arms, {arm: arm.startswith("jem") for arm in arms})
    assert found == {
        "jem": ("jem", "best"),
        "jem_last": ("jem", "last"),
        "jem_short": ("jem_short", "best"),
        "classifier": ("classifier", "last"),
        "classifier_early": ("classifier", "best"),
        "classifier_smoothed": ("classifier_smoothed", "last"),
    }
    assert next(iter(found)) == "jem"  # the longest first
    assert evaluate.views(["jem_short"], {"jem_short": True}) == {"jem_short": ("jem_short", "best")}


def test_what_is_measured_of_which_network() -> None:
    data, features = small_data(), load_features(untrained=True)
    outside = {"noise": torch.rand(5, 1, 28, 28)}
    found = {
        (generative, thorough): evaluate.measure(
            network(0),
            settings(),
            data,
            outside,
            features=features if generative else None,
            thorough=thorough,
            judge=network(1),
            referee=network(2),
            seed=0,
        )
        for generative, thorough in ((True, True), (True, False), (False, True), (False, False))
    }
    for each in found.values():
        assert {"accuracy_percent", "auroc_confidence_noise", "robust_linf_eps0_05_percent"} <= each.numbers.keys()
        assert all(math.isfinite(value) for value in each.numbers.values())
        assert all(math.isfinite(value) for rows in each.tables.values() for row in rows for value in row.values())
    names = {key: each.numbers.keys() for key, each in found.items()}
    assert {key for key in names if "samples_classes" in names[key]} == {(True, True), (True, False)}
    assert {key for key in names if "samples_kernel_distance" in names[key]} == {(True, True), (True, False)}
    assert {key for key in names if "reference_train_kernel_distance" in names[key]} == {(True, True)}
    assert {key for key in names if "distal_steps_mean" in names[key]} == {(True, True), (False, True)}
    assert {key for key in names if "log_density_gap_nats" in names[key]} == {(True, True)}
    assert {key for key in names if "check_transfer_linf_eps0_1_percent" in names[key]} == {(True, True)}
    assert all("." not in name for name in names[True, True])
    # A part that is measured of several networks is measured alike.
    assert names[False, False] < names[True, False] < names[True, True]


def test_nothing_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that was killed finds what it had; other weights are measured anew."""
    calls: list[int] = []

    def measured(*_: object, **__: object) -> Found:
        calls.append(1)
        return Found({"a": 2.0}, {"t": [{"x": 1.0}]}, {"p": torch.zeros(1, 1, 2, 2, dtype=torch.uint8)})

    weights = {"seed": 0}
    monkeypatch.setattr(evaluate, "measure", measured)
    monkeypatch.setattr(
        evaluate, "read_arm", lambda preset, name: (Arm(generative_weight=float(name == "jem")), settings())
    )
    monkeypatch.setattr(evaluate, "load_network", lambda *_: network(weights["seed"]))
    monkeypatch.setattr(evaluate, "data_of", lambda *_: small_data())
    monkeypatch.setattr(evaluate, "out_of_distribution_sets", lambda *_, **__: {})
    make = evaluate.StateFolder
    monkeypatch.setattr(evaluate, "StateFolder", lambda name, key: make(name, key, tmp_path))
    first, again = (evaluate.test_one("smoke", SEEN, ("jem", 0)) for _ in range(2))
    assert first == again
    assert len(calls) == 1
    found = evaluate.read(first)
    assert found.numbers == {"a": 2.0}
    assert found.tables == {"t": [{"x": 1.0}]}
    assert found.pictures["p"].dtype == torch.uint8
    weights["seed"] = 1
    assert evaluate.test_one("smoke", SEEN, ("jem", 0)) != first
    assert evaluate.test_one("smoke", SEEN, ("classifier", 0)) != evaluate.test_one("smoke", SEEN, ("classifier", 1))
    assert len(calls) == 4


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "runs", lambda name, preset: tmp_path / name / "runs" / preset)
    monkeypatch.setattr(evaluate, "paper", lambda name: tmp_path / name)
    image = torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)
    results = {
        ("jem", seed): Found({"accuracy_percent": 80.0 + seed}, {"t": [{"eps": 0.5}]}, {"samples": image + seed})
        for seed in (4, 5)
    }
    evaluate.write("smoke", results, [4, 5])
    folder = tmp_path / "jem" / "runs" / "smoke" / "evaluate"
    assert read_metrics(folder / "metrics.json") == {"accuracy_percent": {"jem": {"seed4": 84.0, "seed5": 85.0}}}
    assert read_rows(folder / "jem" / "seed5" / "t.csv") == [{"eps": 0.5}]
    kept = list((tmp_path / "jem" / "pictures" / "smoke").iterdir())
    assert [path.name for path in kept] == ["jem.npz"]
    with np.load(kept[0], allow_pickle=False) as archive:
        assert np.array_equal(archive["samples"], image.numpy() + 4)


def test_the_referee_is_of_another_seed() -> None:
    seeds = read_yaml(PARAMS)["seeds"]
    others = [evaluate.another(seed) for seed in seeds]
    assert sorted(others) == sorted(seeds)
    assert all(other != seed for other, seed in zip(others, seeds, strict=True))
