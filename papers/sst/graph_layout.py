"""Trajectories of graph layouts, drawn at run time: random trees whose vertices move under Fruchterman-Reingold forces.

The data of the graph-layout experiment of Paulus et al., Gradient Estimation with Stochastic Softmax Tricks (2020): a
tree is the heaviest one under iid Gumbel(0) edge weights, which is not the uniform law over trees; vertices start at
N(0, 1) positions; one iteration of the force-directed layout gives the first frame, one more each later frame.
Every iteration recentres and rescales the whole picture, so that no message between neighbours predicts it exactly.
Whoever knows the tree and the rule predicts it without error: `layout_step`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import UserError
from shared.solvers.spanning_tree import max_spanning_tree

Split = Literal["train", "validation", "test"]

#: Graphs in each split of the published data.
SIZES: dict[Split, int] = {"train": 50_000, "validation": 10_000, "test": 10_000}
#: Vertices of the published graphs.
VERTICES = 10
#: Distances and lengths of displacements below this count as this much, as in networkx 3.6.1.
FLOOR = 0.01
#: Length of a step, as a share of the larger side of the bounding box.
STEP_SHARE = 0.1

_SPLITS: tuple[Split, ...] = tuple(SIZES)
#: Graphs drawn together; their forces fit into a core's cache. Which graph comes i-th depends on this number.
_BLOCK = 250


@dataclass(frozen=True)
class Layouts:
    """N graphs, tensors on the CPU.

    `frames` float32 (N, n, T, 2), positions of the vertices, all within [-1, 1]; `trees` float32 (N, n(n-1)/2), 1 on
    the edges of the tree that pulls, in the order (0, 1), (0, 2), ..., (1, 2), ....
    """

    frames: Tensor
    trees: Tensor


def draw_layouts(split: Split, count: int, steps: int, seed: int, vertices: int = VERTICES) -> Layouts:
    """The first `count` graphs of a split, a pure function of the arguments.

    Graph i depends neither on `count` nor on `steps`: more graphs extend fewer, and longer trajectories continue
    shorter ones. Splits and seeds have random numbers of their own.

    Args:
        split: "train", "validation" or "test".
        count: graphs, 1 or more; `SIZES` has the published numbers.
        steps: frames T, 2 or more; published are 10 and 20.
        seed: 0 or more.
        vertices: n, 2 or more.

    Raises:
        UserError: the split is unknown or a number is too small.
    """
    if split not in _SPLITS:
        raise UserError(f"unknown split {split!r} of the graph layouts: choose {', '.join(_SPLITS)}")
    if count < 1 or steps < 2 or seed < 0 or vertices < 2:
        raise UserError(
            f"graph layouts: {count} graphs of {vertices} vertices, {steps} frames, seed {seed} were asked for; "
            "give 1 graph, 2 vertices, 2 frames and seed 0 at least"
        )
    frames = np.empty((count, vertices, steps, 2), dtype=np.float32)
    trees = []
    for block, start in enumerate(range(0, count, _BLOCK)):
        rng = np.random.default_rng([seed, _SPLITS.index(split), block])
        used = min(_BLOCK, count - start)
        # Always the whole block: with another number of columns a matrix product may round differently.
        weights = rng.gumbel(size=(_BLOCK, vertices * (vertices - 1) // 2))
        positions = rng.standard_normal((_BLOCK, vertices, 2))
        tree = max_spanning_tree(torch.from_numpy(weights))
        frames[start : start + used] = _trajectories(positions, tree.numpy(), steps)[:used]
        trees.append(tree[:used].float())
    return Layouts(torch.from_numpy(frames), torch.cat(trees))


def layout_step(positions: Tensor, edges: Tensor) -> Tensor:
    """One iteration of the layout with its recentring and rescaling, in float64: the frame after the given one.

    Args:
        positions: (N, n, 2).
        edges: (N, n(n-1)/2), the strength of attraction along each pair, 1 for an edge and 0 for none.

    Returns:
        float64 (N, n, 2), centred at 0 with the largest coordinate 1.
    """
    x = np.ascontiguousarray(positions.detach().double().permute(2, 1, 0).numpy())
    pull = np.ascontiguousarray(edges.detach().double().T.numpy())
    return torch.from_numpy(_step(x, pull, _incidence(x.shape[1]))).permute(2, 1, 0).contiguous()


def extremes(frames: Tensor) -> tuple[float, float]:
    """The smallest and the largest coordinate of the training frames: what all splits are normalised with."""
    return frames.min().item(), frames.max().item()


def normalised(frames: Tensor, low: float, high: float) -> Tensor:
    """Frames mapped to [-1, 1] by the extremes of the training frames.

    The layout already puts the largest absolute coordinate of each frame at 1. With both signs among the training
    frames, which is all but certain, the map is the identity up to the last bit. The published code has it.

    Raises:
        ValueError: `low` is not below `high`.
    """
    if not low < high:
        raise ValueError(f"the extremes {low} and {high} are no interval")
    return (frames - low) * (2 / (high - low)) - 1


def _trajectories(positions: NDArray[np.float64], trees: NDArray[np.float64], steps: int) -> NDArray[np.float32]:
    """Frames (B, n, T, 2) from starting positions (B, n, 2), of which none is a frame, and trees (B, E)."""
    batch, vertices, _ = positions.shape
    incidence = _incidence(vertices)
    x = np.ascontiguousarray(positions.transpose(2, 1, 0))
    pull = np.ascontiguousarray(trees.T)
    frames = np.empty((steps, 2, vertices, batch), dtype=np.float32)
    for step in range(steps):
        x = _step(x, pull, incidence)
        frames[step] = x
    return np.ascontiguousarray(frames.transpose(3, 2, 0, 1))


def _incidence(vertices: int) -> NDArray[np.float64]:
    """(n, E): 1 where an edge begins, -1 where it ends."""
    first, second = np.triu_indices(vertices, 1)
    incidence = np.zeros((vertices, len(first)))
    incidence[first, np.arange(len(first))] = 1
    incidence[second, np.arange(len(first))] = -1
    return incidence


def _step(x: NDArray[np.float64], pull: NDArray[np.float64], incidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """`layout_step` with graphs last, so that every operation runs along them: x (2, n, B), pull (E, B).

    The displacement of vertex i is the sum over j of (x_i - x_j) (k^2 / d_ij^2 - pull_ij d_ij / k), k = 1 / sqrt(n);
    all vertices move by `STEP_SHARE` of the larger side of the bounding box, except where forces nearly vanish.
    """
    k = 1 / math.sqrt(x.shape[1])
    difference = incidence.T @ x  # (2, E, B), once for each pair
    distance = np.maximum(np.sqrt(difference[0] ** 2 + difference[1] ** 2), FLOOR)
    difference *= k * k / distance**2 - pull * (distance / k)
    force = incidence @ difference
    length = np.maximum(np.sqrt(force[0] ** 2 + force[1] ** 2), FLOOR)
    side = (x.max(1) - x.min(1)).max(0)
    x = x + force * (STEP_SHARE * side / length)
    x -= x.mean(1, keepdims=True)
    x /= np.abs(x).max((0, 1))
    return x
