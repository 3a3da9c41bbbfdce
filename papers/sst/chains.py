"""Exponential-family relaxations of k-subsets, with or without scores on neighbours: marginals by sum-product.

With the entropy f = A* conjugate to the log-partition A(u) = log sum over subsets of exp(<u, x>), the relaxed point is
the vector of marginals of the Gibbs distribution exp(<u, x> / t) (Paulus et al., 2020, section 4). Dynamic programmes
over the positions give them in O(nk): log-sums of the prefixes and, on the reversed row in the same sweep, of the
suffixes. The Jacobian is the covariance of the Gibbs distribution over t. It is applied to a vector v by the derivative
of the same recursions along v, an expectation at each step, without a second differentiation.

The recursions are in the log domain and in float64 whatever the dtype of the utilities, on any device: sums of hundreds
of float32 logarithms at low temperature would cost the digits of the marginals. No range has to be clipped.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from papers.sst.subsets import check_choice, check_temperature
from shared.solvers.chains import chain_items

# The log of an impossible sum. Not -inf, whose differences are no numbers: what is impossible then gets weight 0.
NONE = -1e30


def k_subset_marginals(utilities: Tensor, k: int, temperature: float) -> Tensor:
    """Marginals of the k-subsets of n items under exp(<u, x> / t): utilities and result (..., n), the sum is `k`.

    Raises:
        ValueError: no utilities, `k` is not in 0..n, or the temperature is not positive.
    """
    check_temperature(temperature)
    check_choice(utilities, k)
    marginals: Tensor = _Subsets.apply(utilities, k, temperature)  # type: ignore[no-untyped-call]
    return marginals


def k_subset_log_partition(utilities: Tensor, k: int) -> Tensor:
    """log of the sum of exp(<u, x>) over the k-subsets, (..., n) -> (...), in float64 and without gradient.

    Its gradient is `k_subset_marginals(utilities, k, 1)`.

    Raises:
        ValueError: no utilities, or `k` is not in 0..n.
    """
    check_choice(utilities, k)
    return _prefixes(_rows(utilities, 1), k)[-1, k + 1, : utilities[..., 0].numel()].view(utilities.shape[:-1])


def correlated_marginals(utilities: Tensor, k: int, temperature: float) -> Tensor:
    """Marginals of the correlated k-subsets under exp(<u, x> / t), both (..., 2n - 1).

    The first n are the probabilities of the items, with sum `k`, the other n - 1 those of two neighbours together. The
    hard sample for the same utilities is `shared.solvers.chains.correlated_top_k`.

    Raises:
        ValueError: as `shared.solvers.chains.chain_items`, or the temperature is not positive.
    """
    check_temperature(temperature)
    chain_items(utilities, k)
    marginals: Tensor = _Chains.apply(utilities, k, temperature)  # type: ignore[no-untyped-call]
    return marginals


def correlated_log_partition(utilities: Tensor, k: int) -> Tensor:
    """log of the sum of exp(<u, x>) over the correlated k-subsets, (..., 2n - 1) -> (...), float64, no gradient.

    Raises:
        ValueError: as `shared.solvers.chains.chain_items`.
    """
    n = chain_items(utilities, k)
    last = _chain_prefixes(_rows(utilities[..., :n], 1), _rows(utilities[..., n:], 1), k)[-1, :, k + 1]
    return torch.logaddexp(last[0], last[1])[: utilities[..., 0].numel()].view(utilities.shape[:-1])


def _rows(values: Tensor, temperature: float) -> Tensor:
    """`values / t` (..., n) as float64 (n, 2B): positions first, each instance forwards, then each one backwards."""
    rows = torch.atleast_2d(values.detach().double() / temperature).flatten(0, -2).T
    return torch.cat([rows, rows.flip(0)], 1)


def _columns(rows: Tensor, like: Tensor) -> Tensor:
    """(n, B) back to the shape and dtype of `like`."""
    return rows.T.reshape(like.shape).to(like.dtype)


def _prefixes(u: Tensor, k: int) -> Tensor:
    """Log-sums (n + 1, k + 2, 2B) over the choices of j of the first i items, in row j + 1; row 0 is impossible."""
    n, batch = u.shape
    table = u.new_full((n + 1, k + 2, batch), NONE)
    table[0, 1] = 0
    for i in range(n):
        torch.logaddexp(table[i, 1:], table[i, :-1] + u[i], out=table[i + 1, 1:])
    return table


class _Subsets(torch.autograd.Function):
    """Marginals of k-subsets; the product of their covariance with a vector."""

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, k: int, temperature: float) -> Tensor:
        u = _rows(utilities, temperature)
        table = _prefixes(u, k)
        batch = u.shape[1] // 2
        # Item i with c of the items before it and k - 1 - c of those after it.
        before, after = _around(table, k)
        weights = (before + after + u[:, None, :batch] - table[-1, k + 1, :batch]).exp_()
        ctx.save_for_backward(utilities, u, table, weights)
        ctx.k, ctx.temperature = k, temperature
        return _columns(weights.sum(1), utilities)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        utilities, u, table, weights = ctx.saved_tensors
        k, batch, v = ctx.k, u.shape[1] // 2, _rows(upstream, ctx.temperature)
        # The probability that item i was chosen, given j of the first i + 1.
        chosen = (table[:-1, :-1] + u[:, None] - table[1:, 1:]).exp_()
        change = torch.zeros_like(table)
        for i in range(len(u)):
            torch.lerp(change[i, 1:], change[i, :-1] + v[i], chosen[i], out=change[i + 1, 1:])
        before, after = _around(change, k)
        inner = before + after + v[:, None, :batch] - change[-1, k + 1, :batch]
        return _columns((weights * inner).sum(1), utilities), None, None


def _around(table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What the table says of the items before and after each item: c = 0..k-1 before, k - 1 - c after, (n, k, B)."""
    batch = table.shape[-1] // 2
    inner = table[:-1, 1 : k + 1]
    return inner[..., :batch], inner[..., batch:].flip(0, 1)


def _chain_prefixes(u: Tensor, w: Tensor, k: int) -> Tensor:
    """Log-sums (n, 2, k + 2, 2B) over choices of j among items 0..i, in row j + 1, by the bit of item i."""
    n, batch = u.shape
    table = u.new_full((n, 2, k + 2, batch), NONE)
    table[0, 0, 1] = 0
    table[0, 1, 2:3] = u[0]
    for i in range(1, n):
        off, on = table[i - 1]
        torch.logaddexp(off, on, out=table[i, 0])
        torch.add(torch.logaddexp(off[:-1], on[:-1] + w[i - 1]), u[i], out=table[i, 1, 1:])
    return table


def _chain_changes(u: Tensor, w: Tensor, table: Tensor, du: Tensor, dw: Tensor) -> Tensor:
    """The derivative of `_chain_prefixes` along (du, dw), of its shape: expectations over the last transition."""
    change = torch.zeros_like(table)
    change[0, 1, 2:3] = du[0]
    # The probability that the item before was chosen, given the count and the bit of this one.
    to_off = (table[:-1, 1] - table[1:, 0]).exp_()
    to_on = (table[:-1, 1, :-1] + w[:, None] - (table[1:, 1, 1:] - u[1:, None])).exp_()
    for i in range(1, len(u)):
        off, on = change[i - 1]
        torch.lerp(off, on, to_off[i - 1], out=change[i, 0])
        torch.add(torch.lerp(off[:-1], on[:-1] + dw[i - 1], to_on[i - 1]), du[i], out=change[i, 1, 1:])
    return change


class _Sides(NamedTuple):
    """For each item, c = 1..k items up to it and k + 1 - c from it on, it counted; and for each pair of neighbours."""

    until: Tensor  # (n, k, B)
    since: Tensor
    left: Tensor  # (n - 1, k - 1, B): c = 1..k-1 items up to the left neighbour, k - c from the right one on
    right: Tensor


def _sides(table: Tensor, k: int) -> _Sides:
    """The parts of a table of `_chain_prefixes` that meet at an item, or between two neighbours, all chosen."""
    batch = table.shape[-1] // 2
    until, since = table[:, 1, 2:, :batch], table[:, 1, 2:, batch:].flip(0)
    pairs = max(k - 1, 0)
    return _Sides(until, since.flip(1), until[:-1, :pairs], since[1:, :pairs].flip(1))


class _Chains(torch.autograd.Function):
    """Marginals of correlated k-subsets; the product of their covariance with a vector."""

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, k: int, temperature: float) -> Tensor:
        n = chain_items(utilities, k)
        u, w = _rows(utilities[..., :n], temperature), _rows(utilities[..., n:], temperature)
        table = _chain_prefixes(u, w, k)
        batch = u.shape[1] // 2
        total = torch.logaddexp(table[-1, 0, k + 1], table[-1, 1, k + 1])[:batch]
        sides = _sides(table, k)
        items = (sides.until + sides.since - u[:, None, :batch] - total).exp_()
        pairs = (sides.left + sides.right + w[:, None, :batch] - total).exp_()
        ctx.save_for_backward(utilities, u, w, table, items, pairs, total)
        ctx.k, ctx.temperature = k, temperature
        return _columns(torch.cat([items.sum(1), pairs.sum(1)]), utilities)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        utilities, u, w, table, items, pairs, total = ctx.saved_tensors
        n, batch, k = len(u), u.shape[1] // 2, ctx.k
        du, dw = _rows(upstream[..., :n], ctx.temperature), _rows(upstream[..., n:], ctx.temperature)
        change = _chain_changes(u, w, table, du, dw)
        last = (table[-1, 1, k + 1, :batch] - total).exp_()
        mean = torch.lerp(change[-1, 0, k + 1, :batch], change[-1, 1, k + 1, :batch], last)
        sides = _sides(change, k)
        by_item = items * (sides.until + sides.since - du[:, None, :batch] - mean)
        by_pair = pairs * (sides.left + sides.right + dw[:, None, :batch] - mean)
        return _columns(torch.cat([by_item.sum(1), by_pair.sum(1)]), utilities), None, None
