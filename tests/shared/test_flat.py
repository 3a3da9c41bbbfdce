"""One buffer for all parameters: the same numbers as parameter by parameter."""

import copy

import pytest
import torch
from torch import nn

from shared.training.flat import flatten
from shared.training.loop import gradient_step


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).double()
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def test_values_and_layouts_are_kept() -> None:
    model = network()
    before = [(p.clone(), p.stride()) for p in model.parameters()]
    flat = flatten(model)
    assert flat.numel() == sum(p.numel() for p in model.parameters())
    for p, (value, stride) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert p.stride() == stride, "channels-last weights stay so"
        assert p.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_an_optimiser_on_the_vector_does_what_it_does_on_the_parameters() -> None:
    """Adamax with weight decay, five steps; the gradients of one step must not leak into the next."""
    one, other = network(), network()
    options = {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1}
    pairs = (
        (one, torch.optim.Adamax([flatten(one)], **options)),
        (other, torch.optim.Adamax(other.parameters(), **options)),
    )
    for k in range(5):
        x = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        norms = [gradient_step(model(x).square().sum(), optimizer)["gradient_norm"] for model, optimizer in pairs]
        torch.testing.assert_close(norms[0], norms[1], rtol=1e-12, atol=1e-12)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_loading_a_state_keeps_the_views() -> None:
    model = network()
    state = copy.deepcopy(model.state_dict())
    flat = flatten(model)
    with torch.no_grad():
        flat.zero_()
    assert all((p == 0).all() for p in model.parameters())
    model.load_state_dict(state)
    torch.testing.assert_close(flat.sum(), sum(state[name].sum() for name, _ in model.named_parameters()))


def test_parameters_of_two_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="several dtypes"):
        flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))
