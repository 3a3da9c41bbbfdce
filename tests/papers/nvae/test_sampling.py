"""Drawing from a model: temperature, batch-norm re-adjustment, partial resampling, interpolation."""

import copy

import pytest
import torch

from papers.nvae import losses
from papers.nvae.model import NVAE
from papers.nvae.sampling import draw, interpolate, partly_from_prior, readjusted, shown
from tests.papers.nvae import tiny

SETTINGS = tiny.settings()


def state(network: NVAE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_draws_are_probabilities_without_the_padding_and_repeatable() -> None:
    network = tiny.model()
    images = draw(network, SETTINGS, 5, 1.0, seed=3, side=28, batch=2)
    assert images.shape == (5, 1, 28, 28)
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, draw(network, SETTINGS, 5, 1.0, seed=3, side=28, batch=2))
    assert not torch.equal(images, draw(network, SETTINGS, 5, 1.0, seed=4, side=28, batch=2))
    assert not torch.equal(images[:2], images[2:4]), "every batch has its own noise"
    cold = draw(network, SETTINGS, 2, 0.0, seed=3, side=28)
    assert torch.equal(cold, draw(network, SETTINGS, 2, 0.0, seed=4, side=28))


def test_draws_of_rgb_lie_on_the_grid() -> None:
    changes = tiny.OPTIONS["rgb 5 bits"]
    images = draw(tiny.model(**changes), tiny.settings(**changes), 2, 1.0, seed=0, side=32)
    assert images.shape == (2, 3, 32, 32)
    index = (images + 1) * 31 / 2
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-4)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        draw(tiny.model().train(), SETTINGS, 1, 1.0, seed=0, side=28)


def test_readjustment_changes_the_decoders_buffers_and_nothing_else() -> None:
    network = tiny.model()
    before = state(network)
    other = readjusted(network, SETTINGS, 0.7, passes=3, batch=4)
    assert not other.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), (
        "the model is left alone"
    )
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    decoders = {
        name for name in before if not name.startswith("encoder.") and name.endswith(("running_mean", "running_var"))
    }
    assert changed == decoders
    assert decoders


def test_readjustment_gathers_the_statistics_of_prior_samples() -> None:
    """With momentum 1 a single pass leaves the very statistics of that pass: evaluation then repeats it."""
    network = tiny.model()
    for layer in losses.batch_norms(network):
        layer.momentum = 1.0
    other = readjusted(network, SETTINGS, 0.7, passes=1, batch=32, seed=5)
    train = copy.deepcopy(network).train()
    with torch.no_grad():
        torch.manual_seed((5 * 1_000_003 + 0) * 2 + 1)
        expected = train.sample(32, 0.7)
        torch.manual_seed((5 * 1_000_003 + 0) * 2 + 1)
        got = other.sample(32, 0.7)
    assert (got - expected).abs().mean() < 0.02 * expected.std()  # unbiased and biased variances differ a little


def test_groups_from_the_prior() -> None:
    network = tiny.model()
    x = (torch.rand(3, 1, 28, 28) < 0.3).float()
    padded = losses.pad_centred(x, 32) * 2 - 1
    logits, nats = partly_from_prior(network, x, padded, SETTINGS, 0, seed=1)
    torch.testing.assert_close(nats, losses.reconstruction_nats(logits, x, SETTINGS))
    other, _ = partly_from_prior(network, x.flip(0), padded.flip(0), SETTINGS, len(network.groups), seed=1)
    same, _ = partly_from_prior(network, x, padded, SETTINGS, len(network.groups), seed=1)
    assert torch.equal(same, other), "with all groups from the prior the image has no influence"
    assert not torch.equal(same, logits)


def test_interpolation_begins_and_ends_at_the_reconstructions() -> None:
    network = tiny.model()
    padded = tiny.padded(4)
    lines = interpolate(network, padded, SETTINGS, steps=5, seed=2).view(2, 5, 1, 32, 32)
    torch.manual_seed((2 * 1_000_003) * 2 + 1)
    with torch.no_grad():
        ends = network(padded).logits
    torch.testing.assert_close(lines[:, 0], ends[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lines[:, 4], ends[2:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(lines[:, 2], (lines[:, 0] + lines[:, 4]) / 2, atol=1e-6), (
        "a line of latents, not of pixels"
    )


def test_shown_is_the_probability_of_the_centre() -> None:
    logits = torch.randn(2, 1, 32, 32)
    assert torch.equal(shown(logits, SETTINGS, 28), torch.sigmoid(logits[:, :, 2:30, 2:30]))
    assert torch.equal(shown(logits, SETTINGS, 32), torch.sigmoid(logits))
