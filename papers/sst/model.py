"""The networks of the graph-layout experiment: an encoder of trajectories into edge logits and a decoder of positions.

Both are those of neural relational inference (Kipf et al., 2018), the encoder with its factor-graph pass. Directed
edges of K_n are ordered by their receivers, (1 -> 0), (2 -> 0), ..., (n-1 -> 0), (0 -> 1), (2 -> 1), ..., which is the
n x n matrix [receiver, sender] read by rows without its diagonal: messages are summed along rows, nothing is multiplied
by one-hot matrices. The first layer of an edge's network is linear in [sender, receiver], so that it is applied to the
n vertices and added in pairs instead of being applied to the n(n-1) pairs.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def matrix_from_directed(edges: Tensor, vertices: int) -> Tensor:
    """Values of directed edges (..., n(n-1)) as matrices (..., n, n), [receiver, sender], with a zero diagonal."""
    # Between two diagonal entries of the rows lie n others.
    spaced = F.pad(edges.unflatten(-1, (vertices - 1, vertices)), (0, 1)).flatten(-2)
    matrix: Tensor = F.pad(spaced, (1, 0)).unflatten(-1, (vertices, vertices))
    return matrix


def directed_from_matrix(matrix: Tensor) -> Tensor:
    """Features (..., n, n, d), [receiver, sender], without the diagonal: directed edges (..., n(n-1), d)."""
    n = matrix.shape[-2]
    # Rows of n + 1 entries from the second one on end with a diagonal entry each.
    rows: Tensor = matrix.flatten(-3, -2)[..., 1:, :].unflatten(-2, (n - 1, n + 1))
    return rows[..., :-1, :].flatten(-3, -2)


def directed_positions(vertices: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Where the undirected edge i < j stands among the directed ones: as i -> j and as j -> i, both (n(n-1)/2,)."""
    n = vertices
    i, j = torch.triu_indices(n, n, 1, device=device)
    return j * (n - 1) + i, i * (n - 1) + j - 1


def directed_from_undirected(edges: Tensor, vertices: int) -> Tensor:
    """Both directions get the value of the edge: (..., n(n-1)/2) -> (..., n(n-1))."""
    positions = torch.cat(directed_positions(vertices, edges.device))
    # Concatenation and permutation: a gather with repeated indices has a slow gradient on the CPU.
    return torch.cat([edges, edges], -1).index_select(-1, positions.argsort())


def undirected_from_directed(edges: Tensor, vertices: int) -> Tensor:
    """The mean of both directions: (..., n(n-1)) -> (..., n(n-1)/2)."""
    there, back = directed_positions(vertices, edges.device)
    return (edges.index_select(-1, there) + edges.index_select(-1, back)) / 2


def _linear(x: Tensor, layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """A layer of the many edges, in the given precision."""
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def _paired(layer: nn.Linear, vertices: Tensor, dtype: torch.dtype) -> Tensor:
    """A layer on [sender, receiver] for all pairs: vertices (..., n, d) -> (..., n, n, h), [receiver, sender].

    Columns of the layer's weight behind the first 2 d belong to other inputs and are left out.
    """
    d = vertices.shape[-1]
    from_sender = F.linear(vertices, layer.weight[:, :d]).to(dtype)
    from_receiver = F.linear(vertices, layer.weight[:, d : 2 * d], layer.bias).to(dtype)
    return from_receiver.unsqueeze(-2) + from_sender.unsqueeze(-3)


class Block(nn.Module):
    """Linear, ELU, linear, ELU, batch norm; Xavier-normal weights, biases 0.1. Features (..., d) -> (..., h)."""

    def __init__(self, inputs: int, hidden: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.from_first(self.first(x))

    def from_first(self, x: Tensor) -> Tensor:
        """The block after its first layer: (..., h) -> (..., h), float32."""
        x = F.elu(_linear(F.elu(x), self.second, self.dtype)).to(self.norm.weight.dtype)
        return self.norm(x.flatten(0, -2)).view_as(x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Trajectories (B, n, T, 2) to logits (B, n(n-1), outputs) of the directed edges.

    Vertices, edges, vertices again and edges again, with the first edge features beside the second ones. 664,833
    parameters at T = 10, hidden 256 and 1 output.

    Args:
        steps: frames T.
        hidden: width.
        outputs: 1 for models of undirected graphs, 2 for independent edges.
        dtype: precision of the products over all edges; bfloat16 is several times faster where the processor has it.
    """

    def __init__(self, steps: int, hidden: int, outputs: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vertices = Block(2 * steps, hidden)
        self.edges = Block(2 * hidden, hidden, dtype)
        self.vertices_again = Block(hidden, hidden)
        self.edges_again = Block(3 * hidden, hidden, dtype)
        self.logits = nn.Linear(hidden, outputs)
        self.dtype = dtype
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.constant_(layer.bias, 0.1)

    def forward(self, frames: Tensor) -> Tensor:
        n = frames.shape[1]
        x = self.vertices(frames.flatten(2))
        skip = self.edges.from_first(directed_from_matrix(_paired(self.edges.first, x, self.dtype)))
        x = self.vertices_again(skip.unflatten(1, (n, n - 1)).sum(2) / n)
        first = self.edges_again.first
        pairs = directed_from_matrix(_paired(first, x, self.dtype))
        beside = F.linear(skip.to(self.dtype), first.weight[:, 2 * x.shape[-1] :].to(self.dtype))
        return self.logits(self.edges_again.from_first(pairs + beside))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Positions (B, M, n, 2) and a graph to the positions one frame later, (B, M, n, 2).

    Each edge type has messages of its own; a vertex sums those of its incoming edges, weighted by the edges, and moves.
    266,754 parameters at hidden 256 and 2 types.

    Args:
        hidden: width.
        types: 2, non-edges and edges with the weights 1 - x and x, or 1, edges only.
        dtype: precision of the products over all edges.

    Raises:
        ValueError: `types` is neither 1 nor 2.
    """

    def __init__(self, hidden: int, types: int = 2, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if types not in (1, 2):
            raise ValueError(f"there are 1 or 2 types of edges, not {types}")
        self.message_first = nn.ModuleList(nn.Linear(4, hidden) for _ in range(types))
        self.message_second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(types))
        self.motion = nn.Sequential(
            *(nn.Linear(2 + hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)),
        )
        self.dtype = dtype

    def forward(self, positions: Tensor, edges: Tensor) -> Tensor:
        """One frame ahead.

        Args:
            positions: (B, M, n, 2), M moments that share a graph.
            edges: weights (B, n(n-1)) of the directed edges, relaxed in [0, 1] or hard.
        """
        n = positions.shape[2]
        received: Tensor | float = 0.0
        layers = cast(Iterable[tuple[nn.Linear, nn.Linear]], zip(self.message_first, self.message_second, strict=True))
        for (first, second), weight in zip(layers, self._weights(edges), strict=True):
            hidden = F.relu(_paired(first, positions, self.dtype))  # (B, M, n, n, h)
            message = F.relu(_linear(hidden, second, self.dtype))
            weighted = message * matrix_from_directed(weight, n)[:, None, :, :, None].to(self.dtype)
            received = received + weighted.sum(3, dtype=positions.dtype)
        return positions + self.motion(torch.cat([positions, torch.as_tensor(received)], -1))  # type: ignore[no-any-return]

    def _weights(self, edges: Tensor) -> Iterable[Tensor]:
        """The weight of each type."""
        return (1 - edges, edges) if len(self.message_first) == 2 else (edges,)


def rollout(decoder: Decoder, frames: Tensor, edges: Tensor, prediction_steps: int) -> Tensor:
    """Predictions of frames 2..T, in which a true frame is used again after every `prediction_steps` frames.

    Args:
        decoder: one frame ahead.
        frames: (B, n, T, 2).
        edges: (B, n(n-1)).
        prediction_steps: 1 for predictions from the true frame before, T - 1 for one from the first frame alone.

    Returns:
        (B, n, T - 1, 2)

    Raises:
        ValueError: `prediction_steps` is not in 1..T-1.
    """
    transitions = frames.shape[2] - 1
    if not 1 <= prediction_steps <= transitions:
        raise ValueError(f"{prediction_steps} prediction steps; there are 1..{transitions}")
    positions = frames[:, :, :-1:prediction_steps].transpose(1, 2)  # (B, M, n, 2)
    predicted = []
    for _ in range(prediction_steps):
        positions = decoder(positions, edges)
        predicted.append(positions)
    return torch.stack(predicted, 2).flatten(1, 2)[:, :transitions].transpose(1, 2)
