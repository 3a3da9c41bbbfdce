"""The importance-weighted likelihood of a model against whole passes and torch's own densities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from papers.nvae.experiment import likelihood, observe
from papers.nvae.model import Inference
from shared.data.batches import seed_step
from tests.papers.nvae import tiny


def brute_force(network: Any, pixels: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """NLL and bound from whole passes with torch's own densities, for a model with one group."""
    seed_step(0, 0)
    x, padded = observe(pixels, tiny.settings(), 32)
    log_weights = []
    for _ in range(samples):
        inference: Inference = network(padded)
        z = inference.latents[0]
        q = network.groups[0].posterior(None, network.encoder(padded)[0], (torch.zeros_like(z), torch.zeros_like(z)))
        log_q = torch.distributions.Normal(q.mu, q.sigma).log_prob(z).sum((1, 2, 3))
        log_p = torch.distributions.Normal(0.0, 1.01).log_prob(z).sum((1, 2, 3))
        picture = torch.distributions.Bernoulli(logits=inference.logits[:, :, 2:30, 2:30])
        log_weights.append(picture.log_prob(x).sum((1, 2, 3)) + log_p - log_q)
    stacked = torch.stack(log_weights).double()
    return -(stacked.logsumexp(0) - math.log(samples)), -stacked.mean(0)


@torch.no_grad()
def test_likelihood_by_brute_force() -> None:
    changes = {"groups": 1, "scales": 1}
    network, pixels = tiny.model(**changes), tiny.images(tiny.settings()).test[:6]
    result = likelihood(network, pixels, tiny.settings(**changes), 32, samples=4)
    nll, bound = brute_force(network, pixels, 4)
    torch.testing.assert_close(result.nll_nats, nll.float(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(result.bound_nats, bound.float(), rtol=1e-4, atol=1e-3)
    assert (result.nll_nats <= result.bound_nats).all()
    assert result.kl_nats.shape == (6, 1)


def test_likelihood_does_not_mix_images() -> None:
    """Running statistics: an image's numbers do not depend on its neighbours, only on its noise."""
    network, pixels = tiny.model(), tiny.images(tiny.settings()).test[:4]
    other = pixels.clone()
    other[1:] = 255
    a, b = (likelihood(network, p, tiny.settings(), 32, samples=2) for p in (pixels, other))
    assert a.nll_nats[0].item() == pytest.approx(b.nll_nats[0].item(), rel=1e-6)
    assert a.nll_nats[1].item() != pytest.approx(b.nll_nats[1].item(), rel=1e-6)


def test_likelihood_refuses_training_mode() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        likelihood(tiny.model().train(), torch.zeros(1, 1, 28, 28, dtype=torch.uint8), tiny.settings(), 32, 1)


def test_likelihood_of_all_images_in_order() -> None:
    network, pixels = tiny.model(flows=1), tiny.images(tiny.settings()).test[:7]
    result = likelihood(network, pixels, tiny.settings(flows=1), 32, samples=2, batch=3)
    assert result.nll_nats.shape == result.bound_nats.shape == (7,)
    assert result.kl_nats.shape == (7, len(network.groups))
