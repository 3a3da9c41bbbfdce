"""Marginals of arborescences against enumeration, the log-partition, double backward, differences and the solver."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from papers.sst.arborescences import log_partition, marginals
from shared.solvers.arborescence import candidate_edges, max_arborescence
from tests.shared.solvers.digraphs import arborescences

close = partial(torch.testing.assert_close, rtol=0, atol=1e-12)

FOUR = torch.tensor([[0, 0.2, -0.5, 1.0], [0, 0, 0.7, -0.3], [0, -1.0, 0, 0.4], [0, 0.6, 0.1, 0]], dtype=torch.float64)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def enumerated(scores: Tensor, temperature: float = 1.0, root: int = 0) -> tuple[Tensor, Tensor]:
    """log Z (B,) and marginals (B, n, n) by going through all arborescences."""
    every = arborescences(scores.shape[-1], root)
    logits = torch.einsum("bij,aij->ba", scores, every) / temperature
    return logits.logsumexp(1), torch.einsum("ba,aij->bij", logits.softmax(1), every)


def product(function: Callable[[Tensor], Tensor], scores: Tensor, cotangent: Tensor) -> Tensor:
    """The vector-Jacobian product of the function."""
    scores = scores.detach().clone().requires_grad_()
    return torch.autograd.grad(function(scores), scores, cotangent)[0]


def by_double_backward(
    scores: Tensor, cotangent: Tensor, temperature: float = 1.0, root: int = 0, max_range: float = 1e9
) -> Tensor:
    """The derivative of the marginals as the second one of the log-determinant of the minor, by torch alone."""
    scores, n = scores.detach().clone().requires_grad_(), scores.shape[-1]
    exponents = (scores / temperature).masked_fill(~candidate_edges(scores, root), -1e30)
    exponents = exponents.maximum(exponents.amax(1, keepdim=True) - max_range)
    weights = exponents.exp() * candidate_edges(scores, root)
    others = [j for j in range(n) if j != root]
    minors = (weights.sum(1).diag_embed() - weights)[:, others][:, :, others]
    (first,) = torch.autograd.grad(minors.logdet().sum(), exponents, create_graph=True)
    return torch.autograd.grad(first, scores, cotangent)[0]


def test_four_nodes_by_hand() -> None:
    assert log_partition(FOUR).item() == pytest.approx(3.7571274272767186, abs=1e-12)
    expected = torch.tensor(
        [
            [0, 0.479025, 0.220088, 0.759668],
            [0, 0, 0.517253, 0.082574],
            [0, 0.051602, 0, 0.157759],
            [0, 0.469373, 0.262659, 0],
        ],
        dtype=torch.float64,
    )
    close(marginals(FOUR), expected, atol=5e-7)
    close(marginals(FOUR), enumerated(FOUR[None])[1][0])


def test_the_transposed_inverse_is_wrong() -> None:
    """H_jj - H_ij for H_jj - H_ji looks the same and gives 0.223407 for the edge 1 -> 2."""
    weights = FOUR.exp() * candidate_edges(FOUR)
    inverse = (weights.sum(0).diag() - weights)[1:, 1:].inverse()
    trap = weights[1, 2] * (inverse[1, 1] - inverse[0, 1])
    assert trap.item() == pytest.approx(0.223407, abs=5e-7)
    right = weights[1, 2] * (inverse[1, 1] - inverse[1, 0])
    assert marginals(FOUR)[1, 2].item() == pytest.approx(right.item(), abs=1e-12)
    assert abs(marginals(FOUR)[1, 2] - trap) > 0.2


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (3, 3), (4, 16), (5, 125)])
def test_the_partition_function_counts_arborescences(n: int, count: int) -> None:
    for root in range(n):
        assert log_partition(torch.zeros(n, n, dtype=torch.float64), root=root).exp().item() == pytest.approx(count)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_are_those_of_the_enumeration(n: int, temperature: float) -> None:
    scores = randn(20, n, n)
    for root in range(n):
        log_z, mu = enumerated(scores, temperature, root)
        close(log_partition(scores, temperature, root), log_z)
        close(marginals(scores, temperature, root), mu, atol=1e-11)


def test_one_incoming_edge_and_nothing_elsewhere() -> None:
    scores, lengths = randn(30, 9, 9), torch.arange(30) % 7 + 3
    mu = marginals(scores, 0.5, 2, lengths)
    assert (mu >= 0).all()
    assert (mu <= 1 + 1e-12).all()
    edges = candidate_edges(scores, 2, lengths)
    assert (mu[~edges] == 0).all()
    assert (mu[edges] > 0).all()
    reached = edges[:, 2].double()
    close(mu.sum(1), reached, atol=1e-9)
    close(mu.sum((1, 2)), lengths - 1.0, atol=1e-9, check_dtype=False)


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "root": 1}, {"max_range": 1.5, "temperature": 0.5}])
def test_product_is_that_of_double_backward_and_of_differences(n: int, options: dict[str, float]) -> None:
    scores, v = randn(6, n, n), randn(6, n, n)
    function = partial(marginals, **options)
    exact = product(function, scores, v)
    close(exact, by_double_backward(scores, v, **options), atol=1e-9)
    direction = randn(6, n, n)
    moved = (function(scores + 1e-5 * direction) - function(scores - 1e-5 * direction)) / 2e-5
    close((exact * direction).sum((1, 2)), (moved * v).sum((1, 2)), atol=1e-6)
    assert torch.autograd.gradcheck(function, scores[:2].requires_grad_(), eps=1e-6, atol=1e-6)


def test_marginals_are_the_derivative_of_the_log_partition() -> None:
    scores, lengths = randn(5, 7, 7).requires_grad_(), torch.tensor([3, 7, 4, 5, 6])
    log_z = log_partition(scores, 0.8, 1, lengths)
    close(torch.autograd.grad(log_z.sum(), scores)[0] * 0.8, marginals(scores, 0.8, 1, lengths), atol=1e-10)


def test_jacobian_is_the_covariance_of_the_edges() -> None:
    every = arborescences(4).flatten(1)
    probabilities = (every @ FOUR.flatten()).softmax(0)
    centred = every - probabilities @ every
    covariance = (centred * probabilities[:, None]).T @ centred
    jacobian = torch.stack([product(marginals, FOUR, v.view(4, 4)).flatten() for v in torch.eye(16).double()])
    close(jacobian, covariance)


def test_goes_to_the_maximum_as_the_temperature_goes_to_0_and_to_the_uniform_one_as_it_grows() -> None:
    best = max_arborescence(FOUR)
    distances = [(marginals(FOUR, t) - best).abs().max().item() for t in (1.0, 0.5, 0.2, 0.1, 0.05)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01
    close(marginals(FOUR, 1e9), arborescences(4).mean(0), atol=1e-8)


def test_a_constant_into_a_node_changes_only_the_partition_function() -> None:
    scores, constants = randn(4, 6, 6), 100 * randn(4, 1, 6)
    close(marginals(scores + constants), marginals(scores), atol=1e-9)
    constants[:, :, 0] = 0
    expected = log_partition(scores) + constants.sum((1, 2))
    close(log_partition(scores + constants), expected, atol=1e-9)
    gradient = product(marginals, scores, randn(4, 6, 6))
    close(gradient.sum(1), torch.zeros(4, 6, dtype=torch.float64), atol=1e-11)


def test_another_numbering_gives_the_same() -> None:
    scores, order = randn(4, 6, 6), torch.randperm(6)
    renumbered = marginals(scores[:, order][:, :, order], root=int((order == 0).nonzero()))
    close(renumbered, marginals(scores)[:, order][:, :, order], atol=1e-11)


@pytest.mark.parametrize("root", [0, 2])
@pytest.mark.parametrize("max_range", [None, 1.0])
def test_padded_is_unpadded(root: int, max_range: float | None) -> None:
    lengths = torch.tensor([3, 4, 8, 6])
    scores, v = randn(4, 8, 8), randn(4, 8, 8)
    for one, length in zip(scores, lengths.tolist()):
        one[length:] = math.nan
        one[:, length:] = math.nan
    scores.requires_grad_()
    mu = marginals(scores, 0.9, root, lengths, max_range)
    (gradient,) = torch.autograd.grad(mu, scores, v)
    log_z = log_partition(scores, 0.9, root, lengths, max_range)
    for k, length in enumerate(lengths.tolist()):
        alone = scores.detach()[k, :length, :length].clone().requires_grad_()
        alone_mu = marginals(alone, 0.9, root, max_range=max_range)
        (alone_gradient,) = torch.autograd.grad(alone_mu, alone, v[k, :length, :length])
        extend = (0, 8 - length, 0, 8 - length)
        close(mu[k], torch.nn.functional.pad(alone_mu, extend))
        close(gradient[k], torch.nn.functional.pad(alone_gradient, extend))
        close(log_z[k], log_partition(alone, 0.9, root, max_range=max_range))


def test_what_is_no_edge_may_hold_anything_and_a_missing_edge_is_one_of_probability_0() -> None:
    scores, v = randn(3, 5, 5), randn(3, 5, 5)
    expected, gradient = marginals(scores), product(marginals, scores, v)
    scores.diagonal(dim1=1, dim2=2).fill_(math.nan)
    scores[:, :, 0] = math.inf
    close(marginals(scores), expected)
    close(product(marginals, scores, v), gradient)
    missing = randn(4, 4)
    missing[0, 1] = missing[2, 3] = missing[3, 2] = -math.inf
    feasible = torch.where(arborescences(4) > 0, missing, 0).sum((1, 2))
    close(marginals(missing), torch.einsum("a,aij->ij", feasible.softmax(0), arborescences(4)))
    close(marginals(missing, max_range=50.0), marginals(missing))
    gradient = product(marginals, missing, v[0, :4, :4])
    assert gradient.isfinite().all()
    assert (gradient[missing == -math.inf] == 0).all()


def test_range_is_limited_from_the_best_edge_into_the_same_child() -> None:
    scores = 20 * randn(6, 6, 6)
    by_hand = scores.masked_fill(~candidate_edges(scores), -math.inf)
    by_hand = by_hand.maximum(by_hand.amax(1, keepdim=True) - 2 * 7)
    close(marginals(scores, 2.0, max_range=7.0), marginals(by_hand, 2.0))
    close(marginals(scores, max_range=1e4, temperature=20.0), marginals(scores, 20.0))


def two_friends(gap: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Nodes 1 and 2 prefer each other by `gap` to the root, node 3 hangs on 2; two arborescences of 3 count."""
    scores = torch.zeros(4, 4, dtype=dtype)
    scores[0, 1], scores[0, 2] = -gap, -gap - 1
    scores[:, 3], scores[3, :3], scores[1:3, 0] = -2, -50, 0
    scores[2, 3] = 3
    return scores


@pytest.mark.parametrize("gap", [2.0, 7.0, 15.0, 20.0])
def test_float32_is_done_again_in_float64_where_it_is_too_coarse(gap: float) -> None:
    """Two nodes that prefer each other by e^gap: rounding in float32 is multiplied by it."""
    easy, v = randn(4, 4), randn(3, 4, 4)
    scores = torch.stack([easy, two_friends(gap), easy])
    expected, gradient = marginals(scores), product(marginals, scores, v)
    close(expected, enumerated(scores)[1], atol=1e-6)
    shares = scores[1].float().masked_fill(~candidate_edges(scores[1]), -math.inf).softmax(0).nan_to_num()
    inverse = (torch.eye(4) - shares).inverse()
    naive = (shares * (inverse.diag() - inverse.T)).double()
    assert ((naive - expected[1]).abs().max() > 1e-5) == (gap > 2)
    again = marginals(scores.float())
    assert again.dtype == torch.float32
    close(again.double(), expected, atol=1e-5)
    close(product(marginals, scores.float(), v.float()).double(), gradient, atol=1e-4)
    alone = marginals(easy.float())
    close(again[0], alone, atol=0)
    close(again[2], alone, atol=0)


def test_a_minor_that_is_exactly_singular_in_float32_leaves_no_trace() -> None:
    """The root's share, e^-20, is lost beside 1: the inverse of float32 is infinite, and must not reach a gradient."""
    scores = torch.zeros(2, 3, 3)
    scores[0, 0] = torch.tensor([0.0, -20.0, -21.0])
    expected, v = enumerated(scores.double())[1], torch.randn(2, 3, 3)
    close(marginals(scores).double(), expected, atol=1e-6)
    close(product(marginals, scores, v), product(marginals, scores.double(), v.double()).float(), atol=1e-6)


def test_padding_of_what_is_done_again() -> None:
    scores, lengths = torch.randn(3, 6, 6), torch.tensor([6, 3, 4])
    scores[2, :4, :4] = two_friends(15.0, torch.float32)
    mu = marginals(scores, lengths=lengths)
    close(mu[2, :4, :4], marginals(two_friends(15.0)).float(), atol=1e-6)
    assert mu[2].sum() == mu[2, :4, :4].sum()


@pytest.mark.parametrize("max_range", [15.0, 20.0])
def test_a_limited_range_is_never_refused_and_float32_is_as_good_as_it_says(max_range: float) -> None:
    """Utilities as wide as 60, and the worst case: the root is as far from all nodes as the limit allows."""
    scores = 60 * torch.rand(400, 10, 10)
    scores[0] = 0
    scores[0, 0] = -60
    mu = marginals(scores.double(), max_range=max_range)
    reached = torch.ones(10, dtype=torch.float64)
    reached[0] = 0
    close(mu.sum(1), reached.expand(400, 10), atol=1e-6)
    close(marginals(scores, max_range=max_range).double(), mu, atol=1e-4)


def test_refuses_a_singular_minor_in_one_line_and_says_where() -> None:
    scores = randn(2, 3, 4, 4)
    scores[1, 2] = two_friends(60.0)
    for function in (marginals, log_partition):
        with pytest.raises(ValueError, match=r"^the minor .* of instance \(1, 2\) is singular in float64: .*max_range"):
            function(scores)
        function(scores, max_range=15.0)
        function(scores, temperature=10.0)
    with pytest.raises(ValueError, match=r"^the minor of the Laplacian is singular"):
        marginals(scores[1, 2].float())
    cut_off = randn(5, 5)
    cut_off[:3, 3:] = -math.inf
    lonely = randn(5, 5)
    lonely[:, 3] = -math.inf
    wrong = randn(5, 5)
    wrong[2, 3] = math.nan
    infinite = randn(5, 5)
    infinite[2, 3] = math.inf
    for one in (cut_off, lonely, wrong, infinite):
        for function in (marginals, log_partition):
            with pytest.raises(ValueError, match="singular"):
                function(one, max_range=15.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 5, 5).to(dtype)
    mu = marginals(scores, 0.5)
    assert mu.dtype == dtype
    torch.testing.assert_close(mu, marginals(scores.float(), 0.5).to(dtype), rtol=0, atol=0)
    assert product(marginals, scores, torch.ones_like(scores)).dtype == dtype


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)])
def test_leading_dimensions(batch: tuple[int, ...]) -> None:
    scores = randn(*batch, 4, 4).requires_grad_()
    mu = marginals(scores)
    assert mu.shape == scores.shape
    assert log_partition(scores).shape == batch
    mu.sum().backward()
    flat = marginals(scores.reshape(-1, 4, 4))
    close(mu, flat.view(scores.shape), atol=0)


def test_no_second_derivative_instead_of_a_wrong_one() -> None:
    scores = randn(3, 3).requires_grad_()
    (first,) = torch.autograd.grad(marginals(scores).square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refuses_temperatures_and_ranges_that_are_not_positive(value: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        marginals(FOUR, value)
    with pytest.raises(ValueError, match="range"):
        marginals(FOUR, max_range=value)
    with pytest.raises(ValueError, match="shape"):
        marginals(FOUR[:3])
