"""Trajectories against networkx, trees against the enumerated law, splits against their promises."""

import itertools
import time

import networkx as nx
import numpy as np
import pytest
import torch

from papers.sst import graph_layout
from papers.sst.graph_layout import draw_layouts, extremes, layout_step, normalised
from shared.errors import UserError
from shared.solvers.spanning_tree import max_spanning_tree


def graph(edges: torch.Tensor, vertices: int) -> nx.Graph:
    pairs = itertools.combinations(range(vertices), 2)
    result = nx.empty_graph(vertices)
    result.add_edges_from(pair for pair, used in zip(pairs, edges.tolist(), strict=True) if used)
    return result


def by_networkx(positions: np.ndarray, tree: nx.Graph) -> np.ndarray:
    placed = dict(enumerate(positions.copy()))
    after = nx.spring_layout(tree, pos=placed, iterations=1, threshold=1e-10, center=[0, 0], seed=0)
    return np.stack([after[i] for i in range(len(positions))])


@pytest.mark.parametrize("vertices", [2, 4, 10])
def test_trajectories_are_those_of_networkx(vertices: int) -> None:
    """Twenty frames in a row, each of them from the frame before, up to the rounding of float32."""
    layouts = draw_layouts("train", 6, 20, seed=3, vertices=vertices)
    start = np.random.default_rng([3, 0, 0])
    start.gumbel(size=(graph_layout._BLOCK, vertices * (vertices - 1) // 2))
    starts = start.standard_normal((graph_layout._BLOCK, vertices, 2))
    for index in range(6):
        tree = graph(layouts.trees[index], vertices)
        assert nx.is_tree(tree)
        x = starts[index]
        for frame in range(20):
            x = by_networkx(x, tree)
            np.testing.assert_allclose(layouts.frames[index, :, frame].numpy(), x, atol=1e-6)


def test_near_and_still_vertices_are_those_of_networkx() -> None:
    """Distances below the floor, and an equilibrium at which the forces nearly vanish."""
    near = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [1.0, 0.5], [-1.0, 0.25]], dtype=torch.float64)
    k = 1 / np.sqrt(2)
    still = torch.tensor([[0.0, 0.0], [k + 1e-4, 0.0]], dtype=torch.float64)
    for positions, edges in ((near, torch.tensor([1.0, 0, 1, 0, 1, 0])), (still, torch.tensor([1.0]))):
        expected = by_networkx(positions.numpy(), graph(edges, len(positions)))
        np.testing.assert_allclose(layout_step(positions[None], edges[None])[0].numpy(), expected, atol=1e-12)


def test_a_step_is_the_same_for_any_numbering() -> None:
    x = torch.randn(5, 10, 2, dtype=torch.float64)
    strength = torch.zeros(5, 10, 10, dtype=torch.float64)
    first, second = torch.triu_indices(10, 10, 1)
    strength[:, first, second] = max_spanning_tree(torch.randn(5, 45, dtype=torch.float64))
    strength = strength + strength.mT
    order = torch.randperm(10)
    renumbered = strength[:, order][:, :, order][:, first, second]
    torch.testing.assert_close(
        layout_step(x[:, order], renumbered), layout_step(x, strength[:, first, second])[:, order]
    )


def test_every_frame_is_centred_and_scaled() -> None:
    frames = draw_layouts("test", 300, 5, seed=0).frames
    assert frames.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(frames.abs().amax((1, 3)), torch.ones(300, 5))


def test_more_graphs_and_more_frames_extend_fewer() -> None:
    long = draw_layouts("train", 2 * graph_layout._BLOCK + 7, 20, seed=1)
    short = draw_layouts("train", graph_layout._BLOCK + 5, 10, seed=1)
    n = len(short.trees)
    assert torch.equal(long.trees[:n], short.trees)
    assert torch.equal(long.frames[:n, :, :10], short.frames)
    assert len(long.frames) == len(long.trees) == 2 * graph_layout._BLOCK + 7


def test_splits_seeds_and_blocks_differ() -> None:
    n = graph_layout._BLOCK
    drawn = draw_layouts("train", 2 * n, 2, seed=0).frames
    firsts = [drawn[0], drawn[n], *(draw_layouts(*which, 1, 2, seed=0).frames[0] for which in [("test",)])]
    firsts += [draw_layouts("validation", 1, 2, seed=0).frames[0], draw_layouts("train", 1, 2, seed=1).frames[0]]
    for one, other in itertools.combinations(firsts, 2):
        assert (one - other).abs().max() > 0.01


def test_trees_have_the_law_of_the_greedy_method() -> None:
    """K4: a star has probability 0.2676, by enumeration of the 720 orders in which the edges can be offered."""
    stars = 0
    for order in itertools.permutations(itertools.combinations(range(4), 2)):
        tree = nx.empty_graph(4)
        for edge in order:
            if not nx.has_path(tree, *edge):
                tree.add_edge(*edge)
        stars += max(degree for _, degree in tree.degree) == 3
    probability = stars / 720
    assert probability == pytest.approx(0.2676, abs=2e-3)
    count = 20_000
    trees = draw_layouts("train", count, 2, seed=0, vertices=4).trees
    assert (trees.sum(1) == 3).all()
    first, second = torch.triu_indices(4, 4, 1)
    degrees = torch.zeros(count, 4).index_add_(1, first, trees).index_add_(1, second, trees)
    share = (degrees.amax(1) == 3).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / count) ** 0.5)


def test_normalisation() -> None:
    """The identity on the layouts; the training extremes become -1 and 1 on anything else."""
    frames = draw_layouts("train", 200, 10, seed=0).frames
    torch.testing.assert_close(normalised(frames, *extremes(frames)), frames, rtol=0, atol=1e-6)
    other = 3 * torch.randn(50, 10, 4, 2) + 1
    assert extremes(normalised(other, *extremes(other))) == pytest.approx((-1, 1), abs=1e-6)
    with pytest.raises(ValueError, match="no interval"):
        normalised(frames, 1.0, 1.0)


def test_the_full_data_take_seconds() -> None:
    """The 70,000 graphs at T = 20 take ten seconds of a core; a twentieth of them, half a second."""
    start = time.process_time()
    draw_layouts("train", 3_500, 20, seed=0)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tests", 1, 2, 0), "unknown split 'tests'"),
        (("test", 0, 2, 0), "0 graphs"),
        (("test", 1, 1, 0), "1 frames"),
        (("test", 1, 2, -1), "seed -1"),
        (("test", 1, 2, 0, 1), "of 1 vertices"),
    ],
)
def test_impossible_requests_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_layouts(*arguments)
