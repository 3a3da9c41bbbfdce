"""The structures of the theory: all vertices are listed, once, and the solvers find the best of them."""

import math

import pytest
import torch

from papers.sst import arborescences, spanning_trees
from papers.sst.structures import (
    Structure,
    all_arborescences,
    all_permutations,
    all_spanning_trees,
    all_subsets,
    gibbs_mean,
    structures,
    tree_structure,
    vertex_index,
)
from tests.shared.solvers import trees

STRUCTURES = {structure.name: structure for structure in structures()}
every_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)


def test_numbers_of_vertices() -> None:
    assert len(all_subsets(6, 2)) == math.comb(6, 2)
    assert len(all_permutations(4)) == 24
    assert [len(all_spanning_trees(n)) for n in (2, 3, 4, 5)] == [1, 3, 16, 125]  # Cayley
    assert [len(all_arborescences(n)) for n in (2, 3, 4, 5)] == [1, 3, 16, 125]
    assert len(STRUCTURES["binary_vectors"].vertices) == 32


def test_spanning_trees_are_those_of_another_program() -> None:
    assert {tuple(x) for x in all_spanning_trees(4).tolist()} == {tuple(x) for x in trees.all_trees(4).tolist()}


def test_every_node_of_an_arborescence_has_one_parent_and_leads_back_to_the_root() -> None:
    edges = all_arborescences(4).view(-1, 4, 4)
    torch.testing.assert_close(edges.sum(1), torch.tensor([0.0, 1, 1, 1]).double().expand(16, 4))
    assert (torch.linalg.matrix_power(edges, 4) == 0).all()


@every_structure
def test_vertices_are_different_and_have_equal_sums(structure: Structure) -> None:
    assert len(structure.vertices.unique(dim=0)) == len(structure.vertices)
    sums = structure.vertices @ structure.sums.T
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=0, atol=0)


@every_structure
def test_the_solver_finds_the_best_vertex_and_the_index_knows_it(structure: Structure) -> None:
    u = torch.randn(300, structure.vertices.shape[1], dtype=torch.float64)
    best = (u @ structure.vertices.T).argmax(-1)
    torch.testing.assert_close(structure.solver(u), structure.vertices[best], rtol=0, atol=0)
    assert vertex_index(structure.solver(u), structure.vertices).equal(best)


@pytest.mark.parametrize("t", [0.3, 1.0, 3.0])
def test_listing_gives_the_closed_forms(t: float) -> None:
    u = torch.randn(20, 10, dtype=torch.float64)
    listed = gibbs_mean(u, tree_structure(5).vertices, t)
    torch.testing.assert_close(listed, spanning_trees.marginals(u, t), rtol=0, atol=1e-10)
    s = torch.randn(20, 4, 4, dtype=torch.float64)
    listed = gibbs_mean(s.flatten(1), all_arborescences(4), t).view(20, 4, 4)
    torch.testing.assert_close(listed, arborescences.marginals(s, t), rtol=0, atol=1e-10)
