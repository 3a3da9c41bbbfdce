"""Expected losses of stochastic argmax tricks that are small enough for an exact gradient.

U = theta + Gumbel noise, X the best vertex, and L(x) = <c, x> + x' A x. Three problems: one of 3 classes, 2 of 5 items,
and a spanning tree of 4 nodes. All three are matroids: the greedy method finds X item by item, and the sequence in
which it does, the trace, has a probability in closed form (Struminsky et al., Leveraging recursive gumbel-max trick for
approximate inference in combinatorial spaces, 2021).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from papers.sst.structures import all_spanning_trees, all_subsets, gibbs_mean
from papers.sst.utilities import conditional_gumbel, plackett_luce_log_prob
from shared.solvers.spanning_tree import edge_ends, n_nodes

__all__ = [
    "Problem",
    "exact_gradient",
    "expected_loss",
    "kruskal_conditional",
    "kruskal_log_prob",
    "log_prob_of_vertex",
    "problems",
    "trace",
]


@dataclass(frozen=True)
class Problem:
    """A loss of a random vertex.

    Attributes:
        name: the beginning of the names of its metrics.
        theta: parameters (n), at which gradients are compared.
        vertices: (S, n), with k ones each, float64.
        linear: c, (n).
        quadratic: A, (n, n).
        log_prob: trace (..., k) and parameters (..., n) -> log-probability of the trace, (...).
        conditional: parameters (..., n), trace and standard Gumbel noise (..., n) -> utilities given the trace.
    """

    name: str
    theta: Tensor
    vertices: Tensor
    linear: Tensor
    quadratic: Tensor
    log_prob: Callable[[Tensor, Tensor], Tensor]
    conditional: Callable[[Tensor, Tensor, Tensor], Tensor]

    def loss(self, x: Tensor) -> Tensor:
        """L of vertices or relaxed points, (..., n) -> (...)."""
        return x @ self.linear + ((x @ self.quadratic) * x).sum(-1)

    def solver(self, utilities: Tensor) -> Tensor:
        """The best vertex, by looking at all of them; no gradient."""
        return self.vertices[(utilities.detach() @ self.vertices.T).argmax(-1)]

    def relaxation(self, utilities: Tensor, temperature: float) -> Tensor:
        """The exponential-family relaxation, by listing all vertices: so that no temperature makes it singular."""
        return gibbs_mean(utilities, self.vertices, temperature)


def kruskal_log_prob(order: Tensor, theta: Tensor) -> Tensor:
    """Log-probability (...), in nats, that Kruskal's method takes the edges `order` (..., n - 1) one after another.

    Utilities are Gumbel variables with parameters theta (..., E). By the lack of memory of the waiting times the next
    edge is drawn by softmax(theta) from those that close no cycle with the edges taken before.
    """
    parts, total, left = _nodes(order, theta), theta.new_zeros(order.shape[:-1]), theta
    for edge in order.unsqueeze(-1).unbind(-2):
        total = total + left.log_softmax(-1).gather(-1, edge).squeeze(-1)
        parts, closed = _join(parts, edge)
        left = theta.masked_fill(closed, -torch.inf)
    return total


def kruskal_conditional(theta: Tensor, order: Tensor, noise: Tensor) -> Tensor:
    """Gumbel utilities (..., E) of which Kruskal's method takes the edges `order`, as `utilities.conditional_gumbel`.

    In waiting times exp(-U): each next edge adds an exponential time with the sum of the rates of the edges that close
    no cycle; an edge that an addition makes close one starts again then, as it is known to be later and no more.
    """
    parts, left, log_waiting = _nodes(order, theta), theta, -noise
    log_now, log_times = torch.full_like(theta[..., :1], -torch.inf), torch.full_like(theta, -torch.inf)
    was_closed = torch.zeros_like(theta, dtype=torch.bool)
    for edge in order.unsqueeze(-1).unbind(-2):
        step = log_waiting.gather(-1, edge) - left.logsumexp(-1, keepdim=True)
        log_now = torch.logaddexp(log_now, step) if was_closed.any() else step
        parts, closed = _join(parts, edge)
        again = torch.logaddexp(log_now, log_waiting - theta).scatter(-1, edge, log_now)
        log_times = torch.where(closed & ~was_closed, again, log_times)
        left, was_closed = theta.masked_fill(closed, -torch.inf), closed
    return -log_times


def _nodes(order: Tensor, theta: Tensor) -> Tensor:
    """Each node as a part of its own, (..., n)."""
    return torch.arange(n_nodes(theta.shape[-1])).expand(*order.shape[:-1], -1)


def _join(parts: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Parts (..., n) after an edge (..., 1) has joined two of them, and which edges (..., E) lie inside a part."""
    first, second = edge_ends(parts.shape[-1])
    ends = parts.gather(-1, torch.cat([first[edge], second[edge]], -1))
    parts = torch.where(parts == ends[..., 1:], ends[..., :1], parts)
    return parts, parts[..., first] == parts[..., second]


def trace(x: Tensor, utilities: Tensor) -> Tensor:
    """The items of vertices x (..., n) in the order in which the greedy method takes them, best first: (..., k)."""
    k = int(x.flatten(0, -2)[0].sum())
    return utilities.detach().masked_fill(x == 0, -torch.inf).topk(k, -1).indices


def log_prob_of_vertex(problem: Problem, order: Tensor, theta: Tensor) -> Tensor:
    """Log-probability (...) of the vertex with the items `order` (..., k): the sum over all k! orders of them."""
    permutations = torch.tensor(list(itertools.permutations(range(order.shape[-1]))))
    orders = order[..., permutations]
    return problem.log_prob(orders, theta.unsqueeze(-2).expand(*orders.shape[:-1], -1)).logsumexp(-1)


def expected_loss(problem: Problem, theta: Tensor) -> Tensor:
    """E L(X), exact, for parameters theta (..., n): a sum over vertices and orders; differentiable, (...)."""
    items = problem.vertices.nonzero()[:, 1].view(len(problem.vertices), -1)
    shape = (*theta.shape[:-1], len(items))
    log_p = log_prob_of_vertex(problem, items.expand(*shape, -1), theta.unsqueeze(-2).expand(*shape, -1))
    return log_p.exp() @ problem.loss(problem.vertices)


def exact_gradient(problem: Problem, theta: Tensor) -> Tensor:
    """Gradient (..., n) of `expected_loss`."""
    theta = theta.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(problem, theta).sum(), theta)
    return gradient


def problems() -> list[Problem]:
    """The three; losses of the larger two are random, with standard deviation 1 over the vertices."""
    categorical = Problem(
        "categorical",
        torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64),
        all_subsets(3, 1),
        torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64),
        torch.tensor([[1.0, 0.5, -0.3], [0.5, -1.0, 0.8], [-0.3, 0.8, 2.0]], dtype=torch.float64),
        plackett_luce_log_prob,
        conditional_gumbel,
    )
    tree_theta = torch.tensor([0.5, -1.0, 0.3, 2.0, 0.0, -0.7], dtype=torch.float64)
    return [
        categorical,
        Problem("k_subsets", tree_theta[:5], *_loss(all_subsets(5, 2), 1), plackett_luce_log_prob, conditional_gumbel),
        Problem("spanning_trees", tree_theta, *_loss(all_spanning_trees(4), 2), kruskal_log_prob, kruskal_conditional),
    ]


def _loss(vertices: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The vertices, and a random c and A, scaled so that the losses of the vertices have standard deviation 1."""
    generator, n = torch.Generator().manual_seed(seed), vertices.shape[1]
    linear = torch.randn(n, generator=generator, dtype=torch.float64)
    square = torch.randn(n, n, generator=generator, dtype=torch.float64)
    quadratic = (square + square.T) / 2
    scale = (vertices @ linear + ((vertices @ quadratic) * vertices).sum(-1)).std()
    return vertices, linear / scale, quadratic / scale
