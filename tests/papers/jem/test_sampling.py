"""Samples of chains whose course is known: how long they run, where they end, how they are judged."""

import math

import pytest
import torch
from scipy.stats import chisquare, entropy, geom
from torch import Tensor, nn

from papers.jem.data import scale
from papers.jem.evaluation import Found
from papers.jem.sampling import (
    ages,
    chain_diagnostics,
    conditional_samples,
    draw,
    label_entropy_nats,
    nearest_distance,
    samples,
)
from papers.jem.sgld import Langevin
from tests.papers.jem.tiny_data import SHAPE, Gaussian, Linear, tiny_data


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Ramp(nn.Module):
    """Logits whose y-th has the slope 4 (y + 1) in every pixel: a chain tells how far it came."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 2.0, 3.0])


# --- ages ---


def test_ages_have_the_law_of_slots() -> None:
    """Slots simulated one round after the other, and the geometric law cut at the number of rounds."""
    rounds, count = 8, 20_000
    slots, fresh = torch.zeros(count).long(), generator(1)
    for _ in range(rounds):
        restarted = torch.rand(count, generator=fresh) < 0.2
        slots = torch.where(restarted, 0, slots) + 1
    expected = geom(0.2).pmf(range(1, rounds + 1))
    expected[-1] = 0.8 ** (rounds - 1)
    for found in (slots, ages(count, rounds, 0.2, generator())):
        counts = torch.bincount(found, minlength=rounds + 1)[1:]
        assert chisquare(counts.numpy(), count * expected).pvalue > 1e-3


def test_ages_without_and_with_nothing_but_fresh_starts() -> None:
    assert ages(5, 7, 0.0, generator()).tolist() == [7] * 5
    assert ages(5, 7, 1.0, generator()).tolist() == [1] * 5
    assert ages(5, 1, 0.5, generator()).tolist() == [1] * 5
    with pytest.raises(ValueError, match="no samples"):
        ages(5, 0, 0.5, generator())
    with pytest.raises(ValueError, match="rate of 2"):
        ages(5, 1, 2.0, generator())


# --- chains ---


@pytest.mark.parametrize("count", [5, 130])
def test_every_chain_runs_for_its_age(count: int) -> None:
    age = torch.randint(1, 6, (count,), generator=generator(3))
    x = draw(Ramp(), age, SHAPE, Langevin(2, 1.0, 0.0), generator(), labels=torch.zeros(count).long())
    start = x - 4 * 2 * age.view(-1, 1, 1, 1)
    assert start.abs().max() <= 1 + 1e-5
    assert start.std() == pytest.approx(3**-0.5, rel=0.15)


def test_chains_climb_the_logit_of_their_class() -> None:
    labels = torch.arange(3).repeat(4)
    x = draw(Ramp(), torch.ones(12).long(), SHAPE, Langevin(1, 1.0, 0.0), generator(), labels=labels)
    assert (x - 4 * (labels + 1).view(-1, 1, 1, 1)).abs().max() <= 1 + 1e-5


def test_old_chains_have_the_stationary_variance() -> None:
    langevin = Langevin(20, 0.5, 0.3)
    x = draw(Gaussian(1.0), torch.full((200,), 3), SHAPE, langevin, generator())
    assert float(x.var()) == pytest.approx(langevin.stationary_variance(1.0), rel=0.1)


# --- distances and entropy ---


def test_nearest_distance_by_brute_force() -> None:
    x, others = torch.rand(7, *SHAPE, generator=generator()), torch.rand(11, *SHAPE, generator=generator(1))
    expected = torch.tensor([min(float((a - b).norm()) for b in others) for a in x])
    torch.testing.assert_close(nearest_distance(x, others), expected)
    among = torch.tensor([min(float((x[i] - x[j]).norm()) for j in range(7) if j != i) for i in range(7)])
    torch.testing.assert_close(nearest_distance(x, x, same=True), among)
    pixels = tiny_data(8).test
    assert nearest_distance(scale(pixels), pixels).max() < 1e-2
    torch.testing.assert_close(nearest_distance(torch.full((1, *SHAPE), 9.0), -torch.ones(1, *SHAPE)).item(), 8.0)
    with pytest.raises(ValueError, match="no other image"):
        nearest_distance(x[:1], x[:1], same=True)


def test_distances_do_not_depend_on_the_batches_they_are_computed_in() -> None:
    others = torch.rand(5_003, 2, generator=generator())
    x = others[[0, 4_999, 5_002]]
    assert nearest_distance(x, others).max() < 1e-3
    found = nearest_distance(others, others, same=True)
    distances = torch.cdist(others[5_000:], others)
    distances[torch.arange(3), 5_000 + torch.arange(3)] = torch.inf
    torch.testing.assert_close(found[5_000:], distances.amin(1), atol=1e-3, rtol=0)


def test_label_entropy() -> None:
    assert label_entropy_nats(torch.arange(30) % 10, 10) == pytest.approx(math.log(10))
    assert label_entropy_nats(torch.full((5,), 3), 10) == 0
    assert label_entropy_nats(torch.tensor([0, 0, 2]), 4) == pytest.approx(entropy([2, 0, 1, 0]))


# --- what is reported ---


def small_run(seed: int = 0) -> tuple[Found, Tensor]:
    network = Linear(0.1 * torch.randn(10, 16, generator=generator(7)))
    found = samples(
        network, tiny_data(), count=30, rounds=4, langevin=Langevin(2), judge=Linear(torch.zeros(10, 16)), seed=seed
    )
    return found


def test_samples_report() -> None:
    found, x = small_run()
    numbers = found.numbers
    assert x.shape == (30, *SHAPE)
    assert found.pictures["samples"].shape == (30, *SHAPE)
    assert len(found.tables["samples"]) == 30
    assert all(math.isfinite(value) for value in numbers.values())
    labels = torch.tensor([row["label"] for row in found.tables["samples"]]).long()
    assert numbers["samples_label_entropy_nats"] == pytest.approx(label_entropy_nats(labels, 10))
    assert numbers["samples_classes"] == len(labels.unique())
    # The judge knows nothing and calls everything class 0.
    assert numbers["samples_judged_classes"] == 1
    assert numbers["samples_judged_label_entropy_nats"] == numbers["samples_judged_least_share_percent"] == 0
    again = small_run()
    assert torch.equal(again[1], x)
    assert again[0].numbers == numbers
    assert not torch.equal(small_run(seed=1)[1], x)


def test_conditional_samples_are_judged_by_their_class() -> None:
    """Each class has pixels of its own, and chains on its logit make these bright."""
    w = torch.zeros(4, 16)
    w[torch.arange(16) % 4, torch.arange(16)] = 1.0
    found = conditional_samples(
        Linear(w), SHAPE, per_class=12, rounds=3, langevin=Langevin(5), classes=4, judge=Linear(torch.zeros(4, 16))
    )
    assert found.numbers == {"conditional_own_percent": 100.0, "conditional_judged_percent": 25.0}
    shown = scale(found.pictures["conditional"])
    assert shown.shape == (40, *SHAPE)
    assert torch.equal(Linear(w)(shown).argmax(1), torch.arange(4).repeat_interleave(10))


def test_diagnostics_of_a_gaussian_are_known() -> None:
    """Curvature 1 / s^2; settled chains forget like (1 - a)^lag; data and the same data have no gap."""
    data, langevin = tiny_data(), Langevin(3, 0.2, 0.5)
    network = Gaussian(1.0)
    found = chain_diagnostics(network, data, scale(data.test), langevin, data_noise=0.0)
    assert found.numbers["log_density_gap_nats"] == pytest.approx(0, abs=1e-5)
    for name in ("test", "samples"):
        assert found.numbers[f"curvature_{name}_max"] == pytest.approx(0.2, rel=1e-4)
        assert found.numbers[f"curvature_{name}_mean"] == pytest.approx(0.2, rel=1e-4)
    settled = torch.randn(60, *SHAPE, generator=generator()) * langevin.stationary_variance(1.0) ** 0.5
    rows = chain_diagnostics(network, data, settled, langevin, data_noise=0.0).tables
    for lag in (0, 1, 3, 10):
        assert rows["autocorrelation"][lag]["correlation"] == pytest.approx(0.8**lag, abs=0.03)
    assert rows["course"][0]["step"] == 0
    assert len(rows["course"]) == 120
    assert rows["course"][0]["log_density_nats"] == pytest.approx(math.log(2) - 16 / 6, abs=0.4)
