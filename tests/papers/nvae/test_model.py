"""The networks of NVAE: shapes, sizes, and what may and may not depend on what."""

from typing import Any

import pytest
import torch
from torch import Tensor

from papers.nvae.model import NVAE, Encoder, convolutions
from papers.nvae.settings import Settings
from shared.distributions import Normal
from tests.papers.nvae import tiny

# Of the paper, written out here so that a change of params.yaml does not change the test.
MNIST = {
    "channels": 32, "groups": 10, "scales": 2, "pre_post": (2, 3), "cells_per_group": (2, 2), "latent_channels": 20,
    "decoder_cell": "separable", "weight_norm": True, "expansion": 6,
}  # fmt: skip
CIFAR10 = {
    "data": "cifar10", "channels": 128, "groups": 30, "scales": 1, "pre_post": (1, 2), "cells_per_group": (2, 2),
    "latent_channels": 20, "decoder_cell": "separable", "weight_norm": True, "flows": 1, "mixture_components": 10,
    "expansion": 6,
}  # fmt: skip
CELEBA64 = {**CIFAR10, "channels": 64, "groups": 20, "scales": 3}


@pytest.mark.parametrize(
    ("changes", "side", "millions", "groups", "latent_dims"),
    [
        pytest.param(MNIST, 32, 33.4, 15, 14_400, id="mnist"),
        pytest.param(CIFAR10, 32, 130.9, 30, 153_600, id="cifar10"),
        pytest.param({**CIFAR10, "flows": 0}, 32, 129.2, 30, 153_600, id="cifar10 without flows"),
        pytest.param(CELEBA64, 64, 153.3, 35, 467_200, id="celeba64"),
    ],
)
def test_parameters_of_the_papers_models(
    changes: dict[str, Any], side: int, millions: float, groups: int, latent_dims: int
) -> None:
    chosen = tiny.settings(**changes)
    with torch.device("meta"):
        network = NVAE(chosen, 1 if chosen.data == "mnist" else 3, side)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)
    assert len(network.groups) == groups
    finest = side >> chosen.pre_post[0]
    per_scale = [n * chosen.latent_channels * (finest >> i) ** 2 for i, n in enumerate(chosen.groups_per_scale)]
    assert sum(per_scale) == latent_dims


def test_the_papers_mnist_model_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        assert NVAE(tiny.settings(**MNIST), 1, 32).start.shape == (1, 256, 4, 4)
    narrow = NVAE(tiny.settings(**{**MNIST, "channels": 2}), 1, 32)
    with torch.no_grad():
        inference = narrow(tiny.padded(2))
    assert [tuple(z.shape) for z in inference.latents] == [(2, 20, 4, 4)] * 5 + [(2, 20, 8, 8)] * 10
    assert inference.logits.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("name", tiny.OPTIONS)
def test_shapes(name: str) -> None:
    chosen = tiny.settings(**tiny.OPTIONS[name])
    channels, side = (1, chosen.image_side or 32) if chosen.data == "mnist" else (3, 32)
    network = tiny.model(**tiny.OPTIONS[name])
    per_scale, finest = chosen.groups_per_scale, side // chosen.fold >> chosen.pre_post[0]
    sides = [finest >> i for i, n in reversed(list(enumerate(per_scale))) for _ in range(n)]
    inference = network(tiny.padded(3, channels, side))
    out = 1 if channels == 1 else 10 * chosen.mixture_components
    assert inference.logits.shape == network.sample(3).shape == (3, out, side, side)
    assert inference.logits.dtype == torch.float32
    assert [tuple(z.shape) for z in inference.latents] == [(3, 4, s, s) for s in sides]
    assert [tuple(kl.shape) for kl in inference.kl_nats] == [(3,)] * len(sides)
    assert network.decode(inference.latents).shape == (3, out, side, side)


def test_a_side_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match=r"images of side 28.* cannot be halved 3 times"):
        NVAE(tiny.settings(), 1, 28)


def test_start_is_uniform() -> None:
    start = NVAE(tiny.settings(channels=32), 1, 32).start
    assert start.min() >= 0
    assert start.max() <= 1
    assert start.mean().item() == pytest.approx(0.5, abs=0.02)


def test_every_parameter_is_used() -> None:
    for name in ("base", "flows", "one group", "rgb"):
        chosen = tiny.settings(**tiny.OPTIONS[name])
        network = tiny.model(**tiny.OPTIONS[name])
        inference = network(tiny.padded(2, 1 if chosen.data == "mnist" else 3))
        total = inference.logits.sum() + torch.stack(inference.kl_nats).sum()
        total.backward()
        idle = [n for n, p in network.named_parameters() if p.grad is None]
        assert not idle, f"{name}: {idle}"


# --- what depends on what ---


def test_pixels_reach_the_decoder_through_the_latents_alone() -> None:
    network = tiny.model()
    x = tiny.padded(2).requires_grad_(True)
    inference = network(x)
    through = torch.autograd.grad(inference.logits.sum(), x, retain_graph=True)[0]
    assert through.abs().max() > 0

    # The same pass with every latent cut from its past: nothing of x is left, whatever the encoder computed.
    fixed = [z.detach() for z in inference.latents]
    logits = network.decode(fixed)
    assert torch.equal(logits, inference.logits)
    assert torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is None


def _cut(network: NVAE) -> None:
    """Cut the gradient at every latent inside the inference pass itself."""
    for group in network.groups:
        mix = group.mix
        group.mix = lambda s, z, mix=mix: mix(s, z.detach())  # type: ignore[assignment,method-assign,misc]


def test_no_leak_in_the_inference_pass() -> None:
    network = tiny.model()
    _cut(network)
    x = tiny.padded(2).requires_grad_(True)
    assert torch.autograd.grad(network(x).logits.sum(), x, allow_unused=True)[0] is None


def test_a_group_sees_earlier_latents_only() -> None:
    """Changing the latent of group l changes the priors of later groups and of no other."""
    network = tiny.model(groups=3)
    count = len(network.groups)
    latents = network(tiny.padded(2)).latents

    def priors(given: list[Tensor]) -> list[Tensor]:
        seen: list[Tensor] = []

        def draw(index: int, group: Any, s: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
            seen.append(torch.cat(parameters))
            return given[index]

        network._top_down(2, draw)
        return seen

    plain = priors(latents)
    for changed in range(count):
        other = [z + 1 if i == changed else z for i, z in enumerate(latents)]
        differs = [not torch.equal(a, b) for a, b in zip(plain, priors(other), strict=True)]
        assert differs == [i > changed for i in range(count)]


def test_first_prior_is_standard_but_for_the_floor() -> None:
    network = tiny.model()
    mu, log_sigma = network.groups[0].prior(network.start.expand(2, -1, -1, -1))  # type: ignore[operator]
    prior = Normal.clamped(mu, log_sigma)
    assert prior.mu.unique().tolist() == [0]
    assert prior.sigma.unique().tolist() == pytest.approx([1.01])


def test_encoder_gives_one_map_a_group_coarsest_first() -> None:
    encoder = Encoder(tiny.settings(groups=4, scales=2), 1)
    sides = [m.shape[-1] for m in encoder(tiny.padded(1))]
    assert sides == [4, 4, 8, 8, 8, 8]


# --- posterior and prior ---


def zero_deltas(network: NVAE) -> NVAE:
    for group in network.groups:
        for parameter in group.posterior_head.parameters():  # type: ignore[union-attr]
            torch.nn.init.zeros_(parameter)
    return network


@pytest.mark.parametrize("weight_norm", [True, False])
def test_without_deltas_the_posterior_is_the_prior(weight_norm: bool) -> None:
    network = zero_deltas(tiny.model(weight_norm=weight_norm))
    torch.manual_seed(5)
    inference = network(tiny.padded(3))
    torch.manual_seed(5)
    assert torch.equal(network.sample(3), inference.logits)
    assert all((kl == 0).all() for kl in inference.kl_nats)


def test_absolute_posterior_ignores_the_prior() -> None:
    network = zero_deltas(tiny.model(residual_posterior=False))
    with torch.no_grad():
        network.groups[1].prior_head[1].bias += 1  # type: ignore[index,union-attr,operator]
    inference = network(tiny.padded(3))
    assert (inference.kl_nats[0] == 0).all(), "the first prior is the standard one"
    assert (inference.kl_nats[1] > 0).all()
    prior = torch.zeros(1, 4, 4, 4) + 0.7
    group = network.groups[0]
    assert group.posterior(None, torch.zeros(1, 32, 4, 4), (prior, prior)).mu.unique().tolist() == [0]  # type: ignore[operator]


def test_residual_posterior_adds_before_the_clamp() -> None:
    network = zero_deltas(tiny.model())
    prior = (torch.full((1, 4, 4, 4), 4.0), torch.full((1, 4, 4, 4), -3.0))
    group = network.groups[0]
    with torch.no_grad():
        group.posterior_head.bias += 2  # type: ignore[union-attr,operator]
    q = group.posterior(None, torch.zeros(1, 32, 4, 4), prior)  # type: ignore[operator]
    expected = Normal.clamped(prior[0] + 2, prior[1] + 2)
    torch.testing.assert_close(q.mu, expected.mu)
    torch.testing.assert_close(q.sigma, expected.sigma)


def test_from_prior() -> None:
    network = tiny.model(groups=3)
    encoded, count = network.encoder(tiny.padded(2)), len(network.groups)
    results = []
    for k in range(count + 1):
        torch.manual_seed(7)
        results.append(network.infer(encoded, from_prior=k))
        assert [bool((kl == 0).all()) for kl in results[-1].kl_nats] == [i < k for i in range(count)]
    torch.manual_seed(7)
    assert torch.equal(network.sample(2), results[count].logits)
    torch.manual_seed(7)
    assert torch.equal(network(tiny.padded(2)).logits, results[0].logits)


def test_encoding_once_is_the_whole_pass() -> None:
    network = tiny.model(flows=1)
    x = tiny.padded(3)
    torch.manual_seed(2)
    whole = network(x)
    encoded = network.encoder(x)
    for _ in range(2):  # the encoder's maps can be used again
        torch.manual_seed(2)
        again = network.infer(encoded)
        assert torch.equal(again.logits, whole.logits)
        assert all(torch.equal(a, b) for a, b in zip(again.kl_nats, whole.kl_nats, strict=True))


def test_log_ratio_is_the_kl_on_average() -> None:
    network = tiny.model()
    with torch.no_grad():
        for group in network.groups:
            group.posterior_head.bias += 0.3  # type: ignore[union-attr,operator]
        encoded = network.encoder(tiny.padded(1).expand(200, -1, -1, -1))
        inference = network.infer(encoded, log_ratio=True)
    assert inference.log_ratio_nats is not None
    total = torch.stack(inference.kl_nats).sum(0)
    assert total.mean() > 1
    difference = inference.log_ratio_nats + total
    assert abs(difference.mean().item()) <= 4 * difference.std().item() / 200**0.5


def test_kl_with_flows_is_the_log_ratio_of_the_draw() -> None:
    inference = tiny.model(flows=1).infer(tiny.model(flows=1).encoder(tiny.padded(3)), log_ratio=True)
    assert inference.log_ratio_nats is not None
    torch.testing.assert_close(-torch.stack(inference.kl_nats).sum(0), inference.log_ratio_nats, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_temperature_of_the_first_group(temperature: float) -> None:
    network = tiny.model()
    drawn: list[Tensor] = []
    mix = network.groups[0].mix
    network.groups[0].mix = lambda s, z: drawn.append(z) or mix(s, z)  # type: ignore[assignment,method-assign,operator,func-returns-value]
    with torch.no_grad():
        network.sample(300, temperature)
    n = drawn[0].numel()
    assert n > 10_000
    assert drawn[0].var().item() == pytest.approx((1.01 * temperature) ** 2, rel=4 * (2 / n) ** 0.5)


def test_temperature_zero_is_deterministic() -> None:
    network = tiny.model()
    assert torch.equal(network.sample(2, 0), network.sample(2, 0))
    assert not torch.equal(network.sample(2, 0.5), network.sample(2, 0.5))


@pytest.mark.parametrize(
    "changes", [{"bn_swish": "separate"}, {"bn_swish": "naive"}, {"checkpoint_cells": True}], ids=str
)
def test_the_way_of_computing_does_not_change_gradients(changes: dict[str, Any]) -> None:
    def gradients(**changed: Any) -> Tensor:
        torch.manual_seed(0)
        network = NVAE(tiny.settings(**changed), 1, 32)
        torch.manual_seed(1)
        inference = network(tiny.padded(6))
        (inference.logits.square().mean() + torch.stack(inference.kl_nats).sum(0).mean()).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    plain, other = gradients(), gradients(**changes)
    assert plain.norm() > 0
    assert (other - plain).norm() <= 1e-5 * plain.norm()


def test_convolutions_are_all_of_them() -> None:
    chosen: Settings = tiny.settings(flows=1)
    network = NVAE(chosen, 1, 32)
    listed = convolutions(network)
    assert len(listed) == len({id(c) for c in listed})
    four_dimensional = [n for n, p in network.named_parameters() if n.endswith("weight") and p.dim() == 4]
    assert len(listed) == len(four_dimensional)
