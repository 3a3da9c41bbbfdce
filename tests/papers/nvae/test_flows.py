"""The flows are triangular in both orders, so their log-determinant is 0."""

import pytest
import torch
from torch import Tensor, nn

from papers.nvae.flows import AutoregressiveShift, MaskedConv2d, flow_stack
from tests.papers.nvae import tiny

CHANNELS, SIDE = 3, 4


def flow(mirrored: bool) -> AutoregressiveShift:
    """With weights large enough to show every dependency."""
    shift = AutoregressiveShift(CHANNELS, mirrored)
    with torch.no_grad():
        for parameter in shift.parameters():
            parameter.add_(torch.randn_like(parameter))
    return shift.double()


def jacobian(function: nn.Module | object) -> Tensor:
    """d out / d in with both flattened in raster order of pixels, channels fastest."""

    def flat(z: Tensor) -> Tensor:
        image = z.view(1, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2)
        return function(image).permute(0, 2, 3, 1).reshape(-1)  # type: ignore[operator]

    z = torch.randn(SIDE * SIDE * CHANNELS, dtype=torch.float64)
    return torch.autograd.functional.jacobian(flat, z)  # type: ignore[no-any-return]


def test_raster_order_is_strictly_lower_triangular() -> None:
    j = jacobian(flow(mirrored=False).shift)
    assert torch.equal(j, j.tril(-1))
    inside = j.view(SIDE * SIDE, CHANNELS, SIDE * SIDE, CHANNELS)
    centre = torch.stack([inside[p, :, p] for p in range(SIDE * SIDE)]).abs().amax(0)
    assert torch.equal(centre != 0, torch.ones(CHANNELS, CHANNELS).tril(-1).bool()), (
        "earlier channels of the same pixel"
    )
    # The 3x3 and the 5x5 kernel together look three rows up; the same row as far as three to the left.
    assert (inside[15, :, 12] != 0).all()
    assert (inside[12, :, 0] != 0).all()


def test_mirrored_order_is_strictly_upper_triangular() -> None:
    j = jacobian(flow(mirrored=True).shift)
    assert torch.equal(j, j.triu(1))
    assert (j != 0).sum() > 100


def test_stack_preserves_volume() -> None:
    pair = nn.Sequential(flow(False), flow(True), flow(False))
    sign, log_determinant = torch.linalg.slogdet(jacobian(pair))
    assert sign == 1
    assert log_determinant.item() == pytest.approx(0, abs=1e-9)
    plain = nn.Sequential(flow(False))
    assert torch.linalg.det(jacobian(plain)).item() == pytest.approx(1, abs=1e-12)


def test_stack_alternates_orders() -> None:
    assert [f.mirrored for f in flow_stack(4, 2)] == [False, True, False, True]  # type: ignore[union-attr]
    z = torch.randn(1, 4, 2, 2)
    assert torch.equal(flow_stack(4, 0)(z), z)


def test_masked_weights_have_the_norm_of_their_gain() -> None:
    conv = AutoregressiveShift(CHANNELS, False).spread
    with torch.no_grad():
        conv.log_gain.normal_()
    masked = (conv.weight * conv.mask).flatten(1).norm(dim=1)
    norms = conv.effective_weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, conv.log_gain.flatten().exp() * masked / (masked + 1e-5))
    assert (conv.effective_weight()[conv.mask == 0] == 0).all()


def test_first_shift_is_small() -> None:
    """The last layer starts at a tenth of its gain."""
    torch.manual_seed(0)
    project = AutoregressiveShift(8, False).project
    assert isinstance(project, MaskedConv2d)
    masked = (project.weight * project.mask).flatten(1).norm(dim=1)
    torch.testing.assert_close(project.log_gain.flatten().exp(), 0.1 * (masked + 0.01))


def test_parameters_of_the_flows_of_a_group() -> None:
    """About 54.6 thousand for each pair at 20 channels in the official network; ours has some biases more."""
    assert sum(p.numel() for p in flow_stack(20, 1).parameters()) == pytest.approx(54_600, rel=1e-2)


def test_sampling_uses_no_flow() -> None:
    network = tiny.model(flows=1)
    flows = [p for name, p in network.named_parameters() if "flows" in name]
    assert flows
    assert all(g is None for g in torch.autograd.grad(network.sample(2).sum(), flows, allow_unused=True))
    inferred = network(tiny.padded(2))
    assert all(g is not None for g in torch.autograd.grad(inferred.logits.sum(), flows, allow_unused=True))
