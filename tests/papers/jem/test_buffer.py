"""The replay buffer: where chains start, what is written, and the laws of fresh starts."""

import copy

import pytest
import scipy.stats
import torch

from papers.jem.buffer import ReplayBuffer, fit_class_gaussians, uniform_start

SHAPE = (1, 4, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def buffer(size: int = 40, **options) -> ReplayBuffer:
    return ReplayBuffer(size, uniform_start(SHAPE), generator=generator(), **options)


def test_the_first_states_are_uniform():
    states = buffer(1000).states
    assert states.shape == (1000, *SHAPE)
    assert scipy.stats.kstest(states.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert uniform_start((2,), 3.0)(torch.zeros(1000, dtype=torch.long), None).abs().max() > 2.9


def test_without_fresh_starts_all_come_from_the_buffer():
    b = buffer(reinit=0.0)
    index, x = b.draw(500)
    assert torch.equal(x, b.states[index])
    assert set(index.tolist()) == set(range(40))
    x.zero_()
    assert b.states.abs().min() > 0, "starts are copies"


def test_with_fresh_starts_only_none_comes_from_the_buffer():
    b = buffer(reinit=1.0)
    b.states.fill_(7.0)
    index, x = b.draw(500)
    assert x.abs().max() <= 1
    assert scipy.stats.kstest(x.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert torch.equal(b.states, torch.full_like(b.states, 7.0)), "drawing changes no slot"
    b.write(index, x)
    assert torch.equal(b.states[index[-1]], x[-1]), "fresh starts are written back, too"


def test_the_share_of_fresh_starts():
    b = buffer(reinit=0.05)
    b.states.fill_(7.0)
    _, x = b.draw(20_000)
    fresh = int((x.flatten(1)[:, 0] != 7).sum())
    assert scipy.stats.binomtest(fresh, 20_000, 0.05).pvalue > 1e-3


def test_slots_are_drawn_uniformly():
    index, _ = buffer(reinit=0.0).draw(20_000)
    assert scipy.stats.chisquare(torch.bincount(index, minlength=40).numpy()).pvalue > 1e-3


def test_written_states_are_read_again_and_others_untouched():
    b = buffer()
    before = b.states.clone()
    index, x = torch.tensor([3, 17, 39]), torch.full((3, *SHAPE), 2.0, requires_grad=True)
    b.write(index, x)
    assert torch.equal(b.states[index], x)
    assert not b.states.requires_grad
    others = [i for i in range(40) if i not in (3, 17, 39)]
    assert torch.equal(b.states[others], before[others])


def test_of_a_slot_drawn_twice_the_last_state_is_kept():
    b = buffer(8)
    for trial in range(20):
        index = torch.randint(8, (64,), generator=generator(trial))
        x = torch.arange(64.0)[:, None, None, None].expand(-1, *SHAPE) + 100
        expected = b.states.clone()
        for i, row in zip(index.tolist(), x):
            expected[i] = row
        b.write(index, x)
        assert torch.equal(b.states, expected)


def test_class_slices():
    b = buffer(classes=4, reinit=0.0)
    labels = torch.randint(4, (500,), generator=generator(1))
    index, x = b.draw(500, labels)
    assert torch.equal(index // 10, labels)
    assert set(index.tolist()) == set(range(40))
    assert torch.equal(x, b.states[index])


def test_the_same_generator_draws_the_same():
    (i, x), (j, y), (k, _) = (buffer(reinit=0.5).draw(50, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(i, j)
    assert torch.equal(x, y)
    assert not torch.equal(i, k)


def test_a_saved_buffer_goes_on_to_the_same_bits(tmp_path):
    first = buffer(classes=2)
    first.write(*first.draw(16, generator=generator(3)))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = buffer(classes=2)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first.states, second.states)
    assert second.states.data_ptr() != first.states.data_ptr()
    for (i, x), (j, y) in [(b.draw(9, generator=generator(4)) for b in (first, second))]:
        assert torch.equal(i, j)
        assert torch.equal(x, y)
    kept = copy.deepcopy(first.state_dict())
    first.write(torch.tensor([0]), torch.zeros(1, *SHAPE))
    assert not torch.equal(first.states, kept["states"])


def test_class_gaussians_have_mean_and_covariance_of_their_class():
    """Class 0 has more examples than coordinates, class 1 fewer, so its covariance is singular."""
    mixing = torch.randn(5, 5, generator=generator(1))
    x = torch.cat([torch.randn(60, 5, generator=generator(2)) @ mixing, 3 + torch.rand(3, 5, generator=generator(3))])
    labels = torch.cat([torch.zeros(60, dtype=torch.long), torch.ones(3, dtype=torch.long)])
    gaussians = fit_class_gaussians(x, labels, 2)
    for y in range(2):
        member = x[labels == y]
        covariance = gaussians.factors[y].T @ gaussians.factors[y]
        assert torch.allclose(gaussians.means[y], member.mean(0), atol=1e-6)
        assert torch.allclose(covariance, member.T.cov(), atol=1e-5)
        drawn = gaussians(torch.full((40_000,), y), generator(4))
        assert torch.allclose(drawn.mean(0), member.mean(0), atol=0.05)
        assert torch.allclose(drawn.T.cov(), member.T.cov(), atol=0.15 * member.T.cov().abs().max())


def test_a_buffer_of_class_gaussians_starts_each_slice_in_its_class():
    x = torch.cat([torch.randn(20, *SHAPE) * 0.1 + offset for offset in (-5.0, 0.0, 5.0)])
    gaussians = fit_class_gaussians(x, torch.arange(3).repeat_interleave(20), 3)
    b = ReplayBuffer(30, gaussians, classes=3, reinit=1.0, generator=generator())
    assert b.states.flatten(1).mean(1).view(3, 10).mean(1).tolist() == pytest.approx([-5, 0, 5], abs=0.2)
    labels = torch.tensor([2, 0, 1, 1])
    _, drawn = b.draw(4, labels, generator())
    assert drawn.flatten(1).mean(1).tolist() == pytest.approx([5, -5, 0, 0], abs=0.5)


def test_wrong_buffers_are_refused():
    with pytest.raises(ValueError, match="shared equally"):
        buffer(41, classes=4)
    with pytest.raises(ValueError, match="probability"):
        buffer(reinit=1.5)
    with pytest.raises(ValueError, match="do not go with"):
        buffer(classes=4).draw(3, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="slots"):
        buffer().write(torch.tensor([1]), torch.zeros(2, *SHAPE))
    with pytest.raises(ValueError, match="does not go into"):
        buffer().load_state_dict(buffer(20).state_dict())
    with pytest.raises(ValueError, match="fewer of \\[1\\]"):
        fit_class_gaussians(torch.randn(3, 2), torch.tensor([0, 0, 1]), 2)


def test_the_last_slots_are_known_and_saved() -> None:
    buffer = ReplayBuffer(8, uniform_start((2,)))
    assert len(buffer.recent) == 0
    index = torch.tensor([3, 5, 3])
    buffer.write(index, torch.zeros(3, 2))
    assert torch.equal(buffer.recent, index)
    other = ReplayBuffer(8, uniform_start((2,)))
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.recent, index)
