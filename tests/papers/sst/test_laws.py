"""Tests of laws: they accept what holds and reject what does not."""

import pytest
import torch

from papers.sst import laws
from papers.sst.structures import gibbs_mean, structures, tree_structure

STRUCTURES = {structure.name: structure for structure in structures()}
DRAWS = 5000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def theta(name: str) -> torch.Tensor:
    return 0.7 * torch.randn(STRUCTURES[name].vertices.shape[1], generator=generator(), dtype=torch.float64)


def test_chi_square_of_fair_and_loaded_dice() -> None:
    fair = torch.full((6,), 1 / 6)
    assert laws.chi_square_p(torch.full((6,), 100), fair) == pytest.approx(1)
    assert laws.chi_square_p(torch.tensor([150, 90, 90, 90, 90, 90]), fair) < 1e-4
    assert laws.homogeneity_p(torch.tensor([100, 200, 0]), torch.tensor([10, 20, 0])) == pytest.approx(1)
    assert laws.homogeneity_p(torch.tensor([100, 200, 0]), torch.tensor([200, 100, 0])) < 1e-9


def test_uniform_p_values() -> None:
    assert laws.uniform_p([(i + 0.5) / 20 for i in range(20)]) > 0.99
    assert laws.uniform_p([0.01 * i for i in range(20)]) < 1e-4  # too small
    assert laws.uniform_p([0.999] * 20) < 1e-4  # too good


def test_the_exact_law_of_one_of_n_is_softmax() -> None:
    at = theta("categorical").requires_grad_()
    law = laws.exact_law(STRUCTURES["categorical"], at)
    torch.testing.assert_close(law, torch.softmax(at, -1).detach())
    (slope,) = torch.autograd.grad(law[0], at)
    (expected,) = torch.autograd.grad(torch.softmax(at, -1)[0], at)
    torch.testing.assert_close(slope, expected)


def test_exact_laws_of_trees() -> None:
    square = tree_structure(4)
    law = laws.exact_law(square, torch.zeros(6, dtype=torch.float64))
    first, second = torch.triu_indices(4, 4, 1)
    degrees = torch.stack([square.vertices[:, (first == i) | (second == i)].sum(1) for i in range(4)])
    assert law[degrees.amax(0) == 3].sum().item() == pytest.approx(4 / 15)
    at = torch.tensor([0.5, -1, 0.3], dtype=torch.float64)
    triangle = tree_structure(3)
    kruskal = laws.exact_law(triangle, at) @ triangle.vertices
    expected = torch.tensor([0.877659, 0.287313, 0.835028], dtype=torch.float64)
    torch.testing.assert_close(kruskal, expected, rtol=0, atol=1e-6)
    assert (kruskal - gibbs_mean(at, triangle.vertices, 1.0)).abs().max() > 0.02


@pytest.mark.parametrize("name", ["categorical", "k_subsets_marginals", "spanning_trees"])
@pytest.mark.parametrize("law", ["gumbel", "negative_exponential"])
def test_frequencies_have_the_exact_law_and_no_other(name: str, law: laws.Law) -> None:
    structure, at = STRUCTURES[name], theta(name)
    exact = laws.exact_law(structure, at)
    assert laws.law_p(structure, at, law, exact, DRAWS, generator(1)) > 0.001
    other = laws.exact_law(structure, 1.2 * at)
    assert laws.law_p(structure, at, law, other, DRAWS, generator(1)) < 1e-6


def test_matroids_have_one_law_and_arborescences_and_matchings_two() -> None:
    p, distance = laws.same_law_p(STRUCTURES["spanning_trees"], theta("spanning_trees"), DRAWS, generator(2))
    assert p > 0.001
    assert distance < 0.02
    for name in ("categorical", "k_subsets_euclidean", "spanning_trees"):
        assert laws.same_vertex(STRUCTURES[name], theta(name), DRAWS, generator(2)) == 100
    for name in ("arborescences", "matchings"):
        p, distance = laws.same_law_p(STRUCTURES[name], theta(name), DRAWS, generator(2))
        assert p < 1e-6
        assert distance > 0.02
        assert laws.same_vertex(STRUCTURES[name], theta(name), DRAWS, generator(2)) < 95


def test_the_exponential_race() -> None:
    rates = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    races = [laws.exponential_race(rates, DRAWS, generator(seed)) for seed in range(20)]
    for name in ("minimum", "argmin", "independence", "order"):
        assert laws.uniform_p([race.p_values[name] for race in races]) > 0.001
    means = torch.stack([race.means for race in races]).mean(0)
    torch.testing.assert_close(means, torch.full_like(means, 0.1), rtol=0.03, atol=0)
    assert races[0].table.sum() == DRAWS
    torch.testing.assert_close(races[0].table.sum(1), torch.full((10,), DRAWS / 10).double())
    assert max(race.correlation for race in races) < 0.06


def test_the_race_sees_clocks_with_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform waiting times: late winners are other clocks than early ones."""
    uniform = torch.Tensor.uniform_
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator: uniform(self, generator=generator))
    race = laws.exponential_race(torch.tensor([1.0, 2, 3, 4], dtype=torch.float64), DRAWS, generator())
    assert max(race.p_values.values()) < 1e-6
