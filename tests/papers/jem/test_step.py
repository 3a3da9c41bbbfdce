"""One pass of everything is the passes one after the other, and only what should change does."""

import pytest
import torch
from torch import nn

from papers.jem.buffer import ReplayBuffer, uniform_start
from papers.jem.energy import joint_loss
from papers.jem.model import SmallConvNet
from papers.jem.sgld import Langevin, chain_generator, count_passes, run_chains
from papers.jem.step import jem_step, joint_pass, moved_chains
from papers.jem.toy import flat_gradient

SHAPE = (1, 28, 28)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return SmallConvNet(10)


def new_buffer(classes: int = 1, reinit: float = 0.3) -> ReplayBuffer:
    return ReplayBuffer(20, uniform_start(SHAPE), reinit=reinit, classes=classes, generator=chain_generator(5, 0))


def images(count: int) -> torch.Tensor:
    return 2 * torch.rand(count, *SHAPE) - 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_step_is_the_algorithm(model: nn.Module, precision: str) -> None:
    x, y, data, langevin = images(4), torch.tensor([0, 1, 2, 3]), images(6), Langevin(3)
    buffer, own = new_buffer(), new_buffer()
    losses = jem_step(
        model, buffer, (x, y), data, langevin, generator=chain_generator(0, 1), precision=precision,
        energy_l2=0.1, generative_weight=0.7,
    )  # fmt: skip
    generator = chain_generator(0, 1)
    index, start = own.draw(6, generator=generator)
    samples = run_chains(model, start, langevin, generator=generator, precision=precision)
    own.write(index, samples)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits = [model(batch) for batch in (x, data, samples)]
    expected = joint_loss(logits[0], y, logits[1], logits[2], energy_l2=0.1, generative_weight=0.7)
    assert torch.equal(buffer.states, own.states)
    assert not torch.equal(buffer.states, new_buffer().states)
    for ours, theirs in zip(losses, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours, theirs = (flat_gradient(loss.total, model) for loss in (losses, expected))
    assert (ours - theirs).norm() < (1e-5 if precision == "float32" else 0.02) * theirs.norm()


def test_without_a_stream_of_their_own_the_labelled_images_are_the_data(model: nn.Module) -> None:
    x, y = images(4), torch.tensor([0, 1, 2, 3])
    with count_passes(model) as passes:
        alone = jem_step(model, new_buffer(), (x, y), None, Langevin(2), generator=chain_generator(0, 0))
    assert passes.examples == 4 * (2 + 2)
    with count_passes(model) as passes:
        twice = jem_step(model, new_buffer(), (x, y), x, Langevin(2), generator=chain_generator(0, 0))
    assert passes.examples == 4 * (2 + 3)
    for ours, theirs in zip(alone, twice, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_weight_it_is_a_classifier(model: nn.Module) -> None:
    x, y = images(4), torch.tensor([0, 1, 2, 3])
    losses = jem_step(model, new_buffer(), (x, y), images(4), Langevin(1), generative_weight=0.0)
    torch.testing.assert_close(losses.total, nn.functional.cross_entropy(model(x), y))


def test_the_same_generator_gives_the_same_step(model: nn.Module) -> None:
    x, y = images(4), torch.tensor([0, 1, 2, 3])

    def total(seed: int) -> torch.Tensor:
        return jem_step(model, new_buffer(), (x, y), x, Langevin(2), generator=chain_generator(seed, 3)).total

    state = torch.random.get_rng_state()
    assert torch.equal(total(0), total(0))
    assert not torch.equal(total(0), total(1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_weight_is_touched(model: nn.Module) -> None:
    before = [p.detach().clone() for p in model.parameters()]
    losses = jem_step(model, new_buffer(), (images(2), torch.tensor([0, 1])), images(2), Langevin(1))
    assert losses.total.requires_grad
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))


def test_chains_of_classes_stay_in_their_slices(model: nn.Module) -> None:
    buffer = new_buffer(classes=10, reinit=0.0)
    before, labels = buffer.states.clone(), torch.tensor([3, 3, 7])
    samples = moved_chains(model, buffer, 3, Langevin(2), labels=labels, generator=chain_generator(0, 0))
    assert not samples.requires_grad
    changed = (buffer.states != before).flatten(1).any(1).nonzero()[:, 0]
    assert set((changed // 2).tolist()) == {3, 7}
    assert any(torch.equal(samples[2], state) for state in buffer.states[14:16])


def test_logits_come_back_in_their_batches(model: nn.Module) -> None:
    parts = [images(count) for count in (2, 5, 1)]
    for logits, part in zip(joint_pass(model, parts), parts, strict=True):
        torch.testing.assert_close(logits, model(part), rtol=1e-5, atol=1e-5)


def test_a_batch_of_another_size_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        jem_step(model, new_buffer(), (images(2), torch.tensor([0])), None, Langevin(0))
