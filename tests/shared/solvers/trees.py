"""Independent answers about spanning trees: every one of them, scipy, networkx, and what makes a vector one."""

import itertools

import networkx as nx
import numpy as np
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor


def edges(n: int) -> list[tuple[int, int]]:
    """The edges in the order of the vectors."""
    return list(itertools.combinations(range(n), 2))


def is_tree(indicator: Tensor) -> bool:
    """Whether the edges with 1 are a spanning tree, and all others hold 0."""
    n = round((1 + (1 + 8 * len(indicator)) ** 0.5) / 2)
    chosen = [edge for edge, x in zip(edges(n), indicator.tolist(), strict=True) if x]
    graph = nx.Graph(chosen)
    return set(indicator.tolist()) <= {0, 1} and len(graph) == n and nx.is_tree(graph)


def all_trees(n: int) -> Tensor:
    """Indicators (n^(n-2), n(n-1)/2) of all spanning trees, float64."""
    trees = []
    for chosen in itertools.combinations(range(n * (n - 1) // 2), n - 1):
        parts = list(range(n))
        for first, second in (edges(n)[k] for k in chosen):
            parts = [parts[first] if part == parts[second] else part for part in parts]
        if len(set(parts)) == 1:
            trees.append(chosen)
    return torch.zeros(len(trees), n * (n - 1) // 2, dtype=torch.float64).scatter_(1, torch.tensor(trees), 1)


def by_networkx(scores: Tensor, n: int) -> Tensor:
    """The maximum tree of one vector of distinct scores."""
    graph = nx.Graph()
    graph.add_weighted_edges_from((*edge, x) for edge, x in zip(edges(n), scores.tolist(), strict=True))
    tree = nx.maximum_spanning_tree(graph)
    return torch.tensor([float(tree.has_edge(*edge)) for edge in edges(n)])


def by_scipy(scores: Tensor, n: int) -> Tensor:
    """The same. Scipy drops edges of weight 0, so all weights are shifted above it."""
    costs = np.zeros((n, n))
    costs[np.triu_indices(n, 1)] = (scores.max() - scores).double().numpy() + 1
    tree = minimum_spanning_tree(costs).toarray()
    return torch.tensor([float(tree[edge] + tree[edge[::-1]] > 0) for edge in edges(n)])
