"""The checks that `evaluate` makes of a trained model."""

import pytest
import torch
from torch import Tensor, nn

from papers.nvae.evaluate import side_path_gradient
from papers.nvae.model import NVAE
from tests.papers.nvae import tiny


@pytest.mark.parametrize("name", ["base", "flows", "one group", "absolute posterior", "three scales", "rgb"])
def test_pixels_reach_the_logits_through_the_latents_alone(name: str) -> None:
    network = tiny.model(**tiny.OPTIONS[name])
    channels = 3 if "rgb" in name else 1
    assert side_path_gradient(network, tiny.padded(4, channels)) == 0.0


def _leaky(network: NVAE, size: float) -> NVAE:
    """A decoder that also sees the encoder's topmost map, past the latents."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], maps: list[Tensor]) -> None:
        seen[:] = maps[:1]

    def leak(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0] + size * seen[0].mean((1, 2, 3), keepdim=True)

    network.encoder.register_forward_hook(keep)
    network.head.register_forward_pre_hook(leak)
    return network


def test_the_check_finds_a_side_path() -> None:
    found = [side_path_gradient(_leaky(tiny.model(), size), tiny.padded(4)) for size in (1.0, 1e-3)]
    assert found[0] > found[1] > 0


def test_the_check_finds_a_latent_that_is_changed_after_it_was_drawn() -> None:
    """Between the draw and its mixing-in nothing may add what the encoder knows."""
    network = tiny.model()
    group, seen = network.groups[0], []
    network.encoder.register_forward_hook(lambda _, __, maps: seen.append(maps[0].mean()))
    mix = group.mix
    group.mix = lambda s, z: mix(s, z + seen[-1])
    assert side_path_gradient(network, tiny.padded(4)) > 0


def test_the_check_leaves_the_model_as_it_was() -> None:
    """Afterwards the latents carry the image's gradient again."""
    network, image = tiny.model(), tiny.padded(4).requires_grad_(True)
    side_path_gradient(network, image)
    (gradient,) = torch.autograd.grad(network(image).logits.sum(), image)
    assert gradient.abs().max() > 0
    assert image.grad is None


class Around(nn.Sequential):
    """Flows that are called in a way that no hook sees."""

    def __call__(self, z: Tensor) -> Tensor:
        return z


def test_a_latent_that_is_not_cut_is_told() -> None:
    network = tiny.model()
    network.groups[1].flows = Around()
    with pytest.raises(RuntimeError, match="2 of 3"):
        side_path_gradient(network, tiny.padded(4))
