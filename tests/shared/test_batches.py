"""Batches and seeds are pure functions of (seed, step)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.data.batches import batch_indices, seed_step


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_item_once(n: int, size: int, seed: int, epoch: int) -> None:
    size = min(size, n)
    per_epoch = n // size
    batches = [batch_indices(n, size, seed, epoch * per_epoch + i).tolist() for i in range(per_epoch)]
    drawn = [index for batch in batches for index in batch]
    assert all(len(batch) == size for batch in batches)
    assert len(set(drawn)) == len(drawn) == per_epoch * size
    assert set(drawn) <= set(range(n))


def test_any_order_of_calls_gives_the_same_batches() -> None:
    forwards = [batch_indices(100, 7, 3, k) for k in range(60)]
    backwards = [batch_indices(100, 7, 3, k) for k in reversed(range(60))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_epochs_and_seeds_differ() -> None:
    epochs = [tuple(batch_indices(50, 50, seed, step).tolist()) for seed in range(3) for step in range(3)]
    assert len(set(epochs)) == 9


def test_drawing_batches_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batch_indices(1000, 10, 99, 12345)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match="a batch of 11 is larger than the 10 items"):
        batch_indices(10, 11, 0, 0)


def test_noise_depends_on_seed_and_step_alone() -> None:
    def noise(seed: int, step: int) -> tuple[float, ...]:
        seed_step(seed, step)
        return tuple(torch.randn(4).tolist())

    pairs = [(seed, step) for seed in range(4) for step in range(-2, 8)]
    drawn = {pair: noise(*pair) for pair in pairs}
    assert len(set(drawn.values())) == len(pairs)
    for pair in reversed(pairs):
        assert noise(*pair) == drawn[pair]
