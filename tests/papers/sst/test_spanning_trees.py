"""Marginals, log-partition and their derivatives against all trees, finite differences and double backward."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from papers.sst.spanning_trees import covariance, log_partition, marginals
from papers.sst.utilities import plackett_luce_log_prob
from shared.solvers.spanning_tree import edge_ends, from_matrix, max_spanning_tree, n_nodes, to_matrix
from tests.shared.solvers.trees import all_trees

K3 = torch.tensor([0.5, -1, 0.3], dtype=torch.float64)
K4 = torch.tensor([0.5, -1, 0.3, 2, 0, -0.7], dtype=torch.float64)


def gibbs(u: Tensor, t: float = 1.0) -> tuple[Tensor, Tensor]:
    """log Z, mean (..., E) and covariance (..., E, E) over all trees: probabilities and moments by enumeration."""
    trees = all_trees(n_nodes(u.shape[-1]))
    scores = u.double() / t @ trees.T
    mean = scores.softmax(-1) @ trees
    second = torch.einsum("...k,ke,kf->...ef", scores.softmax(-1), trees, trees)
    return scores.logsumexp(-1), mean, second - mean[..., :, None] * mean[..., None, :]


def by_double_backward(u: Tensor, t: float, max_range: float) -> Tensor:
    """Marginals as the derivative of a minor's log-determinant, which automatic differentiation can derive again."""
    w = u / t
    w = torch.maximum(w, w.amax(-1, keepdim=True) - max_range)
    weights = to_matrix((w - w.amax(-1, keepdim=True)).exp())
    laplacian = torch.diag_embed(weights.sum(-1)) - weights
    log_z = torch.linalg.slogdet(laplacian[..., 1:, 1:]).logabsdet + (len(laplacian[0]) - 1) * w.amax(-1)
    return torch.autograd.grad(log_z.sum(), w, create_graph=True)[0]


def in_extended_precision(u: Tensor) -> Tensor:
    """Marginals (B, E) of float64 utilities by Gauss-Jordan elimination in numpy's longdouble."""
    weights = np.exp(to_matrix(u - u.amax(-1, keepdim=True), -math.inf).numpy().astype(np.longdouble))
    batch, n, _ = weights.shape
    grounded = np.eye(n) * weights.sum(-1)[:, None] - weights
    end = edge_ends(n)[0][u.argmax(-1)].numpy()
    grounded[np.arange(batch), end, end] += 1
    both = np.concatenate([grounded, np.broadcast_to(np.eye(n), grounded.shape)], -1)
    for k in range(n):
        both[:, k] /= both[:, k, k, None]
        for i in set(range(n)) - {k}:
            both[:, i] -= both[:, i, k, None] * both[:, k]
    inverse = both[:, :, n:]
    diagonal = np.einsum("bii->bi", inverse)
    resistances = diagonal[:, :, None] + diagonal[:, None] - 2 * inverse
    return from_matrix(torch.from_numpy((weights * resistances).astype(np.float64)))


# --- known values ---


def test_log_partition_of_zeros_counts_trees() -> None:
    for n, count in [(2, 1), (3, 3), (4, 16), (5, 125), (10, 10**8)]:
        zeros = torch.zeros(n * (n - 1) // 2, dtype=torch.float64)
        assert log_partition(zeros).exp().item() == pytest.approx(count)
        torch.testing.assert_close(marginals(zeros), torch.full_like(zeros, 2 / n))


def test_values_of_the_example_on_four_nodes() -> None:
    assert log_partition(K4).item() == pytest.approx(4.132625515811672, abs=1e-14)
    expected = {
        1.0: (0.614795, 0.162703, 0.611664, 0.919797, 0.443523, 0.247518),
        0.5: (0.756683, 0.039750, 0.677519, 0.993811, 0.424266, 0.107972),
        0.1: (0.993617, 0, 0.952836, 1, 0.053498, 0.000049),
    }
    for t, mu in expected.items():
        np.testing.assert_allclose(marginals(K4, t), mu, rtol=0, atol=6e-7)
    row = (0.236822, -0.072336, -0.081403, -0.009246, -0.054397, -0.019440)
    np.testing.assert_allclose(covariance(K4)[0], row, rtol=0, atol=6e-7)
    assert max_spanning_tree(K4).tolist() == [1, 0, 1, 1, 0, 0]
    assert (marginals(K4, 0.1) - max_spanning_tree(K4)).abs().max() < 0.06


# --- exactness, limit ---


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_is_the_mean_over_all_trees(n: int, t: float) -> None:
    u = 2 * torch.randn(2, 3, n * (n - 1) // 2, dtype=torch.float64)
    log_z, mean, second = gibbs(u, t)
    torch.testing.assert_close(log_partition(u, t), log_z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(marginals(u, t), mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(covariance(u, t), second, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [3, 10, 30])
def test_marginals_sum_to_the_number_of_edges_of_a_tree(n: int) -> None:
    mu = marginals(torch.randn(5, n * (n - 1) // 2))
    torch.testing.assert_close(mu.sum(-1), torch.full((5,), n - 1.0))
    assert ((mu > 0) & (mu <= 1)).all()


@pytest.mark.parametrize("u", [K4, 0.4 * torch.tensor([7.0, 2, 5, 0, 9, 1, 3, 8, 6, 4], dtype=torch.float64)])
def test_goes_to_the_maximum_tree_as_the_temperature_goes_to_0(u: Tensor) -> None:
    tree = max_spanning_tree(u)
    distances = [(marginals(u, t) - tree).abs().max().item() for t in (1.0, 0.3, 0.1, 0.05, 0.03)]
    assert all(later < earlier for earlier, later in itertools.pairwise(distances))
    assert distances[-1] < 1e-4


def test_a_limited_range_stops_short_of_the_maximum_tree() -> None:
    """Below the limit all edges are equal: node 2 hangs on nodes 0 and 1 by halves, whatever the temperature."""
    u = torch.tensor([2.0, -1, 0], dtype=torch.float64)
    assert max_spanning_tree(u).tolist() == [1, 0, 1]
    torch.testing.assert_close(marginals(u, 0.1, 15), torch.tensor([1, 0.5, 0.5]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(marginals(u, 0.1), torch.tensor([1.0, 0, 1]).double(), rtol=0, atol=1e-4)


def test_constants_do_not_matter_and_an_instance_does_not_depend_on_its_batch() -> None:
    u = torch.randn(7, 45, dtype=torch.float64)
    mu = marginals(u, 0.5, 15)
    torch.testing.assert_close(marginals(u + 1000, 0.5, 15), mu, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.stack([marginals(one, 0.5, 15) for one in u]), mu, rtol=0, atol=1e-14)
    assert marginals(torch.empty(0, 45)).shape == (0, 45)
    assert log_partition(torch.empty(0, 45)).shape == (0,)


# --- derivatives ---


@pytest.mark.parametrize(("n", "t"), [(2, 1.0), (4, 0.5), (6, 1.0), (10, 2.0)])
def test_three_derivatives_agree(n: int, t: float) -> None:
    """Closed form, automatic differentiation, finite differences; and the covariance, which is t times the Jacobian."""
    u = torch.randn(3, n * (n - 1) // 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn_like(u)
    (ours,) = torch.autograd.grad(marginals(u, t), u, v)
    (twice,) = torch.autograd.grad(by_double_backward(u, t, 1e3), u, v)
    with torch.no_grad():
        h = 1e-5
        finite = (marginals(u + h * v, t) - marginals(u - h * v, t)) / (2 * h)  # the Jacobian is symmetric
        product = (covariance(u, t) @ v.unsqueeze(-1)).squeeze(-1) / t
    torch.testing.assert_close(ours, twice, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours, product, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours, finite, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_range", [None, 3.0])
def test_derivative_follows_the_limit_of_the_range(max_range: float | None) -> None:
    """With a limit the floor moves with the heaviest edge, and finite differences see it."""
    u = (3 * torch.randn(4, 10, dtype=torch.float64)).requires_grad_()
    limited = u.detach() / 1.5 < u.detach().amax(-1, keepdim=True) / 1.5 - 3
    assert limited.any()
    assert not limited.all()
    assert torch.autograd.gradcheck(lambda x: marginals(x, 1.5, max_range), u)
    assert torch.autograd.gradcheck(lambda x: log_partition(x, 1.5, max_range), u)
    assert torch.autograd.gradgradcheck(lambda x: log_partition(x, 1.5, max_range), u)
    if max_range:
        v = torch.randn_like(u)
        (ours,) = torch.autograd.grad(marginals(u, 1.5, max_range), u, v)
        (twice,) = torch.autograd.grad(by_double_backward(u, 1.5, max_range), u, v)
        torch.testing.assert_close(ours, twice, rtol=0, atol=1e-11)
        assert (ours[limited] == 0).all()
        torch.testing.assert_close(ours.sum(-1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_log_partitions_gradient_is_the_marginals() -> None:
    u = torch.randn(2, 15, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_partition(u, 0.7).sum(), u)
    torch.testing.assert_close(slope, marginals(u, 0.7) / 0.7)


def test_marginals_refuse_a_second_derivative() -> None:
    u = torch.randn(6, requires_grad=True)
    (slope,) = torch.autograd.grad(marginals(u).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# --- numerics ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_the_error_is_that_of_the_input(dtype: torch.dtype) -> None:
    u = torch.randn(4, 10).to(dtype).requires_grad_()
    mu = marginals(u, 0.5)
    mu.sum().backward()
    assert mu.dtype == dtype
    assert log_partition(u).dtype == dtype
    assert covariance(u).dtype == dtype
    assert u.grad is not None
    assert u.grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mu.double(), gibbs(u.detach(), 0.5)[1], rtol=0, atol=2 * max(eps, 2e-7))


@pytest.mark.parametrize("spread", [5, 15, 40, 60])
def test_is_accurate_on_every_range_where_float32_is_not(spread: int) -> None:
    """Utilities uniform on a range, n = 10: elimination in float32 fails more and more, ours never."""
    u = spread * torch.rand(300, 45)
    exact = in_extended_precision(u.double())
    error = (marginals(u).double() - exact).abs().amax(-1)
    assert error.max() < 2e-5  # of the exponents, which are float32
    assert (marginals(u.double()) - exact).abs().max() < 1e-6
    weights = to_matrix((u - u.amax(-1, keepdim=True)).exp())
    minor = (torch.diag_embed(weights.sum(-1)) - weights)[:, 1:, 1:]
    inverse = torch.nn.functional.pad(torch.linalg.inv_ex(minor)[0], (1, 0, 1, 0))
    diagonal = inverse.diagonal(dim1=-2, dim2=-1)
    plain = from_matrix(weights * (diagonal[:, :, None] + diagonal[:, None] - 2 * inverse))
    failures = int((~((plain - exact).abs().amax(-1) < 0.01)).sum())
    assert failures == 0 if spread <= 15 else failures > 10


def test_a_range_of_15_is_safe_for_any_graph() -> None:
    """Two clusters are the worst: everything between them is limited, or as small as the limit."""
    inside = torch.zeros(1, 10, 10, dtype=torch.float64)
    inside[:, :5, 5:] = -torch.inf
    for between in (-14.9, -40.0, -1e4):
        u = from_matrix(inside).clamp(min=between)
        mu = marginals(u, max_range=15)
        torch.testing.assert_close(mu, in_extended_precision(u.clamp(min=-15)), rtol=0, atol=1e-8)
        torch.testing.assert_close(mu.reshape(-1)[u.reshape(-1) < 0].sum().item(), 1.0, rtol=0, atol=1e-4)
        inputs = u.clone().requires_grad_()
        (slope,) = torch.autograd.grad(marginals(inputs, max_range=15), inputs, torch.randn_like(u))
        assert slope.isfinite().all()
        assert slope.abs().max() < 10


@pytest.mark.parametrize("function", [marginals, log_partition, covariance])
@pytest.mark.parametrize("value", [-800.0, -60.0, math.nan, math.inf, -math.inf])
def test_a_singular_minor_is_refused_in_one_line(function, value: float) -> None:  # type: ignore[no-untyped-def]
    u = torch.zeros(2, 3, 10)
    cut = to_matrix(torch.zeros(10))
    cut[:2, 2:] = value  # two nodes hang on the others by edges too weak to be seen
    u[1, 2] = from_matrix(cut)
    with pytest.raises(ValueError, match=r"instance \(1, 2\) is singular in float64.*max_range") as error:
        function(u)
    assert "\n" not in str(error.value)
    if math.isfinite(value):
        assert function(u, max_range=15).isfinite().all()


def test_refuses_bad_arguments() -> None:
    for t in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            marginals(K4, t)
        with pytest.raises(ValueError, match="range"):
            log_partition(K4, 1.0, t)
    with pytest.raises(ValueError, match="no complete graph"):
        marginals(torch.zeros(5))
    with pytest.raises(ValueError, match="int64"):
        marginals(torch.zeros(3, dtype=torch.int64))


# --- the law of the perturbed maximum tree ---


def kruskal_law(theta: Tensor) -> dict[tuple[float, ...], float]:
    """Probability of each tree under Gumbel utilities, by all orders of the edges: Kruskal takes them one by one."""
    law: dict[tuple[float, ...], float] = {}
    orders = torch.tensor(list(itertools.permutations(range(len(theta)))))
    probabilities = plackett_luce_log_prob(orders, theta.expand(len(orders), -1)).exp()
    scores = torch.zeros(orders.shape, dtype=theta.dtype).scatter_(
        1, orders, -torch.arange(len(theta), dtype=theta.dtype).expand(orders.shape)
    )
    for tree, p in zip(max_spanning_tree(scores).tolist(), probabilities.tolist(), strict=True):
        law[tuple(tree)] = law.get(tuple(tree), 0.0) + p
    return law


def test_law_of_gumbel_utilities_is_not_the_gibbs_law() -> None:
    law = kruskal_law(K3)
    inclusion = sum(p * torch.tensor(tree, dtype=torch.float64) for tree, p in law.items())
    np.testing.assert_allclose(inclusion, (0.877659, 0.287313, 0.835028), rtol=0, atol=6e-7)  # type: ignore[arg-type]
    np.testing.assert_allclose(marginals(K3), (0.850815, 0.331400, 0.817785), rtol=0, atol=6e-7)


def test_trees_of_equal_gumbel_utilities_are_not_uniform() -> None:
    law = kruskal_law(torch.zeros(6, dtype=torch.float64))
    stars = [p for tree, p in law.items() if to_matrix(torch.tensor(tree)).sum(0).max() == 3]
    assert len(stars) == 4
    # The second edge touches the first with probability 4/5, the third their common node with 1/3. Uniform: 4/16.
    assert sum(stars) == pytest.approx(4 / 15)


@pytest.mark.parametrize("theta", [torch.zeros(6, dtype=torch.float64), K4])
def test_samples_have_the_law_of_kruskal(theta: Tensor) -> None:
    """Chi-square against the enumeration of all 720 orders, at the 99.9 % quantile."""
    law, samples = kruskal_law(theta), 40_000
    assert len(law) == 16
    assert sum(law.values()) == pytest.approx(1)
    gumbels = -torch.empty(samples, 6, dtype=torch.float64).exponential_().log()
    trees, counts = max_spanning_tree(theta + gumbels).unique(dim=0, return_counts=True)
    expected = torch.tensor([samples * law[tuple(tree)] for tree in trees.tolist()])
    statistic = ((counts - expected) ** 2 / expected).sum() + samples - expected.sum()
    assert statistic < chi2.ppf(0.999, len(law) - 1)
    gibbs_law = torch.softmax(trees @ theta, 0) * samples
    assert ((counts - gibbs_law) ** 2 / gibbs_law).sum() > chi2.ppf(0.999, len(law) - 1)
