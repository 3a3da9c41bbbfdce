"""What the graph-layout models sample: a spanning tree, n - 1 edges, or independent directed edges.

From the logits of the encoder come the locations of independent Gumbel utilities; from the utilities the best graph or
a relaxed one, given as weights of all directed edges, (..., n(n-1)), in the order of `papers.sst.model`.
(Paulus et al., 2020, section 8.1.)
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.sst.chains import k_subset_marginals
from papers.sst.model import directed_from_undirected, undirected_from_directed
from papers.sst.spanning_trees import marginals
from papers.sst.subsets import k_subset_euclidean
from shared.solvers.simple import top_k
from shared.solvers.spanning_tree import max_spanning_tree

Structure = Literal["tree", "top_k", "independent"]
Relaxation = Literal["marginals", "euclidean"]

#: The limit of the range of u / t for trees; the authors' value.
MAX_RANGE = 15.0
#: Locations below this are bent towards it. KL(Gumbel(mu) || Gumbel(0)) grows as exp(-mu): one logit of a new encoder
#: at -20 outweighs everything else in the loss. At this location an edge is in the tree once in a few hundred graphs.
LOWEST = -4.0


def outputs(structure: Structure) -> int:
    """Logits of the encoder for each directed edge: no edge and edge where edges are independent, else one."""
    return 2 if structure == "independent" else 1


def locations(logits: Tensor, structure: Structure, vertices: int) -> Tensor:
    """Locations of the independent utilities, bounded below by `LOWEST` through a softplus.

    Args:
        logits: (B, n(n-1), `outputs(structure)`).
        vertices: n.

    Returns:
        (B, n(n-1)/2), the mean of both directions, or (B, n(n-1), 2) for independent edges.
    """
    raw = logits if structure == "independent" else undirected_from_directed(logits[..., 0], vertices)
    return F.softplus(raw - LOWEST) + LOWEST


def relaxed(
    utilities: Tensor, structure: Structure, vertices: int, temperature: float, relaxation: Relaxation = "marginals"
) -> Tensor:
    """The stochastic softmax trick: directed weights in [0, 1], differentiable.

    Args:
        utilities: (..., n(n-1)/2), or (..., n(n-1), 2) for independent edges.
        relaxation: of the n - 1 edges; trees have `marginals` alone.

    Raises:
        ValueError: an unknown combination.
    """
    if structure == "independent":
        return torch.softmax(utilities / temperature, -1)[..., 1]
    if structure == "tree" and relaxation == "marginals":
        edges = marginals(utilities, temperature, MAX_RANGE)
    elif structure == "top_k" and relaxation == "marginals":
        edges = k_subset_marginals(utilities, vertices - 1, temperature)
    elif structure == "top_k":
        edges = k_subset_euclidean(utilities, vertices - 1, temperature)
    else:
        raise ValueError(f"no relaxation {relaxation!r} of {structure!r}")
    return directed_from_undirected(edges, vertices)


@torch.no_grad()
def hard(utilities: Tensor, structure: Structure, vertices: int) -> Tensor:
    """The stochastic argmax trick: directed indicators; arguments as in `relaxed`."""
    if structure == "independent":
        return (utilities[..., 1] > utilities[..., 0]).to(utilities.dtype)
    edges = max_spanning_tree(utilities) if structure == "tree" else top_k(utilities, vertices - 1)
    return directed_from_undirected(edges, vertices)
