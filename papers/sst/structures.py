"""Every structure of the paper at a size at which all its vertices can be listed (Paulus et al., 2020, section 5).

The theory is measured on them: what a relaxation gives is compared with sums over all vertices. Utilities are flat,
(..., n), also those of matchings and arborescences, which are matrices elsewhere.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from papers.sst import arborescences, chains, matchings, spanning_trees, subsets
from shared.solvers.arborescence import max_arborescence
from shared.solvers.assignment import assignment
from shared.solvers.chains import correlated_top_k, with_products
from shared.solvers.simple import argmax, top_k
from shared.solvers.spanning_tree import edge_ends, max_spanning_tree

__all__ = [
    "Structure",
    "all_arborescences",
    "all_permutations",
    "all_spanning_trees",
    "all_subsets",
    "gibbs_mean",
    "structures",
    "tree_structure",
    "vertex_index",
]


@dataclass(frozen=True)
class Structure:
    """A set of vertices with one relaxation of the best of them.

    Attributes:
        name: the arm of its numbers.
        vertices: all of them, (S, n) of 0 and 1, float64.
        sums: linear forms (m, n) that have the same value on every vertex, such as the number of edges.
        solver: utilities (B, n) -> the best vertex.
        relaxation: utilities (B, n) and temperature -> the relaxed point.
        entropies: what the relaxation subtracts: `gibbs` (exponential family), `euclidean`, `categorical`, `binary`;
            softmax and sigmoid have two names.
    """

    name: str
    vertices: Tensor
    sums: Tensor
    solver: Callable[[Tensor], Tensor]
    relaxation: Callable[[Tensor, float], Tensor]
    entropies: tuple[str, ...]


def all_subsets(n: int, k: int) -> Tensor:
    """Indicators of the subsets of `k` of `n` items, (S, n)."""
    chosen = torch.tensor(list(itertools.combinations(range(n), k)))
    return torch.zeros(len(chosen), n, dtype=torch.float64).scatter_(1, chosen, 1)


def all_permutations(n: int) -> Tensor:
    """Permutation matrices, (n!, n * n)."""
    images = torch.tensor(list(itertools.permutations(range(n))))
    return torch.nn.functional.one_hot(images, n).double().flatten(1)


def all_spanning_trees(n: int) -> Tensor:
    """Edge indicators of the n^(n-2) spanning trees, (S, n(n-1)/2): n - 1 edges with an invertible incidence matrix."""
    first, second = edge_ends(n)
    candidates = all_subsets(len(first), n - 1)
    nodes = torch.arange(1, n).unsqueeze(1)
    incidence = (nodes == first).double() - (nodes == second).double()
    chosen = candidates.nonzero()[:, 1].view(-1, n - 1)
    minors = incidence[:, chosen].movedim(0, 1)
    return candidates[torch.linalg.det(minors).abs() > 0.5]


def all_arborescences(n: int) -> Tensor:
    """Indicators of the arborescences with root 0, (S, n * n), place (i, j) for an edge i -> j: no choice of parents
    has a cycle exactly if the minor of I - X without the root has determinant 1.
    """
    parents = torch.tensor(list(itertools.product(range(n), repeat=n - 1)))
    edges = torch.nn.functional.one_hot(parents, n).double().mT  # (parent, child without the root)
    minors = torch.eye(n - 1, dtype=torch.float64) - edges[:, 1:]
    found = edges[torch.linalg.det(minors) > 0.5]
    return torch.nn.functional.pad(found, (1, 0)).flatten(1)


def gibbs_mean(utilities: Tensor, vertices: Tensor, temperature: float) -> Tensor:
    """Mean of the Gibbs law exp(<u, x> / t) over listed vertices, (..., n): the exponential-family relaxation.

    A sum over (S, n) vertices, differentiable, which no temperature makes singular.
    """
    return torch.softmax(utilities @ vertices.T / temperature, -1) @ vertices


def vertex_index(x: Tensor, vertices: Tensor) -> Tensor:
    """Which of the (S, n) vertices each row of x (..., n) is, (...) int64."""
    return ((2 * x - 1) @ (2 * vertices - 1).T).argmax(-1)


def structures() -> list[Structure]:
    """All of them: 5 items, subsets of 2, rows of 6 with 3 chosen, 3 x 3 matchings, trees on 4 nodes."""
    one_hot, pairs = all_subsets(5, 1), all_subsets(5, 2)
    cube = torch.cat([all_subsets(5, k) for k in range(1, 6)] + [torch.zeros(1, 5).double()])
    total, nothing = torch.ones(1, 5).double(), torch.zeros(0, 5).double()
    rows = with_products(all_subsets(6, 3))
    items = torch.cat([torch.ones(6), torch.zeros(5)]).double().unsqueeze(0)
    found = [
        Structure("categorical", one_hot, total, argmax, subsets.categorical, ("gibbs", "categorical")),
        Structure("categorical_euclidean", one_hot, total, argmax, subsets.categorical_euclidean, ("euclidean",)),
        Structure("binary_vectors", cube, nothing, subsets.binary_vector, subsets.binary, ("gibbs", "binary")),
    ]
    two = partial(top_k, k=2)
    for entropy, relaxation in (
        ("euclidean", subsets.k_subset_euclidean),
        ("categorical", subsets.k_subset_categorical),
        ("binary", subsets.k_subset_binary),
        ("gibbs", chains.k_subset_marginals),
    ):
        name = "k_subsets_marginals" if entropy == "gibbs" else f"k_subsets_{entropy}"
        found.append(Structure(name, pairs, total, two, partial(_of_two, relaxation), (entropy,)))
    found += [
        Structure("correlated_k_subsets", rows, items, partial(correlated_top_k, k=3), _correlated_three, ("gibbs",)),
        Structure("matchings", all_permutations(3), _rows_and_columns(3), _matching, _sinkhorn, ("categorical",)),
        tree_structure(4),
        Structure("arborescences", all_arborescences(4), _rows_and_columns(4)[5:], _arborescence, _rooted, ("gibbs",)),
    ]
    return found


def tree_structure(n: int) -> Structure:
    """Spanning trees of the complete graph on n nodes."""
    vertices = all_spanning_trees(n)
    total = torch.ones_like(vertices[:1])
    return Structure("spanning_trees", vertices, total, max_spanning_tree, spanning_trees.marginals, ("gibbs",))


def _of_two(relaxation: Callable[[Tensor, int, float], Tensor], utilities: Tensor, temperature: float) -> Tensor:
    return relaxation(utilities, 2, temperature)


def _correlated_three(utilities: Tensor, temperature: float) -> Tensor:
    return chains.correlated_marginals(utilities, 3, temperature)


def _rows_and_columns(n: int) -> Tensor:
    """The sums of the n rows, then those of the n columns, of a flat n x n matrix: (2n, n * n)."""
    eye, ones = torch.eye(n).double(), torch.ones(1, n).double()
    return torch.cat([torch.kron(eye, ones), torch.kron(ones, eye)])


def _square(flat: Tensor) -> Tensor:
    """Matrices (..., n, n) of flat ones."""
    n = round(flat.shape[-1] ** 0.5)
    return flat.reshape(*flat.shape[:-1], n, n)


def _matching(utilities: Tensor) -> Tensor:
    return assignment(_square(utilities)).flatten(-2)


def _sinkhorn(utilities: Tensor, temperature: float) -> Tensor:
    return matchings.sinkhorn(_square(utilities), temperature, tolerance=1e-12).flatten(-2)


def _arborescence(utilities: Tensor) -> Tensor:
    return max_arborescence(_square(utilities)).flatten(-2)


def _rooted(utilities: Tensor, temperature: float) -> Tensor:
    return arborescences.marginals(_square(utilities), temperature).flatten(-2)
