"""Relaxations of one-hot vectors, binary vectors and (correlated) k-subsets, against enumeration and optimality."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from papers.sst import chains, subsets
from papers.sst.utilities import sample
from shared.solvers.chains import correlated_top_k, with_products
from shared.solvers.simple import argmax, top_k

Relaxation = Callable[[Tensor, int, float], Tensor]
K_SUBSETS: dict[str, Relaxation] = {
    "euclidean": subsets.k_subset_euclidean,
    "categorical": subsets.k_subset_categorical,
    "binary": subsets.k_subset_binary,
    "exponential_family": chains.k_subset_marginals,
}
every_k_subset = pytest.mark.parametrize("name", K_SUBSETS)
U = torch.tensor([0.5, -1, 0.3, 2, 0], dtype=torch.float64)


def all_subsets(n: int, k: int) -> Tensor:
    chosen = [y for y in itertools.product((0.0, 1.0), repeat=n) if sum(y) == k]
    return torch.tensor(chosen, dtype=torch.float64)


def gibbs(u: Tensor, vertices: Tensor) -> Tensor:
    """Marginals under exp(<u, x>) by enumeration."""
    return (u @ vertices.T).softmax(-1) @ vertices


def objective(name: str, u: Tensor, x: Tensor, t: float) -> Tensor:
    entropy = {
        "euclidean": x.square() / 2,
        "categorical": torch.xlogy(x, x),
        "binary": torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x),
    }[name]
    return (u * x - t * entropy).sum(-1)


REFERENCE = {
    "exponential_family": (0.427712, 0.107530, 0.360536, 0.828150, 0.276072),
    "binary": (0.419771, 0.138989, 0.371984, 0.764280, 0.304976),
    "euclidean": (0.566667, 0, 0.366667, 1, 0.066667),
    "categorical": (0.377588, 0.084251, 0.309143, 1, 0.229018),
}


@every_k_subset
def test_top_two_of_the_reference_point(name: str) -> None:
    expected = torch.tensor(REFERENCE[name], dtype=torch.float64)
    torch.testing.assert_close(K_SUBSETS[name](U, 2, 1.0), expected, rtol=0, atol=1e-6)


def test_log_partition_at_the_reference_point() -> None:
    assert chains.k_subset_log_partition(U, 2).item() == pytest.approx(3.6625131672921696, abs=1e-12)


@every_k_subset
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_points_are_in_the_hypersimplex(name: str, dtype: torch.dtype, temperature: float) -> None:
    u = 3 * torch.randn(4, 3, 7, dtype=dtype)
    for k in range(8):
        x = K_SUBSETS[name](u, k, temperature)
        assert (x.shape, x.dtype) == (u.shape, u.dtype)
        assert x.min() >= 0
        assert x.max() <= 1 + 1e-6
        torch.testing.assert_close(x.sum(-1), torch.full_like(x[..., 0], k), rtol=1e-5, atol=1e-5)
    assert K_SUBSETS[name](u[:0], 2, temperature).shape == (0, 3, 7)


@every_k_subset
def test_the_limit_is_the_best_subset(name: str) -> None:
    u = torch.randn(50, 6, dtype=torch.float64)
    hard = top_k(u, 3)
    ordered = u.sort(-1, descending=True).values
    clear = ordered[:, 2] - ordered[:, 3] > 0.1
    assert clear.sum() > 20
    errors = [(K_SUBSETS[name](u, 3, t) - hard)[clear].abs().max().item() for t in (1.0, 0.1, 0.03, 0.003)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("name", ["euclidean", "categorical", "binary"])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_no_point_of_the_polytope_is_better(name: str, temperature: float) -> None:
    """The objective is concave, so it is enough that no step towards a vertex, or a random point, raises it."""
    u = torch.randn(8, 1, 6, dtype=torch.float64)
    vertices = all_subsets(6, 3)
    others = torch.cat([vertices, torch.rand(200, len(vertices), dtype=torch.float64).pow(4) @ vertices])
    others = others / others.sum(-1, keepdim=True) * 3
    x = K_SUBSETS[name](u, 3, temperature)
    best = objective(name, u, x, temperature)
    for step in (1.0, 1e-2, 1e-4):
        moved = x + step * (others - x)
        assert (objective(name, u, moved.clamp(0, 1), temperature) <= best + 1e-12).all()


@every_k_subset
@pytest.mark.parametrize("temperature", [0.4, 2.0])
def test_vector_jacobian_product_is_the_finite_difference(name: str, temperature: float) -> None:
    u = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    for k in range(6):
        assert torch.autograd.gradcheck(lambda u, k=k: K_SUBSETS[name](u, k, temperature), u, eps=1e-6, atol=1e-6)


@every_k_subset
def test_jacobian_is_symmetric_and_positive(name: str) -> None:
    jacobian = torch.autograd.functional.jacobian(lambda u: K_SUBSETS[name](u, 2, 0.7), U)
    torch.testing.assert_close(jacobian, jacobian.T)
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-12
    torch.testing.assert_close(jacobian.sum(0), torch.zeros(5, dtype=torch.float64))


@every_k_subset
@given(scores=st.lists(st.integers(-3, 3), min_size=2, max_size=6), data=st.data())
def test_ties_and_constants(name: str, scores: list[int], data: st.DataObject) -> None:
    """Equal utilities get equal shares, and a constant on all of them changes nothing."""
    u = torch.tensor(scores, dtype=torch.float64)
    k = data.draw(st.integers(0, len(scores)))
    x = K_SUBSETS[name](u, k, 0.5)
    assert x.sum().item() == pytest.approx(k, abs=1e-9)
    torch.testing.assert_close(K_SUBSETS[name](u + 7, k, 0.5), x)
    order = u.argsort()
    assert (x[order].diff() >= -1e-9).all()
    equal = u[:, None] == u
    assert ((x[:, None] - x).abs()[equal] < 1e-9).all()


@every_k_subset
def test_single_precision_at_low_temperature(name: str) -> None:
    """Scores of some thousands after the division: the sum and the gradient keep their digits."""
    u = (10 * torch.randn(20, 40, dtype=torch.float64)).float().requires_grad_()
    v = torch.randn(20, 40)
    single = K_SUBSETS[name](u, 9, 0.01)
    (gradient,) = torch.autograd.grad(single, u, v)
    exact = u.detach().double().requires_grad_()
    double = K_SUBSETS[name](exact, 9, 0.01)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("n", "k"), [(1, 0), (1, 1), (4, 1), (6, 3), (6, 5), (6, 6), (9, 4)])
def test_marginals_are_those_of_the_enumeration(n: int, k: int) -> None:
    u, t = 2 * torch.randn(3, 2, n, dtype=torch.float64), 0.6
    vertices = all_subsets(n, k)
    torch.testing.assert_close(chains.k_subset_marginals(u, k, t), gibbs(u / t, vertices), rtol=0, atol=1e-12)
    torch.testing.assert_close(chains.k_subset_log_partition(u, k), (u @ vertices.T).logsumexp(-1))


def test_covariance_is_the_jacobian() -> None:
    vertices, t = all_subsets(5, 2), 0.6
    p = (U / t @ vertices.T).softmax(-1)
    mean = p @ vertices
    covariance = (vertices - mean).T @ (p[:, None] * (vertices - mean))
    jacobian = torch.autograd.functional.jacobian(lambda u: chains.k_subset_marginals(u, 2, t), U)
    torch.testing.assert_close(jacobian, covariance / t)


def test_one_of_n_is_the_gumbel_softmax_for_both_entropies_and_sparsemax() -> None:
    """Claim of the paper: on one-hot vectors the general construction is softmax(U / t)."""
    u, t = sample(torch.randn(6, dtype=torch.float64), "gumbel", 100), 0.5
    expected = torch.softmax(u / t, -1)
    torch.testing.assert_close(subsets.categorical(u, t), expected, rtol=0, atol=0)
    torch.testing.assert_close(chains.k_subset_marginals(u, 1, t), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(subsets.k_subset_categorical(u, 1, t), expected, rtol=0, atol=1e-12)
    sparse = subsets.categorical_euclidean(u, t)
    for point, scores in zip(sparse, u / t, strict=True):  # sparsemax by its support, one by one
        ordered = scores.sort(descending=True).values
        count = max(j for j in range(1, 7) if 1 + j * ordered[j - 1] > ordered[:j].sum())
        threshold = (ordered[:count].sum() - 1) / count
        torch.testing.assert_close(point, (scores - threshold).clamp_min(0))


def test_binary_vectors() -> None:
    u = torch.randn(100, 5, dtype=torch.float64)
    hard = subsets.binary_vector(u)
    assert set(hard.unique().tolist()) == {0, 1}
    torch.testing.assert_close(hard, torch.where(u > 0, 1.0, 0.0).double())
    torch.testing.assert_close(gibbs(u / 0.7, torch.cat([all_subsets(5, k) for k in range(6)])), subsets.binary(u, 0.7))
    torch.testing.assert_close(subsets.binary_euclidean(torch.tensor([-1.0, 0.2, 3.0]), 0.5), torch.tensor([0, 0.4, 1]))
    clear = u.abs() > 0.01
    for relaxation in (subsets.binary, subsets.binary_euclidean):
        assert (relaxation(u, 1e-4) - hard)[clear].abs().max() < 1e-9


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_of_gumbel_utilities_is_plackett_luce(k: int) -> None:
    """Subsets in their sequential law: sums over the orders in which the items could have been drawn."""
    theta = torch.tensor([0.5, -1, 0.3, 0.8], dtype=torch.float64)
    weights = theta.exp()
    expected = []
    vertices = all_subsets(4, k)
    for vertex in vertices:
        total = 0.0
        for order in itertools.permutations(vertex.nonzero().flatten().tolist()):
            left, p = weights.sum().item(), 1.0
            for item in order:
                p, left = p * weights[item].item() / left, left - weights[item].item()
            total += p
        expected.append(total)
    solver = partial(top_k, k=k) if k > 1 else argmax
    drawn = solver(sample(theta, "gumbel", 40_000))
    counts = (drawn[:, None] == vertices).all(-1).sum(0)
    assert stats.chisquare(counts.numpy(), 40_000 * numpy.array(expected)).pvalue > 1e-3


def chain_vertices(n: int, k: int) -> Tensor:
    return with_products(all_subsets(n, k))


@pytest.mark.parametrize(("n", "k"), [(1, 0), (1, 1), (2, 1), (2, 2), (5, 0), (5, 1), (6, 3), (7, 5), (5, 5)])
def test_correlated_marginals_are_those_of_the_enumeration(n: int, k: int) -> None:
    u, t = 2 * torch.randn(3, 2, 2 * n - 1, dtype=torch.float64), 0.6
    vertices = chain_vertices(n, k)
    x = chains.correlated_marginals(u, k, t)
    torch.testing.assert_close(x, gibbs(u / t, vertices), rtol=0, atol=1e-12)
    torch.testing.assert_close(x[..., :n].sum(-1), torch.full((3, 2), float(k), dtype=torch.float64))
    torch.testing.assert_close(chains.correlated_log_partition(u, k), (u @ vertices.T).logsumexp(-1))
    one = chains.correlated_marginals(u[0, 0], k, t)
    torch.testing.assert_close(one, x[0, 0])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (5, 1), (5, 3), (4, 4), (3, 0)])
def test_correlated_vector_jacobian_product(n: int, k: int) -> None:
    u = torch.randn(2, 2 * n - 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: chains.correlated_marginals(u, k, 0.6), u, eps=1e-6, atol=1e-6)


def test_without_scores_on_neighbours_they_are_the_marginals_of_k_subsets() -> None:
    u = torch.randn(10, 30)
    both = torch.cat([u, torch.zeros(10, 29)], -1)
    torch.testing.assert_close(chains.correlated_marginals(both, 7, 0.5)[:, :30], chains.k_subset_marginals(u, 7, 0.5))


def test_correlated_limit_is_the_best_chain() -> None:
    u = torch.randn(50, 11, dtype=torch.float64)
    vertices = chain_vertices(6, 3)
    values = (u @ vertices.T).sort(-1, descending=True).values
    clear = values[:, 0] - values[:, 1] > 0.1
    hard = correlated_top_k(u, 3)
    errors = [(chains.correlated_marginals(u, 3, t) - hard)[clear].abs().max().item() for t in (1.0, 0.1, 0.005)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_positive_scores_on_neighbours_make_spans() -> None:
    u = torch.cat([torch.randn(200, 20), torch.full((200, 19), 5.0)], -1)
    items = correlated_top_k(u, 6)[:, :20]
    assert ((items.diff(dim=-1, prepend=torch.zeros(200, 1)) == 1).sum(-1) == 1).all()


def test_long_chains_in_single_precision() -> None:
    """The recursions run in float64: 350 items at temperature 0.1 lose nothing that float32 can show."""
    u = torch.randn(2, 699)
    for relaxation, scores in ((chains.correlated_marginals, u), (chains.k_subset_marginals, u[:, :350])):
        single, double = (relaxation(s.clone().requires_grad_(), 15, 0.1) for s in (scores, scores.double()))
        torch.testing.assert_close(single, double.float())
        single.square().sum().backward()


@every_k_subset
def test_refusals(name: str) -> None:
    relax = K_SUBSETS[name]
    for k in (-1, 6):
        with pytest.raises(ValueError, match=f"cannot choose {k} of 5"):
            relax(U, k, 1.0)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            relax(U, 2, temperature)
    with pytest.raises(ValueError, match="utilities are floating-point numbers"):
        relax(torch.tensor([1, 2]), 1, 1.0)
