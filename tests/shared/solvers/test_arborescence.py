"""Maximum arborescences against all arborescences and networkx, and what must hold of every answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.solvers.arborescence import candidate_edges, max_arborescence
from tests.shared.solvers.digraphs import arborescences, is_arborescence, networkx_value


def values(scores: Tensor, indicators: Tensor) -> Tensor:
    """Sums of the scores of the chosen edges; what is not chosen may be -inf or NaN."""
    return torch.where(indicators > 0, scores, 0).double().sum((-1, -2))


def gumbel(*shape: int) -> Tensor:
    return -torch.rand(shape, dtype=torch.float64).log().neg().log()


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (3, 3), (4, 16), (5, 125)])
def test_the_enumeration_has_as_many_arborescences_as_cayley_says(n: int, count: int) -> None:
    assert len(arborescences(n)) == count
    assert all(is_arborescence(one) for one in arborescences(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_best_of_all_arborescences(n: int, dtype: torch.dtype) -> None:
    for root in range(n):
        scores = torch.randn(200, n, n, dtype=dtype)
        y = max_arborescence(scores, root)
        assert (y.shape, y.dtype, y.device) == (scores.shape, dtype, scores.device)
        every = arborescences(n, root)
        best = torch.einsum("bij,aij->ba", scores.double(), every).argmax(1)
        torch.testing.assert_close(y, every[best].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("n", [6, 9, 12])
@pytest.mark.parametrize("root", [0, 3])
def test_value_is_that_of_networkx(n: int, root: int) -> None:
    scores = gumbel(8, n, n)
    y = max_arborescence(scores, root)
    assert all(is_arborescence(one, root) for one in y)
    expected = torch.tensor([networkx_value(one, root) for one in scores], dtype=torch.float64)
    torch.testing.assert_close(values(scores, y), expected, rtol=1e-12, atol=1e-12)


def test_four_nodes_by_hand() -> None:
    scores = torch.tensor([[9, 0.2, -0.5, 1.0], [9, 9, 0.7, -0.3], [9, -1.0, 9, 0.4], [9, 0.6, 0.1, 9]])
    y = max_arborescence(scores)
    assert y.nonzero().tolist() == [[0, 3], [1, 2], [3, 1]]
    assert values(scores, y).item() == pytest.approx(2.3)


def nested_cycles(n: int) -> Tensor:
    """Node by node one more joins the cycle of those before it, and the root's edges come last: n - 2 contractions."""
    scores = torch.full((n, n), -1e3, dtype=torch.float64)
    for k in range(2, n):
        scores[k - 1, k] = 0  # every node is best reached from the one before,
        scores[k, 1] = -float(k)  # and the first from each later one, less gladly the later it is
    scores[0, 1:] = -100 - torch.arange(n - 1, dtype=torch.float64)
    return scores


@pytest.mark.parametrize("n", [3, 5, 8, 12])
def test_cycles_in_cycles(n: int) -> None:
    scores = torch.stack([nested_cycles(n), nested_cycles(n) + torch.randn(n, n, dtype=torch.float64)])
    y = max_arborescence(scores)
    assert all(is_arborescence(one) for one in y)
    expected = torch.tensor([networkx_value(one) for one in scores], dtype=torch.float64)
    torch.testing.assert_close(values(scores, y), expected, rtol=1e-12, atol=0)


@given(data=st.data())
def test_ties_give_a_best_arborescence_too(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 5))
    root = data.draw(st.integers(0, n - 1))
    flat = st.lists(st.integers(-1, 1), min_size=n * n, max_size=n * n)
    scores = torch.tensor(data.draw(flat), dtype=torch.float64).view(n, n)
    y = max_arborescence(scores, root)
    assert is_arborescence(y, root)
    every = arborescences(n, root)
    assert values(scores, y) == (scores * every).sum((1, 2)).max()


def test_ties_everywhere_and_the_same_answer_each_time() -> None:
    scores = torch.zeros(3, 20, 20)
    y = max_arborescence(scores, 7)
    assert all(is_arborescence(one, 7) for one in y)
    torch.testing.assert_close(max_arborescence(scores, 7), y, rtol=0, atol=0)


@pytest.mark.parametrize("root", [0, 2])
def test_padding_changes_nothing(root: int) -> None:
    lengths = torch.tensor([3, 4, 9, 6, 5])
    scores = torch.randn(5, 9, 9)
    for one, length in zip(scores, lengths.tolist()):
        one[length:] = math.nan
        one[:, length:] = math.nan
    y = max_arborescence(scores, root, lengths)
    for one, padded, length in zip(scores, y, lengths.tolist()):
        assert is_arborescence(padded, root, length)
        alone = max_arborescence(one[:length, :length], root)
        torch.testing.assert_close(padded[:length, :length], alone, rtol=0, atol=0)


def test_a_single_node_has_no_edges() -> None:
    assert max_arborescence(torch.zeros(2, 4, 4), lengths=torch.tensor([1, 2])).sum((1, 2)).tolist() == [0, 1]
    assert max_arborescence(torch.full((1, 1), math.nan)).tolist() == [[0]]


def test_lengths_are_broadcast() -> None:
    scores, lengths = torch.randn(3, 2, 5, 5), torch.tensor([4, 5])
    y = max_arborescence(scores, 0, lengths)
    torch.testing.assert_close(max_arborescence(scores, 0, lengths.expand(3, 2)), y, rtol=0, atol=0)
    assert all(is_arborescence(y[k, b], 0, int(lengths[b])) for k in range(3) for b in range(2))


def test_an_instance_does_not_depend_on_its_batch() -> None:
    """One takes n - 2 contractions, one is full of ties, one needs none, one has scores of every size."""
    star = torch.randn(10, 10, dtype=torch.float64)
    star[0] += 100
    wild = torch.randn(10, 10, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (10, 10))
    scores = torch.stack(
        [nested_cycles(10), torch.randint(3, (10, 10)).double(), star, wild, torch.randn(10, 10).double()]
    )
    y = max_arborescence(scores)
    for one, alone in zip(scores, y):
        torch.testing.assert_close(max_arborescence(one), alone, rtol=0, atol=0)
    torch.testing.assert_close(max_arborescence(scores.flip(0)), y.flip(0), rtol=0, atol=0)
    torch.testing.assert_close(max_arborescence(scores.view(5, 1, 10, 10))[:, 0], y, rtol=0, atol=0)


def test_missing_edges() -> None:
    """Among random edges some instances have no arborescence: all that have one get the best, as networkx says."""
    scores = torch.randn(30, 6, 6, dtype=torch.float64).masked_fill(torch.rand(30, 6, 6) < 0.55, -math.inf)
    feasible = (torch.where(arborescences(6)[:, None] > 0, scores, 0).sum((-1, -2)).amax(0) > -math.inf).tolist()
    assert 5 < sum(feasible) < 25
    for one, possible in zip(scores, feasible):
        if possible:
            y = max_arborescence(one)
            assert is_arborescence(y)
            assert values(one, y).item() == pytest.approx(networkx_value(one), rel=1e-12)
        else:
            with pytest.raises(ValueError, match=r"node \d cannot be reached from the root"):
                max_arborescence(one)


def test_refuses_a_cycle_that_nothing_enters_and_says_where() -> None:
    scores = torch.zeros(2, 3, 5, 5)
    scores[1, 2, :3, 3:] = -math.inf
    with pytest.raises(ValueError, match=r"node [34] of instance \(1, 2\) cannot be reached"):
        max_arborescence(scores)


def test_scores_that_are_not_edges_are_not_looked_at() -> None:
    scores = torch.randn(4, 6, 6)
    y = max_arborescence(scores, 2)
    scores.diagonal(dim1=1, dim2=2).fill_(math.nan)
    scores[:, :, 2] = math.inf
    torch.testing.assert_close(max_arborescence(scores, 2), y, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308, -1e308])
def test_refuses_a_bad_score_and_says_where(value: float) -> None:
    scores = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    scores[1, 2, 3, 1] = value
    with pytest.raises(ValueError, match=r"the score of the edge 3 -> 1 of instance \(1, 2\) is"):
        max_arborescence(scores)
    with pytest.raises(ValueError, match="the score of the edge 3 -> 1 is"):
        max_arborescence(scores[1, 2])


def test_a_constant_into_a_node_and_another_numbering() -> None:
    scores = torch.randn(20, 7, 7, dtype=torch.float64)
    y, order = max_arborescence(scores), torch.randperm(7)
    torch.testing.assert_close(max_arborescence(scores + 5 * torch.randn(20, 1, 7).double()), y, rtol=0, atol=0)
    root = int((order == 0).nonzero())
    torch.testing.assert_close(max_arborescence(scores[:, order][:, :, order], root), y[:, order][:, :, order])
    torch.testing.assert_close(max_arborescence(4 * scores), y, rtol=0, atol=0)


def test_small_scores_beside_large_ones_are_not_lost() -> None:
    """Float32 sums would drop the small ones; sums are float64."""
    scores = torch.randn(50, 5, 5)
    scores[:, :, 1:] += torch.tensor([1e7, -1e7, 3e6, 0.0])
    every = arborescences(5)
    best = torch.einsum("bij,aij->ba", scores.double(), every).amax(1)
    torch.testing.assert_close(values(scores, max_arborescence(scores)), best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_no_gradient_and_the_input_left_alone(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 4, 4).to(dtype).requires_grad_()
    before = scores.detach().clone()
    for y in (max_arborescence(scores), max_arborescence(scores, lengths=torch.tensor([2, 3, 4]))):
        assert y.dtype == dtype
        assert not y.requires_grad
    torch.testing.assert_close(scores.detach(), before, rtol=0, atol=0)


def test_views_are_read_as_they_look() -> None:
    scores, one = torch.randn(4, 5, 5), torch.randn(5, 5)
    torch.testing.assert_close(max_arborescence(scores.mT), max_arborescence(scores.mT.contiguous()), rtol=0, atol=0)
    torch.testing.assert_close(max_arborescence(one.expand(3, 5, 5)), max_arborescence(one).expand(3, 5, 5))


def test_a_batch_of_parts_is_put_together_in_order() -> None:
    scores = torch.randn(3, 500, 8, 8)
    y = max_arborescence(scores)
    for k in (0, 250, -1):
        torch.testing.assert_close(max_arborescence(scores[:, k]), y[:, k], rtol=0, atol=0)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_empty_batch(batch: tuple[int, ...]) -> None:
    assert max_arborescence(torch.empty(*batch, 4, 4)).shape == (*batch, 4, 4)
    lengths = torch.empty(batch, dtype=torch.int64)
    assert max_arborescence(torch.empty(*batch, 4, 4), lengths=lengths).shape == (*batch, 4, 4)


def test_candidates() -> None:
    edges = candidate_edges(torch.zeros(2, 4, 4), 1, torch.tensor([2, 3]))
    assert edges[0].nonzero().tolist() == [[1, 0]]
    assert edges[1].nonzero().tolist() == [[0, 2], [1, 0], [1, 2], [2, 0]]
    assert candidate_edges(torch.zeros(4, 4)).sum() == 9


@pytest.mark.parametrize("scores", [torch.ones(()), torch.ones(3), torch.ones(2, 3), torch.ones(2, 0, 0)])
def test_refuses_what_is_not_square(scores: Tensor) -> None:
    with pytest.raises(ValueError, match="shape"):
        max_arborescence(scores)


def test_refuses_integers_and_roots_and_lengths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="int64"):
        max_arborescence(torch.ones(2, 2, dtype=torch.int64))
    scores = torch.zeros(2, 4, 4)
    for root in (-1, 4):
        with pytest.raises(ValueError, match=f"nodes 0..3, got {root}"):
            max_arborescence(scores, root)
    for lengths, message in [
        (torch.tensor([2, 5]), r"1..4, got \[2, 5\]"),
        (torch.tensor([0, 4]), r"1..4, got \[0, 4\]"),
        (torch.tensor([4, 4, 4]), r"shape \(2,\) of the batch, got \(3,\)"),
        (torch.tensor([[4, 4]]), r"shape \(2,\) of the batch, got \(1, 2\)"),
        (torch.tensor([4.0, 4.0]), "float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            max_arborescence(scores, 0, lengths)
    with pytest.raises(ValueError, match=r"3..4, got \[2, 4\]"):
        max_arborescence(scores, 2, torch.tensor([2, 4]))


@pytest.mark.gpu
def test_cuda_gives_the_arborescences_of_the_cpu() -> None:
    scores, lengths = torch.randn(50, 12, 12), torch.randint(1, 13, (50,))
    torch.testing.assert_close(max_arborescence(scores.cuda()).cpu(), max_arborescence(scores), rtol=0, atol=0)
    there = max_arborescence(scores.cuda(), 0, lengths)
    torch.testing.assert_close(there.cpu(), max_arborescence(scores, 0, lengths), rtol=0, atol=0)
