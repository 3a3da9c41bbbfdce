"""Maximum spanning trees of complete graphs, for many graphs at once.

Values on the undirected edges of the complete graph on n nodes are vectors (..., n(n-1)/2) in the order (0, 1), (0, 2),
..., (0, n-1), (1, 2), ..., (n-2, n-1), that of `torch.triu_indices`; or symmetric matrices (..., n, n).

The trees are grown by Prim's method from node 0, all of them together: n - 1 steps, each an argmax over the nodes that
are still outside and an update of their best connection. Kruskal's method takes n(n-1)/2 steps, five times as many at
n = 10. A complete graph has no sparsity from which a heap could gain.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor


def n_nodes(n_edges: int) -> int:
    """The number n of nodes of the complete graph with `n_edges` = n(n-1)/2 edges.

    Raises:
        ValueError: no complete graph of two or more nodes has so many edges.
    """
    n = (1 + math.isqrt(1 + 8 * max(n_edges, 0))) // 2
    if n < 2 or n * (n - 1) // 2 != n_edges:
        raise ValueError(f"no complete graph has {n_edges} edges: there are n(n-1)/2, with n >= 2")
    return n


def edge_ends(n: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The smaller and the larger node of each edge in order, two int64 vectors of n(n-1)/2 each; not to be changed."""
    places = _places(n, torch.device(device))
    return places.first, places.second


class _Places(NamedTuple):
    """Index vectors of the complete graph on n nodes: of edges (E), and of the places of a flat matrix (n * n)."""

    first: Tensor
    second: Tensor
    above: Tensor  # the place of each edge above the diagonal
    edge: Tensor  # the edge of each place; E on the diagonal


@functools.cache
def _places(n: int, device: torch.device) -> _Places:
    """Made once for each n and device."""
    # A first call in inference mode must not leave tensors that autograd refuses.
    with torch.inference_mode(False), torch.no_grad():
        first, second = torch.triu_indices(n, n, 1, device=device)
        edge = torch.full((n, n), len(first), device=device)
        edge[first, second] = edge[second, first] = torch.arange(len(first), device=device)
        return _Places(first, second, first * n + second, edge.flatten())


def to_matrix(values: Tensor, diagonal: float = 0.0) -> Tensor:
    """The symmetric matrices (..., n, n) of edge values (..., n(n-1)/2), with gradient.

    Raises:
        ValueError: so many values belong to no complete graph.
    """
    n = n_nodes(values.shape[-1] if values.ndim else 0)
    padded = torch.nn.functional.pad(values, (0, 1), value=diagonal)
    edge = _places(n, values.device).edge
    # In float64 on a CPU a gather takes a quarter of the time of the shorter index_select.
    flat = padded.gather(-1, edge.expand(*values.shape[:-1], -1))
    return flat.view(*values.shape[:-1], n, n)


def from_matrix(matrix: Tensor) -> Tensor:
    """The edge values (..., n(n-1)/2) of matrices (..., n, n): what stands above the diagonal, with gradient.

    What stands below is not looked at; scores of both directions are averaged by `from_matrix((s + s.mT) / 2)`.

    Raises:
        ValueError: the matrices are not square, or smaller than 2 x 2.
    """
    n = matrix.shape[-1] if matrix.ndim else 0
    if matrix.ndim < 2 or matrix.shape[-2] != n or n < 2:
        raise ValueError(f"edge values are read from matrices (..., n, n) with n >= 2, got {tuple(matrix.shape)}")
    values: Tensor = matrix.flatten(-2).gather(-1, _places(n, matrix.device).above.expand(*matrix.shape[:-2], -1))
    return values


def max_spanning_tree(scores: Tensor) -> Tensor:
    """The spanning tree with the largest sum of scores, for each vector of edge scores (..., n(n-1)/2).

    Scores are compared and never added, so the answer is exact in every dtype. Of several maximum trees one is
    returned, the same in any batch; it depends on the numbering of the nodes. A minimum tree is that of `-scores`.

    Returns:
        1 on the n - 1 edges of the tree and 0 elsewhere, in the shape, dtype and device of the scores, no gradient.

    Raises:
        ValueError: so many scores belong to no complete graph, or they are no floating-point numbers, or one is not
            finite; the message names the first.
    """
    n = n_nodes(scores.shape[-1] if scores.ndim else 0)
    if not scores.is_floating_point():
        raise ValueError(f"scores are floating-point numbers, got {scores.dtype}")
    trees = torch.zeros_like(scores, requires_grad=False)
    if scores.numel() == 0:
        return trees
    _refuse_not_finite(scores)
    with torch.inference_mode():  # a tenth faster
        parents = _prim(to_matrix(scores, -math.inf).reshape(-1, n, n))
        places = parents.mul_(n).add_(torch.arange(n, device=scores.device))[:, 1:]
        chosen = _places(n, scores.device).edge.index_select(0, places.flatten())
        trees.scatter_(-1, chosen.view(*scores.shape[:-1], n - 1), 1)
    return trees


def _prim(matrices: Tensor) -> Tensor:
    """The parents (B, n), int64, in the maximum trees rooted at node 0; `matrices` (B, n, n) have -inf diagonals.

    At n = 10 and 128 graphs a kernel takes 1-2 us on a CPU, no longer than an allocation or a view: hence the buffers.
    """
    batch, n, _ = matrices.shape
    rows = matrices.view(batch * n, n)
    offsets = torch.arange(0, batch * n, n, device=matrices.device).unsqueeze(1)
    parents = offsets.new_zeros(batch, n)
    node, row = torch.empty_like(offsets), torch.empty_like(offsets)
    flat_row = row.view(batch)
    best = matrices[:, 0].clone()  # of each node outside, its best edge into the tree; -inf inside
    inside = torch.zeros_like(best)  # -inf for nodes of the tree, to be added: they never look better again
    inside[:, 0] = -math.inf
    closed = best.new_full((batch, 1), -math.inf)
    reached, better = torch.empty_like(best), torch.empty_like(best, dtype=torch.bool)
    for _ in range(n - 2):
        torch.argmax(best, 1, keepdim=True, out=node)
        inside.scatter_(1, node, closed)
        best.scatter_(1, node, closed)
        torch.add(node, offsets, out=row)
        torch.index_select(rows, 0, flat_row, out=reached).add_(inside)
        torch.gt(reached, best, out=better)
        torch.where(better, node, parents, out=parents)
        torch.maximum(best, reached, out=best)
    return parents


def _refuse_not_finite(scores: Tensor) -> None:
    """Raise for the first score that is not a number or infinite."""
    least, largest = scores.detach().aminmax()  # NaN if there is one; a fifth of the time of looking at each score
    if (largest - least).isfinite():
        return
    for where in scores.isfinite().logical_not_().nonzero().tolist():  # none where only the difference overflowed
        value = scores[tuple(where)].item()
        raise ValueError(f"the score at {where} is {value}: scores of a spanning tree are finite")
