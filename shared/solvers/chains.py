"""Subsets of fixed size with scores on neighbours: the best one by max-sum dynamic programming, for whole batches.

Items stand in a row. A subset of k of n items is described by 2n - 1 indicators: x_1, ..., x_n, then the products
x_1 x_2, ..., x_(n-1) x_n, which have scores of their own (Paulus et al., Gradient Estimation with Stochastic Softmax
Tricks, 2020: correlated k-subsets). The recursion runs over positions, its state is the number of items chosen so far
and whether the last one was: O(nk) for each instance, with 4 transitions between two positions.
"""

import torch
from torch import Tensor


def chain_items(theta: Tensor, k: int) -> int:
    """The number n of items that a vector of 2n - 1 scores describes.

    Raises:
        ValueError: the number of scores is even or 0, they are no floating-point numbers, or `k` is not in 0..n.
    """
    if theta.ndim == 0 or theta.shape[-1] % 2 == 0:
        raise ValueError(f"scores of a chain have the shape (..., 2n - 1) with n >= 1, got {tuple(theta.shape)}")
    if not theta.is_floating_point():
        raise ValueError(f"scores are floating-point numbers, got {theta.dtype}")
    n = (theta.shape[-1] + 1) // 2
    if not 0 <= k <= n:
        raise ValueError(f"cannot choose {k} of {n}")
    return n


def with_products(items: Tensor) -> Tensor:
    """Indicators (..., 2n - 1) of the subset with the items (..., n): the items, then the products of neighbours."""
    return torch.cat([items, items[..., :-1] * items[..., 1:]], -1)


@torch.no_grad()
def correlated_top_k(theta: Tensor, k: int) -> Tensor:
    """The subset of `k` items in a row with the largest score, neighbours counted; both (..., 2n - 1).

    With scores 0 for the products it is `shared.solvers.simple.top_k` of the first n. Dtype and device are those of the
    scores; the result has no gradient and is the best up to the rounding of its sum. Of several one is returned. NaN is
    not looked for.

    Raises:
        ValueError: as `chain_items`.
    """
    n = chain_items(theta, k)
    scores = torch.atleast_2d(theta).flatten(0, -2).T
    unary, pairs = scores[:n], scores[n:]
    batch = scores.shape[1]
    # Rows are numbers of chosen items, from -1: the row of -1 stays impossible, so that a shift is a view.
    off, on = (scores.new_full((k + 2, batch), -torch.inf) for _ in range(2))
    off[1] = 0
    on[2:3] = unary[0]
    # From which bit of the item before: [position, bit, row, instance].
    before = torch.zeros(n, 2, k + 2, batch, dtype=torch.bool, device=theta.device)
    for i in range(1, n):
        joined = on[:-1] + pairs[i - 1]
        torch.gt(on, off, out=before[i, 0])
        torch.gt(joined, off[:-1], out=before[i, 1, 1:])
        chosen = torch.maximum(off[:-1], joined) + unary[i]
        off, on = torch.maximum(off, on), torch.cat([on[:1].fill_(-torch.inf), chosen])
    items = _items(before, (on[k + 1] > off[k + 1]).long(), k)
    return with_products(items.T.to(theta.dtype)).reshape(theta.shape)


def _items(before: Tensor, bit: Tensor, k: int) -> Tensor:
    """The items (n, B) that lead to `k` of them with the last `bit` (B,), read backwards from `before`."""
    n, _, _, batch = before.shape
    items = torch.empty(n, batch, dtype=torch.int64, device=before.device)
    row, instance = torch.full_like(bit, k + 1), torch.arange(batch, device=before.device)
    for i in reversed(range(n)):
        items[i] = bit
        row, bit = row - bit, before[i, bit, row, instance].long()
    return items
