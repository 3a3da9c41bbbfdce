"""The reference of the rounding study is right, and the study tells the methods apart."""

import pytest
import torch

from papers.sst import precision
from papers.sst.spanning_trees import marginals
from papers.sst.structures import all_spanning_trees, gibbs_mean


@pytest.mark.parametrize("spread", [1, 30, 300])
def test_star_mesh_is_the_mean_over_all_trees(spread: float) -> None:
    u = spread * torch.rand(20, 6, dtype=torch.float64)
    listed = gibbs_mean(u, all_spanning_trees(4), 1.0)
    torch.testing.assert_close(precision.by_star_mesh(u), listed, rtol=1e-9, atol=1e-300)


def test_all_methods_agree_where_the_range_is_small() -> None:
    u = 5 * torch.rand(20, 45, dtype=torch.float64)
    exact = precision.by_star_mesh(u)
    torch.testing.assert_close(exact.sum(-1), torch.full((20,), 9.0).double())
    torch.testing.assert_close(precision.by_log_determinant(u), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(marginals(u), exact, rtol=0, atol=1e-12)
    assert set(precision.errors(u)) == set(precision.ARMS)
    assert max(error.max().item() for error in precision.errors(u).values()) < 1e-4


def test_float32_and_a_limited_range_fail_on_wide_ranges() -> None:
    errors = precision.errors(60 * torch.rand(100, 45, dtype=torch.float64))
    failed = {name: (~(error <= precision.FAILED)).double().mean().item() for name, error in errors.items()}
    assert failed["closed_form"] < 0.05 < failed["float32_log_determinant"] < failed["closed_form_max_range_15"]


def test_what_is_refused_or_singular_is_not_a_number_for_that_instance_alone() -> None:
    u = torch.rand(3, 6, dtype=torch.float64)
    u[1] = torch.tensor([0.0, -500, -500, -500, -500, 0])
    errors = precision.errors(u)["closed_form"]
    assert errors.isnan().tolist() == [False, True, False]
    assert (precision.by_log_determinant(u)[[0, 2]] - precision.by_star_mesh(u)[[0, 2]]).abs().max() < 1e-12
