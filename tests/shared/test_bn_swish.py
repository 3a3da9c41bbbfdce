"""BatchNormSwish is BatchNorm2d followed by SiLU, in everything but the memory it keeps (one process)."""

import pytest
import torch
from torch import Tensor, nn

from shared.bn_swish import BatchNorm, BatchNormSwish

EPS, MOMENTUM = 1e-5, 0.05


def pair(channels: int, dtype: torch.dtype = torch.float32) -> tuple[BatchNormSwish, nn.Sequential]:
    """The fused layer and its reference with the same random weights."""
    fused = BatchNormSwish(channels, EPS, MOMENTUM).to(dtype)
    reference = nn.Sequential(nn.BatchNorm2d(channels, EPS, MOMENTUM), nn.SiLU()).to(dtype)
    with torch.no_grad():
        fused.weight.copy_(torch.randn(channels))
        fused.bias.copy_(torch.randn(channels))
        reference[0].weight.copy_(fused.weight)
        reference[0].bias.copy_(fused.bias)
    return fused, reference


def gradients(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, then the gradients of input, weight and bias."""
    x = x.detach().requires_grad_(True)
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Sums over 8 * 49 values in another order differ by some float32 roundings; float64 shows that nothing else does.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_batch_norm_then_silu(dtype: torch.dtype, tolerance: float, training: bool, channels_last: bool) -> None:
    fused, reference = pair(5, dtype)
    x = 3 * torch.randn(8, 5, 7, 7, dtype=dtype) + 2
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for _ in range(2):  # twice, so that the running statistics are no longer the initial ones
        fused.train()(x), reference.train()(x)
    fused.train(training), reference.train(training)
    grad = torch.randn_like(x)
    assert_same(gradients(fused, x, grad), gradients(reference, x, grad), tolerance)
    torch.testing.assert_close(fused.running_mean, reference[0].running_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(fused.running_var, reference[0].running_var, rtol=tolerance, atol=tolerance)


def test_running_statistics_move_once_a_step_and_never_in_the_backward_pass() -> None:
    fused, _ = pair(3)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = fused(x)
    mean, variance = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3))
    expected = (MOMENTUM * mean, 1 - MOMENTUM + MOMENTUM * variance)
    y.sum().backward()
    torch.testing.assert_close(fused.running_mean, expected[0])
    torch.testing.assert_close(fused.running_var, expected[1])


def test_evaluation_uses_the_formula_with_running_statistics() -> None:
    fused, _ = pair(3, torch.float64)
    fused.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    fused.running_var.copy_(torch.tensor([0.5, 4.0, 1.0]))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    mean, var, weight, bias = (
        v.view(1, -1, 1, 1) for v in (fused.running_mean, fused.running_var, fused.weight, fused.bias)
    )
    y = weight * (x - mean) / (var + EPS).sqrt() + bias
    torch.testing.assert_close(fused.eval()(x), y * torch.sigmoid(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_without_variance(dtype: torch.dtype) -> None:
    fused, reference = pair(2, dtype)
    x = torch.randn(4, 2, 3, 3, dtype=dtype)
    x[:, 0] = 1.5
    assert_same(gradients(fused, x, torch.ones_like(x)), gradients(reference, x, torch.ones_like(x)), 1e-4)


def test_first_and_second_derivatives_by_finite_differences() -> None:
    fused, _ = pair(2, torch.float64)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(fused, {"weight": weight, "bias": bias}, x)

    inputs = (x, fused.weight.detach().requires_grad_(True), fused.bias.detach().requires_grad_(True))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_both_backward_passes_agree() -> None:
    """The fast pass and the differentiable one (create_graph) give the same first derivatives."""
    fused, _ = pair(4, torch.float64)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    plain = torch.autograd.grad(fused(x), [x, *fused.parameters()], grad)
    again = torch.autograd.grad(fused(x), [x, *fused.parameters()], grad, create_graph=True)
    assert again[0].requires_grad
    assert_same([g.detach() for g in again], list(plain), 1e-12)


def test_gradient_that_is_not_contiguous() -> None:
    fused, reference = pair(4, torch.float64)
    x = torch.randn(6, 4, 5, 3, dtype=torch.float64)
    grad = torch.randn(6, 3, 5, 4, dtype=torch.float64).transpose(1, 3)
    assert not grad.is_contiguous()
    assert_same(gradients(fused, x, grad), gradients(reference, x, grad), 1e-12)
    expanded = torch.randn(1, 4, 1, 1, dtype=torch.float64).expand_as(x)  # what the backward of a sum hands down
    assert_same(gradients(fused, x, expanded), gradients(reference, x, expanded), 1e-12)


def test_gradient_shared_by_two_branches_is_not_overwritten() -> None:
    """`a + b` hands the very same gradient tensor to both branches; writing into it would corrupt the other one."""
    fused, reference = pair(4, torch.float64)
    other, other_reference = pair(4, torch.float64)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    grad = torch.randn_like(x)
    kept = grad.clone()

    class Sum(nn.Module):
        def __init__(self, *branches: nn.Module) -> None:
            super().__init__()
            self.branches = nn.ModuleList(branches)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branches[0](x) + self.branches[1](x)

    ours, theirs = Sum(fused, other), Sum(reference, other_reference)
    assert_same(gradients(ours, x, grad), gradients(theirs, x, grad), 1e-12)
    assert torch.equal(grad, kept)


def test_input_is_not_overwritten() -> None:
    fused, _ = pair(3)
    x = torch.randn(2, 3, 4, 4)
    kept = x.clone()
    fused(x)
    assert torch.equal(x, kept)


def test_bfloat16_autocast() -> None:
    """Under autocast features are bfloat16 and statistics float32; both sides round alike, up to a few roundings."""
    fused, reference = pair(6)
    x = torch.randn(8, 6, 9, 9).bfloat16()
    grad = torch.randn_like(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients(fused, x, grad), gradients(reference, x, grad)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    assert fused.running_mean.dtype == ours[2].dtype == torch.float32
    unit = 2.0**-8  # half a unit in the last place of bfloat16, relative
    for a, b in zip(ours, theirs, strict=True):
        assert (a.float() - b.float()).abs().max() <= 4 * unit * b.float().abs().max()
    torch.testing.assert_close(fused.running_mean, reference[0].running_mean)
    torch.testing.assert_close(fused.running_var, reference[0].running_var)
    exact = gradients(fused, x.float(), grad.float())
    for a, b in zip(ours, exact, strict=True):
        assert (a.float() - b).abs().max() <= 6 * unit * b.abs().max()


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, each storage counted once, parameters not."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = layer(x)
    assert kept.requires_grad
    return sum(storages.values())


class Naive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_keeps_one_map_where_the_reference_keeps_two_and_the_naive_form_three() -> None:
    fused, reference = pair(16)
    naive = nn.Sequential(nn.BatchNorm2d(16), Naive())
    x = torch.randn(4, 16, 32, 32, requires_grad=True)
    one_map, vectors = x.numel() * 4, 16 * 4 * 8
    for layer, maps in ((fused, 1), (reference, 2), (naive, 3)):
        assert maps * one_map <= saved_bytes(layer, x) <= maps * one_map + vectors


def test_batch_norm_alone_is_the_librarys() -> None:
    ours, theirs = BatchNorm(4, EPS, MOMENTUM), nn.BatchNorm2d(4, EPS, MOMENTUM)
    x, grad = torch.randn(5, 4, 6, 6), torch.randn(5, 4, 6, 6)
    assert_same(gradients(ours, x, grad), gradients(theirs, x, grad), 1e-6)
    assert_same(gradients(ours.eval(), x, grad), gradients(theirs.eval(), x, grad), 1e-6)
    assert set(ours.state_dict()) == set(theirs.state_dict()) - {"num_batches_tracked"}
