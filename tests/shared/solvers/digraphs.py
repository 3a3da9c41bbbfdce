"""Independent answers about arborescences: every one of them, networkx, and what makes a matrix one."""

import functools
import itertools
import math

import networkx as nx
import torch
from torch import Tensor


def is_tree(parents: dict[int, int], root: int) -> bool:
    """Whether following the parents leads every node to the root."""
    for start in parents:
        node = start
        for _ in range(len(parents)):
            node = parents.get(node, root)
        if node != root:
            return False
    return True


@functools.cache
def arborescences(n: int, root: int = 0) -> Tensor:
    """All arborescences of the complete graph as indicators (count, n, n) of the edges i -> j, float64."""
    children = [j for j in range(n) if j != root]
    every = (dict(zip(children, chosen)) for chosen in itertools.product(range(n), repeat=n - 1))
    found = [parents for parents in every if all(i != j for j, i in parents.items()) and is_tree(parents, root)]
    result = torch.zeros(len(found), n, n, dtype=torch.float64)
    for indicator, parents in zip(result, found):
        for j, i in parents.items():
            indicator[i, j] = 1
    return result


def is_arborescence(indicator: Tensor, root: int = 0, length: int | None = None) -> bool:
    """Whether one matrix (n, n) of 0 and 1 is an arborescence on its first `length` nodes and 0 elsewhere."""
    length = len(indicator) if length is None else length
    edges = indicator.nonzero().tolist()
    parents = {j: i for i, j in edges}
    return (
        bool(((indicator == 0) | (indicator == 1)).all())
        and len(edges) == len(parents) == length - 1
        and set(parents) == set(range(length)) - {root}
        and is_tree(parents, root)
    )


def networkx_value(scores: Tensor, root: int = 0) -> float:
    """The largest sum of scores (n, n) by networkx; -inf is no edge. Fails where there is no arborescence."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(scores)))
    for i, j in itertools.permutations(range(len(scores)), 2):
        if j != root and scores[i, j] > -math.inf:
            graph.add_edge(i, j, weight=scores[i, j].item())
    tree = nx.maximum_spanning_arborescence(graph)
    return math.fsum(weight for _, _, weight in tree.edges(data="weight"))
