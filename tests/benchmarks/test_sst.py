"""The baselines of the benchmark solve the same tasks, and its measurements measure what they say."""

import pytest
import torch

from benchmarks.sst import (
    EDGES,
    NODES,
    assert_as_good,
    combinatorial_entries,
    gumbel,
    marginal_entries,
    marginals_by_log_determinant,
    marginals_in_closed_form,
    networkx_arborescences,
    networkx_trees,
)
from shared.solvers.arborescence import max_arborescence
from shared.solvers.spanning_tree import max_spanning_tree


@pytest.mark.parametrize("algorithm", ["kruskal", "prim"])
def test_networkx_finds_the_same_trees(algorithm: str) -> None:
    scores = gumbel(7, len(EDGES))
    assert torch.equal(networkx_trees(algorithm)(scores), max_spanning_tree(scores))


def test_networkx_finds_the_same_arborescences() -> None:
    scores = gumbel(5, NODES, NODES)
    theirs = networkx_arborescences()(scores)
    assert (theirs[:, :, 1:].sum(1) == 1).all()
    assert (theirs[:, :, 0] == 0).all()
    assert_as_good(scores, max_arborescence(scores), theirs)


def test_a_worse_choice_is_noticed() -> None:
    scores = gumbel(5, len(EDGES))
    with pytest.raises(AssertionError):
        assert_as_good(scores, max_spanning_tree(scores), max_spanning_tree(-scores))


def test_both_marginals_have_the_same_value_and_gradient() -> None:
    utilities = (4 * gumbel(4, len(EDGES))).double().requires_grad_()  # some are limited
    assert ((utilities < utilities.amax(-1, keepdim=True) - 15).any(-1)).all()
    both = [f(utilities) for f in (marginals_in_closed_form, marginals_by_log_determinant)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-7)
    cotangent = torch.randn_like(utilities)
    slopes = [torch.autograd.grad(mu, utilities, cotangent)[0] for mu in both]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-7)


def test_entries_are_complete_and_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sst.GRAPHS", 8)
    entries = [*combinatorial_entries(1), *marginal_entries(1)]
    assert [row["name"] for row in entries] == [
        "spanning_tree_vs_networkx",
        "spanning_tree_vs_networkx_prim",
        "arborescence_vs_networkx",
        "tree_marginal_gradient_vs_double_backward",
    ]
    for row in entries:
        ours, baseline, ratio = (float(row[key]) for key in ("ours", "baseline", "ratio"))  # type: ignore[arg-type]
        assert ours > 0
        assert baseline > 0
        assert ratio == pytest.approx(baseline / ours if row["unit"] == "ms" else ours / baseline, rel=1e-3)
