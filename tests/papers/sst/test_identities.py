"""What is measured of the relaxations holds, and is seen not to hold of broken ones."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from papers.sst import identities, subsets
from papers.sst.structures import Structure, structures

STRUCTURES = {structure.name: structure for structure in structures()}
every_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
GIBBS = [structure for structure in STRUCTURES.values() if "gibbs" in structure.entropies]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def utilities(structure: Structure, count: int = 60) -> Tensor:
    return identities.draw_utilities(structure, count, generator())


def broken(name: str, relaxation: Callable[[Tensor, float], Tensor]) -> Structure:
    return dataclasses.replace(STRUCTURES[name], relaxation=relaxation)


@every_structure
def test_distance_vanishes_with_the_temperature(structure: Structure) -> None:
    found = identities.limit_distances(structure, utilities(structure))
    ordered = [found[t] for t in identities.COLD]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[0] > 0.1
    assert ordered[-1] < 1e-3


def test_distance_of_a_relaxation_that_ignores_the_temperature() -> None:
    stuck = broken("categorical", lambda u, t: subsets.categorical(u, 1.0))
    assert identities.limit_distances(stuck, utilities(stuck))[0.02] > 0.1


def test_the_curve_counts_near_ties_and_refusals() -> None:
    trees = STRUCTURES["spanning_trees"]
    u = utilities(trees, 200)
    mean, refused = identities.limit_curve(trees, u, 1.0)
    assert 0.2 < mean < 0.6
    assert refused == 0
    assert identities.limit_curve(trees, u, 0.01)[1] > 5


def test_refused_instances_are_found_one_by_one() -> None:
    trees = STRUCTURES["spanning_trees"]
    u = utilities(trees, 50)
    far = torch.tensor([0.0, -2000, -2000, -2000, -2000, 0])  # two pairs of nodes
    u[[3, 17]] = far.double()
    points, accepted = identities.trusted(trees, u, 1.0)
    assert (~accepted).nonzero().flatten().tolist() == [3, 17]
    torch.testing.assert_close(points, trees.relaxation(u[accepted], 1.0), rtol=0, atol=1e-12)


def test_example_on_four_nodes() -> None:
    tree = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.float64)  # 01, 03, 12
    distances = [(identities.best_tree_example(t) - tree).abs().max().item() for t in (2.0, 1.0, 0.5, 0.1)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(0.053498, abs=1e-6)


@pytest.mark.parametrize("structure", GIBBS, ids=lambda structure: structure.name)
def test_exponential_families_are_exact(structure: Structure) -> None:
    u = utilities(structure)
    assert identities.exactness_error(structure, u) < 1e-7
    wrong = dataclasses.replace(structure, relaxation=lambda u, t: structure.relaxation(u, 1.01 * t))
    assert identities.exactness_error(wrong, u) > 1e-4


@every_structure
def test_sums_of_relaxed_points(structure: Structure) -> None:
    if not len(structure.sums):
        return
    u = utilities(structure)
    assert identities.sum_error(structure, u) < 1e-7
    wrong = dataclasses.replace(structure, relaxation=lambda u, t: 1.001 * structure.relaxation(u, t))
    assert identities.sum_error(wrong, u) > 9e-4


class _Doubled(torch.autograd.Function):
    """The identity with twice its derivative."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, v):  # type: ignore[no-untyped-def]
        return 2 * v


@every_structure
def test_closed_form_derivatives(structure: Structure) -> None:
    u = utilities(structure, 20)
    assert identities.vjp_error(structure, u, generator()) < 1e-6
    wrong = dataclasses.replace(structure, relaxation=lambda u, t: _Doubled.apply(structure.relaxation(u, t)))
    assert identities.vjp_error(wrong, u, generator()) > 0.01


@pytest.mark.parametrize(
    ("name", "entropy"),
    [(name, e) for name, structure in STRUCTURES.items() for e in structure.entropies if e != "gibbs"],
)
def test_no_point_of_the_polytope_is_better(name: str, entropy: str) -> None:
    structure = STRUCTURES[name]
    u = utilities(structure)
    assert identities.optimality_gap(structure, u, entropy) < 1e-9
    colder = dataclasses.replace(structure, relaxation=lambda u, t: structure.relaxation(u, 0.9 * t))
    assert identities.optimality_gap(colder, u, entropy) > 1e-3


def test_one_hot_sets_give_the_gumbel_softmax() -> None:
    theta = torch.randn(50, 5, dtype=torch.float64)
    found = identities.gumbel_softmax_difference(theta, generator())
    assert set(found) == {"k_subsets_categorical", "k_subsets_marginals", "correlated_k_subsets", "spanning_trees"}
    assert max(found.values()) < 1e-12


def test_gumbel_softmax_difference_sees_another_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsets, "k_subset_categorical", subsets.k_subset_binary)
    theta = torch.randn(50, 5, dtype=torch.float64)
    assert identities.gumbel_softmax_difference(theta, generator())["k_subsets_categorical"] > 0.01
