"""Residual cells: shapes, skips, and equal gradients however they are computed."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nvae.cells import Cell, FactorisedReduce, Resample, upsample
from shared.bn_swish import BatchNorm
from shared.layers import SqueezeExcite, WeightNormConv2d
from shared.upsampling import Nearest
from tests.papers.nvae import tiny


def cell(resample: Resample = "same", kind: str = "regular", **changes: Any) -> Cell:
    torch.manual_seed(0)
    c_out = {"same": 8, "down": 16, "up": 4}[resample]
    return Cell(8, c_out, resample, kind, 3, tiny.settings(**changes), side=8)


@pytest.mark.parametrize("normalisation", ["bn_swish", "bn_elu", "wn_elu"])
@pytest.mark.parametrize("kind", ["regular", "separable"])
@pytest.mark.parametrize(("resample", "shape"), [("same", (8, 8)), ("down", (16, 4)), ("up", (4, 16))])
def test_shapes(resample: Resample, shape: tuple[int, int], kind: str, normalisation: str) -> None:
    x = torch.randn(2, 8, 8, 8)
    y = cell(resample, kind, normalisation=normalisation)(x)
    assert y.shape == (2, shape[0], shape[1], shape[1])


def test_branch_is_scaled_by_a_tenth() -> None:
    same = cell()
    x = torch.randn(2, 8, 8, 8)
    assert isinstance(same.squeeze_excite, SqueezeExcite)
    torch.testing.assert_close(same(x), x + 0.1 * same.squeeze_excite(same.branch(x)))
    ungated = cell(squeeze_excite=False)
    assert not any(isinstance(m, SqueezeExcite) for m in ungated.modules())
    torch.testing.assert_close(ungated(x), x + 0.1 * ungated.branch(x))


@pytest.mark.parametrize("kind", ["regular", "separable"])
def test_convolutions_before_a_batch_norm_have_neither_bias_nor_weight_norm(kind: str) -> None:
    layers = [m for m in cell(kind=kind).branch.modules() if isinstance(m, nn.Conv2d | BatchNorm)]
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            normalised = isinstance(after, BatchNorm)
            assert (layer.bias is None) == normalised
            assert isinstance(layer, WeightNormConv2d) != normalised
    order = [type(layer).__name__ for layer in layers]
    if kind == "regular":
        assert order == ["BatchNormSwish", "Conv2d", "BatchNormSwish", "WeightNormConv2d"]
    else:
        assert order == ["BatchNorm", "Conv2d", "BatchNormSwish", "Conv2d", "BatchNormSwish", "Conv2d", "BatchNorm"]
        assert [m.kernel_size[0] for m in layers if isinstance(m, nn.Conv2d)] == [1, 5, 1]
        assert [m.groups for m in layers if isinstance(m, nn.Conv2d)] == [1, 24, 1]


def test_weight_norm_alone_has_no_batch_norm() -> None:
    for kind in ("regular", "separable"):
        modules = list(cell("down", kind, normalisation="wn_elu").modules())
        assert not any(isinstance(m, BatchNorm) for m in modules)
        assert all(isinstance(m, WeightNormConv2d) for m in modules if isinstance(m, nn.Conv2d))


def test_factorised_reduce_takes_a_quarter_from_each_offset() -> None:
    reduce = FactorisedReduce(8, 16, tiny.settings())
    x = torch.randn(2, 8, 6, 6)
    y = reduce(x)
    assert y.shape == (2, 16, 3, 3)
    changed_quarters = []
    for i in range(2):
        for j in range(2):
            other = x.clone()
            other[:, :, i::2, j::2] = torch.randn(2, 8, 3, 3)
            changed = (reduce(other) != y).view(2, 4, 4, 3, 3).any(0).any(1).any(1).any(1)
            changed_quarters.append(changed.nonzero().flatten().tolist())
    assert sorted(q for quarters in changed_quarters for q in quarters) == [0, 1, 2, 3]
    assert all(len(quarters) == 1 for quarters in changed_quarters)


def test_upsample_is_bilinear_interpolation_before_the_convolution() -> None:
    """As the paper has it, in outputs and gradients; the convolution comes first here, which is the same."""
    up = upsample(3, 5, 4, tiny.settings(weight_norm=False)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    expected = up[0](F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
    torch.testing.assert_close(up(x), expected, rtol=1e-6, atol=1e-6)
    towards = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, [x, *up.parameters()], towards) for y in (up(x), expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_nearest_copies_each_pixel_four_times() -> None:
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(Nearest()(x), F.interpolate(x, scale_factor=2))


def gradients(module: Cell, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    y = module(x)
    torch.manual_seed(3)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], torch.randn_like(y))]


@pytest.mark.parametrize(
    "changes", [{"bn_swish": "separate"}, {"bn_swish": "naive"}, {"checkpoint_cells": True}], ids=str
)
@pytest.mark.parametrize("kind", ["regular", "separable"])
def test_the_way_of_computing_does_not_change_gradients(kind: str, changes: dict[str, Any]) -> None:
    x = torch.randn(4, 8, 8, 8, dtype=torch.float64)
    fused, other = cell("down", kind).double(), cell("down", kind, **changes).double()
    for a, b in zip(fused.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), "equal initial weights"
    for a, b in zip(gradients(fused, x), gradients(other, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


def test_checkpointing_keeps_less() -> None:
    def kept(module: Cell) -> int:
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(4, 8, 16, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = module(x)
        return sum(storages.values()) if y.requires_grad else 0

    naive, separate, fused, checkpointed = (
        kept(cell(kind="separable", **changes))
        for changes in ({"bn_swish": "naive"}, {"bn_swish": "separate"}, {}, {"checkpoint_cells": True})
    )
    assert checkpointed < fused < separate < naive
