"""How good inferred graphs and predicted trajectories are, with the simple rules of geometry to beat.

Edges come as indicators along the last dimension, undirected (N, n(n-1)/2) or directed (N, n(n-1)): a graph without
directions has the same precision and recall in both forms. Likelihoods are scaled as in the published code: the sum
of a trajectory over vertices, transitions and coordinates, divided by the number of vertices, without the constant of
the Gaussian. A trajectory has T - 1 transitions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from papers.sst.graph_layout import Layouts, layout_step
from shared.solvers.simple import top_k
from shared.solvers.spanning_tree import max_spanning_tree

#: Variance of the Gaussian around a predicted coordinate, fixed.
VARIANCE = 5e-5


@dataclass(frozen=True)
class EdgeMetrics:
    """Precision and recall of inferred edges, means over the graphs.

    A model whose two edge types have learnt messages of their own may call the edges non-edges. `precision` and
    `recall` are those of the labelling, X or 1 - X, with the higher precision, as published; `raw_precision` and
    `raw_recall` take X as it is, and `flipped` says whether the two differ. Where X was learnt as a tree, a flip
    means that the model found the opposite of the graph, and `precision` then looks like chance.
    """

    precision: float
    recall: float
    raw_precision: float
    raw_recall: float
    flipped: bool


def precision_and_recall(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall of each graph, float64 (N,); 0 where no edge is predicted, or none is true.

    Args:
        predicted: indicators (N, E).
        true: indicators (N, E).

    Raises:
        ValueError: different shapes, or values other than 0 and 1.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted edges have the shape {tuple(predicted.shape)}, the true ones {tuple(true.shape)}")
    if not (((predicted == 0) | (predicted == 1)).all() and ((true == 0) | (true == 1)).all()):
        raise ValueError("edges are indicators, 0 or 1: take hard samples")
    predicted, true = predicted.detach().double(), true.detach().double()
    hits = (predicted * true).sum(-1)
    return hits / predicted.sum(-1).clamp(min=1), hits / true.sum(-1).clamp(min=1)


def edge_metrics(predicted: Tensor, true: Tensor) -> EdgeMetrics:
    """`EdgeMetrics` of indicators (N, E) against the true ones (N, E).

    Raises:
        ValueError: as `precision_and_recall`.
    """
    raw, other = ([x.mean().item() for x in precision_and_recall(p, true)] for p in (predicted, 1 - predicted))
    better = max(raw, other, key=lambda pair: pair[0])
    return EdgeMetrics(better[0], better[1], raw[0], raw[1], better is other)


def nll_nats(predicted: Tensor, true: Tensor) -> Tensor:
    """Negative log-likelihood of each trajectory a vertex, without the Gaussian's constant: (N,) in nats.

    The sum over (vertices, transitions, coordinates) of err^2 / (2 * 5e-5), divided by the vertices.

    Args:
        predicted: (N, n, T - 1, 2), frames 2..T.
        true: the same frames.

    Raises:
        ValueError: different shapes.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted frames have the shape {tuple(predicted.shape)}, the true ones {tuple(true.shape)}")
    return (predicted - true).square().sum((1, 2, 3)) / (2 * VARIANCE * true.shape[1])


def gumbel_kl_nats(location: Tensor) -> Tensor:
    """KL(Gumbel(mu) || Gumbel(0)) = mu + exp(-mu) - 1 in nats, elementwise: 0 at mu = 0, positive elsewhere."""
    return location + torch.expm1(-location)


def utility_kl_nats(logits: Tensor, vertices: int) -> Tensor:
    """KL of Gumbel utilities against Gumbel(0) ones, a vertex: (N,) in nats, each utility counted once.

    It bounds the KL of the graphs from above, since a graph is a function of its utilities. Twice this is the released
    code's term of a symmetric model: it sums over both directions of an edge that has a single utility.

    Args:
        logits: locations (N, ...) of all independent utilities: (N, n(n-1)/2) for undirected models, (N, n(n-1), 2)
            for independent directed edges.
        vertices: n.
    """
    return gumbel_kl_nats(logits).flatten(1).sum(1) / vertices


@dataclass(frozen=True)
class Elbo:
    """The bound and its parts in nats a vertex, means over the trajectories.

    `elbo_nats` has the KL counted once, `elbo_double_kl_nats` twice, as in the released code.
    """

    nll_nats: float
    kl_nats: float
    elbo_nats: float
    elbo_double_kl_nats: float


def elbo(nll: Tensor, kl: Tensor) -> Elbo:
    """The bound from the terms (N,) of each trajectory, `nll_nats` and `utility_kl_nats`."""
    error, divergence = nll.double().mean().item(), kl.double().mean().item()
    return Elbo(error, divergence, -error - divergence, -error - 2 * divergence)


def pair_distances(positions: Tensor) -> Tensor:
    """Distances of all pairs (0, 1), (0, 2), ..., (1, 2), ...: (..., n, 2) -> (..., n(n-1)/2)."""
    first, second = torch.triu_indices(positions.shape[-2], positions.shape[-2], 1)
    distances: Tensor = torch.linalg.vector_norm(positions[..., first, :] - positions[..., second, :], dim=-1)
    return distances


def nearest_tree(frames: Tensor) -> Tensor:
    """The shortest spanning tree of the last frame: edges (N, n(n-1)/2) from frames (N, n, T, 2)."""
    return max_spanning_tree(-pair_distances(frames[:, :, -1]))


def closest_pairs(frames: Tensor) -> Tensor:
    """The n - 1 closest pairs of the last frame: edges (N, n(n-1)/2) from frames (N, n, T, 2)."""
    return top_k(-pair_distances(frames[:, :, -1]), frames.shape[1] - 1)


def approaching_tree(frames: Tensor) -> Tensor:
    """The spanning tree of the pairs whose distance decreased most from the first frame to the last."""
    return max_spanning_tree(pair_distances(frames[:, :, 0]) - pair_distances(frames[:, :, -1]))


def persistence_nll_nats(frames: Tensor) -> Tensor:
    """`nll_nats` of the prediction that nothing moves: (N,) from frames (N, n, T, 2)."""
    return nll_nats(frames[:, :, :-1], frames[:, :, 1:])


def exact_decoder_nll_nats(frames: Tensor, edges: Tensor) -> Tensor:
    """`nll_nats` of the true rule of motion applied to a guessed graph, each frame from the true one before it: (N,).

    Args:
        frames: (N, n, T, 2), not normalised.
        edges: (N, n(n-1)/2); the true ones give 0 up to the rounding of the frames.
    """
    predicted = [layout_step(frames[:, :, t], edges) for t in range(frames.shape[2] - 1)]
    return nll_nats(torch.stack(predicted, 2), frames[:, :, 1:].double())


def heuristics(layouts: Layouts) -> dict[str, float]:
    """The reference points of every result: precision, here equal to recall, of three geometric rules and of chance,
    and the persistence NLL in nats.
    """
    rules = {"nearest_tree": nearest_tree, "closest_pairs": closest_pairs, "approaching_tree": approaching_tree}
    values = {f"{name}_precision": edge_metrics(rule(layouts.frames), layouts.trees) for name, rule in rules.items()}
    chance = 2 / layouts.frames.shape[1]  # n - 1 edges among n (n - 1) / 2
    persistence = persistence_nll_nats(layouts.frames).double().mean().item()
    precisions = {name: value.raw_precision for name, value in values.items()}
    return {**precisions, "chance_precision": chance, "persistence_nll_nats": persistence}
