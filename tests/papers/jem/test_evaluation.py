"""Calibration and scores of networks with closed forms, on small images without files."""

import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor, nn

from papers.jem.data import scale
from papers.jem.evaluation import Found, classification, familiarity, grey_levels, logits_of, together
from papers.jem.model import SmallConvNet
from tests.papers.jem.tiny_data import SHAPE, Linear, tiny_data


def linear(factor: float = 1.0) -> Linear:
    generator = torch.Generator().manual_seed(1)
    return Linear(factor * torch.randn(10, 16, generator=generator))


def test_parts_come_together_once() -> None:
    whole = together(Found({"a": 1.0}, {"t": [{"x": 1.0}]}), Found({"b": 2.0}))
    assert whole.numbers == {"a": 1.0, "b": 2.0}
    assert whole.tables == {"t": [{"x": 1.0}]}
    with pytest.raises(ValueError, match="twice: a"):
        together(Found({"a": 1.0}), Found({"a": 1.0}))


def test_grey_levels_undo_the_scale_and_cut() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(grey_levels(scale(pixels)), pixels)
    assert grey_levels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_logits_are_those_of_scaled_pixels_in_evaluation_mode() -> None:
    network = nn.Sequential(linear(), nn.Dropout(0.5)).train()
    pixels = tiny_data(700).test  # more than one batch
    found = logits_of(network, pixels)
    torch.testing.assert_close(found, network[0](scale(pixels)).detach())
    torch.testing.assert_close(found, logits_of(network, scale(pixels)))
    assert network.training
    assert not found.requires_grad


def test_a_network_that_knows_nothing() -> None:
    data = tiny_data()
    numbers = classification(Linear(torch.zeros(10, 16)), data).numbers
    share = float((data.test_labels == 0).double().mean())
    assert numbers["accuracy_percent"] == pytest.approx(100 * share)
    assert numbers["nll_nats"] == pytest.approx(math.log(10))
    assert numbers["brier"] == pytest.approx(0.9)
    assert numbers["ece20_percent"] == pytest.approx(100 * abs(share - 0.1), abs=1e-6)


def test_classification_against_a_second_opinion() -> None:
    data, network = tiny_data(), linear()
    found = classification(network, data)
    logits = network(scale(data.test)).detach().double()
    nll = log_loss(data.test_labels.numpy(), logits.softmax(1).numpy(), labels=list(range(10)))
    assert found.numbers["nll_nats"] == pytest.approx(nll, rel=1e-5)
    known = network(scale(data.train[data.labelled])).argmax(1) == data.train_labels[data.labelled]
    assert found.numbers["train_accuracy_percent"] == pytest.approx(100 * float(known.double().mean()))
    assert found.numbers["ece20_low_percent"] <= found.numbers["ece20_high_percent"]


def test_reliability_tables_hold_the_calibration_error() -> None:
    data = tiny_data()
    found = classification(linear(), data)
    for suffix in ("", "_scaled"):
        rows = found.tables[f"reliability{suffix}"]
        assert sum(row["count"] for row in rows) == len(data.test)
        assert all(5 * row["bin"] < row["confidence_percent"] <= 5 * row["bin"] + 5 for row in rows)
        gap = sum(row["count"] * abs(row["accuracy_percent"] - row["confidence_percent"]) for row in rows)
        assert gap / len(data.test) == pytest.approx(found.numbers[f"ece20{suffix}_percent"])


def test_temperature_scaling_undoes_a_factor_of_the_logits() -> None:
    data = tiny_data()
    once, thrice = (classification(linear(factor), data).numbers for factor in (0.2, 0.6))
    assert thrice["temperature"] == pytest.approx(3 * once["temperature"], rel=1e-4)
    assert thrice["nll_nats"] > once["nll_nats"]
    for name in ("nll_scaled_nats", "brier_scaled", "ece20_scaled_percent", "accuracy_percent"):
        assert thrice[name] == pytest.approx(once[name], rel=1e-3)


def test_familiarity_of_sets_that_lie_apart() -> None:
    """log p rises with the brightness: white is more familiar than any test image, black less, the slope is even."""
    data = tiny_data()
    network = Linear(torch.ones(2, 16))
    outside = {"white": torch.ones(7, *SHAPE), "black": -torch.ones(9, *SHAPE)}
    found = familiarity(network, data, outside)
    assert found.numbers["auroc_log_density_white"] == 0
    assert found.numbers["auroc_log_density_black"] == 1
    assert found.numbers["auroc_log_density_mean"] == 0.5
    assert found.numbers["auroc_confidence_black"] == 0.5
    assert found.numbers["log_density_mean_white"] == pytest.approx(16 + math.log(2))
    assert found.numbers["approximate_mass_mean_test"] == pytest.approx(-4.0)
    for rows in found.tables.values():
        for name in ("test", "white", "black"):
            assert sum(row[name] * row["width"] for row in rows) == pytest.approx(1)


def test_measuring_leaves_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    network, data = SmallConvNet().train(), tiny_data(20)
    wide = nn.functional.pad

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(wide(x, (12, 12, 12, 12)))  # type: ignore[no-any-return]

    padded = Padded()
    found = together(classification(padded, data), familiarity(padded, data, {"noise": torch.rand(5, *SHAPE)}))
    assert all(math.isfinite(value) for value in found.numbers.values())
    assert padded.training
    assert all(p.grad is None and p.requires_grad for p in padded.parameters())
