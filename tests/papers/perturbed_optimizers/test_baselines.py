"""The baselines: their bounds, their order, and what each may look at."""

import dataclasses

import pytest
import torch

from papers.perturbed_optimizers.baselines import (
    baselines,
    cell_pixels,
    cell_statistics,
    forest_costs,
    nearest_colour_costs,
)
from papers.perturbed_optimizers.terrain import Maps, draw_maps
from shared.data.samples import cut_terrain_tiles
from shared.paths import DATA


@pytest.fixture(scope="module")
def train_and_test(tmp_path_factory: pytest.TempPathFactory) -> tuple[Maps, Maps]:
    place = tmp_path_factory.mktemp("data")
    (place / "terrain_tiles").mkdir()
    for name, content in cut_terrain_tiles().items():
        (place / "terrain_tiles" / name).write_bytes(content)
    return draw_maps(60, 0, "train", place, allow_sample=True), draw_maps(80, 0, "test", place, allow_sample=True)


def in_order(values: dict[str, dict[str, float]], name: str) -> list[float]:
    return [values[each][name] for each in ("constant", "nearest_colour", "random_forest", "true_costs")]


def test_the_order_on_the_stand_in(train_and_test: tuple[Maps, Maps]) -> None:
    """Colours of patches of photographs tell little about their kind, so that only the others have an order."""
    values = baselines(*train_and_test)
    for name in ("optimal_path_rate", "cost_ratio"):
        constant, colour, forest, truth = in_order(values, name)
        assert max(constant, colour) < forest < truth == 1
    assert in_order(values, "optimal_path_rate")[0] == 0
    assert 0.5 < in_order(values, "cost_ratio")[0] < 0.9


def test_cells_are_cut_row_by_row() -> None:
    pixels = torch.arange(2 * 3 * 96 * 96).remainder(251).to(torch.uint8).view(2, 3, 96, 96)
    cells = cell_pixels(pixels)
    assert cells.shape == (288, 3, 8, 8)
    assert torch.equal(cells[144 + 12 * 5 + 7], pixels[1, :, 40:48, 56:64].float())


def test_nearest_colour_finds_kinds_of_one_colour_and_only_those_shown(train_and_test: tuple[Maps, Maps]) -> None:
    _, test = train_and_test
    grey = test.kinds.mul(50).repeat_interleave(8, 1).repeat_interleave(8, 2)
    plain = dataclasses.replace(test, pixels=grey[:, None].expand(-1, 3, -1, -1).contiguous())
    assert torch.equal(nearest_colour_costs(plain, plain), test.costs)
    no_swamp = dataclasses.replace(plain, kinds=plain.kinds.where(plain.kinds != 3, 4))
    assert 7.7 not in nearest_colour_costs(no_swamp, plain).unique().tolist()


def test_statistics_do_not_see_the_brightness_of_a_map(train_and_test: tuple[Maps, Maps]) -> None:
    pixels = train_and_test[0].pixels[:4] // 2
    assert torch.allclose(
        torch.from_numpy(cell_statistics(pixels)), torch.from_numpy(cell_statistics(2 * pixels)), rtol=1e-4, atol=1e-5
    )


def test_the_forest_learns_from_training_maps_only(train_and_test: tuple[Maps, Maps]) -> None:
    train, test = train_and_test
    blind = dataclasses.replace(test, kinds=torch.zeros_like(test.kinds))
    assert (forest_costs(train, blind) == test.costs).float().mean() > 0.75
    shuffled = dataclasses.replace(train, kinds=train.kinds[torch.randperm(60)])
    assert (forest_costs(shuffled, test) == test.costs).float().mean() < 0.35


@pytest.mark.data
def test_the_order_on_the_real_tiles() -> None:
    values = baselines(draw_maps(250, 0, "train", DATA), draw_maps(300, 0, "test", DATA))
    measured = in_order(values, "optimal_path_rate")
    assert measured[0] == 0 < measured[1] < 0.3
    assert measured[2] > 0.98
    assert measured[3] == 1
